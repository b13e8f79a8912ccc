"""One pass over all lines of the inputs: validates each, and yields what its rows are made from.

The bytes are hashed during the pass, so that no input is read a second time for its digest.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from batchrun.config import RunOptions
from batchrun.display.summary import Observer
from batchrun.errors import UsageError
from batchrun.files.streams import stdin_bytes
from batchrun.prompts.fields import Fields
from batchrun.prompts.identity import known_by, line_digest, parts, request_key
from batchrun.prompts.line_rules import LineRules
from batchrun.prompts.lines import RawLine
from batchrun.prompts.requests import build_request
from batchrun.prompts.shapes import READING, LineError, Prompt, Shape
from batchrun.prompts.shard import LineSum, Shard
from batchrun.prompts.sources import STDIN, Source, SourceKind, iter_source, places
from batchrun.prompts.sweep import ENDPOINT, MAX_ROWS, REPEAT, Sweep
from batchrun.runs.known_lines import KnownLines
from batchrun.runs.manifest import FileDigest, FileHash, digest_file
from batchrun.state.records import SourceRecord
from batchrun.state.staging import PlainLine, StagedLine

_PROBLEMS_SHOWN = 10
_NUMBER = re.compile(r"\d[\d,]*")
_PROGRESS_EVERY_LINES = 200_000


class RequestKeys:
    """Computes keys by which equal requests are recognized.

    Args:
        options: The run's options.
        reading: The version of the rules by which the run reads its lines.
    """

    def __init__(self, options: RunOptions, reading: int = READING) -> None:
        self._options = options.request
        self._sweep = Sweep(options.sweep, reading)

    def __call__(self, prompt: Prompt, variant: int) -> bytes:
        """The key of a line's variant, 16 bytes: a digest of its request, its endpoint and its sample number."""
        values = self._sweep.variant(variant).values
        return request_key(build_request(prompt, self._options), values.get(ENDPOINT), values.get(REPEAT))


class Problems:
    """The invalid lines: their number, and the first line for each reason."""

    def __init__(self) -> None:
        self.count = 0
        self._first: dict[str, tuple[SourceRecord, int, str]] = {}
        self._counts = Counter[str]()

    def add(self, record: SourceRecord, number: int, reason: str) -> None:
        """Count an invalid line."""
        self.count += 1
        kind = _NUMBER.sub("N", reason)
        if kind in self._first or len(self._first) < _PROBLEMS_SHOWN:
            self._first.setdefault(kind, (record, number, reason))
            self._counts[kind] += 1

    def __str__(self) -> str:
        lines = []
        numbers: dict[SourceRecord, list[int]] = {}
        for record, number, _ in self._first.values():
            numbers.setdefault(record, []).append(number)
        where = {record: _places(record, found) for record, found in numbers.items()}
        for kind, (record, number, reason) in self._first.items():
            more = self._counts[kind] - 1
            lines.append(f"{where[record][number]}: {reason}" + (f" (and {more:,} more like this)" if more else ""))
        rest = self.count - self._counts.total()
        lines += [f"... and {rest:,} more"] if rest else []
        return "\n".join([*lines, f"{self.count:,} lines are invalid"] if self.count > 1 else lines)


