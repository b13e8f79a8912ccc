"""From input files to the rows of a run: copies, validates every line, and hands them to the state file.

Nothing is sent before every line of every input has been read and found valid. A resumed run whose inputs carry
the same size, time and inode as before skips that; each line is checked again by its digest before it is sent.

Until the rows are committed nothing that was there has changed: a start that is refused leaves all as it was.
"""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from batchrun.config import FormatChoice, RunOptions
from batchrun.display.summary import Observer, warn
from batchrun.errors import BatchrunError, InputError, UsageError
from batchrun.files.streams import stdin_bytes
from batchrun.prompts.fields import Fields
from batchrun.prompts.identity import derived_id, known_by, line_digest, parts, request_key
from batchrun.prompts.lines import RawLine
from batchrun.prompts.shapes import READING, LineError, Prompt, Shape, build_request, parse_line
from batchrun.prompts.shard import LineSum, Shard
from batchrun.prompts.sources import STDIN, Source, SourceKind, find_sources, iter_source
from batchrun.prompts.sweep import ENDPOINT, MAX_ROWS, REPEAT, Sweep
from batchrun.results.writer import cut_torn_line
from batchrun.runs.copies import is_piped, link_stdin, make_copy, remove_copies
from batchrun.runs.manifest import digest_file
from batchrun.state.records import OutputRecord, SourceRecord
from batchrun.state.staging import MergedRows, StagedLine, merge, stage
from batchrun.state.store import Store
from batchrun.state.stored_options import find_options

_PROBLEMS_SHOWN = 10
_NUMBER = re.compile(r"\d[\d,]*")
_PROGRESS_EVERY_LINES = 200_000


def take_in(
    options: RunOptions, sources: Sequence[Source], store: Store, observer: Observer, *, resumed: bool = False
) -> MergedRows | None:
    """Make the lines of the inputs the run's rows; None when the inputs are as they were.

    Args:
        options: The run's options.
        sources: Its inputs, as found.
        store: Its state file; the results files are registered in it too.
        observer: Told about a long validation, and about an input that is taken from its copy.
        resumed: Take what can be read only once from its copy: a resumed run has no stdin to read.

    Raises:
        InputError: an input or a line of it is wrong; the message lists the first of the wrong lines.
        StateError: a line that was submitted has changed or is gone.
        OutputError: the copy of an input cannot be written.
    """
    before = store.sources()
    made: list[Path] = []
    if not before:
        store.set_setting("reading", READING)
    try:
        outputs = _number_outputs(store, output_paths(options, sources))
        known = {record.origin: record for record in before}
        records = [
            _prepare(
                SourceRecord(number, source.path, source.origin, source.origin, "", output.output),
                source,
                known.get(source.origin) or known.get(source.path),
                state=options.state,
                observer=observer,
                made=made,
                resumed=resumed,
            )
            for number, (source, output) in enumerate(zip(sources, outputs, strict=True))
        ]
        mark = {"stamps": [[record.origin, record.stamp] for record in records], "limit": options.limit}
        merged = None
        if store.get_setting("intake") != {**mark, "rows": store.count_rows()}:
            merged = _merge(options, records, outputs, store, observer, is_new=not before)
            store.set_setting("intake", {**mark, "rows": merged.rows})
            if merged.carried:
                observer.message(
                    f"lines of which only carried fields have changed, such as metadata: {merged.carried:,}; results"
                    " that are there keep the old ones"
                )
    except BaseException:
        _remove(made)
        raise
    read = {record.file for record in records}
    _remove([copy for copy in made if str(copy) not in read])
    remove_copies(before, records, options.state)
    for record in records:
        if record.origin == STDIN:
            link_stdin(Path(record.file), options.state)
    return merged


