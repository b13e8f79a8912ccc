"""A run from its options to its summary: opens what it needs, recovers, drives, concludes.

The order of opening is the order of safety: the lock, the state file, the check that the options fit it, the
inputs, then the results files and what a crash has left in them. Nothing is sent before all of that is well.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, closing, suppress
from dataclasses import replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from batchrun.conclusion import Conclusion, results_path
from batchrun.config import DEFAULT_TTL_S, TTL_GRACE_S, WINDOW_S, SweepOptions
from batchrun.endpoint.client import EndpointClient
from batchrun.engine import Engine, Outcome
from batchrun.errors import InputError, StateError, StoppedError, UsageError
from batchrun.feed import Spool, StoredRecords
from batchrun.fleet import Fleet
from batchrun.followers import Followers
from batchrun.intake import note_growth, output_paths, requests_path, result_format, take_in
from batchrun.journal import Journal
from batchrun.prompts.lines import LineReader
from batchrun.prompts.sources import Source, SourceKind, find_sources
from batchrun.prompts.sweep import Sweep
from batchrun.recovery import recover_results
from batchrun.results.timeline import Timeline
from batchrun.results.writer import ResultsFile, writing
from batchrun.scheduler.cost import WorkerMeter, WorkerTime
from batchrun.scheduler.lanes import MOST as MOST_LANES
from batchrun.scheduler.scheduler import Scheduler
from batchrun.scheduler.states import RowState
from batchrun.state.lock import StateLock
from batchrun.state.records import Execution, Share
from batchrun.state.schema import holds_run
from batchrun.state.store import Store
from batchrun.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from random import Random

    from batchrun.config import RunOptions
    from batchrun.feed import Feed
    from batchrun.interrupts import Leaving
    from batchrun.results.summary import Observer, Summary

_REQUESTS_AT_ONCE = 1000
_IDENTITY = {"endpoint": "--endpoint", "base_url": "--base-url", "output": "--output", "shard": "--shard"}
_REQUEST_IDENTITY = {"override": "--set", "default": "--default", "chat": "--chat", "system": "--system"}


class Run:
    """A run that is open in this process: its lock, its state, its files.

    Args:
        options: What was asked for.
        observer: Told what a person should know.
        clock: Monotonic seconds.
        wall: UTC epoch seconds.
        from_spool: Whether stdin is to be taken from its spooled copy.
        as_is: Whether to take the rows as they are, without a look at the inputs: for a run that submits nothing.
        requests: Lines to be added to the requests that are kept beside the state file, which are the only input then;
            None: the inputs are files.

    Raises:
        UsageError: anything that is wrong before something is sent; nothing is left behind by a run that never began.
        OutputError: something cannot be written.
    """

    def __init__(
        self,
        options: RunOptions,
        observer: Observer,
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
        from_spool: bool = False,
        as_is: bool = False,
        requests: Iterable[bytes] | None = None,
    ) -> None:
        self.options = options
        self._observer = observer
        self._clock = clock
        self._wall = wall
        self._stack = ExitStack()
        self._session = 0
        self._session_from = clock()
        try:
            self._open(from_spool=from_spool, as_is=as_is, requests=requests)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open(self, *, from_spool: bool, as_is: bool, requests: Iterable[bytes] | None) -> None:
        options, stack = self.options, self._stack
        if requests is None:
            sources = () if as_is else find_sources(options.inputs)
        else:
            sources = (Source(str(requests_path(options.state)), SourceKind.FILE),)
        _refuse_unspeakable_names(options, sources)
        _refuse_no_file(options.state)
        existed = options.state.exists()
        lock = StateLock(options.state)
        stack.callback(lock.release)
        is_new = not holds_run(options.state)
        if is_new:
            _refuse_strange_results(options, sources, keeps_requests=requests is not None)
        with ExitStack() as undo:
            if not existed:
                undo.callback(_remove_state, options.state)
            self.store = Store(options.state)
            undo.callback(self.store.close)
            if not is_new:
                refuse_other_options(self.store, options)
            if requests is not None:
                _have_file(requests_path(options.state), options.state, is_new=is_new)
            merged = None if as_is else take_in(options, sources, self.store, self._observer, from_spool=from_spool)
            if merged and not merged.rows and options.shard is None and requests is None:
                raise InputError("there is no line in the input", f"looked at {', '.join(options.inputs)}")
            options = self.options = replace(options, format=result_format(self.store, options))
            self.store.set_setting("options", options.to_json())
            if requests is not None:
                self._add(iter(requests))
            undo.pop_all()
        stack.callback(self.store.close)
        if merged and not is_new and (merged.added or merged.dropped):
            self._observer.message(f"the input has changed: {merged.added} rows new, {merged.dropped} gone")
        self._session = self.store.begin_session(os.getpid(), self._now_ms())
        recover_results(self.store, self._session, self._now_ms(), observer=self._observer)
        self._sources = {source.source: source for source in self.store.sources()}
        files = {number: Path(source.file) for number, source in self._sources.items()}
        self._reader = stack.enter_context(LineReader(files, missing_ok=as_is))
        for path in self._reader.missing:
            self._observer.message(f"{path} is gone: results that are collected now do not carry its lines' own fields")
        self._results = {}
        for output in self.store.outputs():
            file = ResultsFile(results_path(self.store, output), output.committed_bytes)
            stack.callback(file.close)
            self._results[output.output] = file

    def _add(self, requests: Iterator[bytes]) -> None:
        with closing(self._spool()) as spool:
            while lines := list(islice(requests, _REQUESTS_AT_ONCE)):
                spool.add_all(lines)
        note_growth(self.store)

    def _spool(self) -> Spool:
        (source,) = self.store.sources()
        return Spool(self.store, source.source, Path(source.file))

    def retry_failed(self, kinds: tuple[str, ...]) -> int:
        """Take up failed rows again: those of some kinds, or all; returns how many."""
        return self.store.retry_failed(kinds)

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

    async def drive(
        self,
        base_url: str,
        api_key: str | None,
        rng: Random,
        *,
        cancel: bool = False,
        feed: Feed | None = None,
        leaving: Leaving | None = None,
    ) -> Outcome:
        """Submit, poll and collect until the run ends or is stopped; or cancel what is in flight.

        Args:
            base_url: Jobs go to `<base_url>/<endpoint>/run`.
            api_key: None: none is sent.
            rng: Where jitter comes from.
            cancel: Whether to cancel what is in flight, and to submit nothing.
            feed: Where further rows come from; only for a run on requests that a program gives it, at one endpoint.
            leaving: Through which other threads ask to leave; None: none do.
        """
        options = self.options
        unconfirmed = self.store.settle_unconfirmed(options.scheduler.unconfirmed)
        if unconfirmed:
            fate = "submitted again" if options.scheduler.unconfirmed == "resubmit" else "held"
            self._observer.message(
                f"{unconfirmed} submissions were cut off before their answer: unconfirmed, they are {fate}"
            )
        if options.dedupe and not cancel:
            self._settle_followers()
        counts = self.store.counts()
        has_work = counts[RowState.SUBMITTED] if cancel else any(counts[state] for state in RowState if state.is_open)
        if not has_work and feed is None:
            return Outcome("cancelled" if cancel else "finished")
        timeline = Timeline(self.store.get_setting("timeline"))
        fleet = Fleet(self._observer, timeline, options.guards.on_interrupt, self._wall, leaving)
        async with AsyncExitStack() as stack:
            thread = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="journal"))
            first_job = self.store.next_job()
            spool = load = None
            for index, endpoint in enumerate(options.endpoints):
                client = EndpointClient(
                    base_url,
                    endpoint,
                    api_key,
                    connections=options.scheduler.connections or MOST_LANES,
                    timeout_s=options.timeout_s,
                    use_proxy=not options.is_local,
                )
                await stack.enter_async_context(client)
                numbers = count(first_job + index, len(options.endpoints))
                observer = fleet.observer_of(endpoint, alone=len(options.endpoints) == 1)
                share = self._share(index)
                scheduler = self._scheduler(share, numbers, rng)
                journal = self._journal(endpoint, share, None if feed is None else feed.deliver)
                if feed is not None:
                    spool = stack.enter_context(closing(self._spool()))
                    load = partial(feed.load, journal=journal, spool=spool, thread=thread)
                    feed.opened(self._stored(), counts[RowState.SUBMITTED], scheduler.window)
                engine = Engine(
                    scheduler,
                    journal,
                    client,
                    Tally(self.store.counts(share), self._clock(), price_per_hour=options.guards.price_per_hour),
                    observer,
                    timeline=timeline,
                    thread=thread,
                    load=load,
                    inspect_output=options.inspect_output,
                    clock=self._clock,
                    wall=self._wall,
                )
                fleet.add(endpoint, engine)
            outcome = await fleet.run(cancel=cancel)
            if feed is not None and spool is not None:
                try:
                    await feed.settle(spool, thread)
                    note_growth(self.store)
                except StoppedError as error:
                    return Outcome("stopped", outcome.error or error)
            return outcome

    def _stored(self) -> StoredRecords:
        (output,) = self.store.outputs()
        return StoredRecords(
            self.store,
            (results_path(self.store, output), output.committed_bytes),
            sources=self._sources,
            reader=self._reader,
            sweep=Sweep(self.options.sweep),
            endpoint=self.options.endpoint,
        )

    def _share(self, index: int) -> Share:
        """The rows of one of the endpoints."""
        return Share(index, len(self.options.endpoints), Sweep(self.options.sweep).endpoint_stride)

    def _scheduler(self, share: Share, numbers: Iterator[int], rng: Random) -> Scheduler:
        """A scheduler for the rows of an endpoint; of what the run may cost, and has cost, each has an equal part."""
        options, store = self.options, self.store
        # A look at every job, which only a budget needs.
        execution = store.execution() if options.guards.max_cost is not None else Execution(0, 0, 0)
        max_cost = None if options.guards.max_cost is None else options.guards.max_cost / share.count
        scheduler = Scheduler(
            options.scheduler,
            rng,
            numbers=numbers,
            guards=replace(options.guards, max_cost=max_cost),
            life_s=(options.policy.ttl_s or DEFAULT_TTL_S) + TTL_GRACE_S,
            meter=WorkerMeter(WorkerTime.from_counters(store.counters(), share=1 / share.count)),
            jobs_ended=(execution.jobs // share.count, execution.total_ms / 1000 / share.count),
        )
        now, now_ms = self._clock(), self._now_ms()
        recent_ms = store.recent_submissions_ms(now_ms - round(WINDOW_S * 1000), share)
        scheduler.remember_submissions(now - (now_ms - at_ms) / 1000 for at_ms in recent_ms)
        return scheduler

    def _journal(self, endpoint: str, share: Share, deliver: Callable[[list[bytes]], None] | None = None) -> Journal:
        return Journal(
            self.store,
            self._session,
            self.options,
            sources=self._sources,
            reader=self._reader,
            results=self._results,
            endpoint=endpoint,
            share=share,
            followers=self._followers() if self.options.dedupe else None,
            deliver=deliver,
        )

    def _followers(self) -> Followers:
        return Followers(
            self.store,
            sources=self._sources,
            reader=self._reader,
            sweep=Sweep(self.options.sweep),
            results=self._results,
            request=self.options.request if self.options.format == "openai" else None,
        )

    def _settle_followers(self) -> None:
        """Give rows the answer that an equal one has got in an earlier session."""
        count = self._followers().settle(self._session, self._now_ms())
        if count:
            self._observer.message(f"{count:,} rows get the answer that another has got to the same request")

    def conclude(self, outcome: Outcome) -> Summary:
        """Write error files and manifest, close the session, and sum up; see `Conclusion.conclude`."""
        conclusion = Conclusion(
            self.options,
            self.store,
            self._session,
            self._clock() - self._session_from,
            sources=self._sources,
            reader=self._reader,
        )
        return conclusion.conclude(outcome, self._wall())

    def _now_ms(self) -> int:
        return round(self._wall() * 1000)


def refuse_other_options(store: Store, options: RunOptions) -> None:
    """Refuse to go on with a state file under options that ask for something else.

    Raises:
        StateError: names each option that differs, with both values.
    """
    stored = store.get_setting("options")
    if not isinstance(stored, dict):
        return
    now = options.to_json()
    pairs = [(option, stored.get(key), now[key]) for key, option in _IDENTITY.items()]
    swept = [str(Sweep(SweepOptions.from_json(data.get("sweep", {})))) or None for data in (stored, now)]
    pairs.append(("--sweep", swept[0], swept[1]))
    pairs.append(("--dedupe", stored.get("dedupe", False), now["dedupe"]))
    if options.format != "auto":
        pairs.append(("--format", stored.get("format", "batchrun"), options.format))
    pairs += [(option, stored["request"][key], now["request"][key]) for key, option in _REQUEST_IDENTITY.items()]
    differing = [
        f"{option} {_shown(was)} (now {_shown(is_now)})"
        for option, was, is_now in pairs
        if was != is_now and not (option == "--base-url" and options.is_local)
    ]
    if differing:
        raise StateError(
            f"{options.state} belongs to a run with {', '.join(differing)}",
            "go on with the same options, or start a new run with another --output",
        )


def _shown(value: Any) -> str:
    """An option's value as it would be given on the command line."""
    if isinstance(value, dict):
        return " ".join(f"{key}={item}" for key, item in value.items()) or "nothing"
    return "nothing" if value in (None, False) else "" if value is True else str(value)


