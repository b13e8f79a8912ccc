"""State files on foreign disks, in foreign hands, without their log, and locked by other programs."""

from __future__ import annotations

import ctypes
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import pytest

from batchrun.errors import OutputError, StateError
from batchrun.state import database, opening
from batchrun.state.opening import has_log, log_of
from batchrun.state.reader import StateReader
from batchrun.state.records import Batch
from batchrun.state.schema import holds_run
from batchrun.state.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def commit(store: Store, times: int = 1) -> None:
    for _ in range(times):
        store.commit(Batch(counters={"retries": 1}), 1, 2000)


def copied(state: Path, to: Path, *suffixes: str) -> Path:
    """A copy of the file, and of what is beside it by these endings."""
    to.mkdir()
    for suffix in ("", *suffixes):
        shutil.copy(f"{state}{suffix}", to)
    return to / state.name


@pytest.fixture
def killed(tmp_path: Path) -> Iterator[Path]:
    """A state file with its log as a run that is killed leaves the two."""
    with Store(tmp_path / "x.state") as store:
        store.set_setting("options", {})
        store.begin_session(1, 1000)
        commit(store, 3)
        yield copied(store.path, tmp_path / "killed", "-wal")


def retries(state: Path) -> int:
    with StateReader(state) as store:
        return store.counters()["retries"]


@pytest.mark.parametrize("opened", [StateReader, Store])
@pytest.mark.parametrize("commits", [0, 3, database._COMMITS_A_CHECKPOINT, 3 * database._COMMITS_A_CHECKPOINT + 7])
def test_a_state_file_that_has_lost_its_log_is_refused(tmp_path: Path, commits: int, opened: type[StateReader]):
    with Store(tmp_path / "x.state") as store:
        store.begin_session(1, 1000)
        commit(store, commits)
        alone = copied(store.path, tmp_path / "alone")
        with pytest.raises(StateError, match=r"x\.state-wal is missing") as raised:
            opened(alone)
        assert "put x.state-wal back" in raised.value.hint
        assert list(alone.parent.iterdir()) == [alone]
        opened(copied(store.path, tmp_path / "both", "-wal")).close()


def test_a_state_file_into_which_another_program_has_folded_the_log_is_whole(killed: Path):
    with closing(sqlite3.connect(killed)) as db:
        db.execute("SELECT count(*) FROM settings").fetchone()
    assert not log_of(killed).exists()
    assert retries(killed) == 3


@pytest.mark.parametrize("commits", [0, 1, database._COMMITS_A_CHECKPOINT - 1, database._COMMITS_A_CHECKPOINT])
def test_a_state_file_that_was_closed_is_whole_by_itself_however_its_session_ended(tmp_path: Path, commits: int):
    with Store(tmp_path / "x.state") as store:
        store.begin_session(1, 1000)
        commit(store, commits)
    assert [path.name for path in tmp_path.iterdir()] == ["x.state"]
    with Store(tmp_path / "x.state") as store:
        store.begin_session(1, 1000)
        store.end_session(2, 3000, "finished")
    StateReader(tmp_path / "x.state").close()


def test_a_start_that_does_not_begin_leaves_a_log_that_could_not_be_folded_in_before(tmp_path: Path):
    with Store(tmp_path / "x.state") as store, closing(sqlite3.connect(store.path)) as reader:
        store.set_setting("options", {})
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM settings").fetchall()  # as on a full disk, the log stays after the first commit
        store.begin_session(1, 1000)
        stopped = copied(store.path, tmp_path / "stopped", "-wal")
    assert has_log(stopped)
    Store(stopped).close()
    assert has_log(stopped), "a kill before the end would have made it look lost"
    with StateReader(stopped) as store:
        assert store.get_setting("options") == {}


def test_a_log_without_its_state_file_is_refused_and_kept(killed: Path):
    killed.unlink()
    with pytest.raises(StateError, match="the state file is missing, but its log"):
        Store(killed)
    assert has_log(killed)


def test_the_log_of_a_run_stays_small(tmp_path: Path):
    with Store(tmp_path / "x.state") as store:
        with store.transaction() as db:
            db.execute("CREATE TABLE intake AS SELECT randomblob(9000000) AS filler")
        store.begin_session(1, 1000)
        for _ in range(300):
            commit(store)
            assert log_of(store.path).stat().st_size < 1_000_000


LOOK = """
import sys
from pathlib import Path
from batchrun.state.reader import StateReader
from batchrun.state.store import Store
with StateReader(Path(sys.argv[1])) as store:
    print(store.counters()["retries"])
"""


