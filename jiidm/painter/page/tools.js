// Pointer, pen and touch on the drawing: what each tool does with them.

export const TOOLS = {
  brush: { key: 'b', title: 'Brush' },
  bucket: { key: 'g', title: 'Bucket: fill an area' },
  line: { key: 'l', title: 'Line' },
  polygon: { key: 'p', title: 'Polygon: click corners, double-click or Enter ends' },
  rectangle: { key: 'r', title: 'Rectangle' },
  eyedropper: { key: 'i', title: 'Eyedropper: take the material under the pointer' },
  erase: { key: 'e', title: 'Erase to the background material' },
  replace: { key: 'c', title: 'Replace: click a material, all of it becomes the chosen one' },
};

export class Pen {
  // `state` has tool, size, round, label, background; `on` has begin, drawing, end, pick, sized.
  constructor(view, history, state, on) {
    Object.assign(this, { view, history, state, on });
    this.corners = [];
    this.touches = new Map();
    this.mode = null; // what the pointer that is down does: "paint", "pan", "pinch"
    const { canvas } = view;
    canvas.addEventListener('pointerdown', (event) => this.down(event));
    canvas.addEventListener('pointermove', (event) => this.move(event));
    canvas.addEventListener('pointerup', (event) => this.up(event));
    canvas.addEventListener('pointercancel', (event) => this.up(event, true));
    canvas.addEventListener('pointerleave', () => this.hover(null));
    canvas.addEventListener('dblclick', () => this.closePolygon());
    canvas.addEventListener('contextmenu', (event) => event.preventDefault());
    canvas.addEventListener('wheel', (event) => this.wheel(event), { passive: false });
  }

  get buffer() { return this.view.buffer; }

  down(event) {
    this.view.canvas.focus({ preventScroll: true });
    if (event.pointerType === 'touch') {
      this.touches.set(event.pointerId, event);
      if (this.touches.size === 2) {
        this.cancel();
        this.mode = 'pinch';
      }
    }
    if (this.mode) return;
    this.view.canvas.setPointerCapture(event.pointerId);
    this.pointer = event.pointerId;
    if (event.button === 1 || this.state.space) {
      this.mode = 'pan';
      this.last = event;
      return;
    }
    if (event.button !== 0 && event.button !== 2) return;
    const at = this.view.locate(event);
    const { tool } = this.state;
    this.label = event.button === 2 || tool === 'erase' ? this.state.background : this.state.label;
    const inside = this.buffer.contains(at.x, at.y);
    if (tool === 'eyedropper' || event.altKey) {
      if (inside) this.on.pick(this.buffer.at(at.x, at.y), event.button === 2);
    } else if (tool === 'polygon') {
      this.addCorner(at);
    } else if (tool === 'bucket' || tool === 'replace') {
      if (inside) {
        this.step(() => {
          if (tool === 'bucket') this.buffer.bucket(at.x, at.y, this.label);
          else this.buffer.replace(this.buffer.at(at.x, at.y), this.label);
        });
      }
    } else {
      this.mode = 'paint';
      this.start = this.at = at;
      this.history.begin();
      this.paint(event);
    }
  }

  move(event) {
    if (event.pointerType === 'touch' && this.touches.has(event.pointerId)) {
      const before = [...this.touches.values()];
      this.touches.set(event.pointerId, event);
      if (this.mode === 'pinch') this.pinch(before, [...this.touches.values()]);
    }
    if (this.mode === 'pan' && event.pointerId === this.pointer) {
      this.view.pan(event.clientX - this.last.clientX, event.clientY - this.last.clientY);
      this.last = event;
    } else if (this.mode === 'paint' && event.pointerId === this.pointer) this.paint(event);
    this.hover(event);
  }

  up(event, cancelled = false) {
    this.touches.delete(event.pointerId);
    if (this.mode === 'pinch') {
      if (!this.touches.size) this.mode = null;
      return;
    }
    if (event.pointerId !== this.pointer) return;
    if (this.mode === 'paint') {
      if (cancelled) this.cancel();
      else if (this.history.commit()) this.on.end();
    }
    this.mode = null;
    this.view.shape = this.corners;
  }

