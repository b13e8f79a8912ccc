"""`batchrun export`: writes the results of a run in input order to one file: as lines, as a table, as chats."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, Literal

from batchrun.config import ResultFormat
from batchrun.errors import BatchrunError, UsageError
from batchrun.evaluation.scores_file import scores_path
from batchrun.prompts.ownership import first_line, is_own_line
from batchrun.results.cells import OWN_COLUMNS, Found
from batchrun.results.chats import answered
from batchrun.results.hub import HubFile, push, refuse_missing_library
from batchrun.results.superseded import superseded_path
from batchrun.results.table_files import (
    JSON_LINES,
    Form,
    first_lines,
    form_of,
    header_of,
    is_own_parquet,
    load_libraries,
    write_lines,
    write_table,
    write_table_to,
)
from batchrun.results.tables import Columns, listed
from batchrun.results.writer import errors_path, writing
from batchrun.results.written import write_line
from batchrun.runs.exported import RunResults
from batchrun.runs.manifest import manifest_path
from batchrun.scheduler.states import RowState
from batchrun.state.snapshot import StateSnapshot
from batchrun.state.stored_options import find_options

Only = Literal["succeeded", "failed"]


@dataclass(frozen=True, slots=True)
class Exported:
    """What was exported."""

    target: str
    results: int
    rows: int
    """All rows of the run."""
    failed: int
    """Failed rows. The results of the remaining rows are still to come."""
    errors: int = 0
    """Error records that were written, of failed and held rows."""
    shared_ids: int = 0
    """Ids that more than one written line has."""
    left_out: int = 0
    """Succeeded rows that were not written: only failures were asked for, or there is no chat with an answer."""
    mixed: tuple[str, ...] = ()
    """The columns whose values have no one type, and are JSON."""

    def __str__(self) -> str:
        failed = 0 if self.errors else self.failed
        rest = self.rows - self.results - self.left_out - (self.errors or self.failed)
        counts = ((failed, "failed"), (rest, "not finished"), (self.left_out, "succeeded"))
        parts = [f"{count:,} {word}" for count, word in counts if count]
        missing = f" ({', '.join(parts)})" if parts else ""
        with_errors = f", {self.errors:,} of them as error records" if self.errors else ""
        text = f"{self.results + self.errors:,} of {self.rows:,} rows exported to {self.target}{with_errors}{missing}"
        mixed = f"\ncolumns of several types, written as JSON text: {listed(self.mixed)}" if self.mixed else ""
        return text + note_on(self.shared_ids) + mixed


def note_on(shared_ids: int) -> str:
    """A note, on a line of its own, that several lines of the written file have the same id; empty if none have."""
    note = "ids used in several inputs; the lines that share an id differ in `source`"
    return f"\n{note}: {shared_ids:,}" if shared_ids else ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be exported."""

    form: ResultFormat | None = None
    """The format of lines; None: each line unchanged."""
    with_errors: bool = False
    """Whether to write the error records of failed and held rows, too."""
    only: Only | None = None
    """`failed`: only those error records; `succeeded`: only the results."""
    columns: tuple[str, ...] | None = None
    """The columns of a table; None: those that it has by itself, and records for JSON."""
    messages: bool = False
    """Whether to write each chat with its answer, for fine-tuning."""

    @property
    def errors(self) -> bool:
        """Whether error records are written."""
        return self.with_errors or self.only == "failed"

    def check(self) -> None:
        """Refuse options that contradict each other.

        Raises:
            UsageError: names them.
        """
        if self.with_errors and self.only == "succeeded":
            raise UsageError("--with-errors and --only succeeded contradict each other", "remove one of them")
        if self.messages and self.errors:
            raise UsageError("--messages: a row that failed has no answer", "remove --with-errors or --only failed")
        if self.messages and self.columns is not None:
            raise UsageError("--messages and --columns are two forms of a line", "remove one of them")
        if self.form is not None and (self.messages or self.columns is not None):
            option = "--messages" if self.messages else "--columns"
            raise UsageError(f"--format is for records, {option} writes none", "remove one of them")

    def check_form(self, form: Form, target: str) -> None:
        """Refuse a form of file that the options do not fit.

        Raises:
            UsageError: names the option.
        """
        if form.has_columns and (self.messages or self.form is not None):
            option = "--messages" if self.messages else "--format"
            raise UsageError(f"{option}: {target} is a table", "write a .jsonl or .json file")


AS_WRITTEN = Wanted()


def export(state: Path, target: Path | HubFile | None, stdout: BinaryIO, wanted: Wanted = AS_WRITTEN) -> Exported:
    """Write the committed results in input order.

    Args:
        state: The run's state file; another process may be writing it.
        target: The file to write, replaced by a rename, in the form that its suffix says; or a file of the Hugging Face
            Hub. None: write lines to `stdout`.
        stdout: Where the lines go if there is no target.
        wanted: What to write.

    Raises:
        UsageError: the target is a folder, a device, a file of the run, or has an unknown suffix; options contradict
            each other; or no row has a column.
        StateError: the state file or a results file cannot be read, or the two do not match.
        OutputError: the target cannot be written.
    """
    wanted.check()
    if isinstance(target, HubFile):
        refuse_missing_library(target)
        with TemporaryDirectory(prefix="batchrun-") as folder:
            file = Path(folder) / Path(target.path).name
            exported = _export(state, file, stdout, wanted)
            push(file, target)
        return replace(exported, target=str(target))
    return _export(state, target, stdout, wanted)


