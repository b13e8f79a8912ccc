"""Reads the status of a run repeatedly; while a process drives the run, the cost does not grow with its size.

That process writes the status to the state file. Rows are counted only if it does not, for at most 5% of the time.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from batchrun.display.brief_status import BriefStatus, Failures, KindOfFailure, LastFailure
from batchrun.display.cost import Cost
from batchrun.display.live import LiveRecord
from batchrun.display.pace import Pace
from batchrun.errors import StateError
from batchrun.runs.spending import cost_so_far
from batchrun.scheduler.states import RowState
from batchrun.state import figures
from batchrun.state.lock import Holder, holder
from batchrun.state.reader import StateReader
from batchrun.state.stored_options import find_options
from batchrun.state.tunings import is_paused

_KINDS_AMONG = 20_000
"""Failures beyond this are not read, so that a run in which every row fails is as cheap to watch as any other."""
_LATEST = 5
_LATEST_AMONG = 1_000
_MESSAGE_CHARS = 300
_PAUSES = 20
"""After counting rows, they are not counted again for this many times as long as it took."""


def brief_status_of(store: StateReader, state: Path, who: Holder | None) -> BriefStatus:
    """The outcome of the last session, without counts."""
    last, options = figures.last_session(store), find_options(store)
    ending = store.get_setting("ending")
    is_told = isinstance(ending, dict) and last is not None and ending.get("session") == last.session
    return BriefStatus(
        str(state),
        "" if options is None else ", ".join(options.endpoints),
        "" if who is None else str(who),
        is_paused=pauses(store, who),
        began_at=None if last is None else last.began_ms / 1000,
        seen_at=None if last is None else last.seen_ms / 1000,
        outcome=None if last is None else last.outcome,
        reason=str(ending.get("reason", "")) if is_told and isinstance(ending, dict) and who is None else "",
    )


class BriefStatusReader:
    """Reads the status of the run of a state file.

    Args:
        state: The state file.
        with_failures: Whether to read the kinds of failure and the latest failures.
    """

    def __init__(self, state: Path, *, with_failures: bool = True) -> None:
        self._state = state
        self._with_failures = with_failures
        self._who: Holder | None = None
        self._counted: tuple[dict[RowState, int], Cost | None] | None = None
        self._count_at = float("-inf")

    def read(self) -> BriefStatus:
        """The present status of the run.

        Raises:
            StateError: there is no such state file, or it cannot be read.
            OutputError: it cannot be opened.
        """
        now = time.time()
        who = self._who = holder(self._state, self._who)
        try:
            store = StateReader(self._state)
        except StateError:
            if who is None or not self._state.exists():
                raise
            return BriefStatus(str(self._state), "", process=str(who))  # the process is reading its inputs
        with store:
            return self._status(store, who, now)

    def _status(self, store: StateReader, who: Holder | None, now: float) -> BriefStatus:
        known = brief_status_of(store, self._state, who)
        if (record := live_record(store, who)) is not None:
            return self._live(store, record, known, now)
        counts, cost = self._count(store)
        in_flight = counts[RowState.SUBMITTING] + counts[RowState.SUBMITTED]
        return replace(
            known,
            total=sum(counts.values()),
            succeeded=counts[RowState.SUCCEEDED],
            failed=counts[RowState.FAILED],
            held=counts[RowState.HELD],
            in_flight=in_flight,
            resume_by=figures.rescue_by(store, now) if who is None and in_flight else None,
            cost=cost,
            failures=self._failures(store, counts[RowState.FAILED]),
        )

    def _live(self, store: StateReader, record: LiveRecord, known: BriefStatus, now: float) -> BriefStatus:
        whole = record.whole
        return replace(
            known,
            total=whole.total,
            succeeded=whole.succeeded,
            failed=whole.failed,
            held=whole.held,
            in_flight=whole.in_flight,
            cost=whole.cost,
            pace=pace_of(record, whole.total - whole.done, is_paused=known.is_paused),
            ended=record.pace.ended,
            every_s=record.pace.every_s,
            parts=record.parts,
            whole=whole,
            obstacles=record.obstacles,
            silent_s=max(now - record.at_ms / 1000, 0.0),
            failures=self._failures(store, whole.failed),
        )

    def _count(self, store: StateReader) -> tuple[dict[RowState, int], Cost | None]:
        began_at = time.monotonic()
        if self._counted is None or began_at >= self._count_at:
            counts = store.counts()
            self._counted = counts, cost_so_far(store, counts, store.counters(), find_options(store))
            now = time.monotonic()
            self._count_at = now + _PAUSES * (now - began_at)
        return self._counted

    def _failures(self, store: StateReader, failed: int) -> Failures:
        if not failed or not self._with_failures:
            return Failures()
        kinds = [KindOfFailure(*found) for found in figures.kinds_of_failures(store, _KINDS_AMONG)]
        latest = figures.latest_failures(store, _LATEST, _LATEST_AMONG, _MESSAGE_CHARS)
        return Failures(
            kinds,
            [LastFailure(f.row_id, f.kind, f.message, None if f.at_ms is None else f.at_ms / 1000) for f in latest],
            _KINDS_AMONG if failed > _KINDS_AMONG else 0,
        )


def live_record(store: StateReader, who: Holder | None) -> LiveRecord | None:
    """The record of the process that drives a run; None if none does, or it has not written one yet.

    Args:
        store: The state file.
        who: The process that holds its lock. It may not have begun a session yet; then the record is of an earlier
            session.
    """
    if (last := _running_session(store, who)) is None:
        return None
    record = LiveRecord.from_json(store.get_setting("live"))
    return record if record is not None and record.session == last.session else None


def pauses(store: StateReader, who: Holder | None) -> bool:
    """Whether the process that drives a run was told to submit nothing more for now."""
    last = _running_session(store, who)
    return last is not None and is_paused(store, last.began_ms)


def pace_of(record: LiveRecord, open_rows: int, *, is_paused: bool) -> Pace | None:
    """The pace that a session reports; for a paused run, without an end."""
    pace = record.pace.pace(open_rows)
    return pace.without_end() if pace is not None and is_paused else pace


def _running_session(store: StateReader, who: Holder | None) -> figures.Session | None:
    """The session of the process that holds the lock; None if there is no process, or it has not begun one."""
    last = None if who is None else figures.last_session(store)
    if who is None or last is None or last.outcome is not None or (who.pid and who.pid != last.pid):
        return None
    return last
