// The engine of a page without a server: the same methods as ServerEngine, computed in this browser.

import { Unreachable } from '../engine.js';
import { encodeGrey } from '../png.js';
import { address } from './download.js';
import { readAnyMap } from './maps.js';

const ISOLATED = 'jiidm-isolated'; // set once the page was loaded again for threads
// one function with one SIMD instruction
const SIMD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 4, 1, 96, 0, 0, 3, 2, 1, 0, 10, 11, 1, 9, 0, 65, 0, 253, 15, 253, 98, 26, 11];

export class LocalEngine {
  constructor() {
    this.calls = new Map(); // by number, of the worker
    this.text = 'starting';
    this.model = null;
    this.error = null;
    this.start();
  }

  async start() {
    try {
      checkBrowser();
      const kept = await keepOffline();
      this.worker = new Worker(new URL('worker.js', import.meta.url), { type: 'module' });
      this.worker.onmessage = ({ data }) => this.calls.get(data.id)?.(data);
      this.worker.onerror = (event) => {
        const text = `the thread that computes ended (${event.message || 'it does not start in this browser'}); load the page again`;
        for (const take of [...this.calls.values()]) take({ event: 'error', error: text });
      };
      const { model, backend } = await this.call({ kind: 'load' }, (event) => { this.text = event.text; });
      const slow = crossOriginIsolated ? '' : '; one thread, since the host does not send the headers for more';
      const note = `The networks run in this browser (${backend}${slow})${kept ? '' : '; it does not keep them for offline use'}`;
      this.model = { ...model, note };
    } catch (error) {
      this.error = new Error(error.message);
    }
  }

  // The classes, sizes, styles; throws Unreachable while the networks load.
  async describe() {
    if (this.error) throw this.error;
    if (!this.model) throw new Unreachable(this.text);
    return this.model;
  }

  // Makes a picture, as ServerEngine.paint.
  async paint(project, onEvent, signal) {
    return this.call({ kind: 'paint', project }, onEvent, signal);
  }

  // The label map of a photo, the bytes of a PNG.
  async segment(photo) {
    return (await this.call({ kind: 'segment', photo })).map;
  }

  async readMap(png) {
    const { canvas: { width, height }, classes, color_tables: tables } = this.model;
    const labels = await readAnyMap(new Uint8Array(await png.arrayBuffer()), width, height, classes.length, tables);
    return encodeGrey(width, height, labels);
  }

  async style(name) {
    return (await this.file(this.model.styles.find((style) => style.name === name))).blob();
  }

  async example(name) {
    return new Uint8Array(await (await this.file(this.model.examples.find((example) => example.name === name))).arrayBuffer());
  }

  async file({ file }) {
    const response = await fetch(address(file)).catch(() => { throw new Error(`${file}: the host does not answer`); });
    if (!response.ok) throw new Error(`${file}: the host answers ${response.status}`);
    return response;
  }

  // Sends a message to the worker; returns its last event.
  call(message, onEvent, signal) {
    const id = (this.number = (this.number ?? 0) + 1);
    return new Promise((resolve, reject) => {
      const finish = (settle, value) => {
        this.calls.delete(id);
        settle(value);
      };
      const aborted = () => {
        this.worker.postMessage({ id, kind: 'cancel' });
        finish(reject, new DOMException('aborted', 'AbortError'));
      };
      if (signal?.aborted) return reject(new DOMException('aborted', 'AbortError'));
      signal?.addEventListener('abort', aborted, { once: true });
      this.calls.set(id, (event) => {
        if (event.event === 'error') finish(reject, new Error(event.error));
        else if (event.event === 'result' || event.event === 'ready') finish(resolve, event);
        else if (event.event !== 'cancelled') onEvent?.(event);
      });
      this.worker.postMessage({ id, ...message });
    });
  }
}

// Throws an Error that says what this browser lacks.
function checkBrowser() {
  const host = 'the page must be opened by https, or at localhost';
  for (const [has, words] of [
    [window.isSecureContext, `${location.origin} is not secure: ${host}`],
    [globalThis.WebAssembly && WebAssembly.validate(new Uint8Array(SIMD)), 'this browser has no WebAssembly with SIMD, in which the networks run; use a newer one (2023 or later)'],
    [globalThis.OffscreenCanvas && globalThis.DecompressionStream, 'this browser has no OffscreenCanvas or DecompressionStream; use a newer one (2023 or later)'],
  ]) if (!has) throw new Error(words);
}

// Starts the service worker, which keeps the files and sends the headers that threads need; returns whether it runs.
async function keepOffline() {
  if (!navigator.serviceWorker) return false;
  try {
    const registration = await navigator.serviceWorker.register(address('sw.js'));
    const worker = registration.installing ?? registration.waiting ?? registration.active;
    const ended = () => ['installed', 'activated', 'redundant'].includes(worker.state);
    await until(worker, 'statechange', ended, 60);
    if (worker.state === 'redundant') return false;
    await until(navigator.serviceWorker, 'controllerchange', () => navigator.serviceWorker.controller, 3);
  } catch {
    return false; // a private window, or a browser that refuses; the page works without it
  }
  if (!crossOriginIsolated && !sessionStorage.getItem(ISOLATED)) {
    sessionStorage.setItem(ISOLATED, 'tried');
    location.reload();
    await new Promise(() => {});
  }
  return true;
}

async function until(target, event, condition, seconds) {
  const end = AbortSignal.timeout(1000 * seconds);
  while (!condition()) {
    await new Promise((resolve, reject) => {
      target.addEventListener(event, resolve, { once: true });
      end.addEventListener('abort', () => reject(end.reason));
    });
  }
}
