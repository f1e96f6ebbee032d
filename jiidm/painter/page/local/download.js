// Files of the page, each checked against its SHA-256 in files.json.

const ROOT = new URL('../../', import.meta.url);

export const address = (path) => new URL(path, ROOT).href;

export class Files {
  // `progress(bytes, of)` is told how much of the large files has come.
  static async open(progress) {
    const response = await fetch(address('files.json'));
    if (!response.ok) throw new Error(`files.json: the host answers ${response.status}; copy the whole folder there`);
    const files = new Files();
    Object.assign(files, { entries: (await response.json()).files, progress, got: 0, of: 0 });
    return files;
  }

  // Counts files that are going to be asked for.
  expect(paths) {
    for (const path of paths) this.of += this.entries[path].bytes;
  }

  async bytes(path) {
    const entry = this.entries[path];
    for (const cache of ['default', 'reload']) {
      const before = this.got;
      const bytes = await this.download(path, cache);
      const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
      if ([...digest].map((byte) => byte.toString(16).padStart(2, '0')).join('') === entry.sha256) return bytes;
      this.got = before;
    }
    throw new Error(`${path}: the file is damaged (another SHA-256 than in files.json); copy it to the host again`);
  }

  async download(path, cache) {
    const response = await fetch(address(path), { cache });
    if (!response.ok) throw new Error(`${path}: the host answers ${response.status}; copy the whole folder there`);
    const parts = [];
    for (const reader = response.body.getReader(); ;) {
      const { done, value } = await reader.read();
      if (done) break;
      parts.push(value);
      this.got += value.length;
      this.progress(this.got, this.of);
    }
    return new Uint8Array(await new Blob(parts).arrayBuffer());
  }
}
