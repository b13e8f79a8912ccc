"""How a run is opened: its lock, its state, its inputs, its files.

The order of opening is the order of safety: the lock, the state file, the check that the options fit it, the
inputs, then the results files and what a crash has left in them. Nothing is sent before all of that is well, and
nothing is left behind by a run that never began.
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
from batchrun.engine.rows import RowLines
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
from batchrun.runs.intake import note_growth, result_format, take_in
from batchrun.runs.locations import requests_path
from batchrun.runs.recovery import recover_results, refuse_strange_lines
from batchrun.runs.repair import by_old_name, is_under_way, repair_results, take_new_name
from batchrun.runs.requests import RowAppender, have_requests, refuse_strange_requests
from batchrun.runs.trust import ALL, Named, Trust
from batchrun.scheduler.states import RowState
from batchrun.state.lock import StateLock, identity
from batchrun.state.opening import accept_lost_log, refuse_without_log
from batchrun.state.reader import StateReader
from batchrun.state.schema import holds_run
from batchrun.state.staging import MergedRows
from batchrun.state.store import Store
from batchrun.state.stored_options import store_options

_REQUESTS_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run that is open in this process."""

    options: RunOptions
    observer: Observer
    """Told what a person should know."""
    clock: Callable[[], float]
    """Monotonic seconds."""
    wall: Callable[[], float]
    """UTC epoch seconds."""
    api_key: str | None
    """Sent with each request; None: none is."""
    opened_at: float
    """On the monotonic clock."""
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
        """Whether jobs are in flight, or may be."""
        counts = self.store.counts()
        return counts[RowState.SUBMITTED] + counts[RowState.SUBMITTING] > 0

    @property
    def has_work(self) -> bool:
        """Whether anything is left to do."""
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
    said: Named = ALL,
    resumed: bool = False,
    repair: bool = False,
) -> Iterator[OpenRun]:
    """Open a run of input files.

    Args:
        options: What was asked for.
        observer: Told what a person should know.
        clock: Monotonic seconds.
        wall: UTC epoch seconds.
        api_key: Sent with each request; None: none is.
        said: What of the options the command itself names; the rest is believed only with a proof in the state file.
        resumed: Whether stdin is to be taken from its copy.
        repair: Whether to get lost or damaged results again, and to rebuild a lost state file.

    Raises:
        UsageError: anything that is wrong before something is sent.
        OutputError: something cannot be written.
    """
    with ExitStack() as stack:
        way = _Opening(stack, options, observer, clock=clock, wall=wall, api_key=api_key, said=said, repair=repair)
        way.claim(_find_inputs(options, observer, resumed=resumed))
        with way.undone_unless_whole():
            rows = way.take_in(resumed=resumed)
            if rows and not rows.rows and options.shard is None:
                raise InputError("there is no line in the input", f"looked at {', '.join(options.inputs)}")
            way.keep_options(are_read=rows is not None)
        way.tell_growth(rows)
        yield way.begin()


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
    """Open a run on the requests of a program, which are kept beside the state file.

    Args:
        options: What was asked for.
        observer: Told what a person should know.
        requests: Lines to be added to those that are kept.
        clock: Monotonic seconds.
        wall: UTC epoch seconds.
        api_key: Sent with each request; None: none is.
        repair: Whether to get lost or damaged results again, and to rebuild a lost state file.

    Raises:
        UsageError, OutputError: see `open_run`.
    """
    kept = requests_path(options.state)
    with ExitStack() as stack:
        way = _Opening(stack, options, observer, clock=clock, wall=wall, api_key=api_key, repair=repair)
        way.claim((Source(str(kept), SourceKind.FILE),))
        if way.is_new and not repair:
            refuse_strange_requests(options.state)
        with way.undone_unless_whole() as undo:
            if not kept.exists():
                undo.callback(kept.unlink, missing_ok=True)
            have_requests(kept, options.state, is_new=way.is_new)
            rows = way.take_in()
            way.keep_options(are_read=rows is not None)
            way.add(iter(requests))
        way.tell_growth(rows)
        yield way.begin()


@contextmanager
def open_as_it_is(
    options: RunOptions,
    observer: Observer,
    *,
    clock: Callable[[], float],
    wall: Callable[[], float],
    api_key: str | None = None,
    said: Named = ALL,
) -> Iterator[OpenRun]:
    """Open a run without a look at its inputs, to submit nothing: its rows are those that it has.

    Args:
        options: Those of its state file.
        observer: Told what a person should know.
        clock: Monotonic seconds.
        wall: UTC epoch seconds.
        api_key: Sent with each request; None: none is.
        said: What of the options the command itself names; the rest is believed only with a proof in the state file.

    Raises:
        UsageError, OutputError: see `open_run`.
    """
    with ExitStack() as stack:
        way = _Opening(stack, options, observer, clock=clock, wall=wall, api_key=api_key, said=said)
        way.claim(())
        with way.undone_unless_whole():
            way.settle_format()
        yield way.begin(inputs_may_be_gone=True)