def _merge(
    options: RunOptions,
    records: Sequence[SourceRecord],
    outputs: Sequence[OutputRecord],
    store: Store,
    observer: Observer,
    *,
    is_new: bool,
) -> MergedRows:
    problems = _Problems()
    sweep = Sweep(options.sweep, store.reading)
    shard = None if options.shard is None else Shard.parse(options.shard)
    # A shard knows the whole input, so that all of them together can be proven to be whole.
    limit = options.limit if is_new and not shard else None
    whole_input = LineSum()
    if sweep:
        _refuse_too_many(records, sweep, shard.count if shard else 1, options.limit)
    key_of = RequestKeys(options, store.reading) if options.dedupe else None
    shapes: set[Shape] = set()
    fields = Fields(options.request, sweep)
    lines = _staged_lines(
        records,
        problems,
        shapes,
        fields,
        observer,
        sweep=sweep,
        key_of=key_of,
        limit=limit,
        skip_invalid=options.skip_invalid,
        reading=store.reading,
    )
    stage(store, lines if shard is None else _fallen_to(shard, lines, whole_input))
    if problems.count and not options.skip_invalid:
        look = "batchrun check " + shlex.join(options.inputs)
        raise InputError(str(problems), f"fix the lines ({look} names all of them), or run the others: --skip-invalid")
    fields.tell_all(partial(warn, observer), strict=options.strict)
    merged = merge(
        store,
        records,
        whole=limit is None,
        limit=options.limit,
        dedupe=options.dedupe,
        skip_invalid=options.skip_invalid,
        outputs=outputs,
    )
    if problems.count:
        observer.message(f"{problems}\nthese lines are skipped, and go to the error file")
    if merged.twice:
        observer.message(
            f"lines whose id another line has: {merged.twice:,}; they are skipped, and go to the error file"
        )
    if shard:
        store.set_setting("whole_input", whole_input.to_json())
    store.set_setting("inputs", [tuple(digest_file(_given(record), record.path)) for record in records])
    if find_options(store) is None:
        store.set_setting("format", "openai" if shapes == {Shape.OPENAI} else "batchrun")
    return merged


def _remove(copies: Sequence[Path]) -> None:
    for copy in copies:
        with suppress(OSError):
            copy.unlink()


def result_format(store: Store, options: RunOptions) -> FormatChoice:
    """The format of a run's results: as was decided when it began, else as it is asked for, else by its lines."""
    stored = find_options(store)
    if stored is not None:
        return stored.format
    if options.format != "auto":
        return options.format
    return "openai" if store.get_setting("format") == "openai" else "batchrun"


def requests_path(state: Path) -> Path:
    """Where the requests that a program gives a run are kept: an input that grows."""
    return state.with_name(f"{state.name}.requests.jsonl")


def note_growth(store: Store) -> None:
    """Note what the only input of a run looks like now that it has grown, and all of its lines are rows.

    Raises:
        InputError: it is gone.
        OutputError: it cannot be read, or the state cannot be written.
    """
    (record,) = store.sources()
    stamp = _stamp(Path(record.file))
    with store.transaction() as db:
        db.execute("UPDATE sources SET stamp = ? WHERE source = ?", (stamp, record.source))
    store.set_setting("inputs", [tuple(digest_file(_given(record), record.path))])
    store.set_setting("intake", {"stamps": [[record.origin, stamp]], "limit": None, "rows": store.count_rows()})


def output_paths(options: RunOptions, sources: Sequence[Source]) -> list[Path]:
    """The results file for each input.

    Raises:
        UsageError: two inputs would write into the same file of the output folder.
    """
    if not options.output_is_folder:
        return [options.output] * len(sources)
    paths = [options.output / results_name(source.name) for source in sources]
    for index, path in enumerate(paths):
        if path in paths[:index]:
            first, second = sources[paths.index(path)].path, sources[index].path
            raise UsageError(
                f"{first} and {second} would both write {path}", "give their results one file: -o results.jsonl"
            )
    return paths


def results_name(input_name: str, part: str = "") -> str:
    """`haikus.jsonl` and `haikus.jsonl.gz` have their results in `haikus.results.jsonl`, those of a part beside it."""
    return input_name.removesuffix(".gz").removesuffix(".jsonl") + f"{part}.results.jsonl"


def _number_outputs(store: Store, paths: Sequence[Path]) -> list[OutputRecord]:
    """The output of each of the paths: one that the run has, or a new one that `merge` will add."""
    known = {record.path: record for record in store.outputs()}
    for path in paths:
        name = os.path.relpath(path, store.path.parent)
        known.setdefault(name, OutputRecord(len(known) + 1, name, 0))
    return [known[os.path.relpath(path, store.path.parent)] for path in paths]


