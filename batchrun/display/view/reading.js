// The right side: one row, or all rows of a question side by side.

const MOST_CARDS = 60; // more are drawn on demand

class Reading {
  constructor(rows, place, { pattern, wanted, scorer, step, compare, close }) {
    this.rows = rows;
    this.place = place;
    this.options = { pattern, wanted, scorer, step, compare, close };
    this.turn = 0;
  }

  nothing(text) {
    this.turn++;
    this.place.replaceChildren(element("p", { className: "nothing" }, text));
  }

  async row(number) {
    const turn = ++this.turn;
    const texts = await this.rows.texts(number);
    if (turn !== this.turn) return;
    const row = this.rows.rows[number];
    const others = this.rows.byQuestion[row[QUESTION]].length > 1;
    const compare = others ? element("button", { type: "button" }, "Side by side") : null;
    compare?.addEventListener("click", () => this.options.compare());
    const article = element("article", { className: "one" }, this.prompt(texts), ...this.answer(row, texts, true));
    this.show([this.heading(row[ID], this.chips(number), compare), article]);
  }

  async question(question) {
    const turn = ++this.turn;
    const all = this.rows.byQuestion[question];
    const wanted = this.options.wanted();
    const numbers = wanted ? all.filter((number) => wanted[this.rows.rows[number][VARIANT]]) : all;
    const texts = await Promise.all(numbers.map((number) => this.rows.texts(number)));
    if (turn !== this.turn) return;
    const prompts = new Set(texts.map((each) => JSON.stringify(each.turns)));
    const isShared = prompts.size === 1;
    const columns = new Map();
    numbers.forEach((number, at) => {
      const variant = this.rows.rows[number][VARIANT];
      if (!columns.has(variant)) columns.set(variant, []);
      columns.get(variant).push([number, texts[at]]);
    });
    let room = MOST_CARDS;
    const left = [];
    const grid = element("div", { className: "columns" });
    grid.style.setProperty("--columns", columns.size);
    for (const [variant, cards] of columns) {
      const column = element("section", { className: "column" });
      if (this.rows.variants.length > 1) column.append(element("h3", {}, element("bdi", {}, this.rows.variants[variant])));
      for (const [number, each] of cards) {
        if (room-- > 0) column.append(this.card(number, each, isShared));
        else left.push([column, number, each]);
      }
      grid.append(column);
    }
    const shown = [this.heading(this.rows.questions[question], [])];
    if (isShared && texts.length) shown.push(element("article", { className: "one" }, this.prompt(texts[0])));
    shown.push(grid);
    if (left.length) {
      const more = element("button", { type: "button", className: "rest" }, `Show ${left.length.toLocaleString("en")} more rows of this question`);
      more.addEventListener("click", () => {
        for (const [column, number, each] of left) column.append(this.card(number, each, isShared));
        more.remove();
      });
      shown.push(more);
    }
    this.show(shown);
  }

  show(elements) {
    this.place.replaceChildren(...elements);
    this.place.scrollTop = 0;
  }

  card(number, texts, isShared) {
    const row = this.rows.rows[number];
    const top = element("p", { className: "top" }, ...this.chips(number, false));
    if (row[SAMPLE]) top.append(element("span", { className: "muted" }, `sample ${row[SAMPLE]}`));
    const figures = [];
    if (typeof row[OUTPUT] === "number") figures.push(`${row[OUTPUT].toLocaleString("en")} tokens`);
    if (row[TIME] !== null) figures.push(time(row[TIME]));
    top.append(element("span", { className: "muted figures" }, figures.join(" · ")));
    const card = element("article", { className: "card" }, top);
    if (!isShared) card.append(this.prompt(texts));
    card.append(...this.answer(row, texts, false));
    return card;
  }

