"""Whether the input lines of a run are what they were when they were taken in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

from batchrun.errors import InputError
from batchrun.files.streams import stdin_bytes
from batchrun.prompts.identity import derived_id, is_written_so, known_by, line_digest, parts
from batchrun.prompts.lines import LineReader, RawLine
from batchrun.prompts.shapes import LineError, parse_line
from batchrun.prompts.shard import Shard
from batchrun.prompts.sources import Source, SourceKind, iter_source
from batchrun.state.records import SourceRecord
from batchrun.state.snapshot import ScannedRow


class InputLines:
    """The input files, one open at a time; a missing one is one problem.

    Args:
        add: Told of each problem: its kind, and where it is.
        reading: By which rules the lines became requests.
    """

    def __init__(self, add: Callable[[str, str], None], reading: int) -> None:
        self._add = add
        self._reading = reading
        self._source: int | None = None
        self._reader: LineReader | None = None
        self.missing: set[int] = set()
        """The inputs that cannot be opened."""
        self._written: set[bytes] | None = None
        self._asked: dict[bytes, set[bytes]] | None = None
        self._moved = self._rewritten = self._carried = 0

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
        if is_written_so(raw, row.digest):
            return True
        written, asked, carried = parts(row.digest)
        if written in self._written_in(source):
            self._moved += 1
            return True
        found = self._asked_in(source).get(asked) if asked else None
        if found is None:
            self._add("changed", where(source, row))
            return False
        self._rewritten += carried in found
        self._carried += carried not in found
        return True

    def notes(self) -> list[str]:
        """What is worth knowing of lines that are what they were, and not as they were."""
        told = [
            ("input lines that stand elsewhere now", self._moved, "the next start finds them"),
            ("input lines that are written otherwise now", self._rewritten, "they ask for the same"),
            (
                "input lines of which only the carried fields have changed",
                self._carried,
                "they ask for the same, and results that are there keep the old fields",
            ),
        ]
        return [f"{what}: {count:,}; {so}" for what, count, so in told if count]

    def count(self, sources: Iterable[SourceRecord]) -> dict[int, int]:
        """How many lines each of the inputs has that are not blank; those that cannot be read are left out."""
        found = {}
        for source in sources:
            if source.source not in self.missing:
                try:
                    found[source.source] = sum(1 for _ in _lines(source))
                except InputError as error:
                    self._add("file", error.message)
        return found

    def without_row(
        self, source: SourceRecord, rows: dict[bytes, int], size: int, shard: Shard | None
    ) -> Iterator[int]:
        """The numbers of the lines of an input that have not all of their rows.

        Args:
            source: The input.
            rows: By what a line is known -> how many rows were made of such lines.
            size: The rows of each line.
            shard: Only the lines that fall to it have any; None: all do.
        """
        names, counts = dict[bytes, bytes](), Counter[bytes]()
        for known, count in rows.items():
            written, asked, _ = parts(known)
            names[written] = asked or written
            counts[names[written]] += count
        for line in _lines(source):
            written, asked = line_digest(line.raw), b""
            if written not in names:
                asked = parts(_known_by(line.raw, self._reading) or b"")[1]
            name = names.get(written, asked)
            counts[name] -= size
            if counts[name] < 0 and (shard is None or _falls_to(shard, line.raw, self._reading)):
                yield line.number

    def _written_in(self, source: SourceRecord) -> set[bytes]:
        """How the lines of an input are written that is not what it was: 100 bytes a line, for this one case."""
        if self._written is None:
            try:
                self._written = {line_digest(line.raw) for line in _lines(source)}
            except InputError as error:
                self._add("file", error.message)
                self._written = set()
        return self._written

    def _asked_in(self, source: SourceRecord) -> dict[bytes, set[bytes]]:
        """What the lines of an input that was written anew ask for, and what those that ask for it carry."""
        if self._asked is None:
            self._asked = {}
            with suppress(InputError):  # which has been told
                for line in _lines(source):
                    if known := _known_by(line.raw, self._reading):
                        _, asked, carried = parts(known)
                        self._asked.setdefault(asked, set()).add(carried)
        return self._asked

    def _open(self, source: SourceRecord) -> None:
        self._close()
        self._source, self._written, self._asked = source.source, None, None
        if source.source in self.missing:
            return
        try:
            self._reader = LineReader({source.source: Path(source.file)})
        except InputError as error:
            self.missing.add(source.source)
            self._add("file", error.message)

    def _close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None


def _lines(source: SourceRecord) -> Iterator[RawLine]:
    return iter_source(Source(source.file, SourceKind.FILE), stdin_bytes())


def _known_by(raw: bytes, reading: int) -> bytes | None:
    """By what a line is known; None where it is not valid."""
    try:
        return known_by(parse_line(raw, reading), raw)[1]
    except LineError:
        return None


def _falls_to(shard: Shard, raw: bytes, reading: int) -> bool:
    try:
        prompt = parse_line(raw, reading)
    except LineError:
        return True
    return shard.holds(prompt.id or derived_id(prompt))


def where(source: SourceRecord, row: ScannedRow) -> str:
    """A row's line, as people look for it."""
    return f"{source.path}:{row.line} ({row.id})"
