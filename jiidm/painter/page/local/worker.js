// The thread that computes: loads onnxruntime-web and the networks, makes pictures one after the other.
// Messages in: {id, kind: 'load' | 'paint' | 'segment' | 'cancel', ...}; out: {id, event, ...} as of the server.

import { decodeGrey, encodeGrey, encodeRgb, fromBase64 } from '../png.js';
import { Schedule } from './diffusion.js';
import { Files, address } from './download.js';
import { Networks } from './networks.js';
import { makePlan } from './plan.js';
import { refine } from './refine.js';
import { fitPhoto, lanczos, resizeLabels, resizePhoto } from './resize.js';

const PREVIEW_INTERVAL = 100; // milliseconds between previews of one picture, at least
const MOST_THREADS = 8; // the maps are too small for more

let model, manifest, networks, schedule;
let lastStyle = { key: null, picture: null };
let queue = Promise.resolve();
const cancelled = new Set();

class Cancelled extends Error {}

onmessage = ({ data }) => {
  if (data.kind === 'cancel') {
    cancelled.add(data.id);
    return;
  }
  queue = queue.then(async () => {
    const emit = (event) => postMessage({ id: data.id, ...event });
    try {
      await { load, paint, segment }[data.kind](data, emit);
    } catch (error) {
      if (error instanceof Cancelled) emit({ event: 'cancelled' });
      else emit({ event: 'error', error: error.message || String(error) });
    }
    cancelled.delete(data.id);
  });
};

async function load(_, emit) {
  const say = (text) => emit({ event: 'say', text });
  const files = await Files.open((got, of) => say(`loading the networks: ${(got / 1e6).toFixed(0)} of ${(of / 1e6).toFixed(0)} MB`));
  const json = async (path) => JSON.parse(new TextDecoder().decode(await files.bytes(path)));
  [model, manifest] = [await json('model.json'), await json('weights/manifest.json')];
  schedule = new Schedule(manifest.schedule);
  for (const onGpu of await hasGpu() ? [true, false] : [false]) {
    try {
      const backend = await startNetworks(files, onGpu, say);
      return emit({ event: 'ready', model, backend });
    } catch (error) {
      if (!onGpu) throw error;
      console.warn(`jiidm: WebGPU fails (${error.message}); going on with WebAssembly`);
    }
  }
}

// Loads the networks and makes a first preview; returns what they run on.
async function startNetworks(files, onGpu, say) {
  const glue = `ort/ort-wasm-simd-threaded${onGpu ? '.asyncify' : ''}`;
  files.expect([`${glue}.wasm`, ...Networks.LOADED.map((name) => `weights/${manifest.networks[name].file}`)]);
  const ort = await import(address(`ort/ort.${onGpu ? 'webgpu' : 'wasm'}.min.mjs`));
  const threads = crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency || 1) : 1;
  Object.assign(ort.env.wasm, {
    wasmBinary: (await files.bytes(`${glue}.wasm`)).buffer, wasmPaths: { mjs: address(`${glue}.mjs`) }, numThreads: threads,
  });
  networks = await Networks.load(ort, manifest, (path) => files.bytes(path), onGpu);
  say('computing a first preview');
  const { width, height } = manifest.picture;
  const grey = { width, height, pixels: new Uint8Array(3 * width * height).fill(128) };
  const labels = new Uint8Array(width * height).fill(model.background);
  await picture(labels, grey, { quality: 'preview', strength: null, seed: 0 });
  return onGpu ? 'WebGPU' : `WebAssembly, ${threads} ${threads > 1 ? 'threads' : 'thread'}`;
}

// Whether there is a GPU; one that is emulated is slower than WebAssembly.
async function hasGpu() {
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  return Boolean(adapter) && !(adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter);
}

// Makes a picture at the networks' size; `onStep` may throw.
async function picture(labels, style, settings, onStep = () => {}) {
  let last;
  for await (const step of refine(networks, schedule, makePlan(manifest.recipe, schedule, settings), labels, style, settings.seed, model.rotations)) {
    await onStep(step);
    last = step;
  }
  return last.picture;
}

async function paint({ id, project }, emit) {
  const begin = performance.now(), { settings } = project;
  await pause(id);
  const { width, height } = manifest.picture;
  const map = await decodeGrey(fromBase64(project.map));
  const labels = resizeLabels({ width: map.width, height: map.height, pixels: map.labels }, width, height);
  const style = await styleOf(project.style, width, height);
  const counts = makePlan(manifest.recipe, schedule, settings).rounds.map(({ timesteps }) => timesteps.length);
  const steps = counts.reduce((sum, count) => sum + count);
  let previewed = begin;
  const found = await picture(labels, style, settings, async (step) => {
    await pause(id);
    const done = counts.slice(0, step.round).reduce((sum, count) => sum + count, 0) + step.done;
    emit({ event: 'progress', done, steps });
    if (step.picture && done < steps) await send(emit, 'preview', step.picture);
    else if (step.preview && step.round === 0 && performance.now() > previewed + PREVIEW_INTERVAL) {
      previewed = performance.now();
      await send(emit, 'preview', step.preview());
    }
  });
  const finished = settings.size === 'mask' ? lanczos(found, map.width, map.height) : found;
  await send(emit, 'result', finished, { seconds: (performance.now() - begin) / 1000 });
}

async function segment({ photo }, emit) {
  const { width, height } = model.canvas, { width: columns, height: rows } = manifest.segmenter;
  const fitted = fitPhoto(await decodePhoto(photo), width, height);
  const labels = await networks.segment(resizePhoto(fitted, columns, rows), width, height);
  emit({ event: 'result', map: await encodeGrey(width, height, labels) });
}

async function send(emit, event, { width, height, pixels }, rest = {}) {
  emit({ event, picture: new Blob([await encodeRgb(width, height, pixels)], { type: 'image/png' }), width, height, ...rest });
}

// Lets messages in; throws where one of them ended the job.
async function pause(id) {
  await new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => { port1.close(); resolve(); };
    port2.postMessage(null);
  });
  if (cancelled.has(id)) throw new Cancelled();
}

// The style photo at a size: the name of one of the gallery, or base64. The last one is remembered.
async function styleOf(style, width, height) {
  if (lastStyle.key !== style) {
    const known = model.styles.find(({ name }) => name === style);
    if (!known && style.length < 64) throw new Error(`There is no style ${style} here`);
    const photo = known ? await (await fetch(address(`styles/fitted/${encodeURIComponent(style)}.png`))).blob() : new Blob([fromBase64(style)]);
    lastStyle = { key: style, picture: fitPhoto(await decodePhoto(photo), width, height) };
  }
  return lastStyle.picture;
}

// The pixels of a photo, upright, on white, in the colours that the file has.
async function decodePhoto(blob) {
  const bitmap = await createImageBitmap(blob, { imageOrientation: 'from-image', colorSpaceConversion: 'none' })
    .catch(() => { throw new Error('photo: this browser cannot read it; save it as JPEG or PNG'); });
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext('2d');
  context.fillStyle = '#fff';
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  return { width, height, pixels: data.filter((_, i) => i % 4 !== 3) };
}
