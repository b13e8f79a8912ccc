// Puts the page together: keys, clicks and search.

const $ = (id) => document.getElementById(id);

function drawRow(rows, scorer, number) {
  const row = rows.rows[number];
  const figures = [];
  if (typeof row[OUTPUT] === "number") figures.push(`${row[OUTPUT].toLocaleString("en")} tok`);
  if (row[TIME] !== null) figures.push(time(row[TIME]));
  const top = element("p", { className: "top" }, fill(element("bdi", { className: "id" }), row[ID]));
  const score = row[SCORES][scorer];
  if (score !== undefined) top.append(scoreChip(score));
  top.append(element("span", { className: "muted figures" }, figures.join(" · ")));
  const answer = fill(element("p", { className: row[OUTCOME] ? "answer failed" : "answer", dir: "auto" }), row[ANSWER]);
  return element("div", { className: "entry" }, top, fill(element("p", { className: "muted", dir: "auto" }), row[PROMPT]), answer);
}

function drawQuestion(rows, scorer, numbers) {
  const row = rows.rows[numbers[0]];
  const all = rows.byQuestion[row[QUESTION]];
  const top = element("p", { className: "top" }, fill(element("bdi", { className: "id" }), rows.questions[row[QUESTION]]));
  top.append(element("span", { className: "muted figures" }, `${all.length.toLocaleString("en")} rows`));
  const chips = element("p", { className: "chips" });
  let before = rows.rows[all[0]][VARIANT];
  for (const number of all.slice(0, 24)) {
    const each = rows.rows[number];
    const title = rows.variants[each[VARIANT]];
    const [kind, sign] = each[OUTCOME] ? ["wrong", "!"] : rows.scorers.length ? grade(each[SCORES][scorer]) : ["", "·"];
    const isNext = each[VARIANT] !== before && rows.samples > 1;
    chips.append(element("span", { className: `dot ${kind}${isNext ? " next" : ""}`, title }, sign));
    before = each[VARIANT];
  }
  if (all.length > 24) chips.append(element("span", { className: "muted" }, `+${all.length - 24}`));
  return element("div", { className: "entry" }, top, fill(element("p", { className: "muted", dir: "auto" }), row[PROMPT]), chips);
}

// The contents of the page, in words.
function facts(rows) {
  const counted = (count, thing) => `${count.toLocaleString("en")} ${thing}${count === 1 ? "" : "s"}`;
  const failed = rows.rows.filter((row) => row[OUTCOME]).length;
  const found = [counted(rows.rows.length, "row")];
  if (failed) found.push(`${failed.toLocaleString("en")} failed`);
  if (rows.byQuestion.length < rows.rows.length) found.push(counted(rows.byQuestion.length, "question"));
  if (rows.variants.length > 1) found.push(counted(rows.variants.length, "variant"));
  if (rows.samples > 1) found.push(`${rows.samples.toLocaleString("en")} samples each`);
  return found;
}

function withThemes() {
  const themes = ["", "dark", "light"];
  let at = 0;
  try {
    at = Math.max(0, themes.indexOf(localStorage.getItem("batchrun-theme") ?? ""));
  } catch {
    // A page opened from a file may have no storage.
  }
  const apply = () => {
    if (themes[at]) document.documentElement.dataset.theme = themes[at];
    else delete document.documentElement.dataset.theme;
    $("theme").textContent = `Theme: ${themes[at] || "auto"}`;
  };
  apply();
  return () => {
    at = (at + 1) % themes.length;
    apply();
    try {
      localStorage.setItem("batchrun-theme", themes[at]);
    } catch {
      // As above.
    }
  };
}

