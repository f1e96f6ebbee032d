// Resizing as Python does it: photos as OpenCV (areas when they shrink, bicubic when they grow), finished pictures as
// Pillow's Lanczos, labels by nearest neighbours. Pictures are {width, height, pixels}, pixels RGB.

import { rint } from './numbers.js';

// A picture or labels cropped centrally to the aspect of width : height; `channels` a pixel.
export function centreCrop(image, width, height, channels) {
  const { width: columns, height: rows, pixels } = image;
  const wide = columns * height > rows * width;
  const keptColumns = wide ? Math.max(1, rint(rows * width / height)) : columns;
  const keptRows = wide ? rows : Math.max(1, rint(columns * height / width));
  if (keptColumns === columns && keptRows === rows) return image;
  const left = (columns - keptColumns) >> 1, top = (rows - keptRows) >> 1;
  const out = new Uint8Array(keptColumns * keptRows * channels);
  for (let y = 0; y < keptRows; y++) {
    const from = ((top + y) * columns + left) * channels;
    out.set(pixels.subarray(from, from + keptColumns * channels), y * keptColumns * channels);
  }
  return { width: keptColumns, height: keptRows, pixels: out };
}

export function fitPhoto(photo, width, height) {
  return resizePhoto(centreCrop(photo, width, height, 3), width, height);
}

export function resizePhoto(photo, width, height) {
  if (photo.width === width && photo.height === height) return photo;
  const taps = photo.width >= width && photo.height >= height ? areaTaps : cubicTaps;
  const rows = along(Float64Array.from(photo.pixels), photo.height, taps(photo.width, width), 3);
  const values = across(rows, width * 3, taps(photo.height, height));
  return { width, height, pixels: Uint8ClampedArray.from(values, rint) };
}

// A finished picture at another size, by Lanczos in the two passes of Pillow, each rounded to 8 bits.
export function lanczos(picture, width, height) {
  let { pixels } = picture;
  if (picture.width !== width) {
    pixels = Uint8ClampedArray.from(along(pixels, picture.height, lanczosTaps(picture.width, width), 3), Math.round);
  }
  if (picture.height !== height) {
    pixels = Uint8ClampedArray.from(across(pixels, width * 3, lanczosTaps(picture.height, height)), Math.round);
  }
  return { width, height, pixels };
}

// Row i of the result is row floor((i + 1/2) * H / height); columns likewise.
export function resizeLabels(labels, width, height) {
  const out = new Uint8Array(width * height);
  for (let y = 0; y < height; y++) {
    const row = Math.floor((2 * y + 1) * labels.height / (2 * height)) * labels.width;
    for (let x = 0; x < width; x++) out[y * width + x] = labels.pixels[row + Math.floor((2 * x + 1) * labels.width / (2 * width))];
  }
  return out;
}

// Of each place of the result: the first place it reads, and the weights of it and those after it.

function areaTaps(from, to) {
  const scale = from / to;
  return Array.from({ length: to }, (_, i) => {
    const begin = i * scale, end = Math.min(from, begin + scale), first = Math.floor(begin + 1e-9);
    const last = Math.min(from, Math.max(first + 1, Math.ceil(end - 1e-9)));
    const weights = Array.from({ length: last - first }, (_, k) => Math.min(end, first + k + 1) - Math.max(begin, first + k));
    return normalized(first, weights);
  });
}

function cubicTaps(from, to) {
  const a = -0.75;
  return Array.from({ length: to }, (_, i) => {
    const place = (i + 0.5) * from / to - 0.5, first = Math.floor(place), x = place - first;
    const near = (d) => ((a + 2) * d - (a + 3)) * d * d + 1;
    const far = (d) => ((a * d - 5 * a) * d + 8 * a) * d - 4 * a;
    const weights = [far(x + 1), near(x), near(1 - x)];
    return clamped(first - 1, [...weights, 1 - weights[0] - weights[1] - weights[2]], from);
  });
}

function lanczosTaps(from, to) {
  const scale = from / to, stretch = Math.max(1, scale), support = 3 * stretch;
  const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
  return Array.from({ length: to }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.floor(centre - support + 0.5)), last = Math.min(from, Math.floor(centre + support + 0.5));
    const weights = Array.from({ length: last - first }, (_, k) => {
      const x = (first + k - centre + 0.5) / stretch;
      return Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0;
    });
    return normalized(first, weights);
  });
}

function normalized(first, weights) {
  const sum = weights.reduce((a, b) => a + b);
  return { first, weights: weights.map((weight) => weight / sum) };
}

// Weights of places beyond the border go to the border.
function clamped(first, weights, size) {
  const low = Math.max(0, first), high = Math.min(size - 1, first + weights.length - 1);
  const kept = new Array(high - low + 1).fill(0);
  weights.forEach((weight, k) => { kept[Math.min(high, Math.max(low, first + k)) - low] += weight; });
  return { first: low, weights: kept };
}

function along(values, rows, taps, channels) {
  const width = values.length / rows, out = new Float64Array(rows * taps.length * channels);
  for (let y = 0, i = 0; y < rows; y++) {
    for (const { first, weights } of taps) {
      for (let c = 0; c < channels; c++) {
        let sum = 0;
        for (let k = 0; k < weights.length; k++) sum += weights[k] * values[y * width + (first + k) * channels + c];
        out[i++] = sum;
      }
    }
  }
  return out;
}

function across(values, width, taps) {
  const out = new Float64Array(width * taps.length);
  taps.forEach(({ first, weights }, y) => {
    for (let x = 0; x < width; x++) {
      let sum = 0;
      for (let k = 0; k < weights.length; k++) sum += weights[k] * values[(first + k) * width + x];
      out[y * width + x] = sum;
    }
  });
  return out;
}
