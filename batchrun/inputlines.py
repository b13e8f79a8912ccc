"""Whether the input lines of a run are what they were when they were taken in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

from batchrun.errors import InputError
from batchrun.prompts.identity import derived_id, line_digest
from batchrun.prompts.lines import LineReader
from batchrun.prompts.shapes import LineError, parse_line
from batchrun.prompts.sources import Source, SourceKind, iter_source
from batchrun.streams import stdin_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from batchrun.prompts.lines import RawLine
    from batchrun.prompts.shard import Shard
    from batchrun.state.records import SourceRecord
    from batchrun.state.snapshot import ScannedRow


class InputLines:
    """The input files, one open at a time; a missing one is one problem.

    Args:
        add: Told of each problem: its kind, and where it is.
    """

    def __init__(self, add: Callable[[str, str], None]) -> None:
        self._add = add
        self._source: int | None = None
        self._reader: LineReader | None = None
        self._missing: set[int] = set()
        self._digests: set[bytes] | None = None
        self.moved = 0
        """Lines that stand elsewhere in their file than they did."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def is_unchanged(self, source: SourceRecord, row: ScannedRow) -> bool:
        """Whether a row's line is what it was; otherwise the problem is noted."""
        if row.source != self._source:
            self._open(source)
        if self._reader is None:
            return False
        try:
            raw = self._reader.read(row.source, row.offset, row.length)
        except InputError as error:
            self._add("changed", f"{where(source, row)}: {error.message}")
            return False
        if line_digest(raw) == row.digest:
            return True
        if row.digest in self._lines_of(source):
            self.moved += 1
            return True
        self._add("changed", where(source, row))
        return False

    def count(self, sources: Iterable[SourceRecord]) -> dict[int, int]:
        """How many lines each of the inputs has that are not blank; those that cannot be read are left out."""
        found = {}
        for source in sources:
            if source.source not in self._missing:
                try:
                    found[source.source] = sum(1 for _ in _lines(source))
                except InputError as error:
                    self._add("file", error.message)
        return found

    def without_row(
        self, source: SourceRecord, rows: dict[bytes, int], size: int, shard: Shard | None, reading: int
    ) -> Iterator[int]:
        """The numbers of the lines of an input that have not all of their rows.

        Args:
            source: The input.
            rows: Digest of a line -> how many rows were made of such lines; used up.
            size: The rows of each line.
            shard: Only the lines that fall to it have any; None: all do.
            reading: By which rules they became requests.
        """
        for line in _lines(source):
            digest = line_digest(line.raw)
            left = rows[digest] = rows.get(digest, 0) - size
            if left < 0 and (shard is None or _falls_to(shard, line.raw, reading)):
                yield line.number

    def _lines_of(self, source: SourceRecord) -> set[bytes]:
        """The digests of all lines of an input that is not what it was: 100 bytes a line, for this one case."""
        if self._digests is None:
            try:
                self._digests = {line_digest(line.raw) for line in _lines(source)}
            except InputError as error:
                self._add("file", error.message)
                self._digests = set()
        return self._digests

    def _open(self, source: SourceRecord) -> None:
        self._close()
        self._source, self._digests = source.source, None
        if source.source in self._missing:
            return
        try:
            self._reader = LineReader({source.source: Path(source.file)})
        except InputError as error:
            self._missing.add(source.source)
            self._add("file", error.message)

    def _close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None


def _lines(source: SourceRecord) -> Iterator[RawLine]:
    return iter_source(Source(source.file, SourceKind.FILE), stdin_bytes())


def _falls_to(shard: Shard, raw: bytes, reading: int) -> bool:
    try:
        prompt = parse_line(raw, reading)
    except LineError:
        return True
    return shard.holds(prompt.id or derived_id(prompt))


def where(source: SourceRecord, row: ScannedRow) -> str:
    """A row's line, as people look for it."""
    return f"{source.path}:{row.line} ({row.id})"
