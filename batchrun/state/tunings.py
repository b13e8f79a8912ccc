"""The requests of `batchrun tune` to a running process, through the state file, and the changes that it has applied.

Requests are numbered, and wait in a setting until the process that drives the run applies them, one after another. It
records which ones it has applied, together with the options that they change, in one transaction.
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any, NamedTuple, cast

from batchrun.config import RunOptions
from batchrun.errors import StateError
from batchrun.files.exactjson import dump
from batchrun.scheduler.events import Tuned
from batchrun.state.reader import StateReader
from batchrun.state.schema import SCHEMA_VERSION
from batchrun.state.store import REQUEST, Store
from batchrun.state.stored_options import OPTIONS, read_options

_TAKEN = "tunings"
_MOST = 1000
"""How many of the latest changes are kept."""
_MOST_WAITING = 100
"""How many of the latest requests are kept."""
_OFF = "off"


class Tuning(NamedTuple):
    """A change that a process has applied."""

    number: int
    """The number of the request."""
    at_ms: int
    """UTC epoch milliseconds."""
    change: Tuned
    is_late: bool
    """Whether the run was about to end already, so that the change holds for later sessions only."""

    def to_json(self) -> dict[str, Any]:
        """The change, as JSON values."""
        return {**_to_json(self.change), "is_late": self.is_late}


def request_tuning(store: Store, change: Tuned) -> int:
    """Ask the process that drives the run to change something; returns the number of the request.

    Raises:
        OutputError, StateError: the state file cannot be written.
    """
    with store.transaction() as db:
        request = store.get_setting(REQUEST)
        number = request["number"] + 1 if isinstance(request, dict) else 1
        waiting = [*_waiting(request), [number, _to_json(change)]][-_MOST_WAITING:]
        db.execute(
            "INSERT OR REPLACE INTO settings VALUES (?, ?)", (REQUEST, dump({"number": number, "waiting": waiting}))
        )
    return number


def refuse_older_version(store: StateReader) -> None:
    """Refuse a state file of an older version: writing to it would upgrade it while another process uses it.

    Raises:
        StateError: it is older.
    """
    if store.query("PRAGMA user_version")[0][0] < SCHEMA_VERSION:
        raise StateError(
            f"{store.path} is in use by an older batchrun, which cannot be tuned",
            "stop it with `batchrun stop`, then resume it with the new values",
        )


class Requests:
    """The requests of other processes while this one has the state file open for writing.

    Args:
        store: The state file.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen = store.requested_before
        self._version = -1

    def next(self) -> tuple[int, Tuned] | None:
        """The number and the content of the first new request; None if there is none. Cheap if there is none."""
        # It changes when another connection has written.
        version = int(self._store.query("PRAGMA data_version")[0][0])
        if version == self._version:
            return None
        for number, change in _waiting(self._store.get_setting(REQUEST)):
            if number > self._seen:
                self._seen = number
                return number, _from_json(change)
        self._version = version
        return None


def record_applied(store: Store, tuning: Tuning) -> None:
    """Record that a change was applied, and store the options that it changes, for later sessions."""
    listed = [[*tuning[:2], _to_json(tuning.change), tuning.is_late]]
    with store.transaction() as db:
        known = store.get_setting(_TAKEN)
        listed = [*(known if isinstance(known, list) else []), *listed][-_MOST:]
        db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (_TAKEN, dump(listed)))
        options = tuned_options(read_options(store), tuning.change)
        db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (OPTIONS, dump(options.to_json())))


def applied_tunings(store: StateReader) -> list[Tuning]:
    """The changes that were applied, oldest first."""
    listed = store.get_setting(_TAKEN)
    known = listed if isinstance(listed, list) else []
    return [Tuning(number, at_ms, _from_json(change), is_late) for number, at_ms, change, is_late in known]


def is_paused(store: StateReader, since_ms: int) -> bool:
    """Whether the run was paused, by the last change that says anything of it.

    Args:
        store: The state file.
        since_ms: When the session began, UTC epoch milliseconds: a pause ends with its session.
    """
    said = [
        tuning for tuning in applied_tunings(store) if tuning.at_ms >= since_ms and tuning.change.is_paused is not None
    ]
    return bool(said) and said[-1].change.is_paused is True


def tuned_options(options: RunOptions, change: Tuned) -> RunOptions:
    """The options with a change. A pause is not an option: it ends with the session."""
    guards, scheduler = options.guards, options.scheduler
    if change.concurrency is not None:
        scheduler = replace(scheduler, concurrency=None if change.concurrency == "auto" else change.concurrency)
    if change.max_cost is not None:
        guards = replace(guards, max_cost=_unless_off(change.max_cost))
    if change.deadline_s is not None:
        guards = replace(guards, deadline_s=_unless_off(change.deadline_s))
    return replace(options, guards=guards, scheduler=scheduler)


def _waiting(request: object) -> list[Any]:
    """The number and the content of each of the last requests, oldest first."""
    return request.get("waiting", []) if isinstance(request, dict) else []


def _unless_off(limit: float) -> float | None:
    return None if limit == math.inf else limit


def _to_json(change: Tuned) -> dict[str, Any]:
    return {name: _OFF if value == math.inf else value for name, value in asdict(change).items() if value is not None}


def _from_json(change: object) -> Tuned:
    data = cast("dict[str, Any]", change)
    given: dict[str, Any] = {name: math.inf if value == _OFF else value for name, value in data.items()}
    return Tuned(**given)