  heading(name, chips, button = null) {
    const back = element("button", { type: "button", id: "back" }, "← Rows");
    back.addEventListener("click", () => this.options.close());
    const previous = element("button", { type: "button", title: "Previous (k)", "aria-label": "Previous" }, "↑");
    const next = element("button", { type: "button", title: "Next (j)", "aria-label": "Next" }, "↓");
    previous.addEventListener("click", () => this.options.step(-1));
    next.addEventListener("click", () => this.options.step(1));
    const title = fill(element("h2", { dir: "auto" }), name, this.options.pattern());
    return element("div", { className: "heading" }, element("p", { className: "bar" }, back, button, previous, next), title, element("p", { className: "top" }, ...chips));
  }

  chips(number, withVariant = true) {
    const row = this.rows.rows[number];
    const chips = [];
    if (row[OUTCOME]) chips.push(element("span", { className: "chip wrong" }, this.rows.outcomes[row[OUTCOME]]));
    this.rows.marks.forEach((name, at) => {
      if ((row[MARKS] >> at) & 1) chips.push(element("span", { className: "chip part" }, name));
    });
    this.rows.scorers.forEach((name, at) => {
      if (row[SCORES][at] !== undefined) chips.push(scoreChip(row[SCORES][at], name));
    });
    if (withVariant && this.rows.variants.length > 1) chips.push(element("span", { className: "chip" }, element("bdi", {}, this.rows.variants[row[VARIANT]])));
    if (withVariant && row[SAMPLE]) chips.push(element("span", { className: "chip" }, `sample ${row[SAMPLE]}`));
    return chips;
  }

  prompt(texts) {
    const pattern = this.options.pattern();
    const box = element("section", { className: "prompt" });
    for (const [role, text] of texts.turns) {
      box.append(element("h4", {}, element("bdi", {}, role)), passage(text, pattern));
    }
    if (!texts.turns.length) box.append(element("p", { className: "muted" }, "The prompt is unknown: its input line is missing or has changed."));
    return box;
  }

  answer(row, texts, isAlone) {
    const pattern = this.options.pattern();
    const parts = [];
    const put = (name, text, className) => parts.push(element("section", {}, element("h4", {}, name), passage(text, pattern, className)));
    const fold = (name, text) => {
      const isOpen = pattern !== null && pattern.test(text);
      parts.push(element("details", { open: isOpen }, element("summary", {}, name), passage(text, pattern)));
    };
    if (texts.error) {
      const [kind, message, raw] = texts.error;
      const box = element("section", { className: "error" }, element("h4", {}, element("bdi", {}, kind)), passage(message, pattern));
      parts.push(box);
      if (raw) fold("What the worker or the API sent", raw);
    }
    if (texts.reasoning !== null) fold(`Reasoning (${texts.reasoning.length.toLocaleString("en")} characters)`, texts.reasoning);
    texts.answers.forEach((text, at) => {
      const name = texts.answers.length > 1 ? `answer ${at + 1}` : isAlone ? "answer" : "";
      const shown = text === null ? element("p", { className: "muted" }, "no text") : text === "" ? element("p", { className: "muted" }, "empty text") : passage(text, pattern, "passage said");
      parts.push(element("section", {}, name ? element("h4", {}, name) : null, shown));
    });
    if (texts.output !== null) put("output", texts.output, "passage code");
    if (texts.parsed !== null) put("parsed", texts.parsed, "passage code");
    if (texts.calls !== null) put("tool calls", texts.calls, "passage code");
    for (const [scorer, value, extracted, reason] of texts.scores) {
      const line = element("p", { className: "scored" }, scoreChip(value, scorer));
      if (extracted !== null) line.append(" found ", fill(element("bdi", { className: "code" }), extracted, pattern));
      if (reason) line.append(" ", fill(element("bdi", { className: "muted" }), reason, pattern));
      parts.push(line);
    }
    const table = element("table");
    for (const [name, value] of [...texts.fields, ...texts.facts]) {
      table.append(element("tr", {}, element("th", { scope: "row" }, element("bdi", {}, name)), fill(element("td", { dir: "auto" }), value, pattern)));
    }
    parts.push(isAlone ? table : element("details", {}, element("summary", {}, "Details"), element("p", { className: "code" }, row[ID]), table));
    return parts;
  }
}
