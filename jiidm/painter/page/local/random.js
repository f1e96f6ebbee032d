// Standard normal numbers as numpy draws them: SeedSequence (O'Neill's seed_seq_fe), PCG64 (XSL-RR 128/64) and the
// ziggurat of 256 layers for 32-bit floats (Marsaglia & Tsang 2000). A seed gives the same noise here as in Python.

const WORD = (1n << 64n) - 1n, STATE = (1n << 128n) - 1n;
const MULTIPLIER = 0x2360ed051fc65da44385df649fccf645n;

// Mixes entropy, 32-bit words, into `count` words.
function seedWords(entropy, count) {
  let constant = 0x43b0d7e5;
  const hash = (value) => {
    value ^= constant;
    constant = Math.imul(constant, 0x931e8875);
    value = Math.imul(value, constant);
    return value ^ (value >>> 16);
  };
  const mix = (x, y) => {
    const mixed = Math.imul(0xca01f9dd, x) - Math.imul(0x4973f715, y) | 0;
    return mixed ^ (mixed >>> 16);
  };
  const pool = [0, 1, 2, 3].map((i) => hash(entropy[i] ?? 0));
  for (let from = 0; from < 4; from++) {
    for (let to = 0; to < 4; to++) if (from !== to) pool[to] = mix(pool[to], hash(pool[from]));
  }
  for (const word of entropy.slice(4)) for (let to = 0; to < 4; to++) pool[to] = mix(pool[to], hash(word));
  constant = 0x8b51f9dd;
  return Array.from({ length: count }, (_, i) => {
    let value = pool[i % 4] ^ constant;
    constant = Math.imul(constant, 0x58f38ded);
    value = Math.imul(value, constant);
    return (value ^ (value >>> 16)) >>> 0;
  });
}

// PCG64; `entropy` is a whole number as 32-bit words, the lowest first.
class Pcg64 {
  constructor(entropy) {
    let length = entropy.length;
    while (length > 1 && !entropy[length - 1]) length--; // a number has no leading zeros
    const words = seedWords(entropy.slice(0, length), 8).map(BigInt);
    const [stateHigh, stateLow, streamHigh, streamLow] = [0, 2, 4, 6].map((i) => words[i] | words[i + 1] << 32n);
    this.increment = ((streamHigh << 64n | streamLow) << 1n | 1n) & STATE;
    this.state = this.increment; // the first step, from 0
    this.state = this.state + (stateHigh << 64n | stateLow) & STATE;
    this.step();
    this.half = null;
  }

  step() {
    this.state = this.state * MULTIPLIER + this.increment & STATE;
  }

  // The next 32 bits: the lower half of a 64-bit number, then its upper half.
  next() {
    if (this.half !== null) {
      const value = this.half;
      this.half = null;
      return value;
    }
    this.step();
    const folded = (this.state >> 64n ^ this.state) & WORD, turn = this.state >> 122n;
    const value = (folded >> turn | folded << (64n - turn)) & WORD;
    this.half = Number(value >> 32n);
    return Number(value & 0xffffffffn);
  }

  // A 32-bit float in [0, 1).
  uniform() {
    return (this.next() >>> 8) / 2 ** 24;
  }
}

const EDGE = 3.6541528853610088; // where the tail begins
const AREA = 0.00492867323399; // of each layer
const { widths, limits, heights } = layers();

// Of each layer: its width over 2 ** 23, below which 23-bit number all points are inside, its height.
function layers() {
  const edges = new Float64Array(257);
  const density = (x) => Math.exp(-x * x / 2);
  edges[256] = AREA / density(EDGE); // the base layer's, as wide as if it had no tail
  edges[255] = EDGE;
  for (let i = 254; i > 0; i--) edges[i] = Math.sqrt(-2 * Math.log(AREA / edges[i + 1] + density(edges[i + 1])));
  const widths = new Float32Array(256), limits = new Uint32Array(256), heights = new Float32Array(256);
  for (let i = 1; i < 256; i++) {
    widths[i] = edges[i] / 2 ** 23;
    limits[i] = edges[i - 1] / edges[i] * 2 ** 23;
    heights[i] = density(edges[i]);
  }
  widths[0] = edges[256] / 2 ** 23;
  limits[0] = EDGE / edges[256] * 2 ** 23;
  heights[0] = 1;
  return { widths, limits, heights };
}

function normal(rng) {
  const { fround } = Math;
  for (;;) {
    const bits = rng.next(), layer = bits & 255, whole = bits >>> 9;
    const x = fround(whole * widths[layer] * (bits & 256 ? -1 : 1));
    if (whole < limits[layer]) return x;
    if (layer === 0) {
      for (;;) {
        const beyond = fround(fround(-1 / EDGE) * fround(Math.log1p(-rng.uniform())));
        const y = fround(-Math.log1p(-rng.uniform()));
        if (fround(y + y) > fround(beyond * beyond)) {
          const far = fround(fround(EDGE) + beyond);
          return whole >>> 8 & 1 ? -far : far;
        }
      }
    }
    const height = fround(fround(fround(heights[layer - 1] - heights[layer]) * rng.uniform()) + heights[layer]);
    if (height < Math.exp(-0.5 * x * x)) return x;
  }
}

// `count` numbers of the stream whose seed is 32 bytes, a whole number written from its highest byte.
export function normals(bytes, count) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const rng = new Pcg64(Array.from({ length: 8 }, (_, i) => view.getUint32(28 - 4 * i)));
  return Float32Array.from({ length: count }, () => normal(rng));
}

// The noise of a round, as `draw_noise` of jiidm.inference.refinement: `count` numbers for a seed and a picture's name.
export async function drawNoise(seed, name, round, count) {
  const key = await crypto.subtle.digest('SHA-256', new TextEncoder().encode(`${seed}/${round}/${name}`));
  return normals(new Uint8Array(key), count);
}