def _export(state: Path, target: Path | None, stdout: BinaryIO, wanted: Wanted) -> Exported:
    form = JSON_LINES

    def check(store: StateSnapshot) -> bool:
        nonlocal form
        refuse_own_files(store, target, stdout, is_export)
        form = form if target is None else form_of(target)
        wanted.check_form(form, str(target))
        return form.has_columns or wanted.columns is not None

    def prepare() -> None:
        if target is not None:
            load_libraries(form, target)

    with_results = wanted.only != "failed"
    with RunResults(
        state, wanted.form, with_results=with_results, with_errors=wanted.errors, check=check, prepare=prepare
    ) as results:
        counts = results.counts
        mixed: list[str] = []
        succeeded = counts[RowState.SUCCEEDED]
        written = succeeded if with_results else 0
        if wanted.messages:
            chats = _Counted(_chats(results))
            put(chats, target, stdout, form)
            written = chats.count
        elif wanted.columns is None and not form.has_columns:
            put(results.lines(), target, stdout, form)
        else:
            mixed = _put_table(results, target, stdout, form, wanted.columns)
    return Exported(
        "stdout" if target is None else str(target),
        written,
        sum(counts.values()),
        counts[RowState.FAILED],
        counts[RowState.FAILED] + counts[RowState.HELD] if wanted.errors else 0,
        results.shared_ids,
        succeeded - written,
        tuple(mixed),
    )


def _put_table(
    results: RunResults, target: Path | None, stdout: BinaryIO, form: Form, chosen: tuple[str, ...] | None
) -> list[str]:
    columns = Columns(chosen)

    def groups() -> Iterator[Found]:
        return results.cells(chosen)

    if target is not None:
        return write_table(target, form, columns, groups)
    mixed = write_table_to(stdout, columns, groups)
    stdout.flush()
    return mixed


def _chats(results: RunResults) -> Iterator[bytes]:
    for group in results.groups(with_requests=True):
        for row in group:
            chat = None if row.request is None else answered(row.request, row.record)
            if chat is not None:
                yield write_line(chat)


class _Counted:
    """Lines that are counted as they are read."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = lines
        self.count = 0

    def __iter__(self) -> Iterator[bytes]:
        for line in self._lines:
            self.count += 1
            yield line


def is_export(path: Path) -> bool:
    """Whether a file was written by an export, by its first line or its metadata.

    Records name their source, and a table has a certain set of columns. A file of chosen columns, or of chats, may as
    well be somebody's own.

    Raises:
        OSError: it cannot be read.
    """
    try:
        form = form_of(path)
        load_libraries(form, path)
    except UsageError:
        form = JSON_LINES
    if form.name == "parquet":
        return is_own_parquet(path)
    if form.name == "csv":
        return set(OWN_COLUMNS) <= set(header_of(path, form))
    first, second = first_lines(path, form)
    return is_own_line(first if form.name == "jsonl" else second.strip().removesuffix(b","))


def put(lines: Iterable[bytes], target: Path | None, stdout: BinaryIO, form: Form = JSON_LINES) -> None:
    """Write lines to a file, which is replaced by a rename, or to `stdout` if there is no target.

    Raises:
        OutputError: the file cannot be written.
    """
    if target is not None:
        write_lines(target, form, lines)
    else:
        stdout.writelines(lines)
        stdout.flush()


def refuse_own_files(
    store: StateSnapshot,
    target: Path | None,
    stdout: BinaryIO,
    is_ours: Callable[[Path], bool] = lambda path: is_own_line(first_line(path)),
) -> None:
    """Refuse to overwrite a file of this run or of another, anything but a file, or a file that batchrun did not write.

    Args:
        store: The run.
        target: The file to be written; None: `stdout`.
        stdout: Where the lines go if there is no target.
        is_ours: Whether batchrun wrote a file, so that it may be replaced.

    Raises:
        UsageError: the target must not be overwritten.
    """
    if target is None:
        for path in _files_of(store):
            if _is_file_of(stdout, path):
                raise UsageError(f"stdout goes to {path}, a file of the run itself", "redirect it to another file")
        return
    if target.is_dir():
        raise UsageError(f"{target} is a folder", "give the name of a file in it")
    if target.exists() and not target.is_file():
        raise UsageError(f"{target} is not a regular file", "give the name of a file; `-o -` writes to stdout")
    for path in _files_of(store):
        if _is_same_file(target, path):
            raise UsageError(f"{target} would overwrite {path}, a file of the run itself", "give another name")
    if not target.exists() or not target.stat().st_size:
        return
    with writing(target):
        if not is_ours(target):
            raise UsageError(
                f"{target} exists, and nothing in it shows that batchrun wrote it",
                "move it away, or give another name; a file of chosen columns or of --messages is never replaced",
            )
    for state in sorted(target.absolute().parent.glob("*.state")):
        is_taken = False
        with suppress(BatchrunError), StateSnapshot(state) as other:
            is_taken = any(_is_same_file(target, path) for path in _files_of(other))
        if is_taken:
            raise UsageError(f"{target} belongs to the run of {state}", "give another name")


def _files_of(store: StateSnapshot) -> Iterator[Path]:
    """The files that a run reads and writes."""
    for suffix in ("", "-wal", "-shm", ".lock"):
        yield store.path.with_name(store.path.name + suffix)
    yield scores_path(store.path)
    options = find_options(store)
    if options is not None:
        yield manifest_path(options)
    for output in store.outputs():
        path = store.results_path(output)
        yield from (path, errors_path(path), superseded_path(path))
    for source in store.sources():
        yield from (Path(source.file), Path(source.origin))


def _is_same_file(one: Path, other: Path) -> bool:
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    try:
        return one.samefile(other)
    except OSError:
        return False


def _is_file_of(stream: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except OSError:
        return False
