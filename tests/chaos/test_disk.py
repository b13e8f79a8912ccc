"""The layer under the files sees every change, and knows what of it a loss of power may take away."""

from __future__ import annotations

import os
import subprocess
import sys
from random import Random

import pytest

from tests.chaos.disk import LOSSES, Change, Disk, Tree, compiler, library, read_journal, read_tree

built = pytest.mark.skipif(compiler() is None, reason="the layer under the files is built by a C compiler")
EVERYTHING = """
import os, shutil, sqlite3
from pathlib import Path
Path("new/deep").mkdir(parents=True)
Path("new/deep/a").write_bytes(b"a" * 5000)
with open("new/deep/a", "r+b") as file:
    file.seek(100); file.write(b"in the middle"); file.truncate(3000)
os.rename("new/deep", "new/other")
os.link("new/other/a", "b")
os.symlink("b", "c")
shutil.copyfile("b", "d")
os.replace("d", "new/e")
fd = os.open("f", os.O_RDWR | os.O_CREAT)
os.pwrite(fd, b"at the end", 10_000)
os.pwritev(fd, [b"two", b"parts"], 50)
os.writev(fd, [b"at", b"first"])
os.posix_fallocate(fd, 0, 20_000)
os.copy_file_range(os.open("b", os.O_RDONLY), fd, 100, 0, 15_000)
os.unlink("old"); os.rmdir("empty")
os.truncate("new/e", 4)
database = sqlite3.connect("h")
database.execute("PRAGMA journal_mode = WAL")
with database: database.execute("CREATE TABLE t (x)"); database.execute("INSERT INTO t VALUES (zeroblob(20000))")
os.fsync(fd)
os._exit(0)
"""


def after(*changes: tuple, names: str = "none", data: str = "none") -> Tree:
    """What is found after changes to an empty folder."""
    disk = Disk()
    for what, is_folder, inode, at, name, other, data_of in changes:
        disk.apply(Change(what, is_folder, inode, at, name, other, data_of, 0))
    return disk.after(names, data, Random(1))


def created(inode: int, name: str) -> tuple:
    return ("C", False, inode, 0, name, "", b"")


def written(inode: int, data: bytes, at: int = 0) -> tuple:
    return ("W", False, inode, at, "", "", data)


def renamed(name: str, other: str) -> tuple:
    return ("R", False, 0, 0, name, other, b"")


SYNC_1 = ("S", False, 1, 0, "", "", b"")
SYNC_FOLDER = ("S", True, 9, 0, "", "", b"")


@built
def test_the_journal_has_every_change_that_a_process_makes(folder):
    root, journal = folder / "root", folder / "journal"
    (root / "empty").mkdir(parents=True)
    (root / "old").write_bytes(b"old")
    disk = Disk(root)
    env = {**os.environ, "LD_PRELOAD": str(library()), "CHAOS_ROOT": str(root), "CHAOS_JOURNAL": str(journal)}
    subprocess.run([sys.executable, "-c", EVERYTHING], cwd=root, env=env, check=True)
    for change in read_journal(journal):
        disk.apply(change)
    assert disk.after("none", "none", Random(0)) == read_tree(root)
    assert (root / "h-wal").stat().st_size > 20_000


def test_what_was_not_synced_may_be_lost():
    changes = [created(1, "a"), SYNC_FOLDER, written(1, b"kept"), SYNC_1, written(1, b"lost", 4)]
    assert after(*changes) == {"a": b"keptlost"}
    assert after(*changes, data="all") == {"a": b"kept"}
    assert after(*changes, data="blocks") == {"a": b"kept\0\0\0\0"}
    assert all(after(*changes, data=loss)["a"].startswith(b"kept") for loss in LOSSES)


def test_a_name_that_was_not_synced_may_be_lost_with_all_that_is_in_the_file():
    changes = [created(1, "a"), written(1, b"synced"), SYNC_1]
    assert after(*changes) == {"a": b"synced"}
    assert after(*changes, names="all") == {}
    assert after(*changes, SYNC_FOLDER, names="all") == {"a": b"synced"}


def test_a_rename_is_one_change():
    changes = [created(1, "a"), SYNC_FOLDER, renamed("a", "b")]
    assert after(*changes, names="all") == {"a": b""}
    assert after(*changes) == {"b": b""}
    assert {tuple(after(*changes, names="some")) for _ in range(8)} <= {("a",), ("b",)}


def test_what_is_in_a_folder_is_lost_with_its_name():
    changes = [("M", True, 0, 0, "new", "", b""), created(1, "new/a"), ("S", True, 9, 0, "new", "", b"")]
    assert after(*changes) == {"new": None, "new/a": b""}
    assert after(*changes, names="all") == {}
