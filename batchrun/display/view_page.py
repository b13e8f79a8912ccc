"""The page of `batchrun view`: all rows of a run in one HTML file that loads nothing. It reads only its own parts.

The rows are in the page as compressed blocks, each in an element of text that a browser does not interpret. The script
unpacks the blocks that it needs, and turns them into text nodes, never into markup. Index and script come before the
blocks, so that a browser shows the rows while it is still loading. The policy allows this script and this style by
their digests, and no connection.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from gzip import compress
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from batchrun.display.page import FIRST_LINE, escape

_FOLDER = Path(__file__).parent / "view"
_SCRIPTS = ("rows.js", "filters.js", "list.js", "texts.js", "reading.js", "page.js")
_BLOCK_CHARS = 400_000
_BLOCK_ROWS = 250
_LEVEL = 6
_PIECE_BYTES = 1 << 20
_PREVIEW_CHARS = 160
_MOST_VALUES = 60
"""A field with more values does not become a filter."""
_MOST_FIELDS = 8
_VALUE_CHARS = 80


@dataclass(frozen=True, slots=True)
class ViewRow:
    """A row as the page shows it."""

    id: str
    question: tuple[int, int]
    """The id that the rows of one question share."""
    question_id: str
    variant: str
    """The label of its variant."""
    sample: int
    """1-based; 0 without samples."""
    outcome: str | None
    """The kind of its failure; None: it has succeeded."""
    marks: tuple[str, ...]
    input_tokens: int | None
    output_tokens: int | None
    execution_ms: float | None
    scores: dict[str, float | None]
    """Scorer -> score; None: it could not be scored."""
    fields: list[tuple[str, str]]
    """Its own fields, by path."""
    prompt: str
    """The list shows its beginning, and that of the answer."""
    answer: str
    texts: dict[str, Any]
    """The texts of the right side, see `reading.js`."""


class _Numbers(dict[Any, int]):
    """Numbers things in the order of their first occurrence."""

    def of(self, thing: Any) -> int:
        return self.setdefault(thing, len(self))


@dataclass(slots=True)
class _Index:
    """The index: what the list and the filters need from all rows."""

    marks: list[str]
    questions: _Numbers = field(default_factory=_Numbers)
    question_ids: list[str] = field(default_factory=list)
    variants: _Numbers = field(default_factory=_Numbers)
    outcomes: _Numbers = field(default_factory=lambda: _Numbers({None: 0}))
    scorers: _Numbers = field(default_factory=_Numbers)
    fields: dict[str, _Numbers] = field(default_factory=dict)
    blocks: list[int] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)

    def add(self, row: ViewRow) -> None:
        question = self.questions.of(row.question)
        if question == len(self.question_ids):
            self.question_ids.append(row.question_id)
        scores = {self.scorers.of(name): value for name, value in row.scores.items()}
        self.rows.append(
            [
                row.id,
                question,
                self.variants.of(row.variant),
                row.sample,
                self.outcomes.of(row.outcome),
                sum(1 << number for number, name in enumerate(self.marks) if name in row.marks),
                row.input_tokens,
                row.output_tokens,
                row.execution_ms,
                scores,
                {name: self._value(name, value) for name, value in row.fields if len(value) <= _VALUE_CHARS},
                _preview(row.prompt),
                _preview(row.answer),
            ]
        )

    def _value(self, name: str, value: str) -> int:
        values = self.fields.setdefault(name, _Numbers())
        return values.of(value) if len(values) <= _MOST_VALUES or value in values else 0

    def data(self, words: dict[str, str]) -> dict[str, Any]:
        """The index as the script reads it."""
        usable = [name for name, values in self.fields.items() if 1 < len(values) <= _MOST_VALUES][:_MOST_FIELDS]
        used = sorted({bit for row in self.rows for bit in range(len(self.marks)) if row[5] >> bit & 1})
        for row in self.rows:
            row[5] = sum(1 << place for place, bit in enumerate(used) if row[5] >> bit & 1)
            row[10] = [row[10].get(name, -1) for name in usable]
        return {
            **words,
            "variants": list(self.variants),
            "outcomes": ["succeeded", *list(self.outcomes)[1:]],
            "marks": [self.marks[bit] for bit in used],
            "scorers": list(self.scorers),
            "fields": [{"name": name, "values": list(self.fields[name])} for name in usable],
            "questions": self.question_ids,
            "blocks": self.blocks,
            "rows": self.rows,
        }


def view_page(rows: Iterable[ViewRow], marks: list[str], words: dict[str, str]) -> Iterator[bytes]:
    """The page in pieces. Only the index of the rows is in memory; the blocks are in a temporary file until the end.

    Args:
        rows: The rows in input order.
        marks: The names that `ViewRow.marks` may have.
        words: The `title` and the `subtitle`, and a `note` about missing rows, empty if there are none.

    Raises:
        OSError: the temporary file cannot be written.
    """
    style, script = _read("view.css"), "\n".join(map(_read, _SCRIPTS))
    yield _head(words["title"], style, script)
    index = _Index(marks)
    with TemporaryFile() as blocks:
        blocks.writelines(_blocks(rows, index))
        yield _packed("index", json.dumps(index.data(words), separators=(",", ":")))
        yield f"<script>{script}</script>\n".encode()
        blocks.seek(0)
        yield from iter(lambda: blocks.read(_PIECE_BYTES), b"")
    yield b"</body></html>\n"


def _blocks(rows: Iterable[ViewRow], index: _Index) -> Iterator[bytes]:
    """The texts of the rows in elements; the rows are added to the index."""
    block: list[str] = []
    size = 0
    for row in rows:
        if not block:
            index.blocks.append(len(index.rows))
        index.add(row)
        block.append(json.dumps(row.texts, separators=(",", ":")))
        size += len(block[-1])
        if size > _BLOCK_CHARS or len(block) == _BLOCK_ROWS:
            yield _packed(f"block-{len(index.blocks) - 1}", f"[{','.join(block)}]")
            block, size = [], 0
    if block:
        yield _packed(f"block-{len(index.blocks) - 1}", f"[{','.join(block)}]")


def _head(title: str, style: str, script: str) -> bytes:
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; base-uri 'none';"
        " form-action 'none'; require-trusted-types-for 'script'"
    )
    return (
        f'{FIRST_LINE}<head><meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style></head><body>\n{_read('body.html')}"
    ).encode("utf-8", "replace")


def _packed(name: str, text: str) -> bytes:
    """An element with compressed text, without a time stamp, so that the same rows give the same page."""
    data = b64encode(compress(text.encode(), _LEVEL, mtime=0))
    return b'<script type="text/plain" id="%s">%s</script>\n' % (name.encode(), data)


def _digest(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _preview(text: str) -> str:
    return " ".join(text[: 2 * _PREVIEW_CHARS].split())[:_PREVIEW_CHARS]
