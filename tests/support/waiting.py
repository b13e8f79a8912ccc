"""Waiting for what another process does, no longer than it takes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TIMEOUT_S = 60.0
"""Far more than anything takes on a loaded machine: a test that waits so long has failed."""


def wait_for(is_true: Callable[[], object], timeout_s: float = TIMEOUT_S) -> None:
    until = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < until, "not in time"
        time.sleep(0.005)


def lines_in(path: Path) -> int:
    """The number of whole lines in a file; 0 where there is none."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_lines(path: Path, count: int) -> None:
    wait_for(lambda: lines_in(path) >= count)
