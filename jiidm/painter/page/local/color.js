// Colour transfer: jiidm/inference/color_transfer.py in JavaScript. Pictures are {width, height, pixels}, pixels RGB.

import { labToRgb, rgbToLab } from './lab.js';
import { cumulate, interp, rint, toByte } from './numbers.js';

const PASSES = 3, FAR = 35, SMOOTH = 1e-3;

// Mean and std of each channel in LAB become the reference's (Reinhard et al. 2001).
function reinhard(source, reference) {
  const from = rgbToLab(source.pixels), to = rgbToLab(reference.pixels);
  const tables = [0, 1, 2].map((c) => {
    const [mean, std] = statistics(from, c), [newMean, newStd] = statistics(to, c);
    const scale = std > 0 ? newStd / std : 0;
    return Uint8Array.from({ length: 256 }, (_, value) => toByte((value - mean) * scale + newMean));
  });
  return labToRgb(from.map((value, i) => tables[i % 3][value]));
}

function statistics(pixels, c) {
  const count = pixels.length / 3;
  let sum = 0, squares = 0;
  for (let i = c; i < pixels.length; i += 3) {
    sum += pixels[i];
    squares += pixels[i] ** 2;
  }
  const mean = sum / count;
  return [mean, Math.sqrt(Math.max(0, squares / count - mean ** 2))].map((value) => rint(value * 100) / 100);
}

// Each RGB channel takes the reference's histogram.
function histogram(source, reference) {
  const quantiles = (pixels, c) => {
    const counts = new Float64Array(256);
    for (let i = c; i < pixels.length; i += 3) counts[pixels[i]]++;
    return cumulate(counts).map((count, value) => (counts[value] ? count / (pixels.length / 3) : -1));
  };
  const tables = [0, 1, 2].map((c) => {
    const has = quantiles(source.pixels, c), wanted = quantiles(reference.pixels, c);
    const values = [...wanted.keys()].filter((value) => wanted[value] >= 0);
    const places = values.map((value) => wanted[value]);
    return Uint8Array.from(has, (quantile) => interp(quantile, places, values));
  });
  return source.pixels.map((value, i) => tables[i % 3][value]);
}

// The joint distribution of colours becomes the reference's (Pitie et al. 2007); `rotations` are 3 x 3 matrices.
function transport(source, reference, rotations, share = 1) {
  const { width, height, pixels } = source;
  const target = Float64Array.from(reference.pixels);
  const ones = new Float64Array(target.length / 3).fill(1);
  let curves = rotations.map((rotation) => targetCurves(rotation, target, ones));
  if (share < 1) {
    const mixture = mixColors(source, target, curves, share);
    curves = rotations.map((rotation) => targetCurves(rotation, ...mixture));
  }
  const guide = Float64Array.from({ length: width * height }, (_, i) => (
    (pixels[3 * i] + pixels[3 * i + 1] + pixels[3 * i + 2]) / 3 / 255
  ));
  const filter = guidedFilter(guide, width, height);
  let result = pixels;
  for (let pass = 0; pass < PASSES; pass++) {
    const { colors, places, counts } = distinctColors(result);
    const matched = matchColors(colors, counts, curves);
    const changes = [0, 1, 2].map((c) => filter(Float64Array.from(places, (place, i) => matched[3 * place + c] - pixels[3 * i + c])));
    result = pixels.map((value, i) => toByte(value + changes[i % 3][Math.floor(i / 3)]));
  }
  return result;
}

// A target between both pictures: colours and their weights.
function mixColors(source, target, curves, share) {
  const { colors, counts } = distinctColors(source.pixels);
  const matched = matchColors(colors, counts, curves);
  let moves = 0, pixels = 0;
  for (let i = 0; i < counts.length; i++) {
    for (let c = 3 * i; c < 3 * i + 3; c++) moves += counts[i] * (matched[c] - colors[c]) ** 2;
    pixels += counts[i];
  }
  share **= Math.min(Math.sqrt(moves / pixels) / FAR, 2);
  const near = countNear(target).map((count) => count ** (1 - share));
  const total = near.reduce((sum, value) => sum + value);
  const mixed = new Float64Array(target.length + colors.length), weights = new Float64Array(mixed.length / 3);
  mixed.set(target);
  mixed.set(colors, target.length);
  weights.set(near.map((weight) => weight * (share / total)));
  weights.set(counts.map((count) => count * ((1 - share) / pixels)), near.length);
  return [mixed, weights];
}

// For each colour, how many lie in its cell of RGB, 16 levels a side.
function countNear(colors) {
  const counts = new Uint32Array(4096);
  const cells = Uint16Array.from({ length: colors.length / 3 }, (_, i) => (
    (colors[3 * i] >> 4) * 256 + (colors[3 * i + 1] >> 4) * 16 + (colors[3 * i + 2] >> 4)
  ));
  for (const cell of cells) counts[cell]++;
  return Float64Array.from(cells, (cell) => counts[cell]);
}

// The distinct colours of RGB pixels, in order; the index of each pixel's colour; the pixels of each colour.
function distinctColors(pixels) {
  const codes = Uint32Array.from({ length: pixels.length / 3 }, (_, i) => (
    pixels[3 * i] << 16 | pixels[3 * i + 1] << 8 | pixels[3 * i + 2]
  ));
  const order = codes.slice().sort(), distinct = order.filter((code, i) => i === 0 || code !== order[i - 1]);
  const index = new Map();
  distinct.forEach((code, i) => index.set(code, i));
  const places = codes.map((code) => index.get(code)), counts = new Float64Array(distinct.length);
  for (const place of places) counts[place]++;
  const colors = new Float64Array(3 * distinct.length);
  distinct.forEach((code, i) => colors.set([code >> 16, code >> 8 & 255, code & 255], 3 * i));
  return { colors, places, counts };
}

