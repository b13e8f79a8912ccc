// Makes elements of the rows' texts. A text becomes text nodes, never markup.

// Invisible characters, and those that change the direction of the text after them.
const UNSEEN = /[\0-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\u{e0000}-\u{e0fff}\p{Cs}]/u;
const MOST_MARKED = 300;

function appendSeen(place, text) {
  let rest = text;
  for (let found = UNSEEN.exec(rest); found; found = UNSEEN.exec(rest)) {
    const code = found[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    place.append(rest.slice(0, found.index), element("span", { className: "unseen", title: "invisible character" }, `U+${code}`));
    rest = rest.slice(found.index + found[0].length);
  }
  place.append(rest);
}

// Put a text into an element, with the search matches marked.
function fill(place, text, pattern = null) {
  const whole = text.replaceAll("\r\n", "\n");
  let at = 0;
  if (pattern) {
    const all = new RegExp(pattern.source, `g${pattern.flags}`);
    let count = 0;
    for (const found of whole.matchAll(all)) {
      if (++count > MOST_MARKED) break;
      appendSeen(place, whole.slice(at, found.index));
      const mark = element("mark");
      appendSeen(mark, found[0]);
      place.append(mark);
      at = found.index + found[0].length;
    }
  }
  appendSeen(place, whole.slice(at));
  return place;
}

const MOST_CHARACTERS = 6000;

// A text of several lines; for a long text, its beginning and a button for the rest.
function passage(text, pattern, className = "passage") {
  const box = element("div", { className, dir: "auto" });
  if (text.length <= MOST_CHARACTERS * 1.2) return fill(box, text, pattern);
  fill(box, text.slice(0, MOST_CHARACTERS), pattern);
  const more = element("button", { type: "button", className: "rest" }, `Show all ${text.length.toLocaleString("en")} characters`);
  more.addEventListener("click", () => {
    box.replaceChildren();
    fill(box, text, pattern);
    more.remove();
  });
  return element("div", {}, box, more);
}

function time(ms) {
  if (ms === null || ms === undefined) return "";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 10_000) return `${(ms / 1000).toFixed(1)} s`;
  if (ms < 60_000) return `${Math.round(ms / 1000)} s`;
  return `${Math.floor(ms / 60_000)} min ${String(Math.round(ms / 1000) % 60).padStart(2, "0")} s`;
}

function grade(value) {
  if (value === 1) return ["right", "✓"];
  if (value === 0) return ["wrong", "✗"];
  return typeof value === "number" ? ["part", value.toFixed(2)] : ["none", "–"];
}

// A score as a chip; `name` is the scorer, if it is to be shown.
function scoreChip(value, name = "") {
  const [kind, sign] = grade(value);
  const chip = element("span", { className: `chip ${kind}`, title: `${name} ${value ?? "not scored"}`.trim() }, sign);
  if (name) chip.append(" ", element("bdi", {}, name));
  return chip;
}
