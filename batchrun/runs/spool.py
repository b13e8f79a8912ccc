"""The plain copies of inputs that can be read only once: stdin, pipes and compressed files.

A copy is beside the state file and named by what it holds: `<state>.<number of the input>-<digest>.jsonl`. So two
inputs never share one, none is ever written over, and a start that is refused removes just those that it has made.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from batchrun.errors import OutputError
from batchrun.prompts.sources import Source, SourceKind, open_source, reading
from batchrun.results.writer import put_in_place, temporary_file
from batchrun.state.records import SourceRecord

_BLOCK_BYTES = 1 << 20
_DIGEST_CHARS = 12


def is_piped(source: Source, stdin: BinaryIO) -> bool:
    """Whether there is something to read: a terminal, or a scheduler's /dev/null, is not an input."""
    if source.path != "-":
        return Path(source.path).exists()
    try:
        return not stat.S_ISCHR(os.fstat(stdin.fileno()).st_mode)
    except (OSError, ValueError):
        return True


def make_copy(source: Source, number: int, state: Path, stdin: BinaryIO, made: list[Path]) -> Path:
    """Copy an input in plain text beside the state file.

    Only its owner may read the copy of a pipe: nobody knows who may read what was piped.

    Args:
        source: The input.
        number: The input's number in the state file.
        state: The state file.
        stdin: What `-` reads.
        made: Gets the copy if it was not there before.

    Raises:
        InputError: the source cannot be read, or is not a valid gzip file.
        OutputError: the copy cannot be written.
    """
    state = state.absolute()
    sha256 = hashlib.sha256()
    size_bytes = 0
    private = source.is_private or source.kind is SourceKind.STDIN
    try:
        with temporary_file(state, private=private) as part, open_source(source, stdin) as file:
            while block := _read_block(source, file):
                sha256.update(block)
                size_bytes += len(block)
                part.write(block)
            copy = state.with_name(f"{state.name}.{number}-{sha256.hexdigest()[:_DIGEST_CHARS]}.jsonl")
            if not copy.exists():
                made.append(copy)
                put_in_place(part, copy)
    except OSError as error:
        raise OutputError(
            f"{state}: the copy of {source.path} cannot be written: {error.strerror}",
            "make room, or give another --state: the copy is beside it",
        ) from error
    return copy


def remove_copies(records: Iterable[SourceRecord], kept: Iterable[SourceRecord], state: Path) -> None:
    """Remove the copies that a run no longer reads, and only files beside its state that bear its name."""
    still_read = {record.file for record in kept}
    for record in records:
        copy = Path(record.file)
        is_beside = copy.parent == state.absolute().parent and copy.name.startswith(f"{state.name}.")
        if is_beside and record.file != record.origin and record.file not in still_read:
            with suppress(OSError):
                copy.unlink()


def link_stdin(copy: Path, state: Path) -> None:
    """Let `<state>.stdin.jsonl` lead to the copy of stdin, unless something else has that name."""
    link = state.with_name(f"{state.name}.stdin.jsonl")
    with suppress(OSError):
        if link.is_symlink():
            link.unlink()
        link.symlink_to(copy.name)


def _read_block(source: Source, file: BinaryIO) -> bytes:
    with reading(source):
        return file.read(_BLOCK_BYTES)
