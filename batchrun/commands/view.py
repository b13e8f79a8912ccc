"""`batchrun view`: every row of a run, prompt and answer, in one HTML file to search, filter and compare."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from sys import stdout

from batchrun.commands.exchanges import Exchanges, ShownRow
from batchrun.commands.export import refuse_own_files
from batchrun.config import VIEW_ROWS
from batchrun.display.page import is_page
from batchrun.display.units import counted
from batchrun.display.view_page import ViewRow, view_page
from batchrun.errors import StateError
from batchrun.prompts.ownership import first_line
from batchrun.results.exchange import readable
from batchrun.results.record import iso_time
from batchrun.results.text import MARK_NAMES
from batchrun.results.writer import write_whole
from batchrun.runs.exported import RunResults
from batchrun.runs.sample import Sample, draw
from batchrun.state.snapshot import StateSnapshot

_MOST_BYTES = 200_000_000
"""The most bytes that the lines and results of the rows on a page have; the page has about a quarter of that."""
_RANDOM_SEED = 0
"""Fixed, so that the same run gives the same page."""


@dataclass(frozen=True, slots=True)
class ViewReport:
    """What was written."""

    target: str
    rows: int
    total_rows: int
    """All rows that have ended."""
    unfinished: int

    def __str__(self) -> str:
        rows = counted(self.rows, "row")
        if self.rows < self.total_rows:
            rows = f"{self.rows:,} of {counted(self.total_rows, 'row')}, a sample of whole questions,"
        rest = f" ({self.unfinished:,} not finished)" if self.unfinished else ""
        return f"{rows} written to {self.target}{rest}"


def view_path(state: Path) -> Path:
    """The page of `results.jsonl.state` is `results.view.html`, that of `batchrun.state` is `batchrun.view.html`."""
    return state.with_name(f"{state.name.removesuffix('.state').removesuffix('.jsonl')}.view.html")


def view(state: Path, target: Path | None = None, most_rows: int = VIEW_ROWS) -> ViewReport:
    """Write the page of a run, which may be in progress.

    Args:
        state: The state file.
        target: The page, which is replaced by a rename; None: see `view_path`.
        most_rows: The most rows it shows. Of a larger run, it shows a stratified sample of questions, with all their
            rows.

    Raises:
        UsageError: the target is a folder, or a file that batchrun did not write.
        StateError: the state file, a results file or the scores file cannot be read, or no row has ended.
        OutputError: the page cannot be written.
    """
    page = view_path(state) if target is None else target

    def check(store: StateSnapshot) -> bool:
        refuse_own_files(store, page, stdout.buffer, lambda path: is_page(first_line(path)))
        return False

    with RunResults(state, with_errors=True, check=check) as results:
        sample = draw(results.ended, most_rows, _MOST_BYTES, Random(_RANDOM_SEED))  # noqa: S311 - only a sample
        unfinished = sum(results.counts.values()) - sample.total_rows
        if not sample.rows:
            raise StateError(f"{state}: no row has ended yet: there is nothing to show", f"see batchrun status {state}")
        exchanges = Exchanges(state, results, sample.rows)
        words = _words(state, sample, unfinished)
        write_whole(page, view_page(_rows(exchanges), list(MARK_NAMES.values()), words))
    return ViewReport(str(page), len(sample.rows), sample.total_rows, unfinished)


def _words(state: Path, sample: Sample, unfinished: int) -> dict[str, str]:
    notes = []
    if not sample.is_whole:
        notes.append(
            f"A stratified sample: {len(sample.rows):,} of {sample.total_rows:,} rows"
            f" ({sample.questions:,} of {counted(sample.total_questions, 'question')}), drawn by input and by kind of"
            " failure. Rare failures are more frequent here than in the run."
        )
    if unfinished:
        notes.append(f"{counted(unfinished, 'row')} had not finished when this page was written.")
    when = (iso_time(time.time()) or "").replace("T", " ")[:16]
    name = state.name.removesuffix(".state")
    return {"title": name, "subtitle": f"{state.name} · written {when} UTC", "note": " ".join(notes)}


def _rows(exchanges: Exchanges) -> Iterator[ViewRow]:
    for each in exchanges:
        exchange = each.exchange
        yield ViewRow(
            id=exchange.id,
            question=(each.source, exchange.line),
            question_id=each.question_id,
            variant=each.variant,
            sample=each.sample,
            outcome=None if exchange.failure is None else exchange.failure.kind,
            marks=tuple(MARK_NAMES[mark] for mark in exchange.marks),
            input_tokens=exchange.input_tokens,
            output_tokens=exchange.output_tokens,
            execution_ms=exchange.execution_ms,
            scores={score.scorer: score.value for score in each.scores},
            fields=exchange.fields,
            prompt=exchange.prompt_line,
            answer=exchange.answer_line,
            texts=_texts(each),
        )


def _texts(each: ShownRow) -> dict[str, object]:
    exchange = each.exchange
    return {
        "turns": exchange.turns,
        "answers": exchange.answers,
        "output": exchange.output,
        "reasoning": exchange.reasoning,
        "parsed": exchange.parsed,
        "calls": exchange.tool_calls,
        "error": exchange.failure,
        "scores": [
            (score.scorer, score.value, None if score.extracted is None else readable(score.extracted), score.reason)
            for score in each.scores
        ],
        "fields": exchange.fields,
        "facts": exchange.facts,
    }
