// The drawing: one byte a pixel, a class a byte. Every tool writes classes into it and nothing else, so no pixel can
// have a class that was not chosen.

export class IndexBuffer {
  constructor(width, height, label = 0) {
    this.width = width;
    this.height = height;
    this.data = new Uint8Array(width * height).fill(label);
    this.locked = new Uint8Array(256); // 1: pixels of this class stay
  }

  clone() {
    const copy = new IndexBuffer(this.width, this.height);
    copy.data.set(this.data);
    return copy;
  }

  at(x, y) {
    return this.data[y * this.width + x];
  }

  contains(x, y) {
    return x >= 0 && y >= 0 && x < this.width && y < this.height;
  }

  // Pixels left..right - 1 of a row take the label, where their class is not locked.
  span(y, left, right, label) {
    if (y < 0 || y >= this.height) return;
    const end = y * this.width + Math.min(this.width, right);
    for (let i = y * this.width + Math.max(0, left); i < end; i++) {
      if (!this.locked[this.data[i]]) this.data[i] = label;
    }
  }

  fill(label) {
    for (let y = 0; y < this.height; y++) this.span(y, 0, this.width, label);
  }

  // A brush stroke from one pixel to another; equal ends make a dot.
  stroke(from, to, size, round, label) {
    const spans = brush(size, round);
    for (const [x, y] of pixelsBetween(from, to)) {
      for (const [dy, left, right] of spans) this.span(y + dy, x + left, x + right, label);
    }
  }

  rectangle(a, b, label) {
    const [left, right] = [Math.min(a.x, b.x), Math.max(a.x, b.x)];
    for (let y = Math.min(a.y, b.y); y <= Math.max(a.y, b.y); y++) this.span(y, left, right + 1, label);
  }

  // Pixels whose centre is inside of the polygon, by the even-odd rule, and those under its outline.
  polygon(points, label) {
    for (let i = 0; i < points.length; i++) {
      this.stroke(points[i], points[(i + 1) % points.length], 1, false, label);
    }
    const top = Math.max(0, Math.min(...points.map((p) => p.y)));
    const bottom = Math.min(this.height - 1, Math.max(...points.map((p) => p.y)));
    for (let y = top; y <= bottom; y++) {
      const crossings = [];
      for (let i = 0; i < points.length; i++) {
        const p = points[i], q = points[(i + 1) % points.length];
        if ((p.y <= y) !== (q.y <= y)) crossings.push(p.x + ((y - p.y) / (q.y - p.y)) * (q.x - p.x));
      }
      crossings.sort((a, b) => a - b);
      for (let i = 0; i + 1 < crossings.length; i += 2) {
        this.span(y, Math.ceil(crossings[i]), Math.floor(crossings[i + 1]) + 1, label);
      }
    }
  }

  // The connected area of one class (4 neighbours) that has the pixel x, y.
  bucket(x, y, label) {
    const { width, height, data } = this;
    const old = this.at(x, y);
    if (old === label || this.locked[old]) return;
    const stack = [[x, y]];
    while (stack.length) {
      const [px, py] = stack.pop();
      const row = py * width;
      if (data[row + px] !== old) continue;
      let left = px, right = px;
      while (left > 0 && data[row + left - 1] === old) left--;
      while (right < width - 1 && data[row + right + 1] === old) right++;
      data.fill(label, row + left, row + right + 1);
      for (const ny of [py - 1, py + 1]) {
        if (ny < 0 || ny >= height) continue;
        for (let nx = left; nx <= right; nx++) {
          const here = data[ny * width + nx] === old;
          if (here && (nx === left || data[ny * width + nx - 1] !== old)) stack.push([nx, ny]);
        }
      }
    }
  }

  replace(old, label) {
    if (this.locked[old]) return;
    for (let i = 0; i < this.data.length; i++) if (this.data[i] === old) this.data[i] = label;
  }

