// 8-bit grey PNGs of label maps, written and read here: a canvas would turn labels into colours, and some browsers
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

export async function encodeGrey(width, height, labels) {
  const header = new Uint8Array(13);
  const view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header.set([8, 0, 0, 0, 0], 8); // 8 bits, grey, no interlacing
  const rows = new Uint8Array((width + 1) * height); // each row after its filter, 0: none
  for (let y = 0; y < height; y++) rows.set(labels.subarray(y * width, (y + 1) * width), y * (width + 1) + 1);
  const packed = await through(new CompressionStream('deflate'), rows);
  const parts = [chunk('IHDR', header), chunk('IDAT', packed), chunk('IEND', new Uint8Array(0))];
  return new Uint8Array(await new Blob([new Uint8Array(SIGNATURE), ...parts]).arrayBuffer());
}

// Returns {width, height, labels}; throws an Error for anything but an 8-bit grey PNG without interlacing.
export async function decodeGrey(bytes) {
  if (!SIGNATURE.every((byte, i) => bytes[i] === byte)) throw new Error('not a PNG');
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let width = 0, height = 0;
  const data = [];
  for (let at = 8; at + 12 <= bytes.length;) {
    const length = view.getUint32(at);
    const type = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    if (type === 'IHDR') {
      width = view.getUint32(at + 8);
      height = view.getUint32(at + 12);
      const [depth, color, , , interlace] = bytes.subarray(at + 16, at + 21);
      if (depth !== 8 || color !== 0 || interlace !== 0) throw new Error('not an 8-bit grey PNG');
    } else if (type === 'IDAT') data.push(bytes.subarray(at + 8, at + 8 + length));
    at += 12 + length;
  }
  if (!width || !height || width * height > 2 ** 26) throw new Error('not a usable size');
  const rows = await through(new DecompressionStream('deflate'), new Uint8Array(await new Blob(data).arrayBuffer()));
  if (rows.length < (width + 1) * height) throw new Error('a broken PNG');
  const labels = new Uint8Array(width * height);
  for (let y = 0; y < height; y++) {
    const filter = rows[y * (width + 1)];
    for (let x = 0, i = y * width; x < width; x++, i++) {
      const a = x ? labels[i - 1] : 0, b = y ? labels[i - width] : 0, c = x && y ? labels[i - width - 1] : 0;
      const predicted = [0, a, b, (a + b) >> 1, paeth(a, b, c)][filter];
      labels[i] = rows[y * (width + 1) + 1 + x] + predicted;
    }
  }
  return { width, height, labels };
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
