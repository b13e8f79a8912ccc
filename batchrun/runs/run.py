"""A run from its options to its summary: opens what it needs, recovers, drives, concludes.

The order of opening is the order of safety: the lock, the state file, the check that the options fit it, the
inputs, then the results files and what a crash has left in them. Nothing is sent before all of that is well.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, closing, suppress
from dataclasses import replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from random import Random
from typing import Self

from batchrun.config import DEFAULT_TTL_S, TTL_GRACE_S, WINDOW_S, RunOptions
from batchrun.display.summary import Observer, Summary
from batchrun.display.timeline import Timeline
from batchrun.endpoint.client import EndpointClient
from batchrun.endpoint.memory import MemoryBudget
from batchrun.engine.dedupe import Followers
from batchrun.engine.driver import Engine, Outcome
from batchrun.engine.fleet import Fleet
from batchrun.engine.journal import Journal
from batchrun.engine.signals import Leaving
from batchrun.engine.streamed import Streamed
from batchrun.engine.tally import Tally
from batchrun.errors import InputError, StoppedError
from batchrun.files.folders import remove_empty
from batchrun.prompts.lines import LineReader
from batchrun.prompts.sources import Source, SourceKind, find_sources
from batchrun.prompts.sweep import Sweep
from batchrun.results.writer import ResultsFile, ResultsFiles
from batchrun.runs.checks import (
    have_requests,
    new_place,
    refuse_foreign_files,
    refuse_other_options,
    refuse_shared_files,
    refuse_strange_requests,
    refuse_unspeakable_names,
)
from batchrun.runs.conclusion import Conclusion, results_path
from batchrun.runs.consent import ALL, Consent, Named
from batchrun.runs.feed import Feed, Spool, StoredRecords
from batchrun.runs.intake import note_growth, requests_path, result_format, take_in
from batchrun.runs.recovery import recover_results, refuse_strange_lines
from batchrun.runs.repair import by_old_name, is_under_way, repair_results, take_new_name
from batchrun.scheduler.budget import WorkerMeter, WorkerTime
from batchrun.scheduler.connections import MOST as MOST_LANES
from batchrun.scheduler.scheduler import Scheduler
from batchrun.scheduler.states import RowState
from batchrun.state.lock import CANCEL, StateLock, identity
from batchrun.state.opening import refuse_without_log, without_lost_log
from batchrun.state.records import Execution, Share
from batchrun.state.schema import holds_run
from batchrun.state.store import Store
from batchrun.state.stored_options import keep_options

_REQUESTS_AT_ONCE = 1000


class Run:
    """A run that is open in this process: its lock, its state, its files.

    Args:
        options: What was asked for.
        observer: Told what a person should know.
        clock: Monotonic seconds.
        wall: UTC epoch seconds.
        api_key: Sent with each request; None: none is.
        said: What of the options the command itself names; the rest is believed only with a proof in the state file.
        from_spool: Whether stdin is to be taken from its spooled copy.
        as_is: Whether to take the rows as they are, without a look at the inputs: for a run that submits nothing.
        requests: Lines to be added to the requests that are kept beside the state file, which are the only input then;
            None: the inputs are files.
        repair: Whether to get lost or damaged results again, and to rebuild a lost state file.

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
        api_key: str | None = None,
        said: Named = ALL,
        from_spool: bool = False,
        as_is: bool = False,
        requests: Iterable[bytes] | None = None,
        repair: bool = False,
    ) -> None:
        self.options = options
        self._observer = observer
        self._clock = clock
        self._wall = wall
        self._api_key = api_key
        self._said = said
        self._stack = ExitStack()
        self._session = 0
        self._session_from = clock()
        try:
            self._open(from_spool=from_spool, as_is=as_is, requests=requests, repair=repair)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open(self, *, from_spool: bool, as_is: bool, requests: Iterable[bytes] | None, repair: bool) -> None:
        options, stack = self.options, self._stack
        sources = self._find_sources(from_spool=from_spool, as_is=as_is, keeps_requests=requests is not None)
        refuse_unspeakable_names(options, sources)
        refuse_shared_files(options, sources)
        existed = options.state.exists()
        has_lost_log = repair and stack.enter_context(without_lost_log(options.state, lambda: self._session > 0))
        refuse_without_log(options.state)
        private = any(source.is_private for source in sources)
        self._take_lock(private=private)
        is_new = not holds_run(options.state, self._observer.message)
        consent = Consent(options, self._api_key, self._said)
        if is_new:
            refuse_foreign_files(options, sources, None, repair=repair)
            refuse_strange_requests(options.state, keeps_requests=requests is not None and not repair)
            is_changed = False
        else:
            is_changed = _refuse_other_run(options, sources, self._observer, consent, repair=repair)
        with ExitStack() as undo:
            if is_new and not existed:
                undo.callback(_remove_state, options.state)
            self.store = Store(options.state, tell=self._observer.message)
            undo.callback(self.store.close)
            if is_changed:
                self._observer.message("nothing was submitted yet: the run begins anew with the options given now")
                self.store.start_over()
            if repair and not is_new:
                take_new_name(self.store, options)
            if requests is not None:
                kept = requests_path(options.state)
                if not kept.exists():
                    undo.callback(kept.unlink, missing_ok=True)
                have_requests(kept, options.state, is_new=is_new)
            merged = None if as_is else take_in(options, sources, self.store, self._observer, resumed=from_spool)
            if merged and not merged.rows and options.shard is None and requests is None:
                raise InputError("there is no line in the input", f"looked at {', '.join(options.inputs)}")
            options = self.options = replace(options, format=result_format(self.store, options))
            if not as_is:
                keep_options(self.store, options)
                consent.keep(self.store, sources, are_read=merged is not None)
                self.store.set_setting("folder", str(options.state.absolute().parent))
            if requests is not None:
                self._add(iter(requests))
            undo.pop_all()
        stack.callback(self.store.close)
        if merged and not is_new and (merged.added or merged.dropped):
            self._observer.message(f"the input has changed: {merged.added} rows new, {merged.dropped} gone")
        self._session = self.store.begin_session(os.getpid(), self._now_ms(), identity())
        self._recover(repair=repair, is_rebuilt=is_new or has_lost_log)
        self._open_files(missing_ok=as_is, private=private)

    def _take_lock(self, *, private: bool) -> None:
        folder = self.options.state.parent
        if not folder.exists():
            self._stack.callback(remove_empty, folder)
        self._lock = StateLock(self.options.state, private=private)
        self._stack.callback(self._lock.release)

    def _open_files(self, *, missing_ok: bool, private: bool) -> None:
        stack = self._stack
        self._sources = {source.source: source for source in self.store.sources()}
        files = {number: Path(source.file) for number, source in self._sources.items()}
        self._reader = stack.enter_context(LineReader(files, missing_ok=missing_ok, reading=self.store.reading))
        for path in self._reader.missing:
            self._observer.message(f"{path} is gone: results that are collected now do not carry its lines' own fields")
        self._results = ResultsFiles()
        stack.callback(self._results.close)
        for output in self.store.outputs():
            path = results_path(self.store, output)
            self._results.add(output.output, ResultsFile(path, output.committed_bytes, private=private))

    def _find_sources(self, *, from_spool: bool, as_is: bool, keeps_requests: bool) -> tuple[Source, ...]:
        options = self.options
        if keeps_requests:
            return (Source(str(requests_path(options.state)), SourceKind.FILE),)
        if as_is:
            return ()
        copied: set[str] = set()
        if from_spool:
            with Store(options.state, read_only=True) as store:
                copied = {source.origin for source in store.sources() if source.file != source.origin}
        results = None if options.output_is_folder else options.output
        tell = self._observer.message
        try:
            return find_sources(options.inputs, copied=copied, resumed=from_spool, results=results, tell=tell)
        except InputError as error:
            if from_spool and isinstance(error.__cause__, FileNotFoundError):
                raise InputError(error.message, f"put it there, or say where it is: {new_place(options)}") from error
            raise

    def _recover(self, *, repair: bool, is_rebuilt: bool) -> None:
        """Make the results files and the state agree, as far as that is free; with `repair`, at any price."""
        if repair and is_rebuilt:
            self._observer.message(
                f"{self.options.state} is rebuilt: rows without a result are submitted, those that failed too,"
                " and those that were in flight may be paid for twice"
            )
        if repair or is_under_way(self.store):
            repair_results(self.store, self.options, self._now_ms(), self._observer)
        else:
            recover_results(self.store, self._session, self._now_ms(), observer=self._observer)

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
        rng: Random,
        *,
        cancel: bool = False,
        feed: Feed | None = None,
        leaving: Leaving | None = None,
    ) -> Outcome:
        """Submit, poll and collect until the run ends or is stopped; or cancel what is in flight.

        Args:
            base_url: Jobs go to `<base_url>/<endpoint>/run`.
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
        fleet = Fleet(
            self._observer,
            timeline,
            options.guards.on_interrupt,
            self._wall,
            leaving=leaving,
            is_cancelled=partial(self._lock.is_requested, CANCEL),
        )
        async with AsyncExitStack() as stack:
            thread = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="journal"))
            first_job = self.store.next_job()
            spool = load = None
            memory = MemoryBudget(options.memory_bytes)
            for index, endpoint in enumerate(options.endpoints):
                client = EndpointClient(
                    base_url,
                    endpoint,
                    self._api_key,
                    connections=options.scheduler.connections or MOST_LANES,
                    timeout_s=options.timeout_s,
                    memory=memory,
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
                    streamed=Streamed(client, options.scheduler.limits.status, rng, self._clock),
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
            sweep=Sweep(self.options.sweep, self.store.reading),
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
        scheduler.remember_submissions(now - max(now_ms - at_ms, 0) / 1000 for at_ms in recent_ms)
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
            sweep=Sweep(self.options.sweep, self.store.reading),
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


def _refuse_other_run(
    options: RunOptions, sources: Sequence[Source], observer: Observer, consent: Consent, *, repair: bool
) -> bool:
    """Refuse a state file of another run, or of another time. A connection that may write would change it even so.

    Returns:
        Whether it asks for something else, and nothing was submitted: it is then to start over.
    """
    with Store(options.state, read_only=True, tell=observer.message) as store:
        is_changed = refuse_other_options(store, by_old_name(store, options) if repair else options)
        consent.refuse_unsaid(store, sources)
        refuse_foreign_files(options, sources, None if is_changed else store, repair=repair)
        if not repair and not is_under_way(store):
            refuse_strange_lines(store)
    return is_changed


def _remove_state(state: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        # In a folder that has become read-only what is wrong with the run is still to be told.
        with suppress(OSError):
            state.with_name(state.name + suffix).unlink()