  // How many pixels each class has.
  counts() {
    const counts = new Uint32Array(256);
    for (const label of this.data) counts[label]++;
    return counts;
  }
}

const brushes = new Map();

// The brush as spans [dy, left, right) around its pixel. Hard edges: a pixel is inside or it is not.
export function brush(size, round) {
  const key = `${size}/${round}`;
  if (!brushes.has(key)) {
    const spans = [];
    const low = -Math.floor(size / 2);
    const centre = low + size / 2; // of the brush, where pixel 0 lies from 0 to 1
    for (let dy = low; dy < low + size; dy++) {
      let half = size / 2;
      if (round) {
        const d = dy + 0.5 - centre;
        half = Math.sqrt(Math.max(0, (size / 2) ** 2 - d * d));
        if (size === 1) half = 0.5;
      }
      const left = Math.ceil(centre - half - 0.5), right = Math.floor(centre + half - 0.5) + 1;
      if (right > left) spans.push([dy, left, right]);
    }
    brushes.set(key, spans);
  }
  return brushes.get(key);
}

function* pixelsBetween(a, b) {
  let { x, y } = a;
  const dx = Math.abs(b.x - x), dy = -Math.abs(b.y - y);
  const sx = x < b.x ? 1 : -1, sy = y < b.y ? 1 : -1;
  let error = dx + dy;
  for (;;) {
    yield [x, y];
    if (x === b.x && y === b.y) return;
    const twice = 2 * error;
    if (twice >= dy) { error += dy; x += sx; }
    if (twice <= dx) { error += dx; y += sy; }
  }
}

// Undo and redo without a limit: of each step only the changed rectangle is kept, before and after, as runs.
export class History {
  constructor(buffer) {
    this.buffer = buffer;
    this.done = [];
    this.undone = [];
    this.before = null;
  }

  get canUndo() { return this.done.length > 0; }
  get canRedo() { return this.undone.length > 0; }

  begin() {
    this.before = this.buffer.data.slice();
  }

  // Puts the buffer back to where the step began.
  rollback() {
    if (this.before) this.buffer.data.set(this.before);
  }

  // Ends the step; returns whether anything changed.
  commit() {
    const { before, buffer } = this;
    this.before = null;
    if (!before) return false;
    const box = changedBox(before, buffer);
    if (!box) return false;
    this.done.push({ box, before: runs(before, box, buffer.width), after: runs(buffer.data, box, buffer.width) });
    this.undone = [];
    return true;
  }

  undo() { return this.move(this.done, this.undone, 'before'); }
  redo() { return this.move(this.undone, this.done, 'after'); }

  move(from, to, side) {
    const step = from.pop();
    if (!step) return false;
    to.push(step);
    unrun(step[side], step.box, this.buffer);
    return true;
  }
}

function changedBox(before, { data, width, height }) {
  let left = width, right = -1, top = -1, bottom = -1;
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      if (before[i] !== data[i]) {
        if (top < 0) top = y;
        bottom = y;
        if (x < left) left = x;
        if (x > right) right = x;
      }
    }
  }
  return top < 0 ? null : { left, top, width: right - left + 1, height: bottom - top + 1 };
}

function runs(data, box, width) {
  const found = [];
  let label = -1, count = 0;
  for (let y = box.top; y < box.top + box.height; y++) {
    for (let x = box.left; x < box.left + box.width; x++) {
      const here = data[y * width + x];
      if (here === label) count++;
      else {
        if (count) found.push(count * 256 + label);
        label = here;
        count = 1;
      }
    }
  }
  found.push(count * 256 + label);
  return Uint32Array.from(found);
}

function unrun(encoded, box, buffer) {
  let i = 0;
  for (const run of encoded) {
    for (let left = Math.floor(run / 256); left > 0; left--, i++) {
      const y = box.top + Math.floor(i / box.width), x = box.left + (i % box.width);
      buffer.data[y * buffer.width + x] = run % 256;
    }
  }
}