  paint(event) {
    const { tool, size, round } = this.state;
    if (tool === 'brush' || tool === 'erase') {
      const events = event.getCoalescedEvents?.() ?? [];
      for (const each of events.length ? events : [event]) {
        const to = this.view.locate(each);
        this.buffer.stroke(this.at, to, size, round, this.label);
        this.at = to;
      }
    } else {
      let to = this.view.locate(event);
      if (event.shiftKey) to = straight(this.start, to, tool);
      this.history.rollback();
      if (tool === 'line') this.buffer.stroke(this.start, to, size, round, this.label);
      else this.buffer.rectangle(this.start, to, this.label);
    }
    this.view.changed();
    this.on.drawing();
  }

  // One step of a tool that is done at once.
  step(action) {
    this.history.begin();
    action();
    const changed = this.history.commit();
    this.view.changed();
    if (changed) this.on.end();
  }

  addCorner(at) {
    const last = this.corners.at(-1);
    if (last && last.x === at.x && last.y === at.y) return; // the second click of a double click
    const first = this.corners[0];
    const near = 8 / this.view.scale;
    if (this.corners.length > 2 && Math.hypot(first.x - at.x, first.y - at.y) < near) return void this.closePolygon();
    this.polygonLabel = this.label;
    this.corners.push(at);
    this.view.shape = this.corners;
    this.view.draw();
  }

  closePolygon() {
    const { corners } = this;
    if (!corners.length) return false;
    this.corners = this.view.shape = [];
    if (corners.length > 2) this.step(() => this.buffer.polygon(corners, this.polygonLabel));
    this.view.draw();
    return true;
  }

  // Drops what is being drawn; returns whether there was anything.
  cancel() {
    const something = this.mode === 'paint' || this.corners.length > 0;
    if (this.mode === 'paint') {
      this.history.rollback();
      this.history.commit();
      this.view.changed();
      this.mode = null;
      this.on.end();
    }
    this.corners = this.view.shape = [];
    this.view.draw();
    return something;
  }

  hover(event) {
    const { tool, size, round } = this.state;
    const sized = ['brush', 'erase', 'line'].includes(tool);
    this.view.cursor = event && event.pointerType !== 'touch'
      ? { ...this.view.locate(event), size: sized ? size : 1, round: sized && round } : null;
    if (this.corners.length && event) this.view.shape = [...this.corners, this.view.locate(event)];
    this.view.draw();
  }

  wheel(event) {
    event.preventDefault();
    if (event.ctrlKey || event.metaKey) this.view.zoomBy(Math.exp(-event.deltaY / 200), event);
    else if (event.shiftKey) this.view.pan(-event.deltaX - event.deltaY, 0);
    else this.on.sized(event.deltaY < 0 ? 1 : -1);
    this.hover(event);
  }

  pinch(before, after) {
    if (before.length !== 2 || after.length !== 2) return;
    const middle = ([a, b]) => ({ clientX: (a.clientX + b.clientX) / 2, clientY: (a.clientY + b.clientY) / 2 });
    const distance = ([a, b]) => Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY) || 1;
    const [from, to] = [middle(before), middle(after)];
    this.view.pan(to.clientX - from.clientX, to.clientY - from.clientY);
    this.view.zoomBy(distance(after) / distance(before), to);
  }
}

// With Shift: lines in steps of 45 degrees, rectangles as squares.
function straight(from, to, tool) {
  const dx = to.x - from.x, dy = to.y - from.y, side = Math.max(Math.abs(dx), Math.abs(dy));
  if (tool === 'line' && Math.abs(dx) > 2 * Math.abs(dy)) return { x: to.x, y: from.y };
  if (tool === 'line' && Math.abs(dy) > 2 * Math.abs(dx)) return { x: from.x, y: to.y };
  return { x: from.x + side * Math.sign(dx), y: from.y + side * Math.sign(dy) };
}
