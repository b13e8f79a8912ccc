"""Opens a run: its lock, its state, its inputs, its files.

The order is the safe one: the lock, the state file, the check that the options match it, the inputs, then the results
files and what a crash has left in them. Nothing is sent unless all of this succeeds, and a run that never began leaves
nothing behind.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from batchrun.config import RunOptions
from batchrun.display.summary import Observer
from batchrun.display.units import counted
from batchrun.engine.rows import RowLines
from batchrun.engine.rules import refuse_unusable_rules
from batchrun.errors import InputError
from batchrun.files.folders import remove_empty
from batchrun.prompts.lines import LineReader
from batchrun.prompts.sources import Source, SourceKind, find_sources
from batchrun.results.writer import ResultsFile, ResultsFiles
from batchrun.runs.checks import (
    new_place,
    refuse_foreign_files,
    refuse_other_options,
    refuse_shared_files,
    refuse_unspeakable_names,
)
from batchrun.runs.intake import note_growth, remove_files, result_format, take_in
from batchrun.runs.locations import requests_path
from batchrun.runs.pools import abandon_lost_jobs
from batchrun.runs.recovery import recover_results, refuse_strange_lines
from batchrun.runs.repair import by_old_name, is_under_way, repair_results, take_new_name
from batchrun.runs.requests import RowAppender, have_requests, refuse_strange_requests
from batchrun.runs.superseding import Redo, settle_redo, supersede
from batchrun.runs.trust import EVERYTHING, GivenByCommand, Trust
from batchrun.scheduler.states import RowState
from batchrun.state.amendments import Amendments
from batchrun.state.endpoints import note_endpoints
from batchrun.state.lock import StateLock, identity
from batchrun.state.opening import accept_lost_log, refuse_without_log
from batchrun.state.reader import StateReader
from batchrun.state.schema import holds_run
from batchrun.state.staging import MergedRows
from batchrun.state.store import Store
from batchrun.state.stored_options import find_options, store_options
from batchrun.state.superseded import redo_under_way

_REQUESTS_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run that is open in this process."""

    options: RunOptions
    observer: Observer
    """Receives messages and progress for the user."""
    clock: Callable[[], float]
    """Monotonic seconds."""
    wall: Callable[[], float]
    """UTC epoch seconds."""
    api_key: str | None
    """Sent with each request; None: no key is sent."""
    opened_at: float
    """When it was opened, on the monotonic clock."""
    lock: StateLock
    store: Store
    session: int
    """The number of this session."""
    lines: RowLines
    results: ResultsFiles

    def now_ms(self) -> int:
        """UTC epoch milliseconds."""
        return round(self.wall() * 1000)

    @property
    def has_jobs(self) -> bool:
        """Whether jobs are or may be in flight."""
        counts = self.store.counts()
        return counts[RowState.SUBMITTED] + counts[RowState.SUBMITTING] > 0

    @property
    def has_work(self) -> bool:
        """Whether any row is left to run or to collect."""
        counts = self.store.counts()
        held = counts[RowState.HELD] if self.options.scheduler.unconfirmed == "resubmit" else 0
        return held > 0 or any(counts[state] for state in RowState if state.is_open)


@contextmanager
def open_run(
    options: RunOptions,
    observer: Observer,
    *,
    clock: Callable[[], float],
    wall: Callable[[], float],
    api_key: str | None = None,
    given: GivenByCommand = EVERYTHING,
    resumed: bool = False,
    repair: bool = False,
    redo: Redo | None = None,
) -> Iterator[OpenRun]:
    """Open a run of input files.

    Args:
        options: The run's options.
        observer: Receives messages and progress for the user.
        clock: Monotonic seconds.
        wall: UTC epoch seconds.
        api_key: Sent with each request; None: no key is sent.
        given: Which options the command itself gives; the others are trusted only with a proof in the state file.
        resumed: Whether to read stdin from its copy.
        repair: Whether to recover lost or damaged results, and to rebuild a lost state file.
        redo: Rows to run again although they have ended; None: none.

    Raises:
        UsageError: the options, the inputs or the state file are invalid; nothing was sent.
        OutputError: a file cannot be written.
    """
    with ExitStack() as stack:
        opening = _Opening(
            stack, options, observer, clock=clock, wall=wall, api_key=api_key, given=given, repair=repair
        )
        opening.claim(_find_inputs(options, observer, resumed=resumed))
        with opening.undone_on_failure():
            rows = opening.take_in(resumed=resumed)
            opening.keep_options(are_read=rows is not None)
        opening.tell_growth(rows)
        yield opening.begin(redo=redo)


