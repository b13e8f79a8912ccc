"""`batchrun cancel`: cancels what a run has in flight; a process that drives it is asked to, and waited for."""

from __future__ import annotations

import random
import time

from batchrun.commands.asking import ask_to_cancel
from batchrun.commands.event_loop import in_loop
from batchrun.commands.notify import refuse_bad_urls, telling
from batchrun.config import RunOptions
from batchrun.display.summary import Observer, Summary
from batchrun.endpoint.credentials import find_key
from batchrun.engine.clock import WallClock, steady_s
from batchrun.engine.driver import Outcome
from batchrun.engine.signals import Leaving, cancellable
from batchrun.runs.closing import conclude
from batchrun.runs.driving import cancel_jobs
from batchrun.runs.opening import open_as_it_is
from batchrun.runs.trust import Named


def cancel(
    options: RunOptions,
    *,
    observer: Observer,
    confirmed_url: bool = False,
    api_key: str | None = None,
    notify_url: str | None = None,
) -> Summary:
    """Cancel the jobs in flight.

    Args:
        options: Those of the run's state file.
        observer: Told what a person should know.
        confirmed_url: Whether the run's base URL has been given now.
        api_key: None: it is looked for, see `find_api_key`.
        notify_url: URL that is notified at the end; None: no notification.

    Raises:
        BatchrunError: nothing was cancelled, or a defect.
    """
    refuse_bad_urls(options, notify_url)
    key, state = find_key(options, api_key), options.state
    said = Named(base_url=confirmed_url, paths=False)
    ask_to_cancel(state, observer, clock=steady_s, pause=time.sleep)
    wall, leaving = WallClock(steady_s, time.time), Leaving()
    with (
        cancellable(leaving),
        telling(notify_url, state, observer, key) as told,
        open_as_it_is(options, observer, clock=steady_s, wall=wall, api_key=key, said=said) as opened,
    ):
        if options.is_local:
            observer.message("the jobs of a local endpoint end with its process: nothing is left to cancel")
            outcome = Outcome("cancelled")
        elif not opened.has_jobs:
            observer.message("nothing is in flight: there is nothing to cancel")
            outcome = Outcome("cancelled")
        else:
            rng = random.Random()  # noqa: S311 - jitter, not a secret
            outcome = in_loop(cancel_jobs(opened, options.base_url, rng, leaving=leaving))
        told.append(conclude(opened, outcome))
    return told[0]