// The rotation, and of each rotated coordinate the cumulated weight and weighted value, over the whole weight.
function targetCurves(rotation, colors, weights) {
  const total = weights.reduce((sum, weight) => sum + weight);
  const rotated = rotate(colors, rotation);
  const curves = [0, 1, 2].map((axis) => {
    const values = column(rotated, axis), order = sortedOrder(values);
    const ends = new Float64Array(order.length + 1), areas = new Float64Array(order.length + 1);
    order.forEach((place, i) => {
      ends[i + 1] = ends[i] + weights[place];
      areas[i + 1] = areas[i] + weights[place] * values[place];
    });
    return { ends: ends.map((end) => end / total), areas: areas.map((area) => area / total) };
  });
  return { rotation, curves };
}

// Colours, each of `counts` pixels, matched in each of the rotations in turn.
function matchColors(colors, counts, targets) {
  const total = counts.reduce((sum, count) => sum + count);
  for (const { rotation, curves } of targets) {
    const rotated = rotate(colors, rotation);
    for (let axis = 0; axis < 3; axis++) {
      const { ends, areas } = curves[axis];
      let end = 0, area = 0, k = 0;
      for (const place of sortedOrder(column(rotated, axis))) {
        // a colour takes the slice of the target at its own place in the order: it becomes the slice's mean
        const fraction = counts[place] / total;
        end += fraction;
        while (k < ends.length - 2 && ends[k + 1] <= end) k++;
        const here = end >= ends[k + 1] ? areas[k + 1]
          : areas[k] + (areas[k + 1] - areas[k]) / (ends[k + 1] - ends[k]) * (end - ends[k]);
        rotated[3 * place + axis] = (here - area) / fraction;
        area = here;
      }
    }
    colors = rotate(rotated, [0, 1, 2].map((i) => rotation.map((row) => row[i])));
  }
  return colors;
}

function rotate(colors, rotation) {
  const out = new Float64Array(colors.length);
  for (let i = 0; i < colors.length; i += 3) {
    for (let j = 0; j < 3; j++) {
      out[i + j] = colors[i] * rotation[0][j] + colors[i + 1] * rotation[1][j] + colors[i + 2] * rotation[2][j];
    }
  }
  return out;
}

function column(colors, axis) {
  return Float64Array.from({ length: colors.length / 3 }, (_, i) => colors[3 * i + axis]);
}

// Indices in the order of their values, up to a 65536th of their range, by a radix sort.
function sortedOrder(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  const scale = high > low ? 65535 / (high - low) : 0;
  const keys = Uint16Array.from(values, (value) => (value - low) * scale);
  let order = Uint32Array.from(keys, (_, i) => i), other = new Uint32Array(order.length);
  for (const shift of [0, 8]) {
    const starts = new Uint32Array(257);
    for (const key of keys) starts[(key >>> shift & 255) + 1]++;
    for (let i = 0; i < 256; i++) starts[i + 1] += starts[i];
    for (const place of order) other[starts[keys[place] >>> shift & 255]++] = place;
    [order, other] = [other, order];
  }
  return order;
}

// Guided filter (He et al. 2013), within a 36th of the picture; returns a function of one channel's values.
function guidedFilter(guide, width, height) {
  const radius = Math.max(1, rint(Math.min(width, height) / 36));
  const mean = (values) => boxMean(values, width, height, radius);
  const product = (a, b) => a.map((value, i) => value * b[i]);
  const centre = mean(guide), square = mean(product(guide, guide));
  return (values) => {
    const level = mean(values), together = mean(product(guide, values));
    const slope = together.map((value, i) => (value - centre[i] * level[i]) / (square[i] - centre[i] * centre[i] + SMOOTH));
    const smooth = mean(slope), offset = mean(level.map((value, i) => value - slope[i] * centre[i]));
    return smooth.map((value, i) => value * guide[i] + offset[i]);
  };
}

// Means over squares of 2 * radius + 1; beyond the border its values go on.
function boxMean(values, width, height, radius) {
  const rows = new Float64Array(values.length), out = new Float64Array(values.length);
  const side = 2 * radius + 1, clamp = (i, size) => Math.min(size - 1, Math.max(0, i));
  for (let y = 0; y < height; y++) {
    const at = (x) => values[y * width + clamp(x, width)];
    let sum = 0;
    for (let x = -radius; x < radius; x++) sum += at(x);
    for (let x = 0; x < width; x++) {
      sum += at(x + radius);
      rows[y * width + x] = sum;
      sum -= at(x - radius);
    }
  }
  for (let x = 0; x < width; x++) {
    const at = (y) => rows[clamp(y, height) * width + x];
    let sum = 0;
    for (let y = -radius; y < radius; y++) sum += at(y);
    for (let y = 0; y < height; y++) {
      sum += at(y + radius);
      out[y * width + x] = sum / (side * side);
      sum -= at(y - radius);
    }
  }
  return out;
}

// The source's pixels with the colours of the reference, wholly or in part (`share`, 0 to 1).
export function transferColor(source, reference, method, share, rotations) {
  let result;
  if (method === 'transport') {
    if (share > 0 && share < 1) share = Math.sqrt(share); // one root in the target, the other in the change
    result = transport(source, reference, rotations, share > 0 ? share : 1);
  } else result = { reinhard, histogram }[method](source, reference);
  return share === 1 ? result : source.pixels.map((value, i) => toByte(value + share * (result[i] - value)));
}
