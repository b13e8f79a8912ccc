"""From input files to the rows of a run: copies, validates every line, and hands them to the state file.

Nothing is sent before every line of every input has been read and found valid. A resumed run whose inputs carry
the same size, time and inode as before skips that; each line is checked again by its digest before it is sent.

Until the rows are committed nothing that was there has changed: a start that is refused leaves all as it was.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from batchrun.config import FormatChoice, RunOptions
from batchrun.display.summary import Observer, warn
from batchrun.errors import InputError
from batchrun.files.streams import stdin_bytes
from batchrun.prompts.shapes import READING, Shape
from batchrun.prompts.sources import STDIN, Source, SourceKind
from batchrun.results.writer import cut_torn_line
from batchrun.runs.locations import output_paths, requests_path
from batchrun.runs.manifest import digest_file
from batchrun.runs.spool import is_piped, link_stdin, make_copy, remove_copies
from batchrun.runs.validation import Validation, given_file
from batchrun.state.records import OutputRecord, SourceRecord
from batchrun.state.staging import MergedRows, merge, stage
from batchrun.state.store import Store
from batchrun.state.stored_options import find_options


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
    validation = Validation(options, records, store.reading, observer, is_new=is_new)
    problems = validation.problems
    stage(store, validation.lines())
    if problems.count and not options.skip_invalid:
        look = "batchrun check " + shlex.join(options.inputs)
        raise InputError(str(problems), f"fix the lines ({look} names all of them), or run the others: --skip-invalid")
    validation.fields.tell_all(partial(warn, observer), strict=options.strict)
    merged = merge(
        store,
        records,
        whole=validation.limit is None,
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
    if validation.whole_input is not None:
        store.set_setting("whole_input", validation.whole_input.to_json())
    store.set_setting("inputs", [tuple(digest) for digest in validation.digests()])
    if find_options(store) is None:
        store.set_setting("format", "openai" if validation.shapes == {Shape.OPENAI} else "batchrun")
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


def note_growth(store: Store) -> None:
    """Note what the only input of a run looks like now that it has grown, and all of its lines are rows.

    Raises:
        InputError: it is gone.
        OutputError: it cannot be read, or the state cannot be written.
    """
    (record,) = store.sources()
    stamp = _stamp(Path(record.file))
    store.note_stamp(record._replace(stamp=stamp))
    store.set_setting("inputs", [tuple(digest_file(given_file(record), record.path))])
    store.set_setting("intake", {"stamps": [[record.origin, stamp]], "limit": None, "rows": store.count_rows()})


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


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"{path}: {os.strerror(error.errno or 0)}", "check the path and its permissions") from error
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"