def _prepare(
    record: SourceRecord,
    source: Source,
    known: SourceRecord | None,
    *,
    state: Path,
    observer: Observer,
    made: list[Path],
    resumed: bool,
) -> SourceRecord:
    """Where a source is to be read: in its copy, if it can be read only once."""
    record = record._replace(path=known.path if known else source.path)
    if record.origin == str(requests_path(state).absolute()):
        cut_torn_line(Path(record.origin))
    if source.kind is SourceKind.FILE:
        return record._replace(stamp=_stamp(Path(record.origin)))
    copied = known if known and Path(known.file).exists() else None
    if source.kind is SourceKind.GZIP:
        stamp = _stamp(Path(record.origin))
        if copied and copied.stamp == stamp:
            return record._replace(file=copied.file, stamp=stamp)
        copy = make_copy(source, record.source, state, stdin_bytes(), made)
        return record._replace(file=str(copy), stamp=stamp)
    if resumed and copied is None:
        raise InputError(
            f"{known.file if known else source.path}: the copy of this input is gone",
            "pipe the same input into the first command again",
        )
    if not resumed and (copied is None or is_piped(source, stdin_bytes())):
        copy = make_copy(source, record.source, state, stdin_bytes(), made)
        if copied is None or copy.stat().st_size:
            return record._replace(file=str(copy), stamp=copy.name)
    assert copied is not None  # noqa: S101 - else it was read above
    if not resumed:
        observer.message(f"{source.path}: nothing is piped in, so its copy is read: {copied.file}")
    return record._replace(file=copied.file, stamp=copied.stamp)


def _given(record: SourceRecord) -> Path:
    """The file whose digest the user can compare: the input itself, or the copy of what can be read only once."""
    return Path(record.file if record.origin == STDIN or not Path(record.origin).is_file() else record.origin)


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"{path}: {os.strerror(error.errno or 0)}", "check the path and its permissions") from error
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"


def preview(options: RunOptions, stdin: BinaryIO, observer: Observer, fields: Fields) -> Iterator[Prompt]:
    """The prompts of the inputs in order, each as all of its variants, up to the limit; nothing is kept.

    Args:
        options: The run's options.
        stdin: What `-` is read from.
        observer: Told what a person should know.
        fields: Collects what becomes of the lines' fields.

    Raises:
        InputError: an input or a line of it is wrong.
    """
    shard = None if options.shard is None else Shard.parse(options.shard)
    sources = find_sources(options.inputs, tell=observer.message)
    reading = READING
    if options.state.is_file():
        with suppress(BatchrunError), Store(options.state, read_only=True) as store:
            reading = store.reading if store.sources() else READING
    tell = observer.message if options.skip_invalid else None
    sweep = Sweep(options.sweep, reading)
    rows = _previewed(sources, sweep, shard, stdin, tell, fields=fields, reading=reading)
    return (row for row in islice(rows, options.limit) if row is not None)


def _previewed(
    sources: Sequence[Source],
    sweep: Sweep,
    shard: Shard | None,
    stdin: BinaryIO,
    tell: Callable[[str], None] | None,
    *,
    fields: Fields,
    reading: int,
) -> Iterator[Prompt | None]:
    """The rows; None for a line that is skipped, which is one as well."""
    for source in sources:
        for line in iter_source(source, stdin):
            try:
                prompt = parse_line(line.raw, reading)
                if shard is not None and not shard.holds(prompt.id or derived_id(prompt)):
                    continue
                fields.add(prompt, source.path, line.number)
                yield from (sweep.apply(prompt, number) for number in range(sweep.size))
            except LineError as error:
                told = f"{source.path}:{line.number}: {error.message}"
                if tell is None:
                    raise InputError(told, error.hint) from error
                tell(f"{told}; the line is skipped")
                yield None


def _fallen_to(shard: Shard, lines: Iterator[StagedLine], whole_input: LineSum) -> Iterator[StagedLine]:
    for line in lines:
        if line.variant == 0:
            whole_input.add(parts(line.digest)[0])
        if shard.holds(line.id):
            yield line