def drop_rights() -> None:
    """Without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH root is like anybody else."""
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
@pytest.mark.parametrize("beside", [(), ("-wal",), ("-wal", "-shm")])
def test_looking_needs_no_write_permission(tmp_path: Path, beside: tuple[str, ...]):
    with Store(tmp_path / "x.state") as store:
        store.begin_session(1, 1000)
        commit(store, 3)
        if beside:
            state = copied(store.path, tmp_path / "other", *beside)
    if not beside:
        state = copied(store.path, tmp_path / "other")
    before = sorted(state.parent.iterdir())
    for path in before:
        path.chmod(0o444)
    state.parent.chmod(0o555)
    said = subprocess.run(
        [sys.executable, "-c", LOOK, str(state)], preexec_fn=drop_rights, capture_output=True, text=True, check=False
    )
    state.parent.chmod(0o755)
    assert said.stdout == "3\n", said.stderr
    assert sorted(state.parent.iterdir()) == before


KILL_IN_CREATION = """
import sys
from pathlib import Path
from batchrun.state.reader import StateReader
from batchrun.state.store import Store
Store(Path(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is what kills at one system call")
@pytest.mark.parametrize(("call", "step"), [("unlink", 1), ("fdatasync", 1), ("fsync", 1), ("pwrite64", 7)])
def test_a_creation_that_is_cut_off_anywhere_is_rolled_back(tmp_path: Path, call: str, step: int):
    for when in range(1, 150, step):
        state = tmp_path / str(when) / "x.state"
        state.parent.mkdir()
        strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}"]
        strace += ["-e", f"inject={call}:signal=SIGKILL:when={when}"]
        command = [*strace, sys.executable, "-c", KILL_IN_CREATION, str(state)]
        done = subprocess.run(command, capture_output=True, check=False)
        if state.exists() or log_of(state).exists():
            assert not holds_run(state)
            with suppress(StateError):
                StateReader(state).close()
            with Store(state) as store:
                store.begin_session(1, 1000)
        if done.returncode == 0:
            return
    raise AssertionError("never reached its end")


@pytest.fixture
def other_program(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """Another program that has the file of a run locked."""
    with Store(tmp_path / "x.state") as store:
        store.set_setting("options", {})
    with closing(sqlite3.connect(tmp_path / "x.state", isolation_level=None, check_same_thread=False)) as db:
        yield db


def test_another_program_that_holds_the_file_is_waited_for_with_a_line(tmp_path: Path, other_program, monkeypatch):
    monkeypatch.setattr(opening, "_SLICE_S", 0.05)
    told: list[str] = []
    with Store(tmp_path / "x.state", tell=told.append) as store:
        store.begin_session(1, 1000)
        other_program.execute("BEGIN IMMEDIATE")
        threading.Timer(1.0, other_program.execute, ["COMMIT"]).start()
        commit(store)
    assert [line.partition(" ")[0] for line in told] == ["waiting", str(tmp_path / "x.state")]


def test_a_run_stops_and_can_be_resumed_when_another_program_holds_the_file_for_good(
    tmp_path: Path, other_program, monkeypatch
):
    monkeypatch.setattr(opening, "_SLICE_S", 0.01)
    monkeypatch.setattr(opening, "_SLICES", 10)
    monkeypatch.setattr(opening, "_SLICES_UNTOLD", 5)
    told: list[str] = []
    with Store(tmp_path / "x.state", tell=told.append) as store:
        store.begin_session(1, 1000)
        other_program.execute("BEGIN IMMEDIATE")
        with pytest.raises(OutputError, match="locked by another program"):
            commit(store)
        began = time.monotonic()
        with pytest.raises(OutputError, match="locked by another program"):
            commit(store)
        assert time.monotonic() - began < 5
        other_program.execute("ROLLBACK")
        commit(store)
    assert told == [f"waiting for another program to release {tmp_path / 'x.state'}"]


def test_a_file_that_is_locked_before_anything_was_sent_is_refused(tmp_path: Path, other_program, monkeypatch):
    monkeypatch.setattr(opening, "_SLICE_S", 0.01)
    other_program.execute("PRAGMA journal_mode = DELETE")
    other_program.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StateError, match="locked by another program"):
        Store(tmp_path / "x.state")


def test_what_is_no_state_file_is_told_from_a_damaged_one(tmp_path: Path):
    for content in (b"x", b"{}\n" * 1000):
        (tmp_path / "out.jsonl").write_bytes(content)
        for opened in (StateReader, Store):
            with pytest.raises(StateError, match="is not a state file"):
                opened(tmp_path / "out.jsonl")
        assert (tmp_path / "out.jsonl").read_bytes() == content
    assert list(tmp_path.iterdir()) == [tmp_path / "out.jsonl"]


def test_a_file_in_which_a_start_was_interrupted_is_said_to_hold_no_run(tmp_path: Path):
    path = tmp_path / "run.state"
    path.touch()
    with pytest.raises(StateError, match="holds no run: it is empty"):
        StateReader(path)
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = WAL")
    with pytest.raises(StateError, match="holds no run: it is empty") as raised:
        StateReader(path)
    assert raised.value.hint == "if its start was interrupted, run that command again"
    Store(path).close()
