"""`batchrun show` and `batchrun head`: rows of a run in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import orjson

from batchrun.commands.exchanges import Exchanges, ShownRow
from batchrun.display.exchange_text import Grade, brief, whole
from batchrun.errors import StateError, UsageError, shown
from batchrun.files.exactjson import dump
from batchrun.results.exchange import readable
from batchrun.runs.exported import RunResults
from batchrun.scheduler.states import RowState
from batchrun.state.records import RowRecord
from batchrun.state.shared_ids import rows_of_ids, rows_of_line_id
from batchrun.state.snapshot import StateSnapshot

_MOST_OF_A_LINE = 1000
_FEW = 50
"""For up to this many rows, the results are searched for their ids; for more, all results are read."""
_IN_PROGRESS = {
    RowState.PENDING: "not submitted yet",
    RowState.SUBMITTING: "being submitted",
    RowState.SUBMITTED: "in flight",
}
_Render = Callable[[ShownRow], str | bytes]


def show(state: Path, row_id: str, *, as_json: bool = False) -> Iterator[str | bytes]:
    """Texts about the rows with this id, or about all rows of the line with this id, in input order; or JSON objects.

    Args:
        state: The state file; another process may be writing it.
        row_id: The id of a row, or of a line of a sweep.
        as_json: Whether to give JSON.

    Raises:
        UsageError: there is no such row.
        StateError: the state file, a results file or the scores file cannot be read.
    """
    with StateSnapshot(state) as store:
        store.refuse_damaged()
        numbers = [row for row, _ in rows_of_ids(store, [row_id])[0]] or rows_of_line_id(store, row_id, _MOST_OF_A_LINE)
        rows = store.rows(numbers)
    if not rows:
        raise UsageError(
            f"{state} has no row with the id {shown(row_id)}", f"see the first ones: batchrun head {state}"
        )
    unfinished = [row for row in rows if row.state in _IN_PROGRESS]
    ended = [row for row in rows if row.state not in _IN_PROGRESS]
    is_first = True
    for text in _read(state, ended, _as_json if as_json else _as_text):
        yield text if as_json or is_first else f"\n{text!s}"
        is_first = False
    for row in unfinished:
        said = _IN_PROGRESS[row.state]
        data = {"id": row.id, "status": row.state.name.lower()}
        yield dump(data, orjson.OPT_APPEND_NEWLINE) if as_json else f"{row.id}\n  {said}\n"


def head(state: Path, most: int, *, only_failed: bool = False) -> Iterator[str]:
    """Three lines about each of the first rows that have ended, in input order.

    Args:
        state: The state file; another process may be writing it.
        most: The most rows to show.
        only_failed: Whether to leave out the rows that have succeeded; there may be none then.

    Raises:
        StateError: the state file, a results file or the scores file cannot be read, or no row has ended.
    """
    with StateSnapshot(state) as store:
        store.refuse_damaged()
        rows = store.first_ended(most, only_failed=only_failed)
    if not rows and not only_failed:
        raise StateError(f"{state}: no row has ended yet: there is nothing to show", f"see batchrun status {state}")
    for text in _read(state, rows, _as_brief):
        yield str(text)


def _read(state: Path, rows: Sequence[RowRecord], render: _Render) -> Iterator[str | bytes]:
    succeeded = {row.row: row.id for row in rows if row.state == RowState.SUCCEEDED}
    only = succeeded if len(succeeded) <= _FEW else None
    failed = [row.row for row in rows if row.row not in succeeded]
    with RunResults(
        state, with_errors=bool(failed), with_results=bool(succeeded), only=only, errors_of=failed
    ) as results:
        for each in Exchanges(state, results, frozenset(row.row for row in rows)):
            yield render(each)


def _grades(each: ShownRow) -> list[Grade]:
    return [
        Grade(score.scorer, score.value, None if score.extracted is None else readable(score.extracted), score.reason)
        for score in each.scores
    ]


def _variant(each: ShownRow) -> str:
    label = "" if each.variant == "all" else each.variant
    return " ".join(filter(None, (label, f"sample {each.sample}" if each.sample else "")))


def _as_text(each: ShownRow) -> str:
    return whole(each.exchange, _variant(each), _grades(each))


def _as_brief(each: ShownRow) -> str:
    return brief(each.exchange, _grades(each))


def _as_json(each: ShownRow) -> bytes:
    data = asdict(each.exchange)
    data["turns"] = [turn._asdict() for turn in each.exchange.turns]
    data["failure"] = None if each.exchange.failure is None else each.exchange.failure._asdict()
    data["facts"], data["fields"] = dict(each.exchange.facts), dict(each.exchange.fields)
    data |= {"variant": each.variant, "sample": each.sample, "scores": [asdict(score) for score in each.scores]}
    return dump(data, orjson.OPT_APPEND_NEWLINE)