def _refuse_no_file(state: Path) -> None:
    if state.is_dir():
        raise StateError(f"{state} is a folder, not a state file", "give --state a file name")
    if state.exists() and not state.is_file():
        raise StateError(f"{state} is a device or a pipe, not a state file", "give --state a file name")


def _refuse_strange_results(options: RunOptions, sources: Sequence[Source], *, keeps_requests: bool) -> None:
    """Results without a run in their state file may be anybody's: they are never written to."""
    kept = [requests_path(options.state)] if keeps_requests else []
    for path in [*output_paths(options, sources), *kept]:
        if path.exists() and path.stat().st_size:
            raise StateError(
                f"{path} exists, but its state file {options.state} does not, or holds no run",
                "move the results away, or give another --output",
            )


def _refuse_unspeakable_names(options: RunOptions, sources: Sequence[Source]) -> None:
    """Results, errors and the state name their files, and neither JSON nor SQLite can name these."""
    for path in (options.output, options.state, *(Path(source.path) for source in sources)):
        name = str(path.absolute())
        try:
            name.encode()
        except UnicodeEncodeError as error:
            shown = os.fsencode(name).decode("utf-8", "backslashreplace")
            raise UsageError(f"{shown}: the name is not valid UTF-8", "rename it, or make a link to it") from error


def _have_file(requests: Path, state: Path, *, is_new: bool) -> None:
    """Make the file of a new run's requests; see that an earlier one has it.

    Raises:
        StateError: it has not.
        OutputError: it cannot be made.
    """
    if is_new:
        with writing(requests):
            requests.touch()
    elif not requests.exists():
        raise StateError(
            f"{state} belongs to a run whose requests are not in {requests}",
            "give another state file; or put the requests back, if they were there",
        )


def _remove_state(state: Path) -> None:
    spooled = state.parent.glob(f"{state.name}.*.jsonl")
    for path in (state, *(state.with_name(state.name + suffix) for suffix in ("-wal", "-shm")), *spooled):
        # In a folder that has become read-only what is wrong with the run is still to be told.
        with suppress(OSError):
            path.unlink()
