// The palette: the classes that the loaded weights have seen, the others on demand, each with a lock.

const $ = (id) => document.getElementById(id);

export class Materials {
  constructor(model, state, buffer, selected) {
    Object.assign(this, { model, state, buffer, selected });
    this.all = false;
    this.rows = model.classes.map((material) => this.row(material));
    $('materials').append(...this.rows);
    $('search').addEventListener('input', () => this.show());
    $('search').addEventListener('keydown', (event) => {
      const first = this.visible()[0];
      if (event.key !== 'Enter' || !first) return;
      this.choose(Number(first.dataset.label));
      $('search').value = '';
      $('canvas').focus();
      this.show();
    });
    $('more').addEventListener('click', () => { this.all = !this.all; this.show(); });
    $('materials').addEventListener('keydown', (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const rows = this.visible(), at = rows.findIndex((row) => row.contains(document.activeElement));
      if (!step || at < 0) return;
      event.preventDefault();
      const next = rows[(at + step + rows.length) % rows.length];
      this.choose(Number(next.dataset.label));
      next.firstChild.focus();
    });
  }

  row({ index, name, color, seen }) {
    const row = document.createElement('div'), button = document.createElement('button');
    const swatch = document.createElement('span'), text = document.createElement('span'), key = document.createElement('kbd');
    const lock = document.createElement('button');
    row.className = seen ? 'material' : 'material unseen';
    row.dataset.label = index;
    button.setAttribute('role', 'radio');
    button.title = seen ? name : `${name}: the loaded weights have never seen it`;
    swatch.className = 'swatch';
    swatch.style.background = color;
    text.textContent = name;
    key.setAttribute('aria-hidden', 'true');
    button.append(swatch, text, key);
    button.addEventListener('click', () => this.choose(index));
    button.addEventListener('contextmenu', (event) => {
      event.preventDefault();
      this.state.background = index;
      this.selected();
    });
    lock.className = 'lock';
    lock.innerHTML = '<svg><use href="page/icons.svg#lock"/></svg>';
    lock.title = `Lock ${name}: it is not painted over (K)`;
    lock.setAttribute('aria-label', `Lock ${name}`);
    lock.addEventListener('click', () => this.lock(index));
    row.append(button, lock);
    return row;
  }

  visible() {
    return this.rows.filter((row) => !row.hidden);
  }

  choose(label) {
    this.state.label = label;
    this.selected();
  }

  // Chooses the nth of those that the weights have seen.
  pick(n) {
    const material = this.model.classes.filter((c) => c.seen)[n];
    if (material) this.choose(material.index);
  }

  lock(label) {
    this.buffer.locked[label] ^= 1;
    this.show();
  }

  show() {
    const { state, model } = this;
    const word = $('search').value.trim().toLowerCase();
    const counts = this.buffer.counts();
    const unseen = model.classes.filter((c) => !c.seen).length;
    let key = 0;
    for (const row of this.rows) {
      const { index, name, seen } = model.classes[row.dataset.label];
      const used = counts[index] > 0 || index === state.label || index === state.background;
      row.hidden = word ? !name.includes(word) : !(seen || this.all || used);
      if (seen) key++;
      const [button, lock] = row.children;
      button.setAttribute('aria-checked', index === state.label);
      button.tabIndex = index === state.label ? 0 : -1;
      button.lastChild.textContent = seen && key < 10 ? key : '';
      button.lastChild.hidden = !button.lastChild.textContent;
      lock.setAttribute('aria-pressed', this.buffer.locked[index] === 1);
    }
    $('more').hidden = !unseen || Boolean(word);
    $('more').textContent = this.all ? 'Only what these weights know' : `${unseen} more, unknown to these weights`;
    $('more').setAttribute('aria-pressed', this.all);
    $('labelName').textContent = model.classes[state.label].name;
    $('backgroundName').textContent = `background: ${model.classes[state.background].name}`;
    $('labelSwatch').style.background = model.classes[state.label].color;
    $('backgroundSwatch').style.background = model.classes[state.background].color;
  }
}
