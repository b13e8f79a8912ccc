// The list: only visible entries exist as elements.

const AROUND = 6; // entries drawn above and below the visible ones

class List {
  constructor(box, space, { label, draw, selected }) {
    this.box = box;
    this.space = space;
    this.label = label;
    this.draw = draw;
    this.whenSelected = selected;
    this.entries = [];
    this.at = -1;
    this.drawn = new Map();
    box.addEventListener("scroll", () => this.later(), { passive: true });
    new ResizeObserver(() => this.redraw()).observe(box);
    space.addEventListener("click", (event) => {
      const item = event.target.closest("[data-at]");
      if (item) this.select(Number(item.dataset.at), true);
    });
  }

  get height() {
    return parseFloat(getComputedStyle(this.box).getPropertyValue("--entry")) * parseFloat(getComputedStyle(document.documentElement).fontSize);
  }

  // Show other entries; `at` is the one to select, -1 for none.
  set(entries, at) {
    this.entries = entries;
    this.at = at;
    this.redraw();
    if (at >= 0) this.reveal();
    else this.box.scrollTop = 0;
  }

  later() {
    if (this.waits) return;
    this.waits = true;
    requestAnimationFrame(() => {
      this.waits = false;
      this.place();
    });
  }

  redraw() {
    this.drawn.clear();
    this.space.replaceChildren();
    this.entryHeight = this.height;
    this.space.style.height = `${this.entries.length * this.entryHeight}px`;
    this.place();
  }

  place() {
    const height = this.entryHeight;
    const first = Math.max(0, Math.floor(this.box.scrollTop / height) - AROUND);
    const last = Math.min(this.entries.length, Math.ceil((this.box.scrollTop + this.box.clientHeight) / height) + AROUND);
    for (const [at, item] of this.drawn) {
      if (at < first || at >= last) {
        item.remove();
        this.drawn.delete(at);
      }
    }
    for (let at = first; at < last; at++) {
      if (this.drawn.has(at)) continue;
      const item = this.draw(this.entries[at]);
      item.id = `entry-${at}`;
      item.dataset.at = at;
      item.setAttribute("role", "option");
      item.setAttribute("aria-setsize", this.entries.length);
      item.setAttribute("aria-posinset", at + 1);
      item.style.top = `${at * height}px`;
      this.mark(item, at);
      this.space.append(item);
      this.drawn.set(at, item);
    }
    if (this.drawn.has(this.at)) this.box.setAttribute("aria-activedescendant", `entry-${this.at}`);
    else this.box.removeAttribute("aria-activedescendant");
  }

  mark(item, at) {
    item.setAttribute("aria-selected", at === this.at);
  }

  reveal() {
    const top = this.at * this.entryHeight;
    const { scrollTop, clientHeight } = this.box;
    if (top < scrollTop) this.box.scrollTop = top;
    else if (top + this.entryHeight > scrollTop + clientHeight) this.box.scrollTop = top + this.entryHeight - clientHeight;
    this.place();
  }

  get screen() {
    return Math.max(1, Math.floor(this.box.clientHeight / this.entryHeight) - 1);
  }

  // Select an entry; `opens` also opens it, as a click does.
  select(at, opens = false) {
    if (!this.entries.length) return;
    this.at = Math.max(0, Math.min(at, this.entries.length - 1));
    for (const [number, item] of this.drawn) this.mark(item, number);
    this.reveal();
    this.whenSelected(this.entries[this.at], opens);
  }
}
