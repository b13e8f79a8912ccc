// The rows in this page: an index of all of them, and blocks with their texts, each unpacked when it is needed.

async function unpacked(element) {
  const text = element.textContent;
  let bytes;
  if (Uint8Array.fromBase64) {
    bytes = Uint8Array.fromBase64(text);
  } else {
    const characters = atob(text);
    bytes = new Uint8Array(characters.length);
    for (let at = 0; at < characters.length; at++) bytes[at] = characters.charCodeAt(at);
  }
  element.remove();
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

// An element after the script, once the browser has read all of it.
async function arrived(id) {
  for (;;) {
    const found = document.getElementById(id);
    if (found && (found.nextSibling || document.readyState !== "loading")) return found;
    if (document.readyState !== "loading") throw new Error("the file of this page is cut off");
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

// The positions of a row's values in the index; `view_page.py` writes them in this order.
const [ID, QUESTION, VARIANT, SAMPLE, OUTCOME, MARKS, INPUT, OUTPUT, TIME, SCORES, FIELDS, PROMPT, ANSWER] = Array(13).keys();

class Rows {
  constructor(index) {
    Object.assign(this, index);
    this.byQuestion = [];
    this.rows.forEach((row, number) => (this.byQuestion[row[QUESTION]] ??= []).push(number));
    this.samples = this.rows.reduce((most, row) => Math.max(most, row[SAMPLE]), 0);
    this.unpacked = new Map();
  }

  // The number of the block that contains a row.
  blockOf(number) {
    let low = 0;
    let high = this.blocks.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.blocks[middle] <= number) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  // The texts of all rows of a block.
  block(at) {
    let texts = this.unpacked.get(at);
    if (!texts) {
      texts = arrived(`block-${at}`).then(unpacked);
      this.unpacked.set(at, texts);
    }
    return texts;
  }

  // The texts of a row.
  async texts(number) {
    const at = this.blockOf(number);
    return (await this.block(at))[number - this.blocks[at]];
  }

  // A row's score by a scorer: a number, null if it could not be scored, undefined if it was not.
  score(number, scorer) {
    return this.rows[number][SCORES][scorer];
  }
}

// Whether some text of a row matches.
function isFound(row, texts, pattern) {
  if (pattern.test(row[ID])) return true;
  const found = (text) => typeof text === "string" && pattern.test(text);
  return (
    texts.turns.some((turn) => found(turn[1])) ||
    texts.answers.some(found) ||
    [texts.reasoning, texts.parsed, texts.calls, texts.output].some(found) ||
    (texts.error ?? []).some(found) ||
    texts.fields.some((pair) => found(pair[1])) ||
    texts.scores.some((score) => found(score[2]) || found(score[3]))
  );
}