@contextmanager
def open_on_requests(
    options: RunOptions,
    observer: Observer,
    requests: Iterable[bytes],
    *,
    clock: Callable[[], float],
    wall: Callable[[], float],
    api_key: str | None = None,
    repair: bool = False,
) -> Iterator[OpenRun]:
    """Open a run with the requests of a program, which are kept beside the state file.

    Args:
        options: The run's options.
        observer: Receives messages and progress for the user.
        requests: Lines to add to those that are already kept.
        clock: Monotonic seconds.
        wall: UTC epoch seconds.
        api_key: Sent with each request; None: no key is sent.
        repair: Whether to recover lost or damaged results, and to rebuild a lost state file.

    Raises:
        UsageError, OutputError: see `open_run`.
    """
    kept = requests_path(options.state)
    with ExitStack() as stack:
        opening = _Opening(stack, options, observer, clock=clock, wall=wall, api_key=api_key, repair=repair)
        opening.claim((Source(str(kept), SourceKind.FILE),))
        if opening.is_new and not repair:
            refuse_strange_requests(options.state)
        with opening.undone_on_failure() as undo:
            if not kept.exists():
                undo.callback(kept.unlink, missing_ok=True)
            have_requests(kept, options.state, is_new=opening.is_new)
            rows = opening.take_in(are_requests=True)
            opening.keep_options(are_read=rows is not None)
            opening.add(iter(requests))
        opening.tell_growth(rows)
        yield opening.begin()


@contextmanager
def open_as_it_is(
    options: RunOptions,
    observer: Observer,
    *,
    clock: Callable[[], float],
    wall: Callable[[], float],
    api_key: str | None = None,
    given: GivenByCommand = EVERYTHING,
) -> Iterator[OpenRun]:
    """Open a run without reading its inputs, with the rows that it has, in order to submit nothing.

    Args:
        options: The options in its state file.
        observer: Receives messages and progress for the user.
        clock: Monotonic seconds.
        wall: UTC epoch seconds.
        api_key: Sent with each request; None: no key is sent.
        given: Which options the command itself gives; the others are trusted only with a proof in the state file.

    Raises:
        UsageError, OutputError: see `open_run`.
    """
    with ExitStack() as stack:
        opening = _Opening(stack, options, observer, clock=clock, wall=wall, api_key=api_key, given=given)
        opening.claim(())
        with opening.undone_on_failure():
            opening.settle_format()
        yield opening.begin(inputs_may_be_gone=True)


