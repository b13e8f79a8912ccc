"""Which files a run reads, and the plain copy of those that cannot be read twice."""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from batchrun.errors import InputError, OutputError
from batchrun.prompts.lines import LineTooLongError, RawLine, iter_lines

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_BLOCK_BYTES = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_OWN_FILES = (".results.jsonl", ".errors.jsonl")
"""What a run writes: in a folder of prompts these are not prompts, unless they are named."""


class SourceKind(StrEnum):
    """How a source is read."""

    FILE = "file"
    """As it is, any part of it at any time."""
    GZIP = "gzip"
    """From front to back only, so a plain copy is kept."""
    STDIN = "stdin"
    """Once only, so a plain copy is kept. A FIFO such as a process substitution counts as one."""


@dataclass(frozen=True, slots=True)
class Source:
    """One input."""

    path: str
    """As the user named it, or found in the folder that they named; `-` for stdin."""
    kind: SourceKind

    @property
    def name(self) -> str:
        """The file's name without its folder; `stdin` for stdin."""
        return "stdin" if self.path == "-" else Path(self.path).name


def find_sources(inputs: Sequence[str]) -> tuple[Source, ...]:
    """The inputs, with each folder replaced by its prompt files in name order.

    Raises:
        InputError: a path does not exist, is no file, cannot be read, or comes twice; a folder has no prompt files.
    """
    sources = [source for name in inputs for source in _expand(name)]
    seen: dict[object, str] = {}
    for source in sources:
        key = "-" if source.path == "-" else os.path.realpath(source.path)
        if key in seen:
            raise InputError(f"{source.path} is given twice (also as {seen[key]})", "name each input once")
        seen[key] = source.path
    return tuple(sources)


def is_prompt_file(name: str) -> bool:
    """Whether a file of this name is taken for prompts when it lies in a folder of them."""
    return name.endswith((".jsonl", ".jsonl.gz")) and not name.endswith(_OWN_FILES)


def spool(source: Source, target: Path, stdin: BinaryIO) -> None:
    """Copy a source in plain text to `target`, whole or not at all.

    Raises:
        InputError: the source cannot be read, or is no valid gzip file.
        OutputError: the copy cannot be written.
    """
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as copy, open_source(source, stdin) as file:
            while block := _read_block(source, file):
                copy.write(block)
            copy.flush()
            os.fsync(copy.fileno())
        part.replace(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputError(
            f"{target}: the copy of {source.path} cannot be written: {error.strerror}",
            "make room, or give another --state: the copy stands beside it",
        ) from error
    except InputError:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def open_source(source: Source, stdin: BinaryIO) -> Iterator[BinaryIO]:
    """A source's plain bytes from the front.

    Raises:
        InputError: it cannot be opened.
    """
    if source.path == "-":
        yield stdin
        return
    with _readable(source.path):
        opened = Path(source.path).open("rb")  # noqa: SIM115 - the next line closes it
    with opened as file:
        yield cast("BinaryIO", gzip.GzipFile(fileobj=file)) if source.kind is SourceKind.GZIP else file


def iter_source(source: Source, stdin: BinaryIO) -> Iterator[RawLine]:
    """The lines of a source that are not blank, in constant memory.

    Raises:
        InputError: it cannot be opened, breaks off, is no valid gzip file, or has a line of more than 64 MiB.
    """
    with open_source(source, stdin) as file, reading(source):
        try:
            yield from iter_lines(file)
        except LineTooLongError as error:
            raise InputError(f"{source.path}:{error.message}", error.hint) from error


@contextmanager
def reading(source: Source) -> Iterator[None]:
    """Turn what reading an open source may raise into ours.

    Raises:
        InputError: it breaks off, or is no valid gzip file.
    """
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        if source.kind is SourceKind.GZIP:
            raise InputError(f"{source.path}: it is no whole gzip file: {error}", "make it again") from error
        raise InputError(f"{source.path}: {error}", "check the file and its disk") from error


def _expand(name: str) -> list[Source]:
    if name == "-":
        return [Source("-", SourceKind.STDIN)]
    path = Path(name)
    with _readable(name):
        mode = path.stat().st_mode
        if not stat.S_ISDIR(mode):
            return [Source(name, _kind(path, mode))]
        found = sorted(entry for entry in path.iterdir() if is_prompt_file(entry.name) and entry.is_file())
        if not found:
            raise InputError(f"{name}: the folder has no *.jsonl files", "name the files, or another folder")
        return [Source(str(entry), _kind(entry, entry.stat().st_mode)) for entry in found]


def _kind(path: Path, mode: int) -> SourceKind:
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode):
        return SourceKind.STDIN
    with path.open("rb") as file:
        return SourceKind.GZIP if file.read(2) == _GZIP_MAGIC or path.suffix == ".gz" else SourceKind.FILE


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{name}: there is no such file or folder", "check the path") from error
    except PermissionError as error:
        raise InputError(f"{name}: it may not be read", "check its permissions") from error
    except OSError as error:
        raise InputError(f"{name}: {error.strerror or error}", "check the path") from error


def _read_block(source: Source, file: BinaryIO) -> bytes:
    with reading(source):
        return file.read(_BLOCK_BYTES)
