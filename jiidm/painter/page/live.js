// When pictures are computed. While the pen moves, one preview after the other; when it lifts, a preview of that state
// at once, whatever runs; when it rests, the full recipe. The latest state wins.

import { Unreachable } from './engine.js';

const REST = 900; // milliseconds from the last preview to the full recipe

export class Live {
  // `project(quality, seed)` gives the state to compute. `show` has started, event, result, failed, lost.
  constructor(engine, project, show) {
    this.engine = engine;
    this.project = project;
    this.show = show;
    this.preview = true; // compute while painting
    this.full = true; // compute the full recipe when the pen rests
    this.version = 0; // of the drawing and its settings
    this.running = null;
    this.timer = 0;
    this.stopped = true;
  }

  // The state has changed; `drawing` while the pen is still down.
  changed(drawing = false) {
    this.version++;
    clearTimeout(this.timer);
    if (this.stopped || !this.preview) {
      if (!drawing) {
        this.abort();
        if (!this.stopped && this.full) this.timer = setTimeout(() => this.run('full'), REST);
      }
      return;
    }
    if (drawing && this.running?.quality === 'preview') return; // it is followed by one of the newest state
    this.run('preview');
  }

  abort() {
    clearTimeout(this.timer);
    this.running?.controller.abort();
    this.running = null;
  }

  // Computes the present state, or one with another seed; returns the result, or null where a newer one took over.
  async run(quality, seed) {
    if (this.stopped) return null;
    this.abort();
    const job = { quality, version: this.version, controller: new AbortController() };
    this.running = job;
    this.show.started(quality);
    try {
      const project = await this.project(quality, seed);
      if (this.running !== job) return null;
      const result = await this.engine.paint(project, (event) => {
        if (this.running === job) this.show.event(event, quality);
      }, job.controller.signal);
      if (this.running !== job) return null;
      this.running = null;
      this.show.result(result, quality, project);
      this.next(job);
      return { ...result, project };
    } catch (error) {
      if (this.running !== job) return null;
      this.running = null;
      if (error.name === 'AbortError') this.next({ ...job, version: -1 });
      else if (error instanceof Unreachable) {
        this.stopped = true;
        this.show.lost(error);
      } else this.show.failed(error);
      return null;
    }
  }

  next(job) {
    if (job.version !== this.version && this.preview) this.run('preview');
    else if (job.quality === 'preview' && this.full) this.timer = setTimeout(() => this.run('full'), REST);
  }
}
