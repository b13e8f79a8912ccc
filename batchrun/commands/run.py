"""`batchrun run` and `batchrun resume`: one session of a run, until it ends or is interrupted."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from batchrun.commands.event_loop import in_loop
from batchrun.commands.local_endpoint import as_before, keep_worker, local_worker, serving
from batchrun.commands.notify import notifying, refuse_bad_urls
from batchrun.commands.session_arguments import SessionArguments
from batchrun.commands.session_options import refuse_wrong_prices
from batchrun.config import RunOptions
from batchrun.display.summary import Observer, Summary
from batchrun.endpoint.credentials import find_key
from batchrun.endpoint.preflight import refuse_unknown_endpoints
from batchrun.engine.clock import WallClock, steady_s
from batchrun.engine.driver import Outcome
from batchrun.engine.signals import Leaving, cancellable
from batchrun.errors import UsageError
from batchrun.local.workers import Worker
from batchrun.runs.channel import RunSide
from batchrun.runs.closing import conclude
from batchrun.runs.driving import drive, drive_requests
from batchrun.runs.opening import OpenRun, open_on_requests, open_run
from batchrun.runs.pools import new_endpoints
from batchrun.runs.superseding import Redo
from batchrun.runs.trust import EVERYTHING, GivenByCommand
from batchrun.scheduler.failures import FailureKind
from batchrun.state.cache_file import refuse_unusable_cache


def run(
    options: RunOptions,
    given: SessionArguments,
    *,
    observer: Observer,
    api_key: str | None = None,
    resumed: bool = False,
    confirmed: GivenByCommand = EVERYTHING,
    requests: Iterable[bytes] | None = None,
    channel: RunSide | None = None,
    leaving: Leaving | None = None,
    redo: Redo | None = None,
    pilot: int | None = None,
) -> Summary:
    """Start or resume a run.

    Args:
        options: The options of the run.
        given: The options of this session.
        observer: Receives messages and progress for the user.
        api_key: None: it is looked up, see `find_key`.
        resumed: Whether the options come from the state file. Then stdin is read from its copy, and the state file must
            prove that the user chose its base URL, and its files outside its folder.
        confirmed: Which options the command itself gives.
        requests: Input lines from a calling program; None: the inputs are files.
        channel: Where further requests of the program come from; None: there are none.
        leaving: Lets other threads ask the session to leave; None: none will.
        redo: Rows to run again although they have ended; None: none.
        pilot: Run only this many random rows, including those of earlier pilots; None: all.

    Raises:
        BatchrunError: nothing was sent, or batchrun has a defect. If a run stops early, the summary says so instead.
    """
    _refuse_wrong_options(options, given)
    options, key = replace(options, abandon=given.abandon), find_key(options, api_key)
    local = as_before(given, options.state) if options.is_local else given
    worker = local_worker(local, observer) if options.is_local else None
    if new := new_endpoints(options):
        in_loop(refuse_unknown_endpoints(options, new, key))
    leaving, wall = leaving or Leaving(), WallClock(steady_s, time.time)
    open_it = partial(open_run, given=confirmed, resumed=resumed, redo=redo)
    if requests is not None:
        open_it = partial(open_on_requests, requests=requests)
    with (
        cancellable(leaving),
        notifying(given.notify, options.state, observer, key) as summaries,
        open_it(options, observer, clock=steady_s, wall=wall, api_key=key, repair=given.repair) as opened,
    ):
        if worker is not None:
            keep_worker(local, worker, opened.store)
        _retry_failed(opened, given)
        rng, work = random.Random(), partial(drive, opened, pilot=pilot)  # noqa: S311 - jitter, not a secret
        if channel is not None:
            work = partial(drive_requests, opened, channel=channel)
        if worker is not None and not opened.has_work and channel is None:
            outcome = Outcome("finished")  # without loading the model, which takes seconds
        else:
            outcome = in_loop(_drive(partial(work, leaving=leaving), options.base_url, worker, rng))
        summaries.append(conclude(opened, outcome))
    return summaries[0]


def _retry_failed(opened: OpenRun, given: SessionArguments) -> None:
    if given.retry_failed:
        opened.observer.message(f"failed rows to run again: {opened.store.retry_failed(given.only):,}")


async def _drive(
    work: Callable[[str, random.Random], Awaitable[Outcome]], base_url: str, worker: Worker | None, rng: random.Random
) -> Outcome:
    if worker is None:
        return await work(base_url, rng)
    async with serving(worker) as local_url:
        return await work(local_url, rng)


def _refuse_wrong_options(options: RunOptions, given: SessionArguments) -> None:
    refuse_bad_urls(options, given.notify)
    refuse_wrong_prices(options.guards, options.endpoints)
    if options.answers.cache is not None:
        refuse_unusable_cache(Path(options.answers.cache))
    if given.only and not given.retry_failed:
        raise UsageError("--only needs --retry-failed", "add --retry-failed, or remove --only")
    refuse_unknown_kinds(given.only)


def refuse_unknown_kinds(kinds: Iterable[str]) -> None:
    """Refuse words of --only that are not kinds of failure.

    Raises:
        UsageError: there is no such kind.
    """
    unknown = [kind for kind in kinds if kind not in set(FailureKind)]
    if unknown:
        raise UsageError(f"--only {unknown[0]}: unknown kind of failure", f"the kinds are {', '.join(FailureKind)}")
