"""Plain copies of inputs that can be read only from the beginning: stdin, pipes, tables, compressed and remote files.

A table is copied as JSON lines, one for each row.

A copy is beside the state file and named after its content: `<state>.<number of the input>-<digest>.jsonl`. So two
inputs never share a copy, no copy is ever overwritten, and a start that is refused removes only the copies it has made.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Sized
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from batchrun.engine.clock import steady_s
from batchrun.errors import OutputError
from batchrun.prompts.sources import Source, SourceKind, open_source, reading
from batchrun.results.writer import put_in_place, temporary_file
from batchrun.state.records import SourceRecord

_BLOCK_BYTES = 1 << 20
_DIGEST_CHARS = 12
_TOKEN_CHARS = 8
_FIRST_TOLD_S = 3.0


def is_piped(source: Source, stdin: BinaryIO) -> bool:
    """Whether an input can be read: stdin that is a terminal or /dev/null cannot."""
    if source.path != "-":
        return Path(source.path).exists()
    try:
        return not stat.S_ISCHR(os.fstat(stdin.fileno()).st_mode)
    except (OSError, ValueError):
        return True


def make_copy(
    source: Source,
    number: int,
    state: Path,
    stdin: BinaryIO,
    made: list[Path],
    *,
    stamped: Callable[[str], object] = lambda _: None,
    tell: Callable[[str], object] = lambda _: None,
    clock: Callable[[], float] = steady_s,
) -> Path:
    """Write a plain copy of an input beside the state file.

    Only the owner may read the copy of a pipe or of a remote file, because it is unknown who else may read that.

    Args:
        source: The input.
        number: The input's number in the state file.
        state: The state file.
        stdin: The stream that `-` stands for.
        made: The copy is added to this list if it is new.
        stamped: See `open_source`.
        tell: Receives the progress of a copy that takes longer.
        clock: Monotonic seconds.

    Raises:
        InputError: the source cannot be read, or has not the form that it should have.
        OutputError: the copy cannot be written.
    """
    state = state.absolute()
    sha256 = hashlib.sha256()
    progress = _Progress(source.path, tell, clock)
    is_remote = source.kind is SourceKind.REMOTE
    # The state file is locked, so a file of this name is the leftover of a crash.
    token = hashlib.sha256(state.name.encode("utf-8", "surrogateescape")).hexdigest()[:_TOKEN_CHARS]
    private = source.is_private or source.kind in (SourceKind.STDIN, SourceKind.REMOTE)
    try:
        with (
            temporary_file(state, token=token, private=private) as part,
            open_source(source, stdin, stamped=stamped, received=progress.add) as file,
        ):
            while block := _read_block(source, file):
                sha256.update(block)
                if not is_remote:
                    progress.add(block)
                part.write(block)
            copy = state.with_name(f"{state.name}.{number}-{sha256.hexdigest()[:_DIGEST_CHARS]}.jsonl")
            if not copy.exists():
                made.append(copy)
                put_in_place(part, copy)
    except OSError as error:
        raise OutputError(
            f"{state}: the copy of {source.path} cannot be written: {error.strerror}",
            "make room, or give another --state, beside which the copy is written",
        ) from error
    return copy


class _Progress:
    """Tells how much of an input has been read, after 3 s, 6 s, 12 s, and so on."""

    def __init__(self, path: str, tell: Callable[[str], object], clock: Callable[[], float]) -> None:
        self._path = path
        self._tell = tell
        self._clock = clock
        self._began = clock()
        self._next_s = _FIRST_TOLD_S
        self._size_bytes = 0

    def add(self, block: Sized) -> None:
        """Count a block."""
        self._size_bytes += len(block)
        if self._clock() - self._began >= self._next_s:
            self._next_s *= 2
            self._tell(f"copying {self._path}: {self._size_bytes / 1e6:,.0f} MB so far")


def remove_copies(records: Iterable[SourceRecord], kept: Iterable[SourceRecord], state: Path) -> None:
    """Remove the copies that a run does not need any more; never other files than those named after its state file."""
    still_read = {record.file for record in kept}
    for record in records:
        copy = Path(record.file)
        is_beside = copy.parent == state.absolute().parent and copy.name.startswith(f"{state.name}.")
        if is_beside and record.file != record.origin and record.file not in still_read:
            with suppress(OSError):
                copy.unlink()


def link_stdin(copy: Path, state: Path, made: list[Path]) -> None:
    """Make `<state>.stdin.jsonl` a link to the copy of stdin, unless another file has that name.

    Args:
        copy: The copy.
        state: The state file.
        made: The link is added to this list.
    """
    link = state.with_name(f"{state.name}.stdin.jsonl")
    with suppress(OSError):
        if link.is_symlink():
            link.unlink()
        link.symlink_to(copy.name)
        made.append(link)


def _read_block(source: Source, file: BinaryIO) -> bytes:
    with reading(source):
        return file.read(_BLOCK_BYTES)
