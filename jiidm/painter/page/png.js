// PNGs of label maps and pictures, written and read here: a canvas would turn labels into colours, and some browsers
// change what is read back from a canvas.

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];

const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function crc(bytes) {
  let c = 0xffffffff;
  for (const byte of bytes) c = CRC[(c ^ byte) & 255] ^ (c >>> 8);
  return (c ^ 0xffffffff) >>> 0;
}

function chunk(type, data) {
  const bytes = new Uint8Array(12 + data.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, data.length);
  bytes.set([...type].map((letter) => letter.charCodeAt(0)), 4);
  bytes.set(data, 8);
  view.setUint32(8 + data.length, crc(bytes.subarray(4, 8 + data.length)));
  return bytes;
}

async function through(stream, bytes) {
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer());
}

export function encodeGrey(width, height, labels) {
  return encode(width, height, labels, 0, 1);
}

export function encodeRgb(width, height, pixels) {
  return encode(width, height, pixels, 2, 3);
}

async function encode(width, height, pixels, color, channels) {
  const header = new Uint8Array(13);
  const view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header.set([8, color, 0, 0, 0], 8); // 8 bits, no interlacing
  const length = width * channels, rows = new Uint8Array((length + 1) * height); // each row after its filter, 0: none
  for (let y = 0; y < height; y++) rows.set(pixels.subarray(y * length, (y + 1) * length), y * (length + 1) + 1);
  const packed = await through(new CompressionStream('deflate'), rows);
  const parts = [chunk('IHDR', header), chunk('IDAT', packed), chunk('IEND', new Uint8Array(0))];
  return new Uint8Array(await new Blob([new Uint8Array(SIGNATURE), ...parts]).arrayBuffer());
}

// Returns {width, height, labels}; throws an Error for anything but an 8-bit grey PNG without interlacing.
export async function decodeGrey(bytes) {
  const { width, height, depth, color, rows } = await decodeRows(bytes);
  if (depth !== 8 || color !== 0) throw new Error('not an 8-bit grey PNG');
  return { width, height, labels: rows };
}

const CHANNELS = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 }; // of each colour type

// Returns {width, height, depth, color, palette, rows}, the rows as the file stores them, without their filters.
export async function decodeRows(bytes) {
  if (!SIGNATURE.every((byte, i) => bytes[i] === byte)) throw new Error('not a PNG');
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let width = 0, height = 0, depth = 0, color = 0, interlace = 0, palette = null;
  const data = [];
  for (let at = 8; at + 12 <= bytes.length;) {
    const length = view.getUint32(at);
    const type = String.fromCharCode(...bytes.subarray(at + 4, at + 8)), body = bytes.subarray(at + 8, at + 8 + length);
    if (type === 'IHDR') {
      width = view.getUint32(at + 8);
      height = view.getUint32(at + 12);
      [depth, color, , , interlace] = bytes.subarray(at + 16, at + 21);
      if (!(color in CHANNELS) || interlace !== 0) throw new Error('not a plain PNG');
    } else if (type === 'PLTE') palette = body;
    else if (type === 'IDAT') data.push(body);
    at += 12 + length;
  }
  if (!width || !height || width * height > 2 ** 26) throw new Error('not a usable size');
  const step = Math.max(1, depth * CHANNELS[color] / 8), length = Math.ceil(width * depth * CHANNELS[color] / 8);
  const filtered = await through(new DecompressionStream('deflate'), new Uint8Array(await new Blob(data).arrayBuffer()));
  if (filtered.length < (length + 1) * height) throw new Error('a broken PNG');
  const rows = new Uint8Array(length * height);
  for (let y = 0; y < height; y++) {
    const filter = filtered[y * (length + 1)];
    for (let x = 0, i = y * length; x < length; x++, i++) {
      const left = x >= step;
      const a = left ? rows[i - step] : 0, b = y ? rows[i - length] : 0, c = left && y ? rows[i - length - step] : 0;
      const predicted = filter === 4 ? paeth(a, b, c) : [0, a, b, (a + b) >> 1][filter];
      rows[i] = filtered[y * (length + 1) + 1 + x] + predicted;
    }
  }
  return { width, height, depth, color, palette, rows };
}

function paeth(a, b, c) {
  const p = a + b - c;
  const [da, db, dc] = [Math.abs(p - a), Math.abs(p - b), Math.abs(p - c)];
  if (da <= db && da <= dc) return a;
  return db <= dc ? b : c;
}

export function toBase64(bytes) {
  let text = '';
  for (let i = 0; i < bytes.length; i += 0x8000) text += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return btoa(text);
}

export function fromBase64(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}
