from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from batchrun.errors import StateError
from batchrun.state.lock import StateLock, holder

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
