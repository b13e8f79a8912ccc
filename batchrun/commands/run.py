"""`batchrun run` and `batchrun resume`: one session of a run, up to its end or its interruption."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

from batchrun.commands.arguments import SessionArguments
from batchrun.commands.event_loop import in_loop
from batchrun.commands.local_endpoint import local_worker, serving
from batchrun.commands.notify import refuse_bad_urls, telling
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
from batchrun.runs.opening import open_on_requests, open_run
from batchrun.runs.trust import Named
from batchrun.scheduler.failures import FailureKind


def run(
    options: RunOptions,
    given: SessionArguments,
    *,
    observer: Observer,
    api_key: str | None = None,
    resumed: bool = False,
    confirmed_url: bool = False,
    requests: Iterable[bytes] | None = None,
    channel: RunSide | None = None,
    leaving: Leaving | None = None,
) -> Summary:
    """Start or resume a run.

    Args:
        options: What is asked for.
        given: What is asked of this session.
        observer: Told what a person should know.
        api_key: None: it is looked for, see `find_api_key`.
        resumed: Whether the options are those of the state file: stdin is then taken from its copy, and the key and
            files of elsewhere go only where the state file proves that its user has said so.
        confirmed_url: Whether a resumed run's base URL has been given now.
        requests: The input, as lines, of a run that a program gives its requests; None: the inputs are files.
        channel: Where further requests come from; None: there are none.
        leaving: Through which other threads ask to leave.

    Raises:
        BatchrunError: nothing was sent, or a defect. A run that stops early is told by the summary.
    """
    _refuse_wrong_kinds(given)
    refuse_bad_urls(options, given.notify)
    key = find_key(options, api_key)
    worker = local_worker(given, observer) if options.is_local else None
    said = Named(base_url=confirmed_url or not resumed, paths=not resumed)
    if len(options.endpoints) > 1 and not options.state.exists():
        in_loop(refuse_unknown_endpoints(options, key))
    leaving, wall = leaving or Leaving(), WallClock(steady_s, time.time)
    open_it = partial(open_run, said=said, resumed=resumed)
    if requests is not None:
        open_it = partial(open_on_requests, requests=requests)
    with (
        cancellable(leaving),
        telling(given.notify, options.state, observer, key) as told,
        open_it(options, observer, clock=steady_s, wall=wall, api_key=key, repair=given.repair) as opened,
    ):
        if given.retry_failed:
            observer.message(f"failed rows that are run again: {opened.store.retry_failed(given.only):,}")
        rng = random.Random()  # noqa: S311 - jitter, not a secret
        work = partial(drive, opened) if channel is None else partial(drive_requests, opened, channel=channel)
        if worker is None:
            outcome = in_loop(work(options.base_url, rng, leaving=leaving))
        elif opened.has_work or channel is not None:
            outcome = in_loop(_drive_locally(partial(work, leaving=leaving), worker, rng))
        else:
            outcome = Outcome("finished")  # without the seconds that a model takes to load
        told.append(conclude(opened, outcome))
    return told[0]


async def _drive_locally(
    drive: Callable[[str, random.Random], Awaitable[Outcome]], worker: Worker, rng: random.Random
) -> Outcome:
    async with serving(worker) as base_url:
        return await drive(base_url, rng)


def _refuse_wrong_kinds(given: SessionArguments) -> None:
    if given.only and not given.retry_failed:
        raise UsageError("--only goes with --retry-failed", "give both, or neither")
    unknown = [kind for kind in given.only if kind not in set(FailureKind)]
    if unknown:
        raise UsageError(f"--only {unknown[0]}: there is no such kind of failure", f"one of {', '.join(FailureKind)}")
