"""Results that `redo` replaces: the file that they move to, and the results file without them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from batchrun.files.folders import sync_folder, write_beside
from batchrun.results.writer import writing

_PART_NAME_CHARS = 100
"""File systems allow names of up to 255 bytes, and a character may take four."""


def superseded_path(results: Path) -> Path:
    """The file with the lines of a results file that `redo` has replaced."""
    return results.with_name(f"{results.name.removesuffix('.jsonl')}.superseded.jsonl")


def write_part(path: Path, lines: Iterable[bytes], token: str) -> Path:
    """Write the future content of a file to a temporary file beside it, on disk; returns its path. See `take_place`.

    It gets the permissions of the file. A leftover of a crash with its name is replaced.

    Args:
        path: The file, without links.
        lines: The lines, with their line ends.
        token: Part of the temporary name.

    Raises:
        OutputError: it cannot be written.
    """
    part = part_of(path, token)
    with writing(path):
        part.unlink(missing_ok=True)
        write_beside(path, part, lines)
    return part


def part_of(path: Path, token: str) -> Path:
    """The temporary file that `write_part` writes."""
    return path.with_name(f"{path.name[:_PART_NAME_CHARS]}.{token}.redo.part")


def take_place(part: Path, path: Path) -> None:
    """Replace a file by what `write_part` has written, on disk; it stays if that was done before.

    Raises:
        OutputError: it cannot be replaced.
    """
    with writing(path):
        if part.exists():
            part.replace(path)
        sync_folder(path.parent)