class _Opening:
    """The steps of opening a run, to be called in the order of the methods.

    Args:
        stack: Closes everything at the end of the run, or when a step fails.
        options: The run's options; for the other arguments see `open_run`.
    """

    def __init__(
        self,
        stack: ExitStack,
        options: RunOptions,
        observer: Observer,
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
        api_key: str | None,
        given: GivenByCommand = EVERYTHING,
        repair: bool = False,
    ) -> None:
        self._stack = stack
        self._options = options
        self._observer = observer
        self._clock = clock
        self._wall = wall
        self._api_key, self._repair = api_key, repair
        self._opened_at = clock()
        self._trust = Trust(options, api_key, given)
        self._session, self._is_changed = 0, False
        self._made: list[Path] = []

    def claim(self, sources: Sequence[Source]) -> None:
        """Lock the state file, and check the options and the files. Nothing is changed yet."""
        options, repair = self._options, self._repair
        self._sources = sources
        refuse_unspeakable_names(options, sources)
        refuse_shared_files(options, sources)
        self._existed = options.state.exists()
        self._has_lost_log = repair and self._stack.enter_context(
            accept_lost_log(options.state, lambda: self._session > 0)
        )
        refuse_without_log(options.state)
        self._is_private = any(source.is_private for source in sources)
        if not options.state.parent.exists():
            self._stack.callback(remove_empty, options.state.parent)
        self._lock = StateLock(options.state, private=self._is_private)
        self._stack.callback(self._lock.release)
        self.is_new = not holds_run(options.state, self._observer.message)
        if self.is_new:
            refuse_foreign_files(options, sources, None, repair=repair)
        else:
            self._is_changed = self._refuse_other_run()
        refuse_unusable_rules(options)

    def _refuse_other_run(self) -> bool:
        """Refuse a state file of another run, or an outdated copy. It is opened read-only: a writer would change it.

        Returns:
            Whether the options have changed and nothing was submitted, so that the run starts over.
        """
        options, repair = self._options, self._repair
        with StateReader(options.state, tell=self._observer.message) as store:
            is_changed = refuse_other_options(store, by_old_name(store, options) if repair else options)
            self._trust.refuse_unproven(store, self._sources)
            refuse_foreign_files(options, self._sources, None if is_changed else store, repair=repair)
            if not repair and not is_under_way(store) and redo_under_way(store) is None:
                refuse_strange_lines(store)
        return is_changed

    @contextmanager
    def undone_on_failure(self) -> Iterator[ExitStack]:
        """Open the state file; if the block fails, what is new is removed, and the callbacks are called."""
        with ExitStack() as undo:
            if self.is_new and not self._existed:
                undo.callback(remove_files, self._made)
                undo.callback(_remove_state, self._options.state)
            self._store = Store(self._options.state, tell=self._observer.message)
            undo.callback(self._store.close)
            yield undo
            undo.pop_all()
        self._stack.callback(self._store.close)

    def take_in(self, *, resumed: bool = False, are_requests: bool = False) -> MergedRows | None:
        """Make the lines of the inputs rows; None if the inputs are unchanged."""
        if self._is_changed:
            self._observer.message("nothing was submitted yet, so the run starts over with the new options")
            self._store.start_over()
        if self._repair and not self.is_new:
            take_new_name(self._store, self._options)
        given = self._options, self._sources, self._store, self._observer
        return take_in(*given, resumed=resumed, are_requests=are_requests, made=self._made)

    def settle_format(self) -> None:
        """Determine the format of the results."""
        self._options = replace(self._options, format=result_format(self._store, self._options))

    def keep_options(self, *, are_read: bool) -> None:
        """Store the options, so that the run can be resumed."""
        store = self._store
        self.settle_format()
        note_endpoints(store, find_options(store), self._options)
        store_options(store, self._options)
        self._trust.keep(store, self._sources, are_read=are_read)
        store.set_setting("folder", str(self._options.state.absolute().parent))

    def add(self, requests: Iterator[bytes]) -> None:
        """Make rows from further requests."""
        with closing(RowAppender(self._store)) as appender:
            while lines := list(islice(requests, _REQUESTS_AT_ONCE)):
                _, error = appender.add(lines)
                if error is not None:
                    raise error
        note_growth(self._store)

    def tell_growth(self, rows: MergedRows | None) -> None:
        """Report how the inputs of a resumed run have changed."""
        if rows and not self.is_new and (rows.added or rows.dropped):
            self._observer.message(f"input changed: {counted(rows.added, 'row')} added, {rows.dropped:,} removed")

    def begin(self, *, inputs_may_be_gone: bool = False, redo: Redo | None = None) -> OpenRun:
        """Begin a session: make the results files and the state agree, and open the files."""
        store, observer = self._store, self._observer
        self._session = store.begin_session(os.getpid(), self._now_ms(), identity())
        self._recover()
        known = abandon_lost_jobs(store, self._options, observer.message)
        sources = {source.source: source for source in store.sources()}
        files = {number: Path(source.file) for number, source in sources.items()}
        reader = self._stack.enter_context(LineReader(files, missing_ok=inputs_may_be_gone, reading=store.reading))
        for path in reader.missing:
            observer.message(f"{path} is missing: results collected without it lack the carried fields of its lines")
        amendments = Amendments(store)
        lines = RowLines.of(self._options, sources, reader, amendments, self._wall(), endpoints=known)
        if redo is not None:
            supersede(store, redo, lines, observer, session=self._session)
            amendments.note()
        results = ResultsFiles()
        self._stack.callback(results.close)
        for output in store.outputs():
            path = store.results_path(output)
            results.add(output.output, ResultsFile(path, output.committed_bytes, private=self._is_private))
        return OpenRun(
            options=self._options,
            observer=observer,
            clock=self._clock,
            wall=self._wall,
            api_key=self._api_key,
            opened_at=self._opened_at,
            lock=self._lock,
            store=store,
            session=self._session,
            lines=lines,
            results=results,
        )

    def _recover(self) -> None:
        """Make the results files and the state agree; with `repair`, also where rows must be paid for again."""
        if self._repair and (self.is_new or self._has_lost_log):
            self._observer.message(
                f"{self._options.state} is rebuilt: rows without a result are submitted, including failed ones;"
                " those that were in flight may be paid for twice"
            )
        settle_redo(self._store)
        if self._repair or is_under_way(self._store):
            repair_results(self._store, self._options, self._now_ms(), self._observer)
        else:
            recover_results(self._store, self._session, self._now_ms(), observer=self._observer)

    def _now_ms(self) -> int:
        return round(self._wall() * 1000)


def _find_inputs(options: RunOptions, observer: Observer, *, resumed: bool) -> tuple[Source, ...]:
    copied: set[str] = set()
    if resumed:
        with StateReader(options.state) as store:
            copied = {source.origin for source in store.sources() if source.file != source.origin}
    results = None if options.output_is_folder else options.output
    try:
        return find_sources(options.inputs, copied=copied, resumed=resumed, results=results, tell=observer.message)
    except InputError as error:
        if resumed and isinstance(error.__cause__, FileNotFoundError):
            raise InputError(error.message, f"restore it, or say where it is: {new_place(options)}") from error
        raise


def _remove_state(state: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        with suppress(OSError):  # the folder may be read-only by now, and the error that ended the run is the news
            state.with_name(state.name + suffix).unlink()
