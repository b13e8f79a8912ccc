"""`batchrun serve`: serves a local endpoint until a signal arrives."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

from batchrun.commands.event_loop import in_loop
from batchrun.commands.local_endpoint import local_worker
from batchrun.commands.serve_arguments import ServeArguments
from batchrun.display.summary import Observer
from batchrun.endpoint.credentials import checked
from batchrun.errors import UsageError
from batchrun.local.echo import EchoWorker
from batchrun.local.fleet import Scaling
from batchrun.local.server import LocalEndpoint, LocalOptions
from batchrun.local.workers import Worker


def serve(given: ServeArguments, observer: Observer, tell: Callable[[str], None]) -> None:
    """Serve a local endpoint.

    Args:
        given: The endpoint's behaviour, and its worker.
        observer: Receives a message if the worker may surprise the user.
        tell: Called with a line that says where the endpoint is.

    Raises:
        UsageError: the address is in use or needs a key, the worker is not available, or options contradict each other.
    """
    options = LocalOptions(
        host=given.host,
        port=given.port,
        api_key=None if given.api_key is None else checked(given.api_key, "--api-key"),
        workers=given.workers,
        jobs_per_worker=given.jobs_per_worker,
        latency_s=given.latency,
        fail_rate=given.fail_rate,
        seed=given.seed,
        limits=given.limits,
        cold_start_s=given.cold_start,
        scaling=_scaling(given),
    )
    worker = local_worker(given, observer)
    if given.context is not None:
        if not isinstance(worker, EchoWorker):
            raise UsageError("--context needs --worker echo", "models have a context of their own")
        worker = EchoWorker(given.context)
    in_loop(_serve(options, worker, tell))


def _scaling(given: ServeArguments) -> Scaling | None:
    if given.workers_min > given.workers:
        raise UsageError(
            f"--workers-min {given.workers_min} is more than --workers {given.workers}", "raise --workers, the maximum"
        )
    if given.autoscale is not None:
        return Scaling(given.autoscale, given.autoscale_value, given.workers_min, given.idle_timeout)
    if given.workers_min:
        raise UsageError("--workers-min needs --autoscale", "without it all --workers stay")
    return None


async def _serve(options: LocalOptions, worker: Worker, tell: Callable[[str], None]) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with LocalEndpoint(options, worker) as endpoint:
        tell(f"serving {worker.name} at {endpoint.base_url}/ID/run; press Ctrl-C to stop")
        await stopped.wait()
