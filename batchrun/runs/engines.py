"""Makes the engines of a run, one for each endpoint, and what they share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import replace
from functools import partial
from itertools import count
from random import Random
from typing import Any, TypeVar

from batchrun.config import DEFAULT_TTL_S, TTL_GRACE_S, WINDOW_S
from batchrun.endpoint.client import EndpointClient
from batchrun.endpoint.memory import MemoryBudget
from batchrun.endpoint.packing import Packing
from batchrun.endpoint.protocol import JobAnswer
from batchrun.engine.answers import Answers
from batchrun.engine.cached import CachedLoads
from batchrun.engine.counts import SessionCounts
from batchrun.engine.dedupe import SharedAnswers
from batchrun.engine.driver import Engine
from batchrun.engine.fleet import Fleet
from batchrun.engine.journal import Journal
from batchrun.engine.orders import Orders
from batchrun.engine.published_status import PublishedStatus
from batchrun.engine.row_queue import Loaded, RowQueue
from batchrun.engine.rules import Rules
from batchrun.engine.signals import Leaving
from batchrun.engine.streamed import Streamed
from batchrun.errors import CallError
from batchrun.prompts.sweep import Sweep
from batchrun.results.record import CACHED
from batchrun.runs.caching import open_cache
from batchrun.runs.channel import RunSide, StoredRecords
from batchrun.runs.opening import OpenRun
from batchrun.runs.pack_check import NONE_SHARES, can_share_jobs, candidates, rows_per_job
from batchrun.runs.requests import RowAppender
from batchrun.scheduler.budget import WorkerMeter, WorkerTime
from batchrun.scheduler.connections import MOST as MOST_CONNECTIONS
from batchrun.scheduler.pool import Pool
from batchrun.scheduler.scheduler import Scheduler
from batchrun.scheduler.states import RowState
from batchrun.scheduler.window import MOST as MOST_JOBS
from batchrun.state.figures import execution
from batchrun.state.records import Execution, Share

T = TypeVar("T")


def shared_answers(run: OpenRun) -> SharedAnswers:
    """Gives rows the answers to the same requests of other rows of the run."""
    return SharedAnswers(run.store, run.lines, run.results)


@asynccontextmanager
async def open_engines(
    run: OpenRun, base_url: str, rng: Random, leaving: Leaving | None, chosen: Sequence[int] | None = None
) -> AsyncIterator[Engines]:
    """Open what the engines of a run share, and close it at the end; see `Engines`."""
    async with AsyncExitStack() as stack:
        yield Engines(run, base_url, rng, leaving, stack, chosen=chosen)


class Engines:
    """Makes the engines of a run. They share the journal's thread, the memory for answers, and the job numbers.

    Args:
        run: The run.
        base_url: Jobs are submitted to `<base_url>/<endpoint>/run`.
        rng: Source of jitter.
        leaving: Lets other threads ask the session to leave; None if no thread does.
        stack: Closes the resources of the engines.
        chosen: The only rows that are submitted; None: all.
    """

    def __init__(
        self,
        run: OpenRun,
        base_url: str,
        rng: Random,
        leaving: Leaving | None,
        stack: AsyncExitStack,
        *,
        chosen: Sequence[int] | None = None,
    ) -> None:
        self._run = run
        self._base_url = base_url
        self._rng = rng
        self._stack = stack
        self._published = PublishedStatus(run.store.get_setting("timeline"), run.session, run.wall)
        self._chosen = chosen
        self._thread = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="journal"))
        self.fleet = Fleet(
            run.observer,
            self._published,
            run.options.guards.on_interrupt,
            leaving=leaving,
            orders=Orders(run.lock, run.store, run.options.guards.on_interrupt, thread=self._thread, now_ms=run.now_ms),
        )
        self._job_numbers = count(run.store.next_job())
        self._counters = run.store.counters()
        self._memory = MemoryBudget(run.options.memory_bytes)
        self._transport = self._packing(rows_per_job(run.options, run.store.count_rows))
        self._checked_for_s = 0.0
        """How long the check of packing took, which is subtracted from the time until the deadline."""
        self._numbers = {name: number for number, name in enumerate(run.lines.endpoints)}
        self._pool: Pool | None = None
        self._queue: RowQueue | None = None
        if run.options.pool:
            self._pool = Pool(
                run.options.guards,
                ready=run.options.scheduler.concurrency or MOST_JOBS,
                mixed=run.options.mixed,
                rows_per_job=self._transport.rows_per_job,
            )
            self._queue = RowQueue(run.store, run.lines, Share(is_pool=True), chosen)
        self._cached = open_cache(run)
        if self._cached is not None:
            stack.push_async_callback(self._cached.close)
        self._rules = Rules.of(run.options)
        if self._rules is not None:
            stack.callback(self._rules.close)

    def _packing(self, rows: int) -> Packing:
        return Packing(self._run.options.policy, rows, f"batchrun-{self._run.store.token}")

    async def check_packing(self) -> None:
        """Check that rows get the same answers together as alone, unless an earlier session has.

        Raises:
            StoppedError: they do not.
        """
        run, began = self._run, self._run.clock()
        find = partial(self._in_thread, candidates, run.store, run.lines, self._transport, self._cached)
        endpoints = run.options.endpoints if self._pool is not None else run.options.endpoints[:1]
        can_pack = await can_share_jobs(run, self._transport, endpoints, self._client, find)
        self._checked_for_s = run.clock() - began
        if not can_pack:
            self._transport = self._packing(1)
            if self._pool is not None:
                self._pool.rows_per_job = 1

    async def workers(self) -> dict[str, int]:
        """The number of workers of each endpoint now, as far as it is known."""
        found = {}
        for endpoint in self._run.options.endpoints:
            async with self._client(endpoint) as client:
                with suppress(CallError):
                    found[endpoint] = (await client.health()).workers
        return found

    def tell_if_none_shares(self) -> None:
        """Tell the user that no row could share a job; otherwise the check does so."""
        transport = self._transport
        is_unchecked = self._run.options.scheduler.pack_check == "off" and self._run.store.count_rows() > 1
        if is_unchecked and transport.rows_per_job > 1 and not transport.has_alike:
            self._run.observer.message(f"--pack: {NONE_SHARES}")

    async def add(self, index: int, channel: RunSide | None = None) -> None:
        """Add the engine for one of the run's endpoints.

        Args:
            index: Index of the endpoint.
            channel: Supplies further rows; None: all rows are in the state.
        """
        endpoint = self._run.options.endpoints[index]
        self.fleet.add(endpoint, await self._engine_for(endpoint, index, channel))

    async def _engine_for(self, endpoint: str, index: int, channel: RunSide | None) -> Engine:
        run, options = self._run, self._run.options
        client = await self._stack.enter_async_context(self._client(endpoint))
        share = Share(
            index,
            len(options.endpoints),
            Sweep(options.sweep).endpoint_stride,
            endpoint=self._numbers[endpoint],
            is_pool=self._pool is not None,
        )
        scheduler = self._scheduler(share, endpoint)
        journal = self._journal(share, None if channel is None else channel.deliver)
        answers = self._answers(client, journal)
        load: Callable[[int], Awaitable[Loaded]] = partial(self._in_thread, journal.load)
        if channel is not None:
            self._open(channel, scheduler, journal)
            load = channel.load
        if self._cached is not None:
            load = CachedLoads(load, answers)
        return Engine(
            scheduler,
            journal,
            client,
            SessionCounts(
                self._counts(share),
                run.clock(),
                cached=0 if index else self._counters.get(CACHED, 0),
                price_per_hour=options.guards.price_of(endpoint),
            ),
            self.fleet.observer_of(endpoint, alone=len(options.endpoints) == 1),
            answers=answers,
            published=self._published,
            thread=self._thread,
            load=load,
            clock=run.clock,
            wall=run.wall,
        )

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def _counts(self, share: Share) -> dict[RowState, int]:
        """The rows of an endpoint; those of a pool count at its first endpoint."""
        return dict.fromkeys(RowState, 0) if share.is_pool and share.index else self._run.store.counts(share)

    def _answers(self, client: EndpointClient, journal: Journal) -> Answers:
        options = self._run.options

        async def draft(row: int, answer: JobAnswer) -> bytes:
            return await self._in_thread(journal.draft, row, answer)

        async def asked(row: int) -> str:
            return await self._in_thread(journal.asked, row)

        return Answers(
            client,
            self._transport,
            Streamed(client, options.scheduler.limits.status, self._rng, self._run.clock),
            inspect_output=options.inspect_output,
            rules=self._rules,
            draft=draft,
            asked=asked,
        )

    def _client(self, endpoint: str) -> EndpointClient:
        options = self._run.options
        return EndpointClient(
            self._base_url,
            endpoint,
            self._run.api_key,
            connections=options.scheduler.connections or MOST_CONNECTIONS,
            timeout_s=options.timeout_s,
            memory=self._memory,
            use_proxy=not options.is_local,
        )

    def _scheduler(self, share: Share, endpoint: str) -> Scheduler:
        """A scheduler for the rows of an endpoint.

        A pool has one budget. That of a sweep and its cost so far are divided equally between the endpoints.
        """
        run, options, store = self._run, self._run.options, self._run.store
        number, parts = (share.endpoint, 1) if share.is_pool else (0, share.count)
        max_cost, worked = options.guards.max_cost, Execution(0, 0, 0)
        if options.guards.have_price:
            # This reads every job. Only a budget needs it, which may also be set during the run.
            worked = execution(store, number if share.is_pool else None)
        if max_cost is not None:
            max_cost /= parts
        scheduler = Scheduler(
            options.scheduler,
            self._rng,
            numbers=self._job_numbers,
            guards=replace(
                options.guards,
                max_cost=max_cost,
                price_per_hour=options.guards.price_of(endpoint),
            ),
            life_s=(options.policy.ttl_s or DEFAULT_TTL_S) + TTL_GRACE_S,
            meter=WorkerMeter(WorkerTime.from_counters(self._counters, number, share=1 / parts), number),
            jobs_ended=(worked.jobs // parts, worked.total_ms / 1000 / parts),
            rows_per_job=self._transport.rows_per_job,
            member=None if self._pool is None else self._pool.join(endpoint, share.endpoint),
        )
        scheduler.deadline.spent_s = self._checked_for_s
        now, now_ms = run.clock(), run.now_ms()
        recent_ms = store.recent_submissions_ms(now_ms - round(WINDOW_S * 1000), share)
        scheduler.remember_submissions(now - max(now_ms - at_ms, 0) / 1000 for at_ms in recent_ms)
        return scheduler

    def _journal(self, share: Share, deliver: Callable[[list[bytes]], None] | None) -> Journal:
        run = self._run
        return Journal(
            run.store,
            run.session,
            run.lines,
            run.results,
            self._transport,
            share=share,
            queue=self._queue or RowQueue(run.store, run.lines, share, self._chosen),
            cached=self._cached,
            shared_answers=shared_answers(run) if run.options.dedupe else None,
            deliver=deliver,
        )

    def _open(self, channel: RunSide, scheduler: Scheduler, journal: Journal) -> None:
        """Open the channel for requests."""
        store = self._run.store
        (output,) = store.outputs()
        channel.open(
            StoredRecords(store, (store.results_path(output), output.committed_bytes), self._run.lines),
            store.counts()[RowState.SUBMITTED],
            scheduler.window,
            rows_per_job=self._transport.rows_per_job,
            journal=journal,
            appender=self._stack.enter_context(closing(RowAppender(store))),
            thread=self._thread,
        )
