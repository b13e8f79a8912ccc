"""`batchrun cancel`: cancels the jobs in flight of a run. A process that drives the run is asked to do it."""

from __future__ import annotations

import random
import time

from batchrun.commands.asking import ask_to_end
from batchrun.commands.event_loop import in_loop
from batchrun.commands.notify import notifying, refuse_bad_urls
from batchrun.config import RunOptions
from batchrun.display.summary import Observer, Summary
from batchrun.endpoint.credentials import find_key
from batchrun.engine.clock import WallClock, steady_s
from batchrun.engine.driver import Outcome
from batchrun.engine.signals import Leaving, cancellable
from batchrun.runs.closing import conclude
from batchrun.runs.driving import cancel_jobs
from batchrun.runs.opening import open_as_it_is
from batchrun.runs.trust import GivenByCommand
from batchrun.state.lock import CANCEL


def cancel(
    options: RunOptions,
    *,
    observer: Observer,
    confirmed: GivenByCommand,
    api_key: str | None = None,
    notify_url: str | None = None,
    leaving: Leaving | None = None,
) -> Summary:
    """Cancel the jobs in flight.

    Args:
        options: The options in the run's state file.
        observer: Receives messages for the user.
        confirmed: Which options the command itself gives.
        api_key: None: it is looked up, see `find_key`.
        notify_url: URL that is notified at the end; None: no notification.
        leaving: Lets other threads ask the session to leave; None: none will.

    Raises:
        BatchrunError: nothing was cancelled, or batchrun has a defect.
    """
    refuse_bad_urls(options, notify_url)
    key, state = find_key(options, api_key), options.state
    told = "this run is driven by {}, which was asked to cancel its jobs and exit"
    was_asked = ask_to_end(
        state, CANCEL, lambda who: observer.message(told.format(who)), clock=steady_s, pause=time.sleep
    )
    leaving, wall = leaving or Leaving(), WallClock(steady_s, time.time)
    with (
        cancellable(leaving),
        notifying(notify_url, state, observer, key) as summaries,
        open_as_it_is(options, observer, clock=steady_s, wall=wall, api_key=key, given=confirmed) as opened,
    ):
        if was_asked and not opened.has_jobs:
            outcome = Outcome("cancelled")
        elif options.is_local:
            observer.message("nothing to cancel: the jobs of a local endpoint end with its process")
            outcome = Outcome("cancelled")
        elif not opened.has_jobs:
            observer.message("nothing to cancel: no job is in flight")
            outcome = Outcome("cancelled")
        else:
            rng = random.Random()  # noqa: S311 - jitter, not a secret
            outcome = in_loop(cancel_jobs(opened, options.base_url, rng, leaving=leaving))
        summaries.append(conclude(opened, outcome))
    return summaries[0]
