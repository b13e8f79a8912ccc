// The filters, the order, and the rows that pass.

const SORTS = [
  ["", "input order"],
  ["output", "output tokens"],
  ["input", "input tokens"],
  ["time", "execution time"],
  ["score", "score"],
  ["spread", "score difference"],
];

function element(name, given = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(given)) {
    if (key in made && key !== "list") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function choice(id, label, options) {
  const select = element("select", { id });
  for (const option of options) {
    if (Array.isArray(option[1])) {
      const group = element("optgroup", { label: option[0] });
      group.append(...option[1].map(([value, text]) => element("option", { value }, text)));
      select.append(group);
    } else select.append(element("option", { value: option[0] }, option[1]));
  }
  return element("label", {}, element("span", {}, label), select);
}

class Filters {
  constructor(rows, place, changed) {
    this.rows = rows;
    this.place = place;
    this.changed = changed; // called with whether the order has changed
    const many = rows.variants.length > 1;
    const failures = rows.outcomes.map((name, number) => [`o${number}`, name]).slice(1);
    const marks = rows.marks.map((name, number) => [`m${number}`, name]);
    const status = [["", "any"], ["o0", "succeeded"], ["failed", "failed"]];
    if (failures.length) status.push(["failures", failures]);
    if (marks.length) status.push(["answers that are", marks]);
    place.append(choice("status", "Status", status));
    if (rows.scorers.length > 1) place.append(choice("scorer", "Scorer", rows.scorers.map((name, at) => [at, name])));
    if (rows.scorers.length) {
      const scores = [["", "any"], ["1", "1 (right)"], ["0", "0 (wrong)"], ["part", "between 0 and 1"], ["none", "not scored"]];
      if (rows.byQuestion.length < rows.rows.length) scores.push(["differ", "differs within a question"]);
      place.append(choice("score", "Score", scores));
    }
    if (many) place.append(this.variantMenu());
    rows.fields.forEach((field, number) => {
      const values = field.values.map((value, at) => [at, value]);
      const label = choice(`field-${number}`, field.name.replace(/^(metadata|carried)\./, ""), [["", "any"], ...values]);
      label.title = field.name;
      place.append(label);
    });
    const sorts = SORTS.filter(([key]) => rows.scorers.length || !["score", "spread"].includes(key));
    const usable = sorts.filter(([key]) => key !== "spread" || rows.byQuestion.length < rows.rows.length);
    place.append(choice("sort", "Sort by", usable));
    this.direction = element("button", { type: "button", id: "direction", title: "Largest or smallest first" }, "↓");
    this.isDown = true;
    this.direction.addEventListener("click", () => {
      this.isDown = !this.isDown;
      this.direction.textContent = this.isDown ? "↓" : "↑";
      this.changed(true);
    });
    this.clear = document.getElementById("clear");
    this.clear.addEventListener("click", () => this.reset());
    place.append(this.direction);
    place.addEventListener("change", (event) => this.changed(event.target.id === "sort"));
  }

  variantMenu() {
    const boxes = this.rows.variants.map((label, number) =>
      element("label", {}, element("input", { type: "checkbox", checked: true, value: number }), element("bdi", {}, label)),
    );
    const all = element("button", { type: "button" }, "All");
    const none = element("button", { type: "button" }, "None");
    const menu = element("details", { id: "variants" });
    const name = element("summary", {}, "all");
    menu.append(name, element("div", {}, element("p", {}, all, none), ...boxes));
    this.boxes = boxes.map((box) => box.firstChild);
    this.variantName = name;
    for (const [button, value] of [[all, true], [none, false]]) {
      button.addEventListener("click", () => {
        for (const box of this.boxes) box.checked = value;
        this.changed();
      });
    }
    menu.addEventListener("focusout", (event) => {
      if (event.relatedTarget && !menu.contains(event.relatedTarget)) menu.open = false;
    });
    document.addEventListener("pointerdown", (event) => {
      if (!menu.contains(event.target)) menu.open = false;
    });
    return element("div", { className: "label" }, element("span", {}, "Variants"), menu);
  }

  value(id) {
    return this.place.querySelector(`#${id}`)?.value ?? "";
  }

  get scorer() {
    return Number(this.value("scorer"));
  }

  // Whether each variant is selected; null if all are.
  get wantedVariants() {
    if (!this.boxes || this.boxes.every((box) => box.checked)) return null;
    return this.boxes.map((box) => box.checked);
  }

  reset() {
    const isSorted = this.value("sort") !== "";
    for (const select of this.place.querySelectorAll("select")) select.selectedIndex = 0;
    for (const box of this.boxes ?? []) box.checked = true;
    document.getElementById("search").value = "";
    this.changed(isSorted);
  }

  // Mark the active filters; returns their number.
  show() {
    const wanted = this.wantedVariants;
    if (this.variantName) {
      const count = wanted ? wanted.filter(Boolean).length : 0;
      this.variantName.textContent = wanted ? `${count} of ${wanted.length}` : "all";
    }
    const selects = [...this.place.querySelectorAll("select")].filter((each) => !["sort", "scorer"].includes(each.id));
    for (const select of selects) select.classList.toggle("on", select.selectedIndex > 0);
    this.variantName?.parentElement.classList.toggle("on", wanted !== null);
    const on = selects.filter((select) => select.selectedIndex > 0).length + (wanted ? 1 : 0);
    this.clear.hidden = !on && !document.getElementById("search").value;
    return on;
  }

  // The difference of a question's best and worst score; undefined if none of its rows is scored.
  spread(question) {
    const values = this.rows.byQuestion[question].map((number) => this.rows.score(number, this.scorer));
    const known = values.filter((value) => typeof value === "number");
    return known.length ? Math.max(...known) - Math.min(...known) : undefined;
  }

  // The numbers of the rows that pass the filters, in input order.
  passing() {
    const { rows } = this.rows;
    const tests = [];
    const status = this.value("status");
    if (status === "failed") tests.push((row) => row[OUTCOME] > 0);
    else if (status.startsWith("o")) tests.push((row) => row[OUTCOME] === Number(status.slice(1)));
    else if (status.startsWith("m")) tests.push((row) => (row[MARKS] >> Number(status.slice(1))) & 1);
    const score = this.value("score");
    const scorer = this.scorer;
    if (score === "differ") tests.push((row) => this.spread(row[QUESTION]) > 0);
    else if (score === "none") tests.push((row) => typeof row[SCORES][scorer] !== "number");
    else if (score === "part") tests.push((row) => row[SCORES][scorer] > 0 && row[SCORES][scorer] < 1);
    else if (score) tests.push((row) => row[SCORES][scorer] === Number(score));
    const wanted = this.wantedVariants;
    if (wanted) tests.push((row) => wanted[row[VARIANT]]);
    this.rows.fields.forEach((_, field) => {
      const value = this.value(`field-${field}`);
      if (value) tests.push((row) => row[FIELDS][field] === Number(value));
    });
    const found = [];
    for (let number = 0; number < rows.length; number++) {
      if (tests.every((test) => test(rows[number]))) found.push(number);
    }
    return found;
  }

  // The sort key of a row; undefined if it has no such value, or the rows are in input order.
  keyOf(number) {
    const row = this.rows.rows[number];
    switch (this.value("sort")) {
      case "output": return row[OUTPUT] ?? undefined;
      case "input": return row[INPUT] ?? undefined;
      case "time": return row[TIME] ?? undefined;
      case "score": return row[SCORES][this.scorer] ?? undefined;
      case "spread": return this.spread(row[QUESTION]);
      default: return undefined;
    }
  }

  // The entries in the chosen order. Those without a value are last.
  sorted(entries) {
    if (!this.value("sort")) return this.isDown ? entries : entries.toReversed();
    const sign = this.isDown ? -1 : 1;
    const keyed = entries.map((entry) => {
      const values = (Array.isArray(entry) ? entry : [entry]).map((number) => this.keyOf(number)).filter((value) => value !== undefined);
      return [entry, values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : undefined];
    });
    keyed.sort(([, one], [, other]) => {
      if (one === undefined || other === undefined) return (one === undefined) - (other === undefined);
      return sign * (one - other);
    });
    return keyed.map(([entry]) => entry);
  }
}
