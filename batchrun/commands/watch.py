"""`batchrun watch`: runs the files that arrive in a folder, one after another, in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import replace

from batchrun.commands.arguments import WatchArguments
from batchrun.commands.event_loop import loop_factory
from batchrun.commands.local_endpoint import local_worker, serving
from batchrun.commands.notify import notifying, refusal_payload, refuse_bad_urls, tell
from batchrun.commands.watch_folder import FileOutcome, Task, Watch
from batchrun.commands.watch_queue import Total
from batchrun.config import RunOptions
from batchrun.display.summary import Observer, Summary
from batchrun.endpoint.credentials import find_key
from batchrun.engine.clock import WallClock, steady_s
from batchrun.engine.driver import Outcome
from batchrun.engine.rules import refuse_unusable_rules
from batchrun.engine.signals import Leaving, cancellable
from batchrun.errors import BatchrunError, OutputError, RefusedError, StoppedError, UsageError
from batchrun.local.workers import Worker
from batchrun.runs.checks import refuse_other_options
from batchrun.runs.closing import conclude
from batchrun.runs.driving import drive
from batchrun.runs.opening import OpenRun, open_run
from batchrun.state.reader import StateReader


def watch(
    options: RunOptions,
    given: WatchArguments,
    *,
    observer: Observer,
    show: Callable[[str, FileOutcome], None],
    api_key: str | None = None,
) -> Total:
    """Run each file that arrives; see `Watch`.

    Args:
        options: The options for a run of the whole folder; each file gets its own input, output and state.
        given: The folders, and the options of each session.
        observer: Receives messages and progress of every run.
        show: Called at the end of each run, with the file's name and its outcome.
        api_key: None: it is looked up, see `find_key`.

    Raises:
        BatchrunError: nothing more can be run, or batchrun has a defect. A refused or stopped file is only shown.
    """
    refuse_bad_urls(options, given.notify)
    refuse_unusable_rules(options)
    key = find_key(options, api_key)
    worker = local_worker(given, observer) if options.is_local else None
    rng = random.Random()  # noqa: S311 - jitter, not a secret
    with contextlib.ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner(loop_factory=loop_factory()))
        drives = _Drives(runner, stack, worker)

        def take(task: Task) -> FileOutcome:
            own = replace(
                options, inputs=(str(task.path),), output=task.results, output_is_folder=False, state=task.state
            )
            _refuse_other_command(own)
            opening, wall = contextlib.ExitStack(), WallClock(steady_s, time.time)
            try:
                opened = opening.enter_context(open_run(own, observer, clock=steady_s, wall=wall, api_key=key))
            except UsageError as error:
                if given.notify is not None:
                    tell(given.notify, refusal_payload(error, task.path.name), observer)
                return FileOutcome(error=error)
            leaving = Leaving()
            with cancellable(leaving), notifying(given.notify, own.state, observer, key) as summaries, opening:
                outcome = drives.drive(opened, rng, leaving)
                summaries.append(conclude(opened, outcome))
            return FileOutcome(summaries[0], *_why_stopped(summaries[0], outcome))

        watched = Watch(
            given.folder,
            given.output,
            settle_s=given.settle,
            until_empty=given.until_empty,
            observer=observer,
            take=take,
            show=show,
            clock=steady_s,
            wall=time.time,
            pause=time.sleep,
        )
        return watched.run()


class _Drives:
    """Drives one run after another in one event loop, and starts the local endpoint when a run first needs it.

    Args:
        runner: The event loop; it is idle between runs.
        stack: Stops the local endpoint when it is closed.
        worker: The local endpoint's worker; None: the runs use a real endpoint.
    """

    def __init__(self, runner: asyncio.Runner, stack: contextlib.ExitStack, worker: Worker | None) -> None:
        self._runner = runner
        self._stack = stack
        self._worker = worker
        self._local_url: str | None = None

    def drive(self, run: OpenRun, rng: random.Random, leaving: Leaving) -> Outcome:
        """Drive a run until it ends or is interrupted."""
        if self._worker is not None and not run.has_work:
            return Outcome("finished")
        base_url = run.options.base_url if self._worker is None else self._served(self._worker)
        return self._runner.run(drive(run, base_url, rng, leaving=leaving))

    def _served(self, worker: Worker) -> str:
        if self._local_url is None:
            endpoint = contextlib.AsyncExitStack()
            self._stack.callback(lambda: self._runner.run(endpoint.aclose()))
            self._local_url = self._runner.run(endpoint.enter_async_context(serving(worker)))
        return self._local_url


def _refuse_other_command(options: RunOptions) -> None:
    """Refuse to resume a file with other options; this ends the watch, because the command is wrong, not the file.

    Raises:
        StateError: names each option that differs.
    """
    with contextlib.ExitStack() as stack:
        try:
            store = stack.enter_context(StateReader(options.state))
        except BatchrunError:
            return  # there is none yet, or opening the run will report what is wrong with it
        refuse_other_options(store, options)


def _why_stopped(summary: Summary, outcome: Outcome) -> tuple[StoppedError | None, bool]:
    """Why a run stopped early, and whether every other run would: the API refuses all, or nothing can be written."""
    if summary.outcome != "stopped":
        return None, False
    error = outcome.error or OutputError(summary.reason, summary.hint)
    return error, isinstance(error, (RefusedError, OutputError))
