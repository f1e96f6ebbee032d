// Shows the index buffer: zoom, pan, the photo beneath, the outline of the cursor. It never draws into the buffer.

export class View {
  constructor(canvas, buffer, colors) {
    this.canvas = canvas;
    this.context = canvas.getContext('2d');
    this.colors = colors; // Uint32Array(256), ABGR as in ImageData
    this.zoom = 1;
    this.offset = { x: 0, y: 0 }; // of the drawing's corner from the middle, in CSS pixels
    this.under = null; // an ImageBitmap that lies beneath
    this.opacity = 0.6; // of the drawing, where a photo lies beneath
    this.cursor = null; // {x, y, size, round} in pixels of the buffer
    this.shape = []; // points of a shape that is being drawn
    this.picture = document.createElement('canvas');
    this.use(buffer);
    new ResizeObserver(() => this.resize()).observe(canvas.parentElement);
    this.resize();
  }

  use(buffer) {
    this.buffer = buffer;
    this.picture.width = buffer.width;
    this.picture.height = buffer.height;
    this.pixels = this.picture.getContext('2d').createImageData(buffer.width, buffer.height);
    this.changed();
  }

  resize() {
    const box = this.canvas.parentElement.getBoundingClientRect();
    this.ratio = window.devicePixelRatio || 1;
    this.width = Math.max(1, box.width);
    this.height = Math.max(1, box.height);
    this.canvas.width = Math.round(this.width * this.ratio);
    this.canvas.height = Math.round(this.height * this.ratio);
    this.draw();
  }

  // CSS pixels a pixel of the buffer.
  get scale() {
    return this.zoom * Math.min(this.width / this.buffer.width, this.height / this.buffer.height);
  }

  get corner() {
    const s = this.scale;
    return {
      x: (this.width - s * this.buffer.width) / 2 + this.offset.x,
      y: (this.height - s * this.buffer.height) / 2 + this.offset.y,
    };
  }

  // The pixel of the buffer under a pointer event; it may lie outside.
  locate(event) {
    const box = this.canvas.getBoundingClientRect(), corner = this.corner, s = this.scale;
    return { x: Math.floor((event.clientX - box.left - corner.x) / s), y: Math.floor((event.clientY - box.top - corner.y) / s) };
  }

  zoomBy(factor, event = null) {
    const box = this.canvas.getBoundingClientRect();
    const x = event ? event.clientX - box.left - this.width / 2 : 0, y = event ? event.clientY - box.top - this.height / 2 : 0;
    const zoom = Math.min(32, Math.max(1, this.zoom * factor));
    const change = zoom / this.zoom;
    this.zoom = zoom;
    this.pan(x - (x - this.offset.x) * change - this.offset.x, y - (y - this.offset.y) * change - this.offset.y);
  }

  pan(dx, dy) {
    const s = this.scale;
    const room = (side, length) => Math.max(0, (s * length - side) / 2 + (this.zoom > 1 ? side / 2 : 0));
    const clamp = (value, most) => Math.min(most, Math.max(-most, value));
    this.offset.x = clamp(this.offset.x + dx, room(this.width, this.buffer.width));
    this.offset.y = clamp(this.offset.y + dy, room(this.height, this.buffer.height));
    this.draw();
  }

  fit() {
    this.zoom = 1;
    this.offset = { x: 0, y: 0 };
    this.draw();
  }

  // The buffer has changed.
  changed() {
    const out = new Uint32Array(this.pixels.data.buffer), { data } = this.buffer;
    for (let i = 0; i < data.length; i++) out[i] = this.colors[data[i]];
    this.picture.getContext('2d').putImageData(this.pixels, 0, 0);
    this.draw();
  }

  draw() {
    if (this.pending) return;
    this.pending = requestAnimationFrame(() => {
      this.pending = 0;
      this.render();
    });
  }

  render() {
    const { context, buffer } = this;
    const s = this.scale * this.ratio, x = this.corner.x * this.ratio, y = this.corner.y * this.ratio;
    const [w, h] = [buffer.width * s, buffer.height * s];
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    context.imageSmoothingEnabled = true;
    if (this.under) context.drawImage(this.under, x, y, w, h);
    context.globalAlpha = this.under ? this.opacity : 1;
    context.imageSmoothingEnabled = false;
    context.drawImage(this.picture, x, y, w, h);
    context.globalAlpha = 1;
    this.outline(() => {
      if (!this.cursor) return;
      const { size, round } = this.cursor, low = -Math.floor(size / 2);
      const left = x + (this.cursor.x + low) * s, top = y + (this.cursor.y + low) * s, side = Math.max(3, size * s);
      if (round && size > 2) context.ellipse(left + side / 2, top + side / 2, side / 2, side / 2, 0, 0, 2 * Math.PI);
      else context.rect(left, top, side, side);
    });
    this.outline(() => {
      this.shape.forEach((point, i) => context[i ? 'lineTo' : 'moveTo'](x + (point.x + 0.5) * s, y + (point.y + 0.5) * s));
    });
  }

  // Strokes a path white on black, visible on any colour.
  outline(path) {
    const { context } = this;
    context.beginPath();
    path();
    for (const [width, color] of [[3, 'rgba(0,0,0,.65)'], [1.2, '#fff']]) {
      context.lineWidth = width * this.ratio;
      context.strokeStyle = color;
      context.stroke();
    }
  }

  // The drawing in its colours, as a canvas.
  coloured() {
    return this.picture;
  }
}
