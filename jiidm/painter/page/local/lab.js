// RGB to CIE LAB and back in 8 bits, as OpenCV stores it: L scaled to 0..255, a and b shifted by 128 (D65, sRGB).

const TO_XYZ = [
  [0.412453, 0.357580, 0.180423],
  [0.212671, 0.715160, 0.072169],
  [0.019334, 0.119193, 0.950227],
];
const WHITE = [0.950456, 1, 1.088754];
const FIXED = 1 << 12, UNIT = 1 << 14, FINE = 1 << 15; // OpenCV's fixed-point numbers

const LINEAR = Uint16Array.from({ length: 256 }, (_, i) => {
  const x = i / 255;
  return Math.round(255 * 8 * (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
});
const ROOT = Uint16Array.from({ length: 256 * 3 / 2 * 8 }, (_, i) => {
  const x = i / (255 * 8);
  return Math.round(FINE * (x < 0.008856 ? x * 7.787 + 0.13793103448275862 : Math.cbrt(x)));
});
const WEIGHTS = TO_XYZ.map((row, i) => row.map((value) => Math.round(FIXED * value / WHITE[i])));
const TO_RGB = [
  [3.240479, -1.53715, -0.498535],
  [-0.969256, 1.875991, 0.041556],
  [0.055648, -0.204043, 1.057311],
].map((row) => row.map((value, i) => Math.round(FIXED * value * WHITE[i])));
const Y = new Int32Array(256), ROOTS_OF_Y = new Int32Array(256);
for (let i = 0; i < 256; i++) {
  const lightness = i * 100 / 255, dark = lightness <= 8;
  const y = dark ? lightness / 903.3 : ((lightness + 16) / 116) ** 3;
  Y[i] = Math.round(UNIT * y);
  ROOTS_OF_Y[i] = Math.round(UNIT * (dark ? 7.787 * y + 16 / 116 : (lightness + 16) / 116));
}
const ENCODED = Uint8ClampedArray.from({ length: 4096 }, (_, i) => {
  const x = i / 4096;
  return 255 * (x <= 0.0031308 ? x * 12.92 : 1.055 * x ** (1 / 2.4) - 0.055);
});

export function rgbToLab(pixels) {
  const out = new Uint8ClampedArray(pixels.length);
  for (let i = 0; i < pixels.length; i += 3) {
    const r = LINEAR[pixels[i]], g = LINEAR[pixels[i + 1]], b = LINEAR[pixels[i + 2]];
    const [fx, fy, fz] = WEIGHTS.map((w) => ROOT[(w[0] * r + w[1] * g + w[2] * b + FIXED / 2) >> 12]);
    out[i] = (296 * fy - 1336934 + FINE / 2) >> 15; // 116 * 255 / 100 and 16 * 255 / 100
    out[i + 1] = (500 * (fx - fy) + 128 * FINE + FINE / 2) >> 15;
    out[i + 2] = (200 * (fy - fz) + 128 * FINE + FINE / 2) >> 15;
  }
  return out;
}

export function labToRgb(pixels) {
  const out = new Uint8ClampedArray(pixels.length);
  for (let i = 0; i < pixels.length; i += 3) {
    const lightness = pixels[i], fy = ROOTS_OF_Y[lightness];
    // in units of 2 ** -14: (a - 128) / 500 and (b - 128) / 200
    const x = cube(fy + (pixels[i + 1] * 268435 + 128 >> 13) - 4194);
    const z = cube(fy - (pixels[i + 2] * 41943 + 16 >> 9) + 10484);
    for (let c = 0; c < 3; c++) {
      const [a, b, d] = TO_RGB[c];
      out[i + c] = ENCODED[Math.min(4095, Math.max(0, a * x + b * Y[lightness] + d * z + (1 << 13) >> 14))];
    }
  }
  return out;
}

// The inverse of ROOT's function, in units of 2 ** -14.
function cube(f) {
  if (f <= 3390) return Math.floor(f * 108 / 841) - 290;
  return Math.floor(Math.floor(f * f / UNIT) * f / UNIT);
}
