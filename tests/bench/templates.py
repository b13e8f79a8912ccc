"""What a template costs a row, over the same request as a line of JSON."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import orjson

from batchrun.config import RequestOptions, TemplateOptions
from batchrun.prompts.shapes import READING
from batchrun.runs.validation import Validation
from batchrun.state.records import SourceRecord
from tests.bench.figures import Asked, Figure, Figures
from tests.support.rehearsal import Listener, options_for

_ROWS = 50_000


def templates(asked: Asked) -> Figures:
    """CPU time of validating rows that a template renders, minus that of the lines that say the same, by turns."""
    template = TemplateOptions("Summarise {{ title }}: {{ review }}", system="It has {{ stars }} stars.")
    plain, rendered = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder)
        for _ in range(asked.rounds):
            plain.append(_validated_us(folder, "lines.jsonl", RequestOptions()))
            rendered.append(_validated_us(folder, "rows.jsonl", RequestOptions(template=template)))
    more = [a - b for a, b in zip(rendered, plain, strict=True)]
    return {
        "a line, microseconds": Figure(plain),
        "a rendered row, microseconds": Figure(rendered),
        "difference, microseconds": Figure(more, "<= 10"),
    }


def _write(folder: Path) -> None:
    with (folder / "rows.jsonl").open("wb") as rows, (folder / "lines.jsonl").open("wb") as lines:
        for n in range(_ROWS):
            row = {"title": f"title {n}", "review": f"review {n} " + "of some words " * 10, "stars": n % 5}
            messages = [
                {"role": "system", "content": f"It has {row['stars']} stars."},
                {"role": "user", "content": f"Summarise {row['title']}: {row['review']}"},
            ]
            rows.write(orjson.dumps({"id": n, **row}) + b"\n")
            lines.write(orjson.dumps({"id": n, "messages": messages, "metadata": row}) + b"\n")


def _validated_us(folder: Path, name: str, request: RequestOptions) -> float:
    path = str(folder / name)
    record = SourceRecord(0, path, path, path, "", 1)
    validation = Validation(options_for(folder, request=request), [record], READING, Listener(), is_new=True)
    began = time.process_time()
    assert sum(1 for _ in validation.lines()) == _ROWS
    assert not validation.problems.count
    return (time.process_time() - began) / _ROWS * 1e6
