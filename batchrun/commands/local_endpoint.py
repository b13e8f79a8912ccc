"""The local endpoint of a run: its worker, and a server in this process for as long as it is needed."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import cast, get_args

from batchrun.commands.session_arguments import LocalArguments
from batchrun.config import LOCAL_ENDPOINT, RunOptions, WorkerChoice
from batchrun.display.summary import Observer
from batchrun.errors import BatchrunError, UsageError
from batchrun.local.workers import Worker
from batchrun.runs.caching import WORKER_NAME
from batchrun.state.reader import StateReader
from batchrun.state.store import Store

_SETTING = "worker"


def refuse_local_options(given: LocalArguments, options: RunOptions) -> None:
    """Refuse options of the local endpoint if the run uses another one: the user expects the prompts to stay local.

    Raises:
        UsageError: a worker was chosen for an endpoint that is not the local one.
    """
    for option, chosen in (
        ("--worker", given.worker != "auto"),
        ("--model-file", given.model_file is not None),
        ("--upstream", given.upstream is not None),
    ):
        if chosen and not options.is_local:
            raise UsageError(f"{option} needs --endpoint local", f"remove it, or run with -e {LOCAL_ENDPOINT}")


def local_worker(given: LocalArguments, observer: Observer) -> Worker:
    """The worker of the local endpoint; the observer receives a message if it may surprise the user.

    Raises:
        UsageError: the worker is not installed, or the options contradict each other.
    """
    from batchrun.local.choice import choose_worker

    worker, notice = choose_worker(given.worker, model_file=given.model_file, upstream=given.upstream)
    if notice:
        observer.message(notice)
    return worker


def as_before(given: LocalArguments, state: Path) -> LocalArguments:
    """The options of the local endpoint, with the worker that a run has had, so that a resumed run keeps it.

    Raises:
        UsageError: it was a model file or another server, which must be named again.
    """
    if (given.worker, given.model_file, given.upstream) != ("auto", None, None):
        return given
    known = None
    with suppress(BatchrunError), StateReader(state) as store:  # opening the run reports a file that cannot be read
        known = store.get_setting(_SETTING)
    if known in ("--model-file", "--upstream"):
        raise UsageError(f"this run was started with {known}", "give it again, or another worker with --worker")
    return replace(given, worker=cast("WorkerChoice", known)) if known in get_args(WorkerChoice) else given


def keep_worker(given: LocalArguments, worker: Worker, store: Store) -> None:
    """Store which worker a run has, for `as_before`."""
    own = "--upstream" if given.upstream is not None else "--model-file" if given.model_file is not None else None
    store.set_setting(_SETTING, own or ("echo" if worker.name == "echo" else "smollm2"))
    name = worker.name
    if given.model_file is not None:
        # Files of the same name may have other weights, such as another quantization.
        file = given.model_file.stat()
        which = f"{given.model_file.resolve()} {file.st_size} {file.st_mtime_ns}"
        name += f" ({blake2b(os.fsencode(which), digest_size=4).hexdigest()})"
    store.set_setting(WORKER_NAME, name)


@asynccontextmanager
async def serving(worker: Worker) -> AsyncIterator[str]:
    """Serve the local endpoint in this process; yields its base URL."""
    from batchrun.local.server import LocalEndpoint, LocalOptions

    async with LocalEndpoint(LocalOptions(workers=1, jobs_per_worker=worker.parallel), worker) as endpoint:
        yield endpoint.base_url
