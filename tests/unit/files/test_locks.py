from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from batchrun.errors import OutputError
from batchrun.files.locks import is_held_here, is_locked, lock_file, unlock_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        unlock_file(fd)
        os.close(fd)


def test_a_file_is_locked_under_each_of_its_names_in_this_process_too(tmp_path: Path):
    path = tmp_path / "file"
    with opened(path) as fd:
        lock_file(fd, path)
        (tmp_path / "symlink").symlink_to(path)
        (tmp_path / "hardlink").hardlink_to(path)
        for name in ("file", "symlink", "hardlink"):
            with opened(tmp_path / name) as other:
                assert is_locked(other)
                assert is_held_here(tmp_path / name)
                with pytest.raises(BlockingIOError):
                    lock_file(other, path)
    with opened(path) as other:
        assert not is_locked(other)
        assert not is_held_here(path)
        lock_file(other, path)


def test_a_forked_child_does_not_keep_the_lock_of_its_parent(tmp_path: Path):
    path, (read, write) = tmp_path / "file", os.pipe()
    code = (
        "import os, sys, time; from pathlib import Path; from batchrun.files.locks import lock_file\n"
        "fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT); lock_file(fd, Path(sys.argv[1]))\n"
        "if child := os.fork(): print(child, flush=True); time.sleep(60)\n"
        "os.read(int(sys.argv[2]), 1)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(path), str(read)], pass_fds=[read], stdout=subprocess.PIPE, text=True
    )
    child = int(parent.stdout.readline())
    with opened(path) as fd:
        assert is_locked(fd)
        parent.kill()
        parent.wait()
        os.kill(child, 0)
        until = time.monotonic() + 10
        while is_locked(fd):  # until the child has run for a moment
            assert time.monotonic() < until
            time.sleep(0.01)
        lock_file(fd, path)
    os.kill(child, signal.SIGKILL)
    parent.stdout.close()
    os.close(read)
    os.close(write)


def test_a_file_that_is_unlocked_is_free_though_a_copy_of_its_descriptor_is_open(tmp_path: Path):
    path = tmp_path / "file"
    with opened(path) as fd, opened(path) as other:
        copy = os.dup(fd)
        lock_file(fd, path)
        unlock_file(fd)
        lock_file(other, path)
        os.close(copy)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named_as_the_reason(tmp_path: Path, monkeypatch, number: int):
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    path = tmp_path / "file"
    with opened(path) as fd:
        monkeypatch.setattr(fcntl, "fcntl", refuse)
        with pytest.raises(OutputError, match="cannot be locked") as raised:
            lock_file(fd, path)
        assert "local disk" in raised.value.hint
        assert not is_held_here(path)
        monkeypatch.undo()


def test_a_system_that_locks_whole_files_only_excludes_as_well(tmp_path: Path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    path = tmp_path / "file"
    monkeypatch.setattr(fcntl, "fcntl", refuse)
    with opened(path) as fd, opened(path) as other:
        assert not is_locked(other)
        lock_file(fd, path)
        assert is_locked(other)
        with pytest.raises(BlockingIOError):
            lock_file(other, path)
        unlock_file(fd)
        lock_file(other, path)
