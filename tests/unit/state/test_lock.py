from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from batchrun.errors import StateError
from batchrun.state import lock as state_lock
from batchrun.state.lock import CANCEL, Request, StateLock, holder, identity
from batchrun.state.store import Store

if TYPE_CHECKING:
    from pathlib import Path

HOLD = """
import sys, time
from pathlib import Path
from batchrun.state.lock import StateLock
lock = StateLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holding(tmp_path: Path):
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "x.state")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_and_told_who_holds_it(tmp_path: Path, holding):
    with pytest.raises(StateError, match=f"process {holding.pid}"):
        StateLock(tmp_path / "x.state")
    assert holder(tmp_path / "x.state").pid == holding.pid


def test_the_lock_dies_with_its_holder(tmp_path: Path, holding):
    holding.kill()
    holding.wait()
    assert holder(tmp_path / "x.state") is None
    StateLock(tmp_path / "x.state").release()


def test_releasing_removes_the_lock_file_and_lets_others_in(tmp_path: Path):
    lock = StateLock(tmp_path / "x.state")
    assert holder(tmp_path / "x.state").pid == os.getpid()
    lock.release()
    assert list(tmp_path.iterdir()) == []
    assert holder(tmp_path / "x.state") is None
    StateLock(tmp_path / "x.state").release()


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_a_second_process_is_refused_under_another_name_of_the_file(tmp_path: Path, holding, link: str):
    other = tmp_path / "folder" / "y.state"
    other.parent.mkdir()
    getattr(other, link)(tmp_path / "x.state")
    with pytest.raises(StateError, match=f"process {holding.pid}"):
        StateLock(other)
    assert holder(other).pid == holding.pid


def test_a_second_run_in_the_same_process_is_refused(tmp_path: Path):
    lock = StateLock(tmp_path / "x.state")
    (tmp_path / "y.state").symlink_to(tmp_path / "x.state")
    with pytest.raises(StateError, match=f"process {os.getpid()}"):
        StateLock(tmp_path / "y.state")
    lock.release()


def test_a_refusal_in_the_same_process_leaves_the_locks_of_sqlite_alone(tmp_path: Path):
    path = tmp_path / "x.state"
    lock = StateLock(path)
    with Store(path) as store:
        store.begin_session(1, 1000)
        with pytest.raises(StateError):
            StateLock(path)
        assert holder(path).pid == os.getpid()
        # Another process that closes the file last would remove the log.
        subprocess.run([sys.executable, "-c", CLOSE, str(path)], check=True)
        assert path.with_name("x.state-wal").exists()
    lock.release()


CLOSE = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.execute("SELECT count(*) FROM settings").fetchone()
db.close()
"""


def test_a_run_of_an_older_batchrun_is_respected_and_its_lock_file_left_alone(tmp_path: Path):
    path = tmp_path / "x.state.lock"
    path.write_text("4711\n")
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StateError, match="process 4711"):
            StateLock(tmp_path / "x.state")
        assert holder(tmp_path / "x.state").pid == 4711
    StateLock(tmp_path / "x.state").release()
    assert path.read_text() == "4711\n"


def test_another_program_s_lock_file_and_a_planted_link_are_neither_written_nor_followed(tmp_path: Path):
    (tmp_path / "Cargo.lock").write_text("# cargo\n")
    (tmp_path / "planted.lock").symlink_to(tmp_path / "Cargo.lock")
    with (tmp_path / "Cargo.lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for name in ("Cargo", "planted"):
            lock = StateLock(tmp_path / name)
            assert holder(tmp_path / name).pid == os.getpid()
            lock.release()
    assert (tmp_path / "Cargo.lock").read_text() == "# cargo\n"


def test_what_is_asked_of_a_holder_is_heard_while_it_is_asked(tmp_path: Path):
    lock = StateLock(tmp_path / "x.state")
    (tmp_path / "y.state").symlink_to(tmp_path / "x.state")
    assert not lock.is_requested(CANCEL)
    with closing(Request(tmp_path / "y.state", CANCEL)), closing(Request(tmp_path / "x.state", CANCEL)):
        assert lock.is_requested(CANCEL)
        assert not lock.is_requested(CANCEL + 1)
    assert not lock.is_requested(CANCEL)
    lock.release()


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ({"host": "pod-3"}, "process 12 on pod-3"),
        ({"boot": "another"}, f"process 12 on {os.uname().nodename}"),
        ({"container": "pid:[1]"}, "process 12 in another container"),
        ({"start": -1}, "process unknown"),
    ],
)
def test_a_holder_out_of_sight_is_named_from_the_state_file(tmp_path: Path, holding, monkeypatch, token, said: str):
    with Store(tmp_path / "x.state") as store:
        store.begin_session(12, 1000, {**identity(), "pid": 12, **token})
    monkeypatch.setattr(state_lock, "_has_lock", lambda *_: False)
    assert str(holder(tmp_path / "x.state")) == said
