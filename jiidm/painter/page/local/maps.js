// Label maps of any kind: class numbers, a palette whose indices are the classes, or the colours of a known table, as
// `decode_any_map` of jiidm/painter/uploads.py reads them.

import { decodeRows } from '../png.js';
import { centreCrop, resizeLabels } from './resize.js';

const NO_CLASS = 255, LEAST_MATCH = 0.5;

// Returns the labels of a PNG at a size. `tables` are names to {"#rrggbb": class}; classes are below `count`.
export async function readAnyMap(bytes, width, height, count, tables) {
  const image = await decodeRows(bytes).catch((error) => { throw new Error(`label map: ${error.message}`); });
  if (image.depth > 8) throw new Error('label map: 16 bits; expected 8');
  let labels = image.color === 0 || image.color === 3 && !hasTableColors(image, tables) ? stored(image) : null;
  if (labels?.some((label) => label >= count)) {
    if (image.color === 0) throw new Error(`label map: class ${Math.max(...new Set(labels))}; expected 0..${count - 1}`);
    labels = null; // the palette's colours may tell
  }
  labels ??= byColor(image, tables);
  if (labels.some((label) => label >= count)) throw new Error(`label map: a class that these weights do not have`);
  return resizeLabels(centreCrop({ ...image, pixels: labels }, width, height, 1), width, height);
}

// The values of a picture of one channel, of 1 to 8 bits.
function stored({ width, height, depth, rows }) {
  const length = rows.length / height, mask = 2 ** depth - 1;
  return Uint8Array.from({ length: width * height }, (_, i) => {
    const x = i % width * depth;
    return rows[(i - i % width) / width * length + (x >> 3)] >> (8 - depth - (x & 7)) & mask;
  });
}

// Whether all colours of a palette picture are of exactly one table: then its indices mean nothing.
function hasTableColors(image, tables) {
  const used = [...new Set(colors(image))].map((code) => `#${code.toString(16).padStart(6, '0')}`);
  return Object.values(tables).filter((entries) => used.every((color) => color in entries)).length === 1;
}

// The classes of a picture's colours, by the table that fits most pixels.
function byColor(image, tables) {
  const codes = colors(image);
  let best = null, most = -1, name = '';
  for (const [table, entries] of Object.entries(tables)) {
    const classes = new Map(Object.entries(entries).map(([color, label]) => [parseInt(color.slice(1), 16), label]));
    const labels = Uint8Array.from(codes, (code) => classes.get(code) ?? NO_CLASS);
    const known = labels.reduce((sum, label) => sum + (label !== NO_CLASS), 0);
    if (known > most) [best, most, name] = [labels, known, table];
  }
  if (most < LEAST_MATCH * codes.length) {
    throw new Error(`label map: ${Math.round(100 * most / codes.length)} % of its pixels have a colour of ${name}, the nearest known table`);
  }
  return fillNoClass(best, image.width, image.height);
}

// RGB of each pixel as one number; transparent ones on white.
function colors({ width, height, color, depth, palette, rows }) {
  if (color === 0 || color === 3) {
    const values = stored({ width, height, depth, rows });
    const grey = 255 / (2 ** depth - 1);
    return Uint32Array.from(values, (value) => (
      color === 3 ? palette[3 * value] << 16 | palette[3 * value + 1] << 8 | palette[3 * value + 2] : value * grey * 0x10101
    ));
  }
  const channels = rows.length / (width * height), alpha = channels % 2 === 0;
  return Uint32Array.from({ length: width * height }, (_, i) => {
    const at = i * channels, opaque = alpha ? rows[at + channels - 1] : 255;
    const part = (c) => Math.floor((rows[at + (channels > 2 ? c : 0)] * opaque + 255 * (255 - opaque) + 127) / 255);
    return part(0) << 16 | part(1) << 8 | part(2);
  });
}

// Pixels without a class take the label of the nearest one that has one: two passes over the picture with the distances
// of a 5 x 5 neighbourhood (Borgefors 1986).
function fillNoClass(labels, width, height) {
  const found = labels.slice(), far = Float64Array.from(labels, (label) => (label === NO_CLASS ? Infinity : 0));
  const steps = [[-1, 0, 1], [0, -1, 1], [-1, -1, 1.4], [1, -1, 1.4], [-2, -1, 2.1969], [2, -1, 2.1969], [-1, -2, 2.1969], [1, -2, 2.1969]];
  for (const sign of [1, -1]) {
    for (let k = 0; k < found.length; k++) {
      const i = sign > 0 ? k : found.length - 1 - k, x = i % width, y = (i - x) / width;
      for (const [dx, dy, length] of steps) {
        const nx = x + sign * dx, ny = y + sign * dy;
        if (nx < 0 || ny < 0 || nx >= width || ny >= height) continue;
        const from = ny * width + nx;
        if (far[from] + length < far[i]) {
          far[i] = far[from] + length;
          found[i] = found[from];
        }
      }
    }
  }
  return found;
}