async function begin() {
  const nextTheme = withThemes();
  if (typeof DecompressionStream === "undefined") throw new Error("this browser is too old: the page needs DecompressionStream (2023)");
  const rows = new Rows(await unpacked($("index")));
  $("title").textContent = rows.title;
  $("subtitle").textContent = [...facts(rows), rows.subtitle].join(" · ");
  $("note").textContent = rows.note;
  $("note").hidden = !rows.note;
  const several = rows.byQuestion.length < rows.rows.length;
  $("modes").hidden = !several;

  let pattern = null;
  let isByQuestion = false;
  let search = 0;
  const filters = new Filters(rows, $("filters"), (isReordered) => refresh(isReordered ? -1 : current()));
  const isNarrow = () => getComputedStyle($("right")).position === "fixed";

  const open = (isOpen) => {
    document.body.classList.toggle("reading", isOpen);
    if (isOpen) $("right").focus({ preventScroll: true });
    else $("list").focus({ preventScroll: true });
  };
  const step = (by) => list.select(list.at + by);
  const reading = new Reading(rows, $("right"), {
    pattern: () => pattern,
    wanted: () => filters.wantedVariants,
    scorer: () => filters.scorer,
    step,
    compare: () => setMode(true),
    close: () => open(false),
  });
  const read = (entry, opens) => {
    const number = isByQuestion ? entry[0] : entry;
    try {
      history.replaceState(null, "", `#${encodeURIComponent(rows.rows[number][ID])}`);
    } catch {
      // The address is only for links to a row.
    }
    const shown = isByQuestion ? reading.question(rows.rows[number][QUESTION]) : reading.row(number);
    shown.catch((error) => reading.nothing(`The row cannot be shown: ${error.message}`));
    if (opens && isNarrow()) open(true);
  };
  const draw = (entry) => (isByQuestion ? drawQuestion(rows, filters.scorer, entry) : drawRow(rows, filters.scorer, entry));
  const list = new List($("list"), $("space"), { draw, selected: read });

  const current = () => (list.at < 0 ? -1 : isByQuestion ? list.entries[list.at][0] : list.entries[list.at]);

  function show(numbers, isDone, wantedRow) {
    let entries = numbers;
    if (isByQuestion) {
      const groups = new Map();
      for (const number of numbers) {
        const question = rows.rows[number][QUESTION];
        if (!groups.has(question)) groups.set(question, []);
        groups.get(question).push(number);
      }
      entries = [...groups.values()];
    }
    entries = filters.sorted(entries);
    const question = wantedRow < 0 ? -1 : rows.rows[wantedRow][QUESTION];
    const same = (entry) => (isByQuestion ? rows.rows[entry[0]][QUESTION] === question : entry === wantedRow);
    const at = wantedRow < 0 ? -1 : entries.findIndex(same);
    list.set(entries, at < 0 && entries.length ? 0 : at);
    const things = isByQuestion ? "questions" : "rows";
    const all = isByQuestion ? rows.byQuestion.length : rows.rows.length;
    const count = entries.length === all ? `${all.toLocaleString("en")} ${things}` : `${entries.length.toLocaleString("en")} of ${all.toLocaleString("en")} ${things}`;
    $("count").textContent = isDone ? count : `${count} so far, searching…`;
    if (entries.length) read(entries[list.at], false);
    else if (isDone) reading.nothing(rows.rows.length ? "No row matches the search and the filters. Press x to clear them." : "There are no rows.");
  }

  // Apply the search and the filters. A newer search ends an older one.
  async function refresh(wantedRow = current()) {
    const mine = ++search;
    const words = $("search").value.trim();
    pattern = words ? new RegExp(words.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"), "iu") : null;
    const on = filters.show();
    $("more").textContent = on ? `Filters (${on})` : "Filters";
    const passing = filters.passing();
    if (!pattern) return show(passing, true, wantedRow);
    const matching = [];
    let shownAt = performance.now();
    for (let at = 0; at < passing.length; ) {
      const block = rows.blockOf(passing[at]);
      const first = rows.blocks[block];
      const texts = await rows.block(block);
      if (mine !== search) return undefined;
      for (; at < passing.length && passing[at] - first < texts.length; at++) {
        if (isFound(rows.rows[passing[at]], texts[passing[at] - first], pattern)) matching.push(passing[at]);
      }
      if (performance.now() - shownAt > 150) {
        show(matching, false, wantedRow);
        await new Promise((resolve) => setTimeout(resolve));
        if (mine !== search) return undefined;
        shownAt = performance.now();
      }
    }
    return show(matching, true, wantedRow);
  }

  function setMode(toQuestions) {
    const wantedRow = current();
    isByQuestion = toQuestions && several;
    $("by-row").setAttribute("aria-pressed", !isByQuestion);
    $("by-question").setAttribute("aria-pressed", isByQuestion);
    document.body.classList.toggle("by-question", isByQuestion);
    return refresh(wantedRow);
  }

  let typing;
  $("search").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => refresh(), 120);
  });
  $("by-row").addEventListener("click", () => setMode(false));
  $("by-question").addEventListener("click", () => setMode(true));
  $("theme").addEventListener("click", nextTheme);
  $("keys").addEventListener("click", () => $("help").showModal());
  const unfold = (isOpen) => {
    document.body.classList.toggle("filtering", isOpen);
    $("more").setAttribute("aria-expanded", isOpen);
  };
  $("more").addEventListener("click", () => unfold(!document.body.classList.contains("filtering")));

  const moves = {
    ArrowDown: () => step(1), j: () => step(1), ArrowUp: () => step(-1), k: () => step(-1),
    PageDown: () => step(list.screen), PageUp: () => step(-list.screen),
    Home: () => list.select(0), End: () => list.select(Infinity),
  };
  const others = {
    Enter: () => open(true),
    Escape: () => open(false),
    "/": () => $("search").focus(),
    v: () => setMode(!isByQuestion),
    f: () => { unfold(true); $("status").focus(); },
    x: () => filters.reset(),
    t: nextTheme,
    "?": () => $("help").showModal(),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
    const { target, key } = event;
    if (target.matches("input[type=search]")) {
      if (key === "Escape" && !target.value) $("list").focus();
      else if (key === "ArrowDown" || key === "Enter") $("list").focus();
      else return;
      return event.preventDefault();
    }
    const isChoosing = target.matches("select, input, button, summary");
    if (isChoosing && (key in moves ? key.length > 1 : ["Enter", " "].includes(key))) return;
    const isReading = $("right").contains(target);
    if (isReading && key in moves && key.length > 1) return;
    const act = moves[key] ?? others[key];
    if (!act) return;
    event.preventDefault();
    act();
  });

  const asked = decodeURIComponent(location.hash.slice(1));
  const wantedRow = asked ? rows.rows.findIndex((row) => row[ID] === asked) : -1;
  setMode(false);
  await refresh(wantedRow);
  $("list").focus({ preventScroll: true });
  performance.mark("shown");
  document.documentElement.dataset.shown = Math.round(performance.now());
}

begin().catch((error) => {
  $("count").textContent = `The rows cannot be shown: ${error.message}`;
});
