"""Turns input files into the rows of a run: makes copies, validates every line, and adds the rows to the state file.

Nothing is sent before every line of every input has been read and validated. This is skipped if the inputs of a resumed
run have the same size, time and inode as before; each line is checked again by its digest before it is sent. If an
input has changed, all of its bytes are read, and its new lines are validated.

Until the rows are committed, no existing file has changed: a start that is refused leaves everything as it was.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from batchrun.config import FormatChoice, RunOptions
from batchrun.display.summary import Observer, warn
from batchrun.errors import BatchrunError, InputError
from batchrun.files.streams import stdin_bytes
from batchrun.files.urls import public_name
from batchrun.prompts.shapes import READING, Shape
from batchrun.prompts.sources import STDIN, Source, SourceKind, present_stamp
from batchrun.prompts.sweep import Sweep
from batchrun.results.writer import cut_torn_line
from batchrun.runs.known_lines import KnownLines
from batchrun.runs.locations import output_paths, requests_path
from batchrun.runs.manifest import digest_file
from batchrun.runs.spool import is_piped, link_stdin, make_copy, remove_copies
from batchrun.runs.validation import Validation, given_file
from batchrun.state.records import OutputRecord, SourceRecord
from batchrun.state.staging import MergedRows, merge, stage
from batchrun.state.store import Store
from batchrun.state.stored_options import find_options


def take_in(
    options: RunOptions,
    sources: Sequence[Source],
    store: Store,
    observer: Observer,
    *,
    resumed: bool = False,
    are_requests: bool = False,
    made: list[Path] | None = None,
) -> MergedRows | None:
    """Make the lines of the inputs rows of the run; None if the inputs are unchanged.

    Args:
        options: The run's options.
        sources: The run's inputs, as found.
        store: The run's state; the results files are registered in it, too.
        observer: Receives messages during a long validation, and about an input that is read from its copy.
        resumed: Whether to read inputs that can be read only once from their copies: a resumed run has no stdin.
        are_requests: Whether the input is that of a program, which adds lines to it later.
        made: New files are added to this list, so that they can be removed if the start fails later.

    Raises:
        InputError: an input cannot be read, has no lines, or has invalid ones; the message lists the first of them.
        StateError: a line that was submitted has changed or is missing.
        OutputError: the copy of an input cannot be written.
    """
    before = store.sources()
    made = [] if made is None else made
    if not before:
        store.set_setting("reading", READING)
    with _removed_on_failure(made, store):
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
            merged = _merge(options, records, outputs, store, observer, before=before, are_requests=are_requests)
            store.set_setting("intake", {**mark, "rows": merged.rows})
    remove_files([copy for copy in made if str(copy) not in {record.file for record in records}])
    remove_copies(before, records, options.state)
    for record in records:
        if record.origin == STDIN:
            link_stdin(Path(record.file), options.state, made)
    return merged


@contextmanager
def _removed_on_failure(made: Sequence[Path], store: Store) -> Iterator[None]:
    """Remove new copies if the block fails, but not those that the state names: it may fail after the commit."""
    try:
        yield
    except BaseException:
        with suppress(BatchrunError):
            named = {Path(record.file).name for record in store.sources()}
            remove_files([copy for copy in made if copy.name not in named])
        raise


def _tell(merged: MergedRows, options: RunOptions, observer: Observer) -> None:
    if options.limit is not None and options.limit < merged.rows:
        observer.message(f"--limit {options.limit:,} removes no rows from a run that has begun: {merged.rows:,}")
    if merged.carried:
        observer.message(
            f"lines in which only carried fields changed, such as metadata: {merged.carried:,}; existing"
            " results keep the old ones"
        )


def _merge(
    options: RunOptions,
    records: Sequence[SourceRecord],
    outputs: Sequence[OutputRecord],
    store: Store,
    observer: Observer,
    *,
    before: Sequence[SourceRecord],
    are_requests: bool,
) -> MergedRows:
    with ExitStack() as stack:
        known = _known_lines(options, records, before, store)
        if known is not None:
            stack.callback(known.close)
        validation = Validation(options, records, store.reading, observer, is_new=not before, known=known)
        stage(store, validation.lines())
    problems = validation.problems
    is_any_known = known is not None and known.found > 0
    if problems.count and not options.skip_invalid:
        look = "batchrun check " + shlex.join(map(public_name, options.inputs))
        if (request := options.request).template or request.id_column or request.inline_files:
            look += " with the same options"
        wrong = "the template or the lines" if request.template else "the lines"
        rest = ", or run only the valid ones: --skip-invalid" if validation.shapes or is_any_known else ""
        raise InputError(str(problems), f"fix {wrong} ({look} lists all of them){rest}")
    if not is_any_known:
        validation.rules.finish()
    validation.fields.tell_all(partial(warn, observer), strict=options.strict)
    merged = merge(
        store,
        records,
        whole=validation.limit is None,
        limit=options.limit,
        dedupe=options.dedupe,
        skip_invalid=options.skip_invalid,
        may_be_empty=are_requests or options.shard is not None,
        outputs=outputs,
    )
    if problems.count:
        observer.message(f"{problems}\nthese lines are skipped and written to the error file")
    if merged.twice:
        observer.message(
            f"lines with the id of an earlier line: {merged.twice:,}; skipped and written to the error file"
        )
    if validation.whole_input is not None:
        store.set_setting("whole_input", validation.whole_input.to_json())
    store.set_setting("inputs", [tuple(digest) for digest in validation.digests()])
    if find_options(store) is None:
        store.set_setting("format", "openai" if validation.shapes == {Shape.OPENAI} else "batchrun")
    _tell(merged, options, observer)
    return merged


def _known_lines(
    options: RunOptions, records: Sequence[SourceRecord], before: Sequence[SourceRecord], store: Store
) -> KnownLines | None:
    """The lines that need not be parsed again; None if all must be.

    Equal requests and named files must be compared, and `--strict` is about all lines. While a run has not begun, the
    form of its results depends on its lines.
    """
    if options.dedupe or options.request.inline_files is not None or options.strict or find_options(store) is None:
        return None
    numbers = {record.path: record.source for record in before}
    numbers |= {record.origin: record.source for record in before}
    found = {record.source: numbers.get(record.origin, numbers.get(record.path)) for record in records}
    return KnownLines(store, found, Sweep(options.sweep, store.reading).variant(0).suffix)


def remove_files(copies: Sequence[Path]) -> None:
    """Remove files, as far as that is possible."""
    for copy in copies:
        with suppress(OSError):
            copy.unlink()


def result_format(store: Store, options: RunOptions) -> FormatChoice:
    """The format of a run's results: the one that it started with, else that of the options, else that of its lines."""
    stored = find_options(store)
    if stored is not None:
        return stored.format
    if options.format != "auto":
        return options.format
    return "openai" if store.get_setting("format") == "openai" else "batchrun"


