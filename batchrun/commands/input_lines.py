"""Checks whether the input lines of a run have changed since it read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

from batchrun.errors import InputError
from batchrun.files.streams import stdin_bytes
from batchrun.files.urls import place_in
from batchrun.prompts.identity import derived_id, is_written_so, known_by, line_digest, parts
from batchrun.prompts.line_rules import LineRules
from batchrun.prompts.lines import LineReader, RawLine
from batchrun.prompts.shapes import LineError
from batchrun.prompts.shard import Shard
from batchrun.prompts.sources import Source, SourceKind, iter_source
from batchrun.state.records import SourceRecord
from batchrun.state.snapshot import ScannedRow


class InputLines:
    """The input files, one open at a time. A missing file counts as one problem.

    Args:
        add: Called for each problem, with its kind and its place.
        rules: The rules by which the run reads its lines.
    """

    def __init__(self, add: Callable[[str, str], None], rules: LineRules) -> None:
        self._add = add
        self._rules = rules
        self._source: int | None = None
        self._reader: LineReader | None = None
        self.missing: set[int] = set()
        """The inputs that cannot be opened."""
        self._written: set[bytes] | None = None
        self._requests: dict[bytes, set[bytes]] | None = None
        self._moved = self._rewritten = self._carried = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def is_unchanged(self, source: SourceRecord, row: ScannedRow) -> bool:
        """Whether a row's line is unchanged; if not, the problem is counted."""
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
        found = self._requests_in(source).get(asked) if asked else None
        if found is None:
            self._add("changed", where(source, row))
            return False
        self._rewritten += carried in found
        self._carried += carried not in found
        return True

    def notes(self) -> list[str]:
        """Differences in the input lines that do not matter."""
        differences = [
            ("moved input lines", self._moved, "the next start finds them"),
            ("rewritten input lines", self._rewritten, "they make the same requests"),
            (
                "input lines in which only carried fields changed",
                self._carried,
                "the requests are the same; existing results keep the old fields",
            ),
        ]
        return [f"{what}: {count:,} ({comment})" for what, count, comment in differences if count]

    def count(self, sources: Iterable[SourceRecord]) -> dict[int, int]:
        """The number of non-blank lines of each input; inputs that cannot be read are left out."""
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
        """The numbers of the lines of an input of which rows are missing.

        Args:
            source: The input.
            rows: Digest of a line, see `known_by` -> the number of rows with it.
            size: The number of rows per line.
            shard: Only the lines of this shard have rows; None: all lines have.
        """
        names, counts = dict[bytes, bytes](), Counter[bytes]()
        for known, count in rows.items():
            written, asked, _ = parts(known)
            names[written] = asked or written
            counts[names[written]] += count
        for line in _lines(source):
            written, asked = line_digest(line.raw), b""
            if written not in names:
                asked = parts(_known_by(line.raw, self._rules) or b"")[1]
            name = names.get(written, asked)
            counts[name] -= size
            if counts[name] < 0 and (shard is None or _is_in_shard(shard, line.raw, self._rules)):
                yield line.number

    def _written_in(self, source: SourceRecord) -> set[bytes]:
        """The digests of all lines of a changed input, as they are written: 100 bytes per line, only in this case."""
        if self._written is None:
            try:
                self._written = {line_digest(line.raw) for line in _lines(source)}
            except InputError as error:
                self._add("file", error.message)
                self._written = set()
        return self._written

    def _requests_in(self, source: SourceRecord) -> dict[bytes, set[bytes]]:
        """The requests of all lines of a rewritten input, and the carried fields of their lines, as digests."""
        if self._requests is None:
            self._requests = {}
            with suppress(InputError):  # which has been reported
                for line in _lines(source):
                    if known := _known_by(line.raw, self._rules):
                        _, asked, carried = parts(known)
                        self._requests.setdefault(asked, set()).add(carried)
        return self._requests

    def _open(self, source: SourceRecord) -> None:
        self._close()
        self._source, self._written, self._requests = source.source, None, None
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


def _known_by(raw: bytes, rules: LineRules) -> bytes | None:
    """The digest by which a line is known; None if the line is invalid."""
    try:
        return known_by(rules.parse(raw), raw)[1]
    except LineError:
        return None


def _is_in_shard(shard: Shard, raw: bytes, rules: LineRules) -> bool:
    try:
        prompt = rules.parse(raw)
    except LineError:
        return True
    return shard.holds(prompt.id or derived_id(prompt))


def where(source: SourceRecord, row: ScannedRow) -> str:
    """The place of a row's line, for a message."""
    return f"{place_in(source.path, row.line)} ({row.id})"