class Validation:
    """Validates the lines of the inputs.

    Args:
        options: The run's options.
        records: The run's inputs, and the file that is read for each.
        reading: The version of the rules by which the run reads its lines.
        observer: Receives the progress of a long pass.
        is_new: Whether the run has no rows yet; only then its limit also limits what is read.
        known: The lines that the run has already, which are not parsed again; None: all lines are parsed.
    """

    def __init__(
        self,
        options: RunOptions,
        records: Sequence[SourceRecord],
        reading: int,
        observer: Observer,
        *,
        is_new: bool,
        known: KnownLines | None = None,
    ) -> None:
        self._options = options
        self._records = records
        self.rules = LineRules(options.request, reading)
        self._observer = observer
        self._sweep = Sweep(options.sweep, reading)
        self._shard = None if options.shard is None else Shard.parse(options.shard)
        # A shard reads the whole input, so that all shards together can be proven to be complete.
        self.limit = options.limit if is_new and not self._shard else None
        """How many rows are made before reading stops; None: all lines are read."""
        self._key_of = RequestKeys(options, reading) if options.dedupe else None
        self._hashes = {record.source: FileHash() for record in records if given_file(record) == Path(record.file)}
        self._known = known
        self.problems = Problems()
        self.shapes: set[Shape] = set()
        self.fields = Fields(options.request, self._sweep)
        self.whole_input: LineSum | None = LineSum() if self._shard else None
        """The sum of the digests of all lines, of which a shard runs a part; None: the run is not a shard."""

    def lines(self) -> Iterator[StagedLine | PlainLine]:
        """The rows to be staged, in order; invalid lines are counted in `problems`.

        Raises:
            InputError: an input cannot be read.
            UsageError: the sweep makes too many rows.
        """
        if self._sweep:
            self._refuse_too_many()
        if self._shard is None or self.whole_input is None:
            yield from self._staged_lines()
            return
        for fields in self._staged_lines():
            line = StagedLine(*fields)
            if line.variant == 0:
                self.whole_input.add(parts(line.digest)[0])
            if self._shard.holds(line.id):
                yield fields

    def digests(self) -> list[FileDigest]:
        """The digests of the inputs as they were read; for a pipe, that of its copy.

        Raises:
            OutputError: a file cannot be read.
        """
        return [
            self._hashes[record.source].finish(Path(record.file), record.path)
            if record.source in self._hashes
            else digest_file(given_file(record), record.path)
            for record in self._records
        ]

    def _staged_lines(self) -> Iterator[StagedLine | PlainLine]:
        shape, count, rows, size = None, 0, 0, self._sweep.size
        is_plain = not self._sweep and self._key_of is None
        find = None if self._known is None else self._known.find
        for record in self._records:
            parse = self._parser(record)
            if self._known is not None:
                self._known.begin(record.source)
            for line in self._lines_of(record):
                if self.limit is not None and rows >= self.limit:
                    return
                rows += size
                count += 1
                if count % _PROGRESS_EVERY_LINES == 0:
                    self._observer.message(f"reading: {count:,} lines so far")
                number, offset, raw = line
                at = (record.source, number, offset, len(raw))
                if find is not None and (found := find(line_digest(raw))) is not None:
                    line_id, is_derived, known, row = found
                    yield from self._variants(None, (line_id, is_derived, *at, known, row))
                    continue
                try:
                    prompt = parse(raw)
                except LineError as error:
                    self.problems.add(record, number, error.message)
                    if self._options.skip_invalid:
                        rows -= size - 1
                        yield _invalid(record, line, error.message)
                    continue
                if prompt.shape is not shape:
                    shape = prompt.shape
                    self.shapes.add(shape)
                self.fields.add(prompt, record.path, number)
                line_id, known = known_by(prompt, raw)
                staged = (line_id, prompt.id is None, *at, known, None)
                if is_plain:
                    yield staged
                else:
                    yield from self._variants(prompt, staged)

    def _parser(self, record: SourceRecord) -> Callable[[bytes], Prompt]:
        """Parses a line of an input, and checks what it needs besides."""
        parse, media, sweep = self.rules.parse, self.rules.media(record.origin), self._sweep
        if media is None and not sweep:
            return parse

        def parse_and_check(raw: bytes) -> Prompt:
            prompt = parse(raw)
            if sweep:
                sweep.apply(prompt, 0)
            if media is not None:
                media.check(prompt.request)
            return prompt

        return parse_and_check

    def _variants(self, prompt: Prompt | None, plain: PlainLine) -> Iterator[StagedLine | PlainLine]:
        """The rows of a line; `prompt` is None if the line is known, and then no keys are asked for."""
        key_of = self._key_of
        if not self._sweep:
            yield plain if key_of is None or prompt is None else StagedLine(*plain, key=key_of(prompt, 0))
            return
        for number in range(self._sweep.size):
            key = None
            if key_of is not None and prompt is not None:
                key = key_of(self._sweep.apply(prompt, number), number)
            yield StagedLine(*plain, variant=number, suffix=self._sweep.variant(number).suffix, key=key)

    def _lines_of(self, record: SourceRecord, *, hashed: bool = True) -> Iterator[RawLine]:
        file_hash = self._hashes.get(record.source) if hashed else None
        seen = None if file_hash is None else file_hash.update
        return iter_source(Source(record.file, SourceKind.FILE), stdin_bytes(), record.path, seen=seen)

    def _refuse_too_many(self) -> None:
        """Refuse a sweep that makes too many rows, by counting the lines: staging ten million rows takes a minute."""
        limit, size = self._options.limit, self._sweep.size
        most = MAX_ROWS // size * (self._shard.count if self._shard else 1)
        read = chain.from_iterable(self._lines_of(record, hashed=False) for record in self._records)
        lines = sum(1 for _ in islice(read, most + 1))
        if lines > most and (limit is None or limit > MAX_ROWS):
            raise UsageError(
                f"the sweep makes {size:,} rows per line, and more than {MAX_ROWS:,} in total",
                "sweep over fewer values, or run fewer lines with --limit",
            )


def given_file(record: SourceRecord) -> Path:
    """The file whose digest the user can compare: the input itself, or its copy if the input cannot be read again."""
    return Path(record.file if record.origin == STDIN or not Path(record.origin).is_file() else record.origin)


def _places(record: SourceRecord, numbers: list[int]) -> dict[int, str]:
    return places(record.path, None if record.file == record.origin else record.origin, numbers)


def _invalid(record: SourceRecord, line: RawLine, problem: str) -> StagedLine:
    """An invalid line, with an id made from its bytes, because its own id may be the problem."""
    known = line_digest(line.raw)
    at = (record.source, line.number, line.offset, len(line.raw))
    return StagedLine(f"invalid-{known.hex()[:16]}", True, *at, known, key=b"%d:%d" % at[:2], problem=problem)
