"""`batchrun ls`: the status of all runs whose state files are in folders, one line each."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import orjson

from batchrun.commands.brief_status import BriefStatusReader
from batchrun.display.brief_status import BriefStatus
from batchrun.display.cost import money
from batchrun.display.screen import clock, one_line, rate, resume_by
from batchrun.display.text import columns_of, fitted
from batchrun.display.units import duration
from batchrun.errors import BatchrunError
from batchrun.runs.state_files import state_files
from batchrun.scheduler.gate import PAUSED

_HEADINGS = ("STATE", "ROWS", "DONE", "PACE", "LEFT", "COST", "WRITTEN", "STATUS")
_TO_THE_RIGHT = {1, 2, 3, 4, 5}
"""Columns of numbers."""


def statuses(folders: Iterable[Path]) -> list[BriefStatus]:
    """The status of each run, the most recently written first. If one cannot be read, its status says why.

    Raises:
        UsageError: there is no such folder.
    """
    found = []
    for state in state_files(folders):
        try:
            found.append(BriefStatusReader(state, with_failures=False).read())
        except BatchrunError as error:
            found.append(BriefStatus(str(state), "", problem=error.message.removeprefix(f"{state}: ")))
    return found


def to_json(found: Sequence[BriefStatus]) -> bytes:
    """One JSON object per state file, each on a line."""
    return b"".join(orjson.dumps(each.to_json(), option=orjson.OPT_APPEND_NEWLINE) for each in found)


def render(found: Sequence[BriefStatus]) -> str:
    """A table for a terminal; columns without any value are left out."""
    if not found:
        return "no state files\n"
    now = time.time()
    rows = [_cells(each, now) for each in found]
    kept = [at for at in range(len(_HEADINGS)) if any(row[at] for row in rows)]
    widths = {at: max(columns_of(row[at]) for row in (_HEADINGS, *rows)) for at in kept}
    shown = ["  ".join(_aligned(row[at], widths[at], at) for at in kept).rstrip() for row in (_HEADINGS, *rows)]
    return "\n".join(shown) + "\n"


def _aligned(cell: str, width: int, at: int) -> str:
    return " " * (width - columns_of(cell)) + cell if at in _TO_THE_RIGHT else fitted(cell, width)


def _cells(s: BriefStatus, now: float) -> tuple[str, ...]:
    cost = ""
    if s.cost is not None:
        projected = None if s.done == s.total else s.cost.most_projected
        cost = money(s.cost.most) + ("" if projected is None else f" of ~{money(projected)}")
    left = s.pace.left_s if s.pace is not None and s.done < s.total else None
    obstacles = [text for text in s.obstacles if not (s.is_paused and text.endswith(PAUSED))]  # `ending` says it
    status = "; ".join(text for text in (s.ending, *obstacles, resume_by(s, now)) if text)
    return (
        one_line(s.state),
        f"{s.total:,}" if s.total else "",
        f"{int(s.share * 1000) / 10:.1f}%" if s.total else "",
        "" if s.pace is None else rate(s.pace.rows_per_s).replace(" rows", ""),
        "" if left is None else duration(left),
        cost,
        "" if s.seen_at is None else clock(s.seen_at, now),
        one_line(status),
    )
