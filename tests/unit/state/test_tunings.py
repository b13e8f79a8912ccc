"""The requests to a running process through its state file, and the changes that it has applied."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from batchrun.config import GuardOptions, RunOptions
from batchrun.errors import StateError
from batchrun.scheduler.events import Tuned
from batchrun.state.reader import StateReader
from batchrun.state.store import Store
from batchrun.state.stored_options import read_options, store_options
from batchrun.state.tunings import (
    Requests,
    Tuning,
    applied_tunings,
    record_applied,
    refuse_older_version,
    request_tuning,
)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path, guards = tmp_path / "s.state", GuardOptions(price_per_hour=1.0, max_cost=5.0)
    with Store(path) as store:
        options = RunOptions(("p.jsonl",), "abc", tmp_path / "o", output_is_folder=False, state=path, guards=guards)
        store_options(store, options)
    return path


def ask(state: Path, change: Tuned) -> int:
    with Store(state) as other:
        return request_tuning(other, change)


def test_a_process_sees_each_request_once_in_order_and_none_from_before_it_began(state: Path):
    assert ask(state, Tuned(concurrency=1)) == 1
    with Store(state) as store:
        requests = Requests(store)
        assert requests.next() is None, "it was meant for an earlier session"
        ask(state, Tuned(concurrency=2))
        changes = Tuned("auto", math.inf, 36000.0, is_paused=True)
        assert ask(state, changes) == 3
        assert requests.next() == (2, Tuned(concurrency=2)), "two that ask at the same time are both heard"
        assert requests.next() == (3, changes)
        store.set_setting("other", value=1)
        assert requests.next() is None
        with Store(state) as other:
            other.set_setting("other", value=2)
        assert requests.next() is None
    with Store(state) as store:
        assert Requests(store).next() is None, "it was not applied, and is not applied later"


def test_what_is_applied_is_listed_and_holds_for_later_sessions_except_a_pause(state: Path):
    taken = [
        Tuning(1, 1000, Tuned(7, 60.0, 3600.0), is_late=False),
        Tuning(2, 2000, Tuned("auto", math.inf, math.inf, is_paused=True), is_late=True),
    ]
    with Store(state) as store:
        before = read_options(store)
        record_applied(store, taken[0])
        options = read_options(store)
        assert (options.scheduler.concurrency, options.guards.max_cost, options.guards.deadline_s) == (7, 60.0, 3600.0)
        record_applied(store, taken[1])
    with StateReader(state) as store:
        assert applied_tunings(store) == taken
        after = read_options(store)
    assert (after.scheduler, after.guards.max_cost, after.guards.deadline_s) == (before.scheduler, None, None)


def test_a_file_that_an_older_version_may_be_using_is_not_upgraded(state: Path):
    with Store(state) as store:
        refuse_older_version(store)
        store._db.execute("PRAGMA user_version = 5")
        with pytest.raises(StateError, match="in use by an older batchrun"):
            refuse_older_version(store)