class RequestKeys:
    """By which rows are known to ask for the same.

    Args:
        options: The run's options.
        reading: By which rules its lines become requests.
    """

    def __init__(self, options: RunOptions, reading: int = READING) -> None:
        self._options = options.request
        self._sweep = Sweep(options.sweep, reading)

    def __call__(self, prompt: Prompt, variant: int) -> bytes:
        """16 bytes for a line as one of its variants: of its request, and of the endpoint and sample that it is for."""
        values = self._sweep.variant(variant).values
        return request_key(build_request(prompt, self._options), values.get(ENDPOINT), values.get(REPEAT))


class _Problems:
    """The wrong lines: how many, and for each reason the first."""

    def __init__(self) -> None:
        self.count = 0
        self._first: dict[str, str] = {}
        self._counts = Counter[str]()

    def add(self, where: str, reason: str) -> None:
        self.count += 1
        kind = _NUMBER.sub("N", reason)
        if kind in self._first or len(self._first) < _PROBLEMS_SHOWN:
            self._first.setdefault(kind, f"{where}: {reason}")
            self._counts[kind] += 1

    def __str__(self) -> str:
        told = []
        for kind, first in self._first.items():
            more = self._counts[kind] - 1
            told.append(first + (f" (and {more:,} more like this)" if more else ""))
        rest = self.count - self._counts.total()
        told += [f"... and {rest:,} more"] if rest else []
        return "\n".join([*told, f"{self.count:,} lines are wrong"] if self.count > 1 else told)


def _plain_lines(sources: Sequence[SourceRecord]) -> Iterator[tuple[SourceRecord, RawLine]]:
    for source in sources:
        for line in iter_source(Source(source.file, SourceKind.FILE), stdin_bytes(), source.path):
            yield source, line


def _refuse_too_many(sources: Sequence[SourceRecord], sweep: Sweep, shards: int, limit: int | None) -> None:
    """Count the lines before they are made several rows each: ten million rows take a minute to stage."""
    most = MAX_ROWS // sweep.size * shards
    lines = sum(1 for _ in islice(_plain_lines(sources), most + 1))
    if lines > most and (limit is None or limit > MAX_ROWS):
        raise UsageError(
            f"the sweep makes {sweep.size:,} rows of each line, which is more than {MAX_ROWS:,} in all",
            "sweep over fewer values, or take part of the lines: --limit",
        )


def _staged_lines(
    sources: Sequence[SourceRecord],
    problems: _Problems,
    shapes: set[Shape],
    fields: Fields,
    observer: Observer,
    *,
    sweep: Sweep,
    key_of: RequestKeys | None,
    limit: int | None,
    skip_invalid: bool,
    reading: int,
) -> Iterator[StagedLine]:
    shape, rows = None, 0
    for count, (source, line) in enumerate(_plain_lines(sources), 1):
        if limit is not None and rows >= limit:
            return
        rows += sweep.size
        if count % _PROGRESS_EVERY_LINES == 0:
            observer.message(f"reading: {count:,} lines so far")
        try:
            prompt = parse_line(line.raw, reading)
            if sweep:
                sweep.apply(prompt, 0)
        except LineError as error:
            problems.add(f"{source.path}:{line.number}", error.message)
            if skip_invalid:
                rows -= sweep.size - 1
                yield _invalid(source, line, error.message)
            continue
        if prompt.shape is not shape:
            shape = prompt.shape
            shapes.add(shape)
        fields.add(prompt, source.path, line.number)
        line_id, known = known_by(prompt, line.raw)
        staged = StagedLine(line_id, prompt.id is None, source.source, line.number, line.offset, len(line.raw), known)
        if not sweep:
            yield staged if key_of is None else staged._replace(key=key_of(prompt, 0))
            continue
        for number in range(sweep.size):
            key = None if key_of is None else key_of(sweep.apply(prompt, number), number)
            yield staged._replace(variant=number, suffix=sweep.variant(number).suffix, key=key)


def _invalid(source: SourceRecord, line: RawLine, problem: str) -> StagedLine:
    """A line that cannot be run, under an id that comes from its bytes: its own may be what is wrong."""
    known = line_digest(line.raw)
    at = (source.source, line.number, line.offset, len(line.raw))
    return StagedLine(f"invalid-{known.hex()[:16]}", True, *at, known, key=b"%d:%d" % at[:2], problem=problem)
