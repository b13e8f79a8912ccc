"""The states that a loss of power may leave of a folder.

`disk.c` writes down each change to the files of a folder. From that a `Disk` knows what is on the disk for certain
(what was synced) and what may be: a file's data since its last sync may be there, be missing, be there in part, or be
blocks of NUL bytes up to the new length; a folder's names since its last sync are there up to some change, in order.
"""

from __future__ import annotations

import atexit
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

_HEAD = struct.Struct("=cbHHIQq")
_PAGE = 4096
_UNTOUCHED = "-shm"
"""SQLite's index of its log is memory that is shared: it is made anew after a loss of power."""

Tree = dict[str, bytes | str | None]
"""What is in a folder, by its path there: files with their bytes, links with where they lead, folders with None."""


def compiler() -> str | None:
    """The machine's C compiler."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


@cache
def library() -> Path:
    """The library for LD_PRELOAD, built for this process."""
    folder = Path(tempfile.mkdtemp(prefix="batchrun-chaos-"))
    atexit.register(shutil.rmtree, folder)
    target = folder / "disk.so"
    source = Path(__file__).with_name("disk.c")
    command = [compiler() or "cc", "-O1", "-shared", "-fPIC", "-o", str(target), str(source), "-lpthread"]
    subprocess.run(command, check=True)
    return target


class Change(NamedTuple):
    """One record of the journal."""

    what: str
    is_folder: bool
    inode: int
    at: int
    name: str
    other: str
    data: bytes
    end: int
    """Where it ends in the journal."""

    def __str__(self) -> str:
        shown = {"W": f" {len(self.data)} bytes at {self.at}", "T": f" to {self.at} bytes"}.get(self.what, "")
        return f"{self.what} {self.name or self.inode}{' -> ' + self.other if self.other else ''}{shown}"


def read_journal(path: Path) -> Iterator[Change]:
    """What was done, in its order."""
    data = path.read_bytes() if path.exists() else b""
    at = 0
    while at < len(data):
        what, is_folder, name, other, size, inode, offset = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        names = data[at : at + name].decode(), data[at + name : at + name + other].decode()
        at += name + other + size
        yield Change(what.decode(), bool(is_folder), inode, offset, *names, data[at - size : at], at)


@dataclass
class File:
    """A file, whatever its names are."""

    synced: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    """Writes by their offset, and lengths with None, since the last sync."""

    @property
    def live(self) -> bytes:
        """What a process sees."""
        return _applied(self.synced, self.pending)

    def sync(self) -> None:
        """All of it is on disk now."""
        self.synced, self.pending = self.live, []

    def after(self, loss: str, rng: Random) -> bytes:
        """What may be found after a loss of power: see `LOSSES`."""
        if not self.pending or loss == "none":
            return self.live
        live, was = self.live, self.synced
        match loss:
            case "all":
                return was
            case "torn":
                *whole, (at, data) = self.pending[: rng.randint(1, len(self.pending))]
                cut = (at, data) if data is None else (at, data[: rng.randint(0, len(data))])
                return _applied(was, [*whole, cut])
            case "blocks":
                return was + bytes(max(len(live) - len(was), 0))
        base = was.ljust(len(live), b"\0")
        length = len(live) if len(live) >= len(was) or rng.random() < 0.5 else len(was)
        pages = ((live if rng.random() < 0.5 else base)[at : at + _PAGE] for at in range(0, len(base), _PAGE))
        return b"".join(pages)[:length]


LOSSES = ("none", "all", "torn", "blocks", "pages")
"""Of a file's data since its last sync: nothing is lost; all; what came after some write; all but the length; pages."""


@dataclass
class Folder:
    """A folder: what its names lead to."""

    synced: dict[str, Node] = field(default_factory=dict)
    pending: list[dict[str, Node | None]] = field(default_factory=list)
    """Names that were given and, with None, taken away since the last sync; what is one change is one entry."""

    @property
    def live(self) -> dict[str, Node]:
        """What a process sees."""
        return self.first(len(self.pending))

    def first(self, count: int) -> dict[str, Node]:
        """The names after so many of the changes since the last sync."""
        names: dict[str, Node | None] = dict(self.synced)
        for change in self.pending[:count]:
            names |= change
        return {name: found for name, found in names.items() if found is not None}

    def sync(self) -> None:
        """All names are on disk now."""
        self.synced, self.pending = self.live, []