class _Opening:
    """The steps of an opening, to be taken in the order of the methods.

    Args:
        stack: Closes what is open at the end of the run, or when a step fails.
        options: The run's, and so on; see `open_run`.
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
        said: Named = ALL,
        repair: bool = False,
    ) -> None:
        self._stack = stack
        self._options = options
        self._observer = observer
        self._clock = clock
        self._wall = wall
        self._api_key = api_key
        self._repair = repair
        self._opened_at = clock()
        self._trust = Trust(options, api_key, said)
        self._session = 0
        self._is_changed = False

    def claim(self, sources: Sequence[Source]) -> None:
        """Take the right to the state file, and refuse what does not fit it. So far nothing is changed."""
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

    def _refuse_other_run(self) -> bool:
        """Refuse a state file of another run, or of another time. A connection that may write would change it even so.

        Returns:
            Whether it asks for something else, and nothing was submitted: it is then to start over.
        """
        options, repair = self._options, self._repair
        with StateReader(options.state, tell=self._observer.message) as store:
            is_changed = refuse_other_options(store, by_old_name(store, options) if repair else options)
            self._trust.refuse_unsaid(store, self._sources)
            refuse_foreign_files(options, self._sources, None if is_changed else store, repair=repair)
            if not repair and not is_under_way(store):
                refuse_strange_lines(store)
        return is_changed

    @contextmanager
    def undone_unless_whole(self) -> Iterator[ExitStack]:
        """Open the state file; what is done to it meanwhile, and what is called back, is undone when a step fails."""
        with ExitStack() as undo:
            if self.is_new and not self._existed:
                undo.callback(_remove_state, self._options.state)
            self._store = Store(self._options.state, tell=self._observer.message)
            undo.callback(self._store.close)
            yield undo
            undo.pop_all()
        self._stack.callback(self._store.close)

    def take_in(self, *, resumed: bool = False) -> MergedRows | None:
        """Make the lines of the inputs rows; None: they were rows already."""
        if self._is_changed:
            self._observer.message("nothing was submitted yet: the run begins anew with the options given now")
            self._store.start_over()
        if self._repair and not self.is_new:
            take_new_name(self._store, self._options)
        return take_in(self._options, self._sources, self._store, self._observer, resumed=resumed)

    def settle_format(self) -> None:
        """Find out the format of the results."""
        self._options = replace(self._options, format=result_format(self._store, self._options))

    def keep_options(self, *, are_read: bool) -> None:
        """Keep what the run was asked for, for whoever resumes it."""
        store = self._store
        self.settle_format()
        store_options(store, self._options)
        self._trust.keep(store, self._sources, are_read=are_read)
        store.set_setting("folder", str(self._options.state.absolute().parent))

    def add(self, requests: Iterator[bytes]) -> None:
        """Make rows of further requests."""
        with closing(RowAppender(self._store)) as appender:
            while lines := list(islice(requests, _REQUESTS_AT_ONCE)):
                _, error = appender.add(lines)
                if error is not None:
                    raise error
        note_growth(self._store)

    def tell_growth(self, rows: MergedRows | None) -> None:
        """Tell what has changed in the inputs of a run that is resumed."""
        if rows and not self.is_new and (rows.added or rows.dropped):
            self._observer.message(f"the input has changed: {rows.added} rows new, {rows.dropped} gone")

    def begin(self, *, inputs_may_be_gone: bool = False) -> OpenRun:
        """Begin a session: make the results files and the state agree, and open what the session needs."""
        store, observer = self._store, self._observer
        self._session = store.begin_session(os.getpid(), self._now_ms(), identity())
        self._recover()
        sources = {source.source: source for source in store.sources()}
        files = {number: Path(source.file) for number, source in sources.items()}
        reader = LineReader(files, missing_ok=inputs_may_be_gone, reading=store.reading)
        self._stack.enter_context(reader)
        for path in reader.missing:
            observer.message(f"{path} is gone: results that are collected now do not carry its lines' own fields")
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
            lines=RowLines.of(self._options, sources, reader),
            results=results,
        )

    def _recover(self) -> None:
        """Make the results files and the state agree, as far as that is free; with `repair`, at any price."""
        if self._repair and (self.is_new or self._has_lost_log):
            self._observer.message(
                f"{self._options.state} is rebuilt: rows without a result are submitted, those that failed too,"
                " and those that were in flight may be paid for twice"
            )
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
            raise InputError(error.message, f"put it there, or say where it is: {new_place(options)}") from error
        raise


def _remove_state(state: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        # In a folder that has become read-only what is wrong with the run is still to be told.
        with suppress(OSError):
            state.with_name(state.name + suffix).unlink()
