"""Find the files that a run reads, and read each from the beginning, as JSON lines."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from io import BufferedIOBase, BufferedReader, RawIOBase
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from batchrun.errors import InputError
from batchrun.files.paths import look_at
from batchrun.files.urls import (
    absolute_name,
    file_name,
    is_pattern,
    is_redacted,
    is_table,
    is_url,
    place_in,
    public_url,
)
from batchrun.prompts.formats import refuse_other_format
from batchrun.prompts.forms import FIRST_SUFFIXES, Form, form_of, is_input_name, packing_of
from batchrun.prompts.lines import LineTooLongError, RawLine, iter_lines
from batchrun.prompts.ownership import OWN_SUFFIXES, has_own_name, is_own_file
from batchrun.prompts.plain import json_lines, lines_of_rows

STDIN = "-"
"""The name of stdin, as an input and as an origin."""

_BLOCK_BYTES = 1 << 17
_MAGIC_BYTES = 64
_MOST_BYTES_OF_A_LINE = 16 << 20
_PIPE = re.compile(r"/(?:dev|proc/self|proc/\d+)/fd/\d+")
"""The shell's name for the pipe of a process substitution: the number means nothing to a later process."""
_NAMES_SHOWN = 3
_FORMS = "give the files, or another folder; files of prompts end in .jsonl, .csv, .tsv, .json or .parquet"


class SourceKind(StrEnum):
    """How a source is read."""

    FILE = "file"
    """Directly: any part of it at any time."""
    COPIED = "copied"
    """From beginning to end: it is a table or compressed, so a copy as plain JSON lines is kept."""
    REMOTE = "remote"
    """Once, from a URL, so a copy as plain JSON lines is kept."""
    STDIN = "stdin"
    """Only once, so a plain copy is kept. A FIFO, such as a process substitution, counts as stdin."""


@dataclass(frozen=True, slots=True)
class Source:
    """One input."""

    path: str
    """As given by the user, or as found in a folder that they gave; `-` for stdin; a URL without its secrets."""
    kind: SourceKind
    pipe: int = 0
    """Its number among the pipes of the command line, 1-based; 0 if it has a name that a later process can use."""
    is_private: bool = False
    """Whether only its owner may read it."""
    url: str = ""
    """The URL that it is read from, with any secrets in it; empty if it is not remote."""

    @property
    def name(self) -> str:
        """The file's name without its folder; `stdin` for stdin."""
        if self.kind is SourceKind.REMOTE:
            return file_name(self.url) or "remote"
        return "stdin" if self.path == STDIN else Path(self.path).name

    @property
    def origin(self) -> str:
        """How a later session identifies it: `-`, `pipe:1` for the first pipe, a public URL, or an absolute path."""
        if self.pipe:
            return f"pipe:{self.pipe}"
        is_no_path = self.path == STDIN or self.kind is SourceKind.REMOTE
        return self.path if is_no_path else str(Path(self.path).absolute())