Node = File | Folder | str
"""What a name leads to; a string is a link to elsewhere."""


class Disk:
    """A folder as a process sees it, and as the disk may have it.

    Args:
        root: The folder as it is before the first change; all of that is on disk. None: an empty one.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = Folder()
        self._files: dict[int, File] = {}
        folders = {root: self.root}
        for path in sorted(root.rglob("*")) if root else ():
            found: Node
            if path.is_symlink():
                found = str(path.readlink())
            elif path.is_dir():
                folders[path] = found = Folder()
            else:
                found = self._files.setdefault(path.stat().st_ino, File(path.read_bytes()))
            folders[path.parent].synced[path.name] = found

    def apply(self, change: Change) -> None:
        """Do what a process has done."""
        match change.what:
            case "C":
                self._files[change.inode] = file = File()
                self._name({change.name: file})
            case "W" | "T":
                file = self._files.setdefault(change.inode, File())
                file.pending.append((change.at, change.data if change.what == "W" else None))
            case "S" if change.is_folder:
                self._folder(change.name).sync()
            case "S":
                self._files.setdefault(change.inode, File()).sync()
            case "M":
                self._name({change.name: Folder()})
            case "Y":
                self._name({change.other: change.name})
            case "U":
                self._name({change.name: None})
            case "R" if not change.other:
                self._name({change.name: None})
            case "R" | "L":
                found = self._find(change.name) or self._files.setdefault(change.inode, File())
                gone = {change.name: None} if change.what == "R" and change.name else {}
                self._name({**gone, change.other: found})

    def _folder(self, path: str) -> Folder:
        found = self._find(path) if path else self.root
        return found if isinstance(found, Folder) else Folder()

    def _find(self, path: str) -> Node | None:
        found: Node | None = self.root
        for part in path.split("/"):
            found = found.live.get(part) if isinstance(found, Folder) else None
        return found

    def _name(self, names: dict[str, Node | None]) -> None:
        """One change; of names in two folders each has its own part."""
        for folder in {path.rpartition("/")[0] for path in names}:
            own = {p.rpartition("/")[2]: found for p, found in names.items() if p.rpartition("/")[0] == folder}
            self._folder(folder).pending.append(own)

    def after(self, names: str, data: str, rng: Random) -> Tree:
        """What may be found after a loss of power.

        Args:
            names: What is lost of the names: `none`, `all`, or by chance (`some`) those after a change.
            data: What is lost of each file: one of `LOSSES`, or by chance any of them (`some`).
            rng: Where chance comes from.
        """
        tree: Tree = {}
        self._look(self.root, "", names, data, rng, tree)
        return tree

    def _look(self, folder: Folder, at: str, names: str, data: str, rng: Random, tree: Tree) -> None:
        most = len(folder.pending)
        for name, found in folder.first({"none": most, "all": 0}.get(names, rng.randint(0, most))).items():
            if isinstance(found, Folder):
                tree[at + name] = None
                self._look(found, f"{at}{name}/", names, data, rng, tree)
            elif isinstance(found, str):
                tree[at + name] = found
            elif not name.endswith(_UNTOUCHED):
                tree[at + name] = found.after(rng.choice(LOSSES) if data == "some" else data, rng)


def write_tree(tree: Tree, root: Path) -> None:
    """Put a state on the disk, in place of what is there."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for name, data in tree.items():
        if data is None:
            (root / name).mkdir()
        elif isinstance(data, str):
            (root / name).symlink_to(data)
        else:
            (root / name).write_bytes(data)


def read_tree(root: Path) -> Tree:
    """What is in a folder."""
    paths = sorted(path for path in root.rglob("*") if not path.name.endswith(_UNTOUCHED))
    return {str(path.relative_to(root)): _read(path) for path in paths}


def _read(path: Path) -> bytes | str | None:
    if path.is_symlink():
        return str(path.readlink())
    return None if path.is_dir() else path.read_bytes()


def _applied(data: bytes, changes: list[tuple[int, bytes | None]]) -> bytes:
    live = bytearray(data)
    for at, new in changes:
        if new is None:
            live = live[:at] if at < len(live) else live.ljust(at, b"\0")
        else:
            live = live.ljust(at, b"\0")
            live[at : at + len(new)] = new
    return bytes(live)