def note_growth(store: Store) -> None:
    """Record the stamp and digest of a run's only input after it has grown and all of its lines are rows.

    Raises:
        InputError: the input is missing.
        OutputError: it cannot be read, or the state cannot be written.
    """
    (record,) = store.sources()
    stamp = _stamp(Path(record.file))
    store.note_stamp(record._replace(stamp=stamp))
    store.set_setting("inputs", [tuple(digest_file(given_file(record), record.path))])
    store.set_setting("intake", {"stamps": [[record.origin, stamp]], "limit": None, "rows": store.count_rows()})


def _number_outputs(store: Store, paths: Sequence[Path]) -> list[OutputRecord]:
    """The output record for each path: an existing one, or a new one, which `merge` will add."""
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
    """The record of a source, with the file to read: its copy, if it can be read only once."""
    record = record._replace(path=known.path if known else source.path)
    if record.origin == str(requests_path(state).absolute()):
        cut_torn_line(Path(record.origin))
    if source.kind is SourceKind.FILE:
        return record._replace(stamp=_stamp(Path(record.origin)))
    copied = known if known and Path(known.file).exists() else None
    if source.kind is SourceKind.REMOTE and not (resumed and copied is None):
        return _prepare_remote(record, source, copied, state=state, observer=observer, made=made)
    if source.kind is SourceKind.COPIED:
        stamp = _stamp(Path(record.origin))
        if copied and copied.stamp == stamp:
            return record._replace(file=copied.file, stamp=stamp)
        copy = make_copy(source, record.source, state, stdin_bytes(), made, tell=observer.message)
        return record._replace(file=str(copy), stamp=stamp)
    if resumed and copied is None:
        raise InputError(
            f"{known.file if known else source.path}: the copy of this input is missing",
            "give the original command again, with the same input",
        )
    if not resumed and (copied is None or is_piped(source, stdin_bytes())):
        copy = make_copy(source, record.source, state, stdin_bytes(), made, tell=observer.message)
        if copied is None or copy.stat().st_size:
            return record._replace(file=str(copy), stamp=copy.name)
    assert copied is not None  # noqa: S101 - otherwise it was copied above
    if not resumed:
        observer.message(f"{source.path}: nothing is piped in, so its copy is used: {copied.file}")
    return record._replace(file=copied.file, stamp=copied.stamp)


def _prepare_remote(
    record: SourceRecord,
    source: Source,
    copied: SourceRecord | None,
    *,
    state: Path,
    observer: Observer,
    made: list[Path],
) -> SourceRecord:
    """The record of a remote file. It is read once: later sessions use the copy, and say if the file has changed."""
    if copied is None:
        stamps: list[str] = []
        copy = make_copy(
            source, record.source, state, stdin_bytes(), made, tell=observer.message, stamped=stamps.append
        )
        return record._replace(file=str(copy), stamp=stamps[0])
    if copied.stamp:
        try:
            if present_stamp(source) not in (None, copied.stamp):
                observer.message(
                    f"{source.path} has changed since it was read: the run continues with the copy of what it was;"
                    " to run the new file, give another --output"
                )
        except InputError as error:
            observer.message(f"{error.message}; the run continues with its copy")
    return record._replace(file=copied.file, stamp=copied.stamp)


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"{path}: {os.strerror(error.errno or 0)}", "check the path and its permissions") from error
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"
