// The page: puts the buffer, the view, the tools, the engine and the controls together.

import { History, IndexBuffer } from './buffer.js';
import { ServerEngine } from './engine.js';
import { download, parseProject, photoOf, readMap, readPhoto } from './files.js';
import { Live } from './live.js';
import { Materials } from './materials.js';
import { Pictures } from './pictures.js';
import { encodeGrey, fromBase64, toBase64 } from './png.js';
import { Pen, TOOLS } from './tools.js';
import { View } from './view.js';

const $ = (id) => document.getElementById(id);
const DRAFT = 'jiidm-draft', TOKEN = 'jiidm-token', THEME = 'jiidm-theme';
const VARIATIONS = 4;

const state = { tool: 'brush', size: 24, round: true, label: 0, background: 0, space: false };
const settings = { seed: 0, strength: null, byClass: true };
let model, engine, buffer, history, view, pen, live, materials, pictures;
let style = null; // {name} of the gallery, or {base64, blob, title} of the user's own
let varying = false;

// ------------------------------------------------------------------------------------------------------- start

async function main() {
  setTheme(recall(localStorage, THEME) || (matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light'));
  engine = await startEngine();
  model = await describeWhenReady();
  const { width, height } = model.canvas;
  document.documentElement.style.setProperty('--aspect', width / height);
  state.background = model.background;
  state.label = (model.classes.find((c) => c.seen && c.index !== model.background) ?? model.classes[0]).index;
  buffer = new IndexBuffer(width, height, state.background);
  history = new History(buffer);
  view = new View($('canvas'), buffer, colors());
  live = new Live(engine, project, { started, event, result, failed, lost });
  materials = new Materials(model, state, buffer, selected);
  pictures = new Pictures($, { restore, chosen });
  pen = new Pen(view, history, state, {
    drawing: () => live.changed(true),
    end: changed,
    pick: (label, background) => { state[background ? 'background' : 'label'] = label; selected(); },
    sized: (step) => setSize(state.size + step * Math.max(1, Math.round(state.size / 10))),
  });
  window.painter = { state, settings, buffer, history, view, live, pictures, model, engine }; // for scripts
  buildTools();
  buildStyles();
  bind();
  selected();
  setStrength(null);
  $('byClassOption').hidden = !model.color_by_class;
  const restored = await restoreDraft();
  document.body.classList.remove('loading');
  live.stopped = false;
  if (!restored) await firstExample();
  refresh();
}

// This server, or on a page without one the engine that its index.html names.
async function startEngine() {
  const { engine: path } = document.body.dataset;
  return path ? new (await import(path)).LocalEngine() : new ServerEngine(takeToken());
}

function takeToken() {
  const token = new URLSearchParams(location.search).get('token');
  if (token) {
    remember(sessionStorage, TOKEN, token);
    window.history.replaceState(null, '', '/');
  }
  return token || recall(sessionStorage, TOKEN);
}

async function describeWhenReady() {
  for (;;) {
    try {
      return await engine.describe();
    } catch (error) {
      $('veilText').textContent = error.message;
      if (error.constructor === Error) document.body.classList.add('failed');
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
}

function colors() {
  const table = new Uint32Array(256).fill(0xff000000);
  for (const { index, color } of model.classes) {
    const [r, g, b] = [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16));
    table[index] = ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
  }
  return table;
}

async function firstExample() {
  const example = model.examples[0];
  if (!example) return changed();
  await useExample(example);
  history.done = [];
  say(model.note ?? 'Choose a material and draw: the landscape follows');
}

// ------------------------------------------------------------------------------------------------------- state

// What the server computes, as a project; the buffer is copied before anything is awaited.
async function project(quality, seed = settings.seed) {
  const map = await encodeGrey(buffer.width, buffer.height, buffer.data);
  return {
    map: toBase64(map),
    style: style.name ?? style.base64,
    settings: {
      seed, quality, strength: settings.strength, size: quality === 'full' ? 'mask' : 'model',
      ...(model.color_by_class ? { color_by_class: settings.byClass } : {}),
    },
  };
}

function changed() {
  live.changed();
  refresh();
  clearTimeout(changed.timer);
  changed.timer = setTimeout(saveDraft, 400);
}

function refresh() {
  $('undo').disabled = !history.canUndo;
  $('redo').disabled = !history.canRedo;
  materials.show();
  pictures.drawingChanged(view);
}

function selected() {
  materials.show();
  const { name, seen } = model.classes[state.label];
  if (!seen) say(`These weights have never seen ${name}: it leaves no trace in the picture`);
  $('canvas').style.cursor = state.tool === 'eyedropper' ? 'copy' : 'crosshair';
}

function setTool(tool) {
  pen.cancel();
  state.tool = tool;
  for (const button of $('tools').children) button.setAttribute('aria-pressed', button.dataset.tool === tool);
  selected();
}

function setSize(size) {
  state.size = Math.min(160, Math.max(1, size));
  $('size').value = $('sizeValue').value = state.size;
  if (view.cursor && ['brush', 'erase', 'line'].includes(state.tool)) view.cursor.size = state.size;
  view.draw();
}

function setStrength(strength) {
  settings.strength = strength;
  const percent = Math.round(100 * (strength ?? model.strength));
  $('strength').value = percent;
  $('strengthValue').value = `${percent} %`;
}

function setByClass(byClass) {
  settings.byClass = $('byClass').checked = byClass;
}

function setSeed(seed) {
  settings.seed = Math.min(2 ** 32 - 1, Math.max(0, Math.floor(seed) || 0));
  $('seed').value = settings.seed;
}

function setLabels(labels) {
  pen.cancel();
  history.begin();
  buffer.data.set(labels);
  history.commit();
  view.changed();
}

function setUnder(bitmap) {
  view.under = bitmap;
  $('underOption').hidden = !bitmap;
  view.draw();
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
}

function undo(back) {
  if (pen.cancel()) return;
  if (back ? history.undo() : history.redo()) {
    view.changed();
    changed();
  }
}

function fillAll(label) {
  history.begin();
  buffer.fill(label);
  history.commit();
  view.changed();
  changed();
}

// ------------------------------------------------------------------------------------------------------- style

function buildStyles() {
  const box = $('styles');
  const own = document.createElement('button');
  own.className = 'own';
  own.textContent = 'Your photo …';
  own.addEventListener('click', () => choose(async (file) => useOwnStyle(await readPhoto(file, aspect()))));
  for (const { name, title } of model.styles) {
    const button = document.createElement('button');
    const image = document.createElement('img');
    image.alt = title;
    button.append(image);
    button.title = title;
    button.dataset.style = name;
    button.addEventListener('click', () => { useStyle(name); changed(); });
    box.append(button);
    engine.style(name).then((blob) => { image.src = URL.createObjectURL(blob); button.blob = blob; }, () => {});
  }
  box.append(own);
  radios(box);
  if (model.styles.length) useStyle(model.styles[0].name);
  else style = { base64: plainPhoto(), title: 'plain' };
}

function useStyle(name) {
  const known = model.styles.find((s) => s.name === name);
  if (!known) throw new Error(`There is no style ${name} here`);
  style = { name, title: known.title };
  markStyle();
}

function useOwnStyle(photo) {
  style = photo;
  let button = $('styles').querySelector('[data-style=""]');
  if (!button) {
    button = document.createElement('button');
    button.dataset.style = '';
    button.append(document.createElement('img'));
    button.addEventListener('click', () => { style = button.photo; markStyle(); changed(); });
    $('styles').prepend(button);
  }
  button.photo = photo;
  button.blob = photo.blob;
  button.title = button.firstChild.alt = photo.title;
  button.firstChild.src = URL.createObjectURL(photo.blob);
  markStyle();
  changed();
}

function markStyle() {
  const box = $('styles');
  for (const button of box.querySelectorAll('[role="radio"], [data-style]')) {
    button.setAttribute('aria-checked', button.dataset.style === (style.name ?? ''));
  }
  $('styleName').textContent = style.title;
  const button = box.querySelector('[aria-checked="true"]');
  if (button) box.scrollLeft = button.offsetLeft - box.offsetLeft - (box.clientWidth - button.offsetWidth) / 2;
  pictures?.styleChanged(button?.blob ?? style.blob);
}

// A gallery of no styles: a soft sky over a meadow, so that the first picture needs no photo.
function plainPhoto() {
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [256, 192];
  const context = canvas.getContext('2d');
  const gradient = context.createLinearGradient(0, 0, 0, 192);
  for (const [at, color] of [[0, '#7fb2e5'], [0.5, '#d8e6ee'], [0.55, '#6d8f57'], [1, '#3f5f33']]) gradient.addColorStop(at, color);
  context.fillStyle = gradient;
  context.fillRect(0, 0, 256, 192);
  return canvas.toDataURL('image/jpeg').split(',')[1];
}

// ----------------------------------------------------------------------------------------------------- pictures

function started(quality) {
  pictures.progress(0);
  $('compute').disabled = quality === 'full';
}

function event(message, quality) {
  if (message.event === 'progress') {
    pictures.progress(message.done / message.steps);
    if (quality === 'full') say(`${varying ? 'Variation' : 'Picture'}: step ${message.done} of ${message.steps}`);
  } else if (message.picture && !pictures.shown) pictures.show(message.picture, true);
}

function result(message, quality, made) {
  pictures.progress(null);
  $('compute').disabled = false;
  pictures.show(message.picture, quality === 'preview');
  say(`${quality === 'preview' ? 'Preview' : 'Picture'} in ${message.seconds.toFixed(1)} s`);
  if (quality === 'full' && !varying) pictures.keep(message.picture, { ...made, title: style.title });
}

function failed(error) {
  pictures.progress(null);
  $('compute').disabled = false;
  say(error.message, true);
}

function lost(error) {
  pictures.progress(null);
  $('compute').disabled = false;
  banner(`The server is away (${error.message}). Your drawing is safe, go on; the picture follows when it is back.`);
  const wait = async () => {
    try {
      const again = await engine.describe();
      if (JSON.stringify(again.canvas) !== JSON.stringify(model.canvas)) {
        return banner('The server is back with another model: save the project, then load this page again.');
      }
      banner('');
      live.stopped = false;
      return live.changed();
    } catch (error) {
      if (error.constructor === Error) banner(`The server is back and refuses: ${error.message}`);
      return setTimeout(wait, 1500);
    }
  };
  setTimeout(wait, 1500);
}

async function vary() {
  varying = true;
  pictures.clearVariations();
  try {
    for (let i = 0; i < VARIATIONS; i++) {
      const seed = (settings.seed + i) % 2 ** 32;
      const found = await live.run('full', seed);
      if (!found) break;
      pictures.addVariation(found.picture, { ...found.project, title: style.title });
    }
  } finally {
    varying = false;
  }
}

// A variation was chosen: its seed is the drawing's from now on.
function chosen(made, picture) {
  live.abort();
  setSeed(made.settings.seed);
  pictures.show(picture, false);
  pictures.keep(picture, made);
}

// A picture of the history: its map, style and settings come back, as one step that can be undone.
async function restore(made, picture) {
  live.abort();
  await openProject({ ...made, map: fromBase64(made.map) }, false);
  pictures.show(picture, false);
}

// -------------------------------------------------------------------------------------------------------- files

const aspect = () => buffer.width / buffer.height;

async function openProject({ map, style: its, settings: values, title }, compute = true) {
  const labels = await readMap(map, engine, buffer);
  if (model.styles.some((s) => s.name === its)) useStyle(its);
  else if (its.length < 64) say(`The style ${its} is not here; the present one stays`, true);
  else if (its !== style.base64) {
    const found = await photoOf(new Blob([fromBase64(its)], { type: 'image/jpeg' }), title ?? 'own photo');
    const was = live.stopped;
    live.stopped = true; // computed once, below
    useOwnStyle(found);
    live.stopped = was;
  }
  setSeed(values.seed);
  setStrength(values.strength);
  setByClass(values.color_by_class !== false);
  setLabels(labels);
  if (compute) changed();
  else refresh();
}

async function openFile(file) {
  if (!file) return;
  try {
    if (/json$/.test(file.type) || /\.json$/i.test(file.name)) await openProject(parseProject(await file.text()));
    else if (file.type === 'image/png') await openPng(file);
    else if (file.type.startsWith('image/')) await askPhoto(file);
    else throw new Error(`${file.name}: expected a photo, a label map (PNG) or a project (JSON)`);
  } catch (error) {
    say(error.message, true);
  }
}

async function openPng(file) {
  let labels;
  try {
    labels = await readMap(new Uint8Array(await file.arrayBuffer()), engine, buffer);
  } catch (error) {
    if (error.constructor !== Error) throw error;
    return askPhoto(file); // no label map
  }
  setUnder(null);
  setLabels(labels);
  changed();
  return say(`${file.name || 'Label map'} opened`);
}

async function askPhoto(file) {
  const photo = await readPhoto(file, aspect());
  $('photoView').src = URL.createObjectURL(photo.blob);
  $('photo').onclose = () => URL.revokeObjectURL($('photoView').src);
  const take = (map, its) => async () => {
    $('photo').close();
    try {
      if (map) await usePhotoMap(photo);
      if (its) useOwnStyle(photo);
      else changed();
    } catch (error) {
      say(error.message, true);
    }
  };
  $('photoBoth').onclick = take(true, true);
  $('photoMap').onclick = take(true, false);
  $('photoStyle').onclick = take(false, true);
  $('photo').showModal();
}

async function usePhotoMap(photo) {
  say('Dividing the photo into materials …');
  live.abort();
  const labels = await readMap(await engine.segment(photo.blob), engine, buffer);
  setUnder(photo.bitmap);
  setLabels(labels);
  say('The photo is the drawing now; mend it where it is wrong');
}

async function useExample(example) {
  setUnder(null);
  setLabels(await readMap(await engine.example(example.name), engine, buffer));
  if (example.style) useStyle(example.style);
  changed();
}

function choose(action) {
  $('file').value = '';
  $('file').onchange = () => {
    const file = $('file').files[0];
    if (file) Promise.resolve(action(file)).catch((error) => say(error.message, true));
  };
  $('file').click();
}

async function save(what) {
  $('saveMenu').hidden = true;
  const name = `landscape-${new Date().toISOString().slice(0, 19).replace(/[T:]/g, '-')}`;
  if (what === 'picture') {
    if (pictures.blob) download(pictures.blob, `${name}.png`);
    else say('There is no picture yet', true);
  } else if (what === 'map') {
    const map = await encodeGrey(buffer.width, buffer.height, buffer.data);
    download(new Blob([map], { type: 'image/png' }), `${name}-map.png`);
  } else if (what === 'colors') {
    view.coloured().toBlob((blob) => download(blob, `${name}-colors.png`));
  } else {
    const text = JSON.stringify({ ...(await project('full')), title: style.title });
    download(new Blob([text], { type: 'application/json' }), `${name}.json`);
  }
}

async function saveDraft() {
  remember(sessionStorage, DRAFT, JSON.stringify({ ...(await project('full')), title: style.title }));
}

async function restoreDraft() {
  const draft = recall(sessionStorage, DRAFT);
  if (!draft) return false;
  try {
    await openProject(parseProject(draft), false);
    history.done = [];
    setTimeout(() => live.changed());
    return true;
  } catch {
    return false;
  }
}

// Storage may be switched off, or full.
function remember(storage, key, value) {
  try { storage.setItem(key, value); } catch { /* only a convenience */ }
}

function recall(storage, key) {
  try { return storage.getItem(key); } catch { return null; }
}

// ----------------------------------------------------------------------------------------------------- controls

function say(text, bad = false) {
  $('status').textContent = $('status').title = text;
  $('status').classList.toggle('bad', bad);
}

function banner(text) {
  $('banner').textContent = text;
  $('banner').hidden = !text;
}

// Buttons of a box as radio buttons: one tab stop, arrows move.
function radios(box) {
  for (const button of box.querySelectorAll('[data-style]')) button.setAttribute('role', 'radio');
  box.addEventListener('keydown', (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const buttons = [...box.querySelectorAll('[role="radio"]')], at = buttons.indexOf(document.activeElement);
    if (!step || at < 0) return;
    event.preventDefault();
    buttons[(at + step + buttons.length) % buttons.length].focus();
    document.activeElement.click();
  });
}

function buildTools() {
  for (const [tool, { key, title }] of Object.entries(TOOLS)) {
    const button = document.createElement('button');
    button.dataset.tool = tool;
    button.title = `${title} (${key.toUpperCase()})`;
    button.setAttribute('aria-label', title);
    button.setAttribute('aria-pressed', tool === state.tool);
    button.innerHTML = `<svg><use href="page/icons.svg#${tool}"/></svg>`;
    button.addEventListener('click', () => setTool(tool));
    $('tools').append(button);
  }
}

async function openStart() {
  if (!$('tiles').children.length) {
    const tile = (title, face, action) => {
      const button = document.createElement('button');
      button.append(face, title);
      button.addEventListener('click', () => { $('start').close(); action(); });
      $('tiles').append(button);
    };
    const blank = document.createElement('span');
    blank.className = 'blank';
    blank.style.background = model.classes[model.background].color;
    tile('Blank', blank, () => { setUnder(null); fillAll(state.background); });
    for (const example of model.examples) {
      const face = document.createElement('canvas');
      tile(example.title, face, () => useExample(example).catch((error) => say(error.message, true)));
      engine.example(example.name).then((bytes) => readMap(bytes, engine, buffer)).then((labels) => {
        const small = new IndexBuffer(buffer.width, buffer.height);
        small.data.set(labels);
        [face.width, face.height] = [small.width, small.height];
        const pixels = new ImageData(small.width, small.height);
        const out = new Uint32Array(pixels.data.buffer);
        small.data.forEach((label, i) => { out[i] = view.colors[label]; });
        face.getContext('2d').putImageData(pixels, 0, 0);
      }).catch(() => {});
    }
  }
  $('start').showModal();
}

const KEYS = [
  ...Object.values(TOOLS).map(({ key, title }) => [key.toUpperCase(), title]),
  ['1 … 9', 'Material'], ['/', 'Find a material'], ['X', 'Exchange material and background'], ['K', 'Lock the material'],
  ['[ ]', 'Brush size (or the wheel)'], ['Alt', 'Take the material under the pointer'], ['Right button', 'Draw the background'],
  ['Shift', 'Straight line, square'], ['Space', 'Move the drawing'], ['+ − 0', 'Zoom (or Ctrl and wheel), fit'],
  ['Ctrl Z', 'Undo'], ['Ctrl Y', 'Redo'], ['Enter', 'Paint the full picture'], ['D', 'Another seed'], ['V', 'Four variations'],
  ['N', 'New'], ['Ctrl O', 'Open'], ['Ctrl S', 'Save the picture'], ['Ctrl Shift S', 'Save the project'], ['Esc', 'Drop a shape'],
];

function bind() {
  const click = (id, action) => $(id).addEventListener('click', action);
  click('new', openStart);
  click('open', () => choose(openFile));
  click('startPhoto', () => { $('start').close(); choose(askPhoto); });
  click('startFile', () => { $('start').close(); choose(openFile); });
  click('save', () => { $('saveMenu').hidden = !$('saveMenu').hidden; });
  click('savePicture', () => save('picture'));
  click('saveMap', () => save('map'));
  click('saveColors', () => save('colors'));
  click('saveProject', () => save('project'));
  click('undo', () => undo(true));
  click('redo', () => undo(false));
  click('swap', swap);
  click('round', () => setShape(true));
  click('square', () => setShape(false));
  click('clear', () => fillAll(state.background));
  click('zoomIn', () => view.zoomBy(1.4));
  click('zoomOut', () => view.zoomBy(1 / 1.4));
  click('fit', () => view.fit());
  click('dropPhoto', () => setUnder(null));
  click('compute', () => live.run('full'));
  click('dice', dice);
  click('vary', vary);
  click('help', () => $('keys').showModal());
  click('theme', () => {
    const theme = document.documentElement.dataset.theme === 'dark' ? 'light' : 'dark';
    setTheme(theme);
    remember(localStorage, THEME, theme);
  });
  $('size').addEventListener('input', () => setSize(Number($('size').value)));
  $('opacity').addEventListener('input', () => { view.opacity = $('opacity').value / 100; view.draw(); });
  $('live').addEventListener('change', () => { live.preview = $('live').checked; if (live.preview) live.changed(); });
  $('full').addEventListener('change', () => { live.full = $('full').checked; if (live.full) live.changed(); });
  $('strength').addEventListener('input', () => { setStrength($('strength').value / 100); changed(); });
  $('strength').addEventListener('dblclick', () => { setStrength(null); changed(); });
  $('byClass').addEventListener('change', () => { setByClass($('byClass').checked); changed(); });
  $('seed').addEventListener('change', () => { setSeed(Number($('seed').value)); changed(); });
  for (const dialog of document.querySelectorAll('dialog')) {
    dialog.querySelector('.close').addEventListener('click', () => dialog.close());
    dialog.addEventListener('click', (event) => { if (event.target === dialog) dialog.close(); });
  }
  for (const [key, text] of KEYS) {
    const term = document.createElement('dt'), kbd = document.createElement('kbd'), detail = document.createElement('dd');
    kbd.textContent = key;
    detail.textContent = text;
    term.append(kbd);
    $('keyList').append(term, detail);
  }
  document.addEventListener('click', (event) => {
    if (!event.target.closest('.menu')) $('saveMenu').hidden = true;
    $('save').setAttribute('aria-expanded', !$('saveMenu').hidden);
  });
  document.addEventListener('keydown', keyDown);
  document.addEventListener('keyup', (event) => { if (event.key === ' ') state.space = false; });
  document.addEventListener('paste', (event) => openFile([...event.clipboardData.files][0]));
  bindDrop();
}

function bindDrop() {
  let inside = 0;
  const files = (event) => event.dataTransfer?.types.includes('Files');
  document.addEventListener('dragenter', (event) => { if (files(event) && !inside++) $('dropHint').hidden = false; });
  document.addEventListener('dragleave', (event) => { if (files(event) && !--inside) $('dropHint').hidden = true; });
  document.addEventListener('dragover', (event) => { if (files(event)) event.preventDefault(); });
  document.addEventListener('drop', (event) => {
    if (!files(event)) return;
    event.preventDefault();
    inside = 0;
    $('dropHint').hidden = true;
    openFile(event.dataTransfer.files[0]);
  });
}

function keyDown(event) {
  const { target, key } = event;
  if (document.querySelector('dialog[open]')) return;
  const command = event.ctrlKey || event.metaKey;
  const typing = target.matches('input:not([type="range"]):not([type="checkbox"]), select');
  if (command) {
    const action = {
      z: () => undo(!event.shiftKey), y: () => undo(false), o: () => choose(openFile),
      s: () => save(event.shiftKey ? 'project' : 'picture'),
    }[key.toLowerCase()];
    if (action && !(typing && 'zy'.includes(key.toLowerCase()))) {
      event.preventDefault();
      action();
    }
    return;
  }
  if (key === 'Escape') {
    if (!pen.cancel() && typing) target.blur();
    $('saveMenu').hidden = true;
    return;
  }
  if (typing || event.altKey) return;
  const tool = Object.keys(TOOLS).find((name) => TOOLS[name].key === key.toLowerCase());
  if (tool) return void setTool(tool);
  if (/^[1-9]$/.test(key)) return void materials.pick(Number(key) - 1);
  const action = {
    '[': () => setSize(state.size - Math.max(1, Math.round(state.size / 8))),
    ']': () => setSize(state.size + Math.max(1, Math.round(state.size / 8))),
    '+': () => view.zoomBy(1.4), '=': () => view.zoomBy(1.4), '-': () => view.zoomBy(1 / 1.4), 0: () => view.fit(),
    '/': () => $('search').focus(), '?': () => $('keys').showModal(),
    x: swap, k: () => materials.lock(state.label), d: dice, v: vary, n: openStart,
    Enter: () => { if (!pen.closePolygon()) live.run('full'); },
    ' ': () => { state.space = true; },
  }[key.length === 1 ? key.toLowerCase() : key];
  if (!action || (target.matches('button') && (key === 'Enter' || key === ' '))) return;
  event.preventDefault();
  action();
}

function swap() {
  [state.label, state.background] = [state.background, state.label];
  selected();
}

function dice() {
  setSeed(crypto.getRandomValues(new Uint32Array(1))[0] % 1_000_000);
  changed();
}

function setShape(round) {
  state.round = round;
  $('round').setAttribute('aria-pressed', round);
  $('square').setAttribute('aria-pressed', !round);
}

main();
