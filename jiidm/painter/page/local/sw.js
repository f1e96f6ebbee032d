// The service worker of a page without a server: keeps its files, so that it works offline, and sends the headers that
// WebAssembly threads need where the host cannot. It stands beside index.html; VERSION changes with any of the files.

const VERSION = '@VERSION@';
const PREFIX = `jiidm ${self.registration.scope} `, NAME = PREFIX + VERSION;
const HEADERS = {
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Embedder-Policy': 'require-corp',
  'Cross-Origin-Resource-Policy': 'same-origin',
};
const LARGE = 2 ** 20; // bytes; larger files are kept when the page asks for them

self.addEventListener('install', (event) => event.waitUntil(keepSmallFiles()));
self.addEventListener('activate', (event) => event.waitUntil(takeOver()));
self.addEventListener('fetch', (event) => {
  const { method, url } = event.request;
  if (method === 'GET' && url.startsWith(self.registration.scope)) event.respondWith(answer(event.request));
});

async function keepSmallFiles() {
  const list = await fetch('files.json', { cache: 'no-cache' });
  const cache = await caches.open(NAME), { files } = await list.clone().json();
  await cache.put('files.json', list);
  await Promise.all(Object.entries(files).map(async ([path, { bytes, sha256 }]) => {
    if (bytes > LARGE) return;
    const response = await fetch(path, { cache: 'no-cache' });
    const digest = await crypto.subtle.digest('SHA-256', await response.clone().arrayBuffer());
    const found = [...new Uint8Array(digest)].map((byte) => byte.toString(16).padStart(2, '0')).join('');
    if (found !== sha256) throw new Error(`${path}: the file is damaged (another SHA-256 than in files.json)`);
    await cache.put(path, response);
  }));
}

async function takeOver() {
  for (const name of await caches.keys()) if (name.startsWith(PREFIX) && name !== NAME) await caches.delete(name);
  await self.clients.claim();
}

async function answer(request) {
  const cache = await caches.open(NAME);
  const [address] = request.url.split(/[?#]/);
  const url = address === self.registration.scope ? `${address}index.html` : address;
  let response = request.cache === 'reload' ? null : await cache.match(url);
  if (!response) {
    response = await fetch(request);
    if (response.ok) {
      await cache.put(url, response.clone()).catch(() => {}); // no space left: the page works, but not offline
    }
  }
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}
