// The picture pane: the picture, its progress, the comparison; the strips of variations and of the history.

const KEPT = 60; // pictures of the history

export class Pictures {
  // `on` has restore(project, picture) and chosen(project, picture).
  constructor($, on) {
    this.$ = $;
    this.on = on;
    this.blob = this.before = this.style = null;
    this.shown = false;
    $('compare').addEventListener('change', () => this.compare());
    $('slider').addEventListener('input', () => this.cut());
    this.cut();
    this.note('variations', 'Four pictures of one drawing, by other seeds. Choose one to go on with it.');
    this.note('history', 'Each full picture is kept here with its drawing until the page is closed.');
  }

  note(box, text) {
    const note = document.createElement('p');
    note.className = 'note';
    note.textContent = text;
    this.$(box).replaceChildren(note);
  }

  show(blob, preview) {
    const { $ } = this;
    if (!preview && this.full) this.before = this.full;
    if (!preview) this.full = blob;
    this.blob = blob;
    this.shown = true;
    this.source($('picture'), blob);
    $('picture').hidden = false;
    $('empty').hidden = true;
    if ($('compare').value === 'before') this.compare();
  }

  source(image, blob) {
    const old = image.src;
    image.src = URL.createObjectURL(blob);
    if (old.startsWith('blob:')) image.decode().catch(() => {}).then(() => URL.revokeObjectURL(old));
  }

  progress(part) {
    const { $ } = this;
    $('progress').hidden = part === null;
    $('progress').value = part ?? 0;
  }

  styleChanged(blob) {
    this.style = blob;
    if (this.$('compare').value === 'style') this.compare();
  }

  drawingChanged(view) {
    this.view = view;
    if (this.$('compare').value === 'map') this.compare();
  }

  // Lays what the picture is compared with over its left part.
  async compare() {
    const { $ } = this, what = $('compare').value;
    let blob = { style: this.style, before: this.before }[what];
    if (what === 'map') blob = await new Promise((resolve) => this.view.coloured().toBlob(resolve));
    for (const id of ['other', 'cut', 'slider']) $(id).hidden = !blob;
    if (!blob) return;
    this.source($('other'), blob);
    $('other').alt = { map: 'the drawing', style: 'the style photo', before: 'the picture before' }[what];
    $('other').classList.toggle('crisp', what === 'map');
  }

  cut() {
    this.$('frame').style.setProperty('--cut', `${this.$('slider').value}%`);
  }

  clearVariations() {
    this.$('variations').replaceChildren();
  }

  addVariation(blob, project) {
    const button = this.thumb(blob, `Seed ${project.settings.seed}`, () => {
      for (const each of this.$('variations').children) each.setAttribute('aria-pressed', each === button);
      this.on.chosen(project, blob);
    });
    this.$('variations').append(button);
  }

  keep(blob, project) {
    const box = this.$('history');
    if (!box.querySelector('button')) box.replaceChildren();
    const words = `${project.title ?? 'own style'}, seed ${project.settings.seed}`;
    const button = this.thumb(blob, `Go back to this: ${words}`, () => {
      for (const each of box.children) each.setAttribute('aria-pressed', each === button);
      Promise.resolve(this.on.restore(project, blob)).catch(() => {});
    });
    for (const each of box.children) each.setAttribute('aria-pressed', false);
    button.setAttribute('aria-pressed', true);
    box.prepend(button);
    while (box.children.length > KEPT) {
      URL.revokeObjectURL(box.lastChild.firstChild.src);
      box.lastChild.remove();
    }
  }

  thumb(blob, title, action) {
    const button = document.createElement('button'), image = document.createElement('img');
    image.src = URL.createObjectURL(blob);
    image.alt = button.title = title;
    button.append(image);
    button.addEventListener('click', action);
    return button;
  }
}
