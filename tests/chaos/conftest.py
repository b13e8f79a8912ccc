"""A folder in memory: what is synced there is synced at once."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

_MEMORY = Path("/dev/shm")


@pytest.fixture
def folder(tmp_path):
    """An empty folder; on a disk where there is no other."""
    if not _MEMORY.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="batchrun-chaos-", dir=_MEMORY) as name:
        yield Path(name)
