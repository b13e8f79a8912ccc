"""Find the files that a run reads, and read each from the beginning."""

from __future__ import annotations

import gzip
import os
import re
import stat
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from io import BufferedIOBase, BufferedReader, RawIOBase
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson

from batchrun.errors import InputError
from batchrun.files.exactjson import load
from batchrun.files.locks import is_held_here
from batchrun.files.paths import look_at
from batchrun.prompts.formats import refuse_other_format
from batchrun.prompts.lines import LineTooLongError, RawLine, iter_lines

STDIN = "-"
"""The name of stdin, as an input and as an origin."""

_GZIP_MAGIC = b"\x1f\x8b"
_SQLITE_MAGIC = b"SQLite format 3\0"
_BLOCK_BYTES = 1 << 17
_MOST_BYTES_OF_A_FIRST_LINE = 16 << 20
_OWN_FILES = (".results.jsonl", ".errors.jsonl", ".superseded.jsonl")
"""Files that a run writes. In a folder of prompts they are skipped; named explicitly, they are inputs."""
_COPY = re.compile(r"(.+)\.(?:\d+(?:-[0-9a-f]{12})?|stdin|requests)\.jsonl")
"""The name of an input's copy, or of a program's requests: it begins with the name of the state file beside it."""
_PIPE = re.compile(r"/(?:dev|proc/self|proc/\d+)/fd/\d+")
"""The shell's name for the pipe of a process substitution: the number means nothing to a later process."""


class SourceKind(StrEnum):
    """How a source is read."""

    FILE = "file"
    """Directly: any part of it at any time."""
    GZIP = "gzip"
    """Only from beginning to end, so a plain copy is kept."""
    STDIN = "stdin"
    """Only once, so a plain copy is kept. A FIFO, such as a process substitution, counts as stdin."""


@dataclass(frozen=True, slots=True)
class Source:
    """One input."""

    path: str
    """As given by the user, or as found in a folder that they gave; `-` for stdin."""
    kind: SourceKind
    pipe: int = 0
    """Its number among the pipes of the command line, 1-based; 0 if it has a name that a later process can use."""
    is_private: bool = False
    """Whether only its owner may read it."""

    @property
    def name(self) -> str:
        """The file's name without its folder; `stdin` for stdin."""
        return "stdin" if self.path == STDIN else Path(self.path).name

    @property
    def origin(self) -> str:
        """How a later session identifies it: `-` for stdin, `pipe:1` for the first pipe, else its absolute path."""
        if self.pipe:
            return f"pipe:{self.pipe}"
        return self.path if self.path == STDIN else str(Path(self.path).absolute())


def find_sources(
    inputs: Sequence[str],
    *,
    copied: Collection[str] = (),
    resumed: bool = False,
    results: Path | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[Source, ...]:
    """The inputs, with each folder replaced by its prompt files in name order.

    Args:
        inputs: Files, folders or `-`, as given by the user.
        copied: The origins of the inputs of which the run has copies.
        resumed: Whether an input that can be read only once, or is gone, is taken from its copy.
        results: The run's results file, which is never taken for a prompt file of a folder.
        tell: Called for each file of a folder that is skipped because a run wrote it.

    Raises:
        InputError: a path does not exist, is not a file, cannot be read, or is given twice; a folder has no prompt
            files.
    """
    sources: list[Source] = []
    for name in inputs:
        if resumed and (_PIPE.fullmatch(name) or (str(Path(name).absolute()) in copied and not Path(name).is_file())):
            sources.append(Source(name, SourceKind.STDIN))
        else:
            sources.extend(_expand(name, results, tell))
    pipes = [source for source in sources if source.kind is SourceKind.STDIN and _PIPE.fullmatch(source.path)]
    sources = [
        Source(source.path, source.kind, pipes.index(source) + 1) if source in pipes else source for source in sources
    ]
    seen: dict[object, str] = {}
    for source in sources:
        key = STDIN if source.path == STDIN else source.path if source.pipe else os.path.realpath(source.path)
        if key in seen:
            raise InputError(f"{source.path} is given twice (also as {seen[key]})", "give each input once")
        seen[key] = source.path
    return tuple(sources)


def is_prompt_file(name: str) -> bool:
    """Whether a file of this name in a folder of prompts is taken for one of them."""
    return name.endswith((".jsonl", ".jsonl.gz")) and not name.endswith(_OWN_FILES)


@contextmanager
def open_source(source: Source, stdin: BinaryIO) -> Iterator[BinaryIO]:
    """Open the plain bytes of a source, from the beginning.

    Raises:
        InputError: it cannot be opened.
    """
    if source.path == STDIN:
        yield stdin
        return
    with _readable(source.path):
        opened = Path(source.path).open("rb")  # noqa: SIM115 - the next line closes it
    with opened as file:
        yield cast("BinaryIO", gzip.GzipFile(fileobj=file)) if source.kind is SourceKind.GZIP else file


class _Tapped(RawIOBase):
    """A file that passes each block that is read from it to `seen`."""

    def __init__(self, file: BufferedIOBase, seen: Callable[[memoryview], object]) -> None:
        super().__init__()
        self._file = file
        self._seen = seen

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any, /) -> int:
        count = self._file.readinto(into)
        self._seen(memoryview(into)[:count])
        return count


