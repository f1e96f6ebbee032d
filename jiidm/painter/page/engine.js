// What makes pictures, for the page: this server's, in one method (map, style, settings, a function for the events).
// Another engine with the same methods can stand in its place.

export class Unreachable extends Error {}

export class ServerEngine {
  constructor(token) {
    this.token = token;
    this.session = [...crypto.getRandomValues(new Uint8Array(12))].map((b) => b.toString(16).padStart(2, '0')).join('');
  }

  // The classes, sizes, styles; throws Unreachable while the server starts.
  async describe() {
    return (await this.fetch('/api/model')).json();
  }

  // Makes a picture. `project` is {map, style, settings}, `onEvent` takes each event before the result.
  // Returns the result, {picture: Blob, seconds}; throws an AbortError when `signal` ends it or a newer one takes over.
  async paint(project, onEvent, signal) {
    const response = await this.fetch(`/api/picture?session=${this.session}`, {
      method: 'POST', body: JSON.stringify(project), headers: { 'Content-Type': 'application/json' }, signal,
    });
    let result = null;
    for await (const event of lines(response, signal)) {
      if (event.event === 'error') throw new Error(event.error);
      if (event.event === 'cancelled') throw new DOMException('a newer picture takes over', 'AbortError');
      if (event.picture) event.picture = blobOf(event.picture);
      if (event.event === 'result') result = event;
      else onEvent(event);
    }
    if (!result) throw new Unreachable('the answer broke off');
    return result;
  }

  // The label map of a photo, the bytes of a PNG.
  async segment(photo) {
    return this.post('/api/segment', photo);
  }

  // A label map of any kind (indices, palette, colours of a known table) as the bytes of a grey PNG.
  async readMap(png) {
    return this.post('/api/labels', png);
  }

  async style(name) {
    return (await this.fetch(`/api/styles/${encodeURIComponent(name)}`)).blob();
  }

  async example(name) {
    return new Uint8Array(await (await this.fetch(`/api/examples/${encodeURIComponent(name)}`)).arrayBuffer());
  }

  async post(path, blob) {
    const response = await this.fetch(`${path}?session=${this.session}-files`, {
      method: 'POST', body: blob, headers: { 'Content-Type': blob.type },
    });
    return Uint8Array.from(atob((await response.json()).map), (letter) => letter.charCodeAt(0));
  }

  // Fetches; waits where too many others are waiting; throws an Error with the server's words.
  async fetch(path, options = {}) {
    const headers = { ...options.headers };
    if (this.token) headers.Authorization = `Bearer ${this.token}`;
    for (let tries = 0; ; tries++) {
      let response;
      try {
        response = await fetch(path, { ...options, headers });
      } catch (error) {
        if (error.name === 'AbortError') throw error;
        throw new Unreachable('the server does not answer');
      }
      if (response.ok) return response;
      const text = (await response.json().catch(() => ({}))).error || `the server answers ${response.status}`;
      if (response.status === 503) throw new Unreachable(text);
      if (response.status !== 429 || tries >= 30) throw new Error(text);
      await new Promise((resolve) => setTimeout(resolve, 1000));
      options.signal?.throwIfAborted();
    }
  }
}

async function* lines(response, signal) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (signal?.aborted || error.name === 'AbortError') throw new DOMException('aborted', 'AbortError');
      throw new Unreachable('the connection broke');
    }
    if (part.done) return;
    const found = (rest + part.value).split('\n');
    rest = found.pop();
    for (const line of found) yield JSON.parse(line);
  }
}

function blobOf(base64) {
  return new Blob([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))], { type: 'image/png' });
}