def find_sources(
    inputs: Sequence[str],
    *,
    copied: Collection[str] = (),
    resumed: bool = False,
    results: Path | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[Source, ...]:
    """The inputs, with each folder and each pattern replaced by its files in name order.

    Args:
        inputs: Files, folders, patterns such as `data/*.csv`, URLs or `-`, as given by the user.
        copied: The origins of the inputs of which the run has copies.
        resumed: Whether an input that can be read only once, or is gone, is taken from its copy.
        results: The run's results file, which is never taken for a prompt file of a folder.
        tell: Called for each file of a folder that is skipped because a run wrote it.

    Raises:
        InputError: a path does not exist, is not a file, cannot be read, or is given twice; a folder or a pattern has
            no files of prompts; a URL has an unknown scheme.
    """
    sources: list[Source] = []
    for name in inputs:
        if resumed and _PIPE.fullmatch(name):
            sources.append(Source(name, SourceKind.STDIN))
            continue
        kept = [_kept(name, origin) for origin in sorted(copied) if resumed and _stands_for(name, origin)]
        found = [] if kept and not _is_there(name) else _expand(name, results, tell)
        origins = {source.origin for source in found}
        gone = [source for source in kept if source.origin not in origins]
        sources += sorted([*found, *gone], key=lambda source: source.origin) if gone else found
    pipes = [source for source in sources if source.kind is SourceKind.STDIN and _PIPE.fullmatch(source.path)]
    sources = [replace(source, pipe=pipes.index(source) + 1) if source in pipes else source for source in sources]
    seen: dict[object, str] = {}
    for source in sources:
        is_no_path = source.path == STDIN or source.pipe or source.kind is SourceKind.REMOTE
        key = source.path if is_no_path else os.path.realpath(source.path)
        if key in seen:
            raise InputError(f"{source.path} is given twice (also as {seen[key]})", "give each input once")
        seen[key] = source.path
    return tuple(sources)


def _is_there(name: str) -> bool:
    """Whether any file can be found now; a URL is not asked."""
    return not is_url(name) and (Path(name).exists() or (is_pattern(name) and bool(glob.glob(name, recursive=True))))  # noqa: PTH207


def _stands_for(name: str, origin: str) -> bool:
    """Whether an input as it was given stands for that of a copy: it is the same, or its folder, or a pattern of it."""
    if is_url(name) or is_url(origin):
        return is_url(name) and (public_url(name) == origin or (is_pattern(name) and fnmatchcase(origin, name)))
    whole = absolute_name(name)
    if whole == origin:
        return not Path(name).is_file()
    if os.path.lexists(origin):
        return False
    return str(Path(origin).parent) == whole or (is_pattern(name) and Path(origin).match(whole))


def _kept(name: str, origin: str) -> Source:
    """The input of which a run has a copy, and perhaps nothing else."""
    if is_url(origin):
        return Source(origin, SourceKind.REMOTE, url=origin if is_pattern(name) else name)
    return Source(name if absolute_name(name) == origin else origin, SourceKind.STDIN)


def is_prompt_file(name: str) -> bool:
    """Whether a file of this name in a folder of prompts may be one of them."""
    return is_input_name(name) and not name.endswith(OWN_SUFFIXES)


@contextmanager
def open_source(
    source: Source,
    stdin: BinaryIO,
    *,
    stamped: Callable[[str], object] = lambda _: None,
    received: Callable[[memoryview], object] | None = None,
) -> Iterator[BinaryIO]:
    """Open a source as JSON lines, from the beginning.

    Args:
        source: The source.
        stdin: The stream that `-` stands for.
        stamped: Called with the stamp of a remote file, see `remote.Remote`.
        received: Called with each block of a remote file; None for no such call.

    Raises:
        InputError: it cannot be opened; also while it is read, if it has not the form that it should have.
    """
    if source.path == STDIN:
        yield stdin
    elif source.kind is SourceKind.REMOTE:
        from batchrun.prompts.remote import open_remote

        with open_remote(source.url) as remote:
            stamped(remote.stamp)
            with json_lines(_tapped(remote.file, received), source.name, source.path) as lines:
                yield lines
    else:
        with _readable(source.path):
            opened = Path(source.path).open("rb")  # noqa: SIM115 - the next line closes it
        with opened as file:
            if source.kind is SourceKind.COPIED:
                with json_lines(file, source.name, source.path) as lines:
                    yield lines
            else:
                yield file


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


def _tapped(file: BinaryIO, seen: Callable[[memoryview], object] | None) -> BinaryIO:
    return file if seen is None else BufferedReader(_Tapped(cast("BufferedIOBase", file), seen), _BLOCK_BYTES)


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
        InputError: it cannot be opened, breaks off, has not the form that it should have, or has a line of more than
            64 MiB.
    """
    with open_source(source, stdin) as file, reading(source):
        try:
            lines = iter_lines(_tapped(file, seen))
            begin = list(islice(lines, 2))
            if begin:
                refuse_other_format(shown or source.path, begin[0].raw, is_alone=len(begin) == 1)
            yield from begin
            yield from lines
        except LineTooLongError as error:
            name = shown or source.path
            if is_table(name):
                place = place_in(name, int(error.message.partition(":")[0]))
                raise InputError(f"{place} is longer than 64 MiB", "leave out its large columns") from error
            raise InputError(f"{name}:{error.message}", error.hint) from error


def present_stamp(source: Source) -> str | None:
    """The present stamp of a remote source, see `remote.Remote`; None if its URL is known without its query alone.

    Raises:
        InputError: it cannot be reached.
    """
    from batchrun.prompts.remote import stamp_of

    return None if is_redacted(source.url) else stamp_of(source.url)


@contextmanager
def reading(source: Source) -> Iterator[None]:
    """Turn the exceptions of reading an open source into an InputError.

    Raises:
        InputError: it breaks off.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{source.path}: {error}", "check the file and its disk") from error


def place_of(source: Source, number: int) -> str:
    """How a message names a line of a source, see `places`."""
    return places(source.path, None if source.kind is SourceKind.FILE else source.path, [number])[number]


def places(path: str, origin: str | None, numbers: Collection[int]) -> dict[int, str]:
    """How messages name lines of an input: `prompts.jsonl:3`, or `reviews.csv: row 3 (line 5)`.

    Args:
        path: The input, as given by the user.
        origin: The file of a table that may be read again for the lines on which its rows begin; None for JSON lines.
        numbers: The lines, or the rows.
    """
    if origin is None or not is_table(path):
        return {number: f"{path}:{number}" for number in numbers}
    found: dict[int, int] = {}
    with suppress(InputError, OSError), Path(origin).open("rb") as file:
        found = lines_of_rows(file, origin, path, numbers)
    return {
        number: f"{path}: row {number}" + (f" (line {found[number]})" if number in found else "") for number in numbers
    }


def _expand(name: str, results: Path | None, tell: Callable[[str], None]) -> list[Source]:
    if name == STDIN:
        return [Source(STDIN, SourceKind.STDIN)]
    if is_url(name):
        return _expand_url(name)
    status = look_at(name, "INPUT", InputError)
    path = Path(name)
    if status is None and is_pattern(name):
        return _matching(name, results, tell)
    with _readable(name):
        status = path.stat()
        if not stat.S_ISDIR(status.st_mode):
            return [_source(path, name, status)]
        names = [entry for entry in sorted(path.iterdir()) if is_input_name(entry.name)]
        own = [entry.name for entry in names if _is_others(entry.name, results)]
        if own:
            tell(f"{name}: files that a run wrote are skipped: {_first_of(own)}")
        names = [entry for entry in names if is_prompt_file(entry.name)]
        found = _without_own(names, results, tell)
        first = [source for source in found if source.path.endswith(FIRST_SUFFIXES)]
        if not found:
            raise InputError(f"{name}: the folder has no files of prompts", _FORMS)
        if first and len(first) < len(found):
            others = [source.name for source in found if source not in first]
            shown = _first_of(others)
            tell(f"{name}: the folder has JSONL files, so its tables are skipped: {shown}; to run them, give them")
        return first or found


def _is_others(name: str, results: Path | None) -> bool:
    """Whether a name is one that runs give to lines that they write, but not this run with these results."""
    is_ours = results is not None and name.startswith(f"{results.stem}.")
    return name.endswith(OWN_SUFFIXES) and name.endswith(FIRST_SUFFIXES) and not is_ours


def _first_of(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")


def _matching(name: str, results: Path | None, tell: Callable[[str], None]) -> list[Source]:
    with _readable(name):
        paths = [path for found in sorted(glob.glob(name, recursive=True)) if (path := Path(found)).is_file()]  # noqa: PTH207 - keeps the name as it was given
        found = _without_own(paths, results, tell, is_named=name.endswith(OWN_SUFFIXES))
    if not found:
        cause = FileNotFoundError(name)
        raise InputError(f"{name}: no file of prompts matches", "check the pattern, and its folder") from cause
    return found


def _expand_url(url: str) -> list[Source]:
    from batchrun.prompts.remote import expand_url, refuse_unreadable_url

    refuse_unreadable_url(url)
    urls = expand_url(url) if is_pattern(url) else [url]
    if not urls:
        raise InputError(f"{public_url(url)}: no file matches", "check the pattern")
    return [Source(public_url(each), SourceKind.REMOTE, url=each) for each in urls]


def _without_own(
    paths: Sequence[Path], results: Path | None, tell: Callable[[str], None], *, is_named: bool = False
) -> list[Source]:
    """The files among these that no run has written, or all of them if they were named."""
    found = []
    for path in paths:
        if not path.is_file() or (results is not None and results.exists() and results.samefile(path)):
            continue
        if not is_named and (has_own_name(path.name) or is_own_file(path)):
            tell(f"{path} is skipped: a run wrote it")
        else:
            found.append(_source(path, str(path), path.stat()))
    return found


def _source(path: Path, name: str, status: os.stat_result) -> Source:
    mode = status.st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode):
        return Source(name, SourceKind.STDIN)
    with path.open("rb") as file:
        begin = file.read(_MAGIC_BYTES)
        if begin.startswith(b"{") and b"\n" not in begin and is_table(path.name):
            begin += file.readline(_MOST_BYTES_OF_A_LINE)
    is_plain = packing_of(path.name, begin) is None and form_of(path.name, begin) is Form.LINES
    return Source(name, SourceKind.FILE if is_plain else SourceKind.COPIED, is_private=not mode & 0o077)


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
