"""Drives an open run, with one engine for each endpoint, until every row has ended or something stops the run."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from batchrun.engine.driver import Outcome
from batchrun.engine.signals import Leaving
from batchrun.errors import StoppedError
from batchrun.runs.channel import RunSide
from batchrun.runs.engines import open_engines, shared_answers
from batchrun.runs.intake import note_growth
from batchrun.runs.opening import OpenRun
from batchrun.scheduler.states import RowState
from batchrun.state.pilot import count_pending, draw_pilot, note_workers

_LEFT_OVER = ("rows are left that no endpoint took", "resume the run: they are submitted then")


async def drive(
    run: OpenRun, base_url: str, rng: Random, *, leaving: Leaving | None = None, pilot: int | None = None
) -> Outcome:
    """Submit, poll and collect until the run ends or is stopped.

    Args:
        run: The run.
        base_url: Jobs are submitted to `<base_url>/<endpoint>/run`.
        rng: Source of jitter, and of the rows of the pilot.
        leaving: Lets other threads ask the session to leave; None: none will.
        pilot: Submit only this many random rows, including those of earlier pilots; None: all.
    """
    _settle(run)
    if not run.has_work:
        return Outcome("finished")
    chosen = None if pilot is None else draw_pilot(run.store, pilot, rng)
    async with open_engines(run, base_url, rng, leaving, chosen) as engines:
        try:
            await engines.check_packing()
        except StoppedError as error:
            return Outcome("stopped", error)
        for index in range(len(run.options.endpoints)):
            await engines.add(index)
        outcome = await engines.fleet.run()
        engines.tell_if_none_shares()
        if chosen is not None:
            note_workers(run.store, await engines.workers())
    if outcome.kind == "stopped" and run.options.pool:
        is_done = not run.has_work if chosen is None else not count_pending(run.store, chosen)
        outcome = Outcome("finished") if is_done else outcome  # another endpoint has done what was left
    if outcome.kind != "finished" or not run.has_work:
        return outcome
    return Outcome("pilot") if chosen is not None else Outcome("stopped", StoppedError(*_LEFT_OVER))


async def drive_requests(
    run: OpenRun, base_url: str, rng: Random, channel: RunSide, *, leaving: Leaving | None = None
) -> Outcome:
    """Drive a run on one endpoint, while a program supplies requests.

    Args:
        run: The run, opened on the requests of a program.
        base_url: Jobs are submitted to `<base_url>/<endpoint>/run`.
        rng: Source of jitter.
        channel: Supplies the requests, and receives the records.
        leaving: Lets other threads ask the session to leave; None: none will.
    """
    _settle(run)
    async with open_engines(run, base_url, rng, leaving) as engines:
        await engines.add(0, channel)
        outcome = await engines.fleet.run()
        try:
            await channel.settle()
            note_growth(run.store)
        except StoppedError as error:
            return Outcome("stopped", outcome.error or error)
        return outcome


async def cancel_jobs(run: OpenRun, base_url: str, rng: Random, *, leaving: Leaving | None = None) -> Outcome:
    """Cancel the jobs in flight, and submit nothing.

    Args:
        run: The run.
        base_url: Jobs are at `<base_url>/<endpoint>`.
        rng: Source of jitter.
        leaving: Lets other threads ask the session to leave; None: none will.
    """
    _settle_unconfirmed(run)
    if not run.store.counts()[RowState.SUBMITTED]:
        return Outcome("cancelled")
    answers = replace(run.options.answers, cache=None)  # its errors must not leave jobs running
    run = replace(run, options=replace(run.options, answers=answers))
    async with open_engines(run, base_url, rng, leaving) as engines:
        for index in range(len(run.options.endpoints)):
            await engines.add(index)
        return await engines.fleet.run(cancel=True)


def _settle(run: OpenRun) -> None:
    """Decide what happens to rows that earlier sessions have left undecided."""
    _settle_unconfirmed(run)
    if run.options.dedupe:
        answered = shared_answers(run).settle(run.session, run.now_ms())
        if answered:
            run.observer.message(f"rows that get the answer to an equal request of another row: {answered:,}")


def _settle_unconfirmed(run: OpenRun) -> None:
    policy = run.options.scheduler.unconfirmed
    unconfirmed = run.store.settle_unconfirmed(policy)
    if unconfirmed:
        fate = "submitted again" if policy == "resubmit" else "held"
        run.observer.message(f"unconfirmed submissions (interrupted before their answer): {unconfirmed}; {fate}")