def iter_source(
    source: Source, stdin: BinaryIO, shown: str | None = None, *, seen: Callable[[memoryview], object] | None = None
) -> Iterator[RawLine]:
    """The lines of a source that are not blank, in constant memory.

    Args:
        source: The source.
        stdin: The stream that `-` reads.
        shown: The name in messages; None for its path.
        seen: Called with the plain bytes of the source, block by block; None for no such call.

    Raises:
        InputError: it cannot be opened, breaks off, is not a valid gzip file, is not JSON lines as a whole, or has a
            line of more than 64 MiB.
    """
    with open_source(source, stdin) as file, reading(source):
        try:
            lines = iter_lines(
                file if seen is None else BufferedReader(_Tapped(cast("BufferedIOBase", file), seen), _BLOCK_BYTES)
            )
            begin = list(islice(lines, 2))
            if begin:
                refuse_other_format(shown or source.path, begin[0].raw, is_alone=len(begin) == 1)
            yield from begin
            yield from lines
        except LineTooLongError as error:
            raise InputError(f"{source.path}:{error.message}", error.hint) from error


@contextmanager
def reading(source: Source) -> Iterator[None]:
    """Turn the exceptions of reading an open source into an InputError.

    Raises:
        InputError: it breaks off, or is not a valid gzip file.
    """
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        if source.kind is SourceKind.GZIP:
            raise InputError(f"{source.path} is not a complete gzip file: {error}", "create it again") from error
        raise InputError(f"{source.path}: {error}", "check the file and its disk") from error


def _expand(name: str, results: Path | None, tell: Callable[[str], None]) -> list[Source]:
    if name == STDIN:
        return [Source(STDIN, SourceKind.STDIN)]
    look_at(name, "INPUT", InputError)
    path = Path(name)
    with _readable(name):
        status = path.stat()
        if not stat.S_ISDIR(status.st_mode):
            return [_source(path, name, status)]
        found = []
        for entry in sorted(path.iterdir()):
            if is_prompt_file(entry.name) and entry.is_file():
                source = _source(entry, str(entry), entry.stat())
                if results is not None and results.exists() and results.samefile(entry):
                    continue
                if is_own_file(entry):
                    tell(f"{entry} is skipped: a run wrote it")
                else:
                    found.append(source)
        if not found:
            raise InputError(f"{name}: the folder has no *.jsonl files", "give the files, or another folder")
        return found


def _source(path: Path, name: str, status: os.stat_result) -> Source:
    mode = status.st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode):
        return Source(name, SourceKind.STDIN)
    with path.open("rb") as file:
        is_gzip = file.read(2) == _GZIP_MAGIC or path.suffix == ".gz"
    return Source(name, SourceKind.GZIP if is_gzip else SourceKind.FILE, is_private=not mode & 0o077)


def is_own_file(path: Path) -> bool:
    """Whether a run wrote a file: results or failures, by its first line; or an input's copy, by the state beside it.

    Raises:
        OSError: it cannot be read.
    """
    copy = _COPY.fullmatch(path.name)
    if copy is not None:
        state = path.with_name(copy.group(1))
        if is_held_here(state):
            return True
        if state.is_file():
            with state.open("rb") as file:
                if file.read(len(_SQLITE_MAGIC)) == _SQLITE_MAGIC:
                    return True
    return is_own_line(first_line(path))


def first_line(path: Path) -> bytes:
    """The first line of a file, or the first 16 MiB of a longer one.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return file.readline(_MOST_BYTES_OF_A_FIRST_LINE)


def is_own_line(line: bytes) -> bool:
    """Whether a line is from a results or error file, in either format."""
    if b'"source"' not in line:
        return False
    try:
        data = load(line)
    except orjson.JSONDecodeError:
        return False
    facts = data.get("batchrun", data) if isinstance(data, dict) else None
    if not isinstance(facts, dict) or not isinstance(facts.get("source"), dict):
        return False
    return {"file", "line"} <= facts["source"].keys() and {"status", "job"} <= facts.keys()


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such file or folder", "check the path") from error
    except PermissionError as error:
        raise InputError(f"{name}: no permission to read it", "check its permissions") from error
    except OSError as error:
        raise InputError(f"{name}: {error.strerror or error}", "check the path") from error
