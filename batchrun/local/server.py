"""The local endpoint over HTTP: `/v2/<id>/run`, `/status` and the others, as Runpod documents them.

What the documentation leaves open (the bodies of 401, 404, 413 and 429, the status for a body that is too large) is
answered in one plausible way, on which clients must not depend. It uses aiohttp's low-level server for speed.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Self
from uuid import uuid4

import orjson
from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage
from aiohttp.web_protocol import RequestHandler

from batchrun.config import MAX_REQUEST_BYTES, RETENTION_S
from batchrun.endpoint.protocol import JobStatus, Operation, health_body, job_body
from batchrun.errors import UsageError
from batchrun.files.exactjson import dump, load
from batchrun.local.access import Access, is_loopback
from batchrun.local.fleet import Fleet, Scaling
from batchrun.local.limits import rate_limits
from batchrun.local.queue import Job, JobQueue
from batchrun.local.workers import Worker, WorkerFailure

_LOG = logging.getLogger(__name__)

_LOST = "job timed out after 1 retries"
"""Runpod's error for a job whose worker was lost: the failure that `fail_rate` produces."""
_DEFECT = "the worker raised an exception for job %s; the job fails"
_RUNSYNC_WAIT_S = 90.0
_MAX_SYNC_REQUEST_BYTES = 20_000_000
"""The body limit of `/runsync`."""


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """How the local endpoint behaves."""

    host: str = "127.0.0.1"
    port: int = 0
    """0: any free port."""
    workers: int = 2
    jobs_per_worker: int = 1
    latency_s: float = 0.0
    """Seconds added to the execution time of each job."""
    fail_rate: float = 0.0
    """Fraction of the jobs, 0 to 1, that fail as if their worker was lost."""
    seed: int = 0
    limits: bool = False
    """Whether to enforce the documented rate limits."""
    cold_start_s: float = 0.0
    """Seconds from the start of a worker until it is ready."""
    scaling: Scaling | None = None
    """How the number of workers follows the jobs, with `workers` as the maximum; None: all start at once and stay."""
    api_key: str | None = None
    """Required in each request; None: no key is required."""
    endpoint_id: str | None = None
    """The only endpoint ID that exists; None: every ID exists."""
    retention_s: float = RETENTION_S


class LocalEndpoint:
    """A server with one endpoint.

    Args:
        options: The endpoint's behaviour.
        worker: Runs the jobs.
        clock: Monotonic seconds.
        intercept: Called before each request is handled; if it returns a response, that is sent instead. For faults.
    """

    def __init__(
        self,
        options: LocalOptions,
        worker: Worker,
        *,
        clock: Callable[[], float] = time.monotonic,
        intercept: Callable[[web.BaseRequest], Awaitable[web.StreamResponse | None]] | None = None,
    ) -> None:
        self.options = options
        are_always_up = options.scaling is None and not options.cold_start_s
        self.queue = JobQueue(
            options.workers,
            options.jobs_per_worker,
            name=f"local-{uuid4().hex[:12]}",
            retention_s=options.retention_s,
            is_open=are_always_up,
        )
        self._fleet = (
            None
            if are_always_up
            else Fleet(self.queue, options.workers, options.scaling, clock(), cold_start_s=options.cold_start_s)
        )
        self._next_step: asyncio.TimerHandle | None = None
        self.base_url = ""
        self._worker = worker
        self._answer: Callable[[dict[str, Any]], Any] | None = getattr(worker, "answer", None)
        self._clock = clock
        self._intercept = intercept
        self._rng = Random(options.seed)  # noqa: S311 - emulated failures, not a secret
        self._awaited: dict[str, asyncio.Event] = {}
        self._at_work: dict[str, asyncio.Task[None] | asyncio.TimerHandle] = {}
        self._limits = rate_limits(are_documented=options.limits)
        self._access = Access(options.host, options.port, options.api_key)
        self._runner: web.ServerRunner | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start the worker and listen; sets `base_url`.

        Raises:
            UsageError: the worker cannot run, the address is in use, or other machines can reach it without a key.
        """
        options = self.options
        if options.api_key is None and not is_loopback(options.host):
            raise UsageError(
                f"--host {options.host}: other machines can reach this address without a key",
                "require a key with --api-key",
            )
        await self._worker.start()
        server = web.Server(self._handle, access_log=None, request_factory=_request)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, options.host, options.port)
        try:
            await site.start()
        except (OSError, UnicodeError) as error:
            await self.stop()
            raise UsageError(
                f"--host {options.host} --port {options.port}: {getattr(error, 'strerror', None) or error}",
                "give an address of this machine, and a free --port (0: any free port)",
            ) from error
        host, port = self._runner.addresses[0][:2]
        self._access = Access(options.host, port, options.api_key)
        self.base_url = f"http://[{host}]:{port}/v2" if ":" in host else f"http://{host}:{port}/v2"
        self._dispatch()

    async def stop(self) -> None:
        """Stop listening, and abandon the running jobs."""
        if self._runner is not None:
            await self._runner.cleanup()
        tasks = [entry for entry in self._at_work.values() if isinstance(entry, asyncio.Task)]
        for entry in (*self._at_work.values(), *([self._next_step] if self._next_step else [])):
            entry.cancel()
        self._at_work.clear()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._worker.close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if self._intercept is not None:
            response = await self._intercept(request)
            if response is not None:
                return response
        refusal = self._access.refusal(request.headers)
        if refusal is not None:
            return _error(*refusal)
        parts = request.path.split("/")
        if len(parts) not in (4, 5) or parts[1] != "v2" or parts[3] not in _OPERATIONS:
            return _error(404, "Not Found")
        operation = _OPERATIONS[parts[3]]
        refused = self._refuse(request, parts[2], operation)
        if refused is not None:
            return refused
        limit = self._limits[operation]
        wait_s = limit.admit(self._clock())
        if wait_s is not None:
            return _error(429, "too many requests", {"Retry-After": str(int(wait_s) + 1)})
        try:
            return await self._operate(operation, request, parts[4] if len(parts) > 4 else "")  # noqa: PLR2004 - the ID
        finally:
            limit.leave()

    def _refuse(self, request: web.BaseRequest, endpoint: str, operation: Operation) -> web.Response | None:
        options = self.options
        if options.endpoint_id is not None and endpoint != options.endpoint_id:
            return _error(404, "endpoint not found")
        if request.method not in _METHODS[operation]:
            return _error(405, "method not allowed")
        return None

    async def _operate(self, operation: Operation, request: web.BaseRequest, job_id: str) -> web.Response:
        now = self._clock()
        match operation:
            case Operation.STATUS:
                response = _job(self.queue.find(job_id, now))
            case Operation.RUN:
                response = await self._run(request)
            case Operation.HEALTH:
                health, retried = self.queue.health()
                if self._fleet is not None:
                    health = replace(health, initializing=self._fleet.starting)
                response = _json(health_body(health, retried=retried))
            case Operation.CANCEL:
                job = self.queue.cancel(job_id, now)
                response = _job(job)
                self._drop(job_id)
                if job is not None:
                    self._tell_ended(job)
                self._dispatch()
            case Operation.RETRY:
                response = _job(self.queue.retry(job_id, now))
                self._dispatch()
            case Operation.PURGE_QUEUE:
                response = _json({"removed": self.queue.purge(), "status": "completed"})
                self._dispatch()
            case Operation.STREAM:
                response = self._stream(job_id)
            case Operation.RUNSYNC:
                response = await self._runsync(request)
        return response

    async def _run(self, request: web.BaseRequest) -> web.Response:
        job = await self._take_in(request, MAX_REQUEST_BYTES)
        if isinstance(job, web.Response):
            return job
        return _json({"id": job.id, "status": JobStatus.IN_QUEUE.value})

    async def _take_in(self, request: web.BaseRequest, limit_bytes: int) -> Job | web.Response:
        too_large = _error(413, f"the body is larger than {limit_bytes} bytes")
        if (request.content_length or 0) > limit_bytes:
            return too_large
        try:
            raw = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return too_large
        if len(raw) > limit_bytes:
            return too_large
        try:
            body = load(raw)
        except orjson.JSONDecodeError as error:
            return _error(400, f"invalid JSON: {error}")
        if not isinstance(body, dict) or not isinstance(body.get("input"), dict):
            return _error(400, "input must be an object")
        policy = body.get("policy")
        job = self.queue.submit(body["input"], policy if isinstance(policy, dict) else {}, self._clock())
        self._dispatch()
        return job

    async def _runsync(self, request: web.BaseRequest) -> web.Response:
        job = await self._take_in(request, _MAX_SYNC_REQUEST_BYTES)
        if isinstance(job, web.Response):
            return job
        wait = request.query.get("wait", "")
        wait_s = min(max(int(wait) / 1000, 1.0), 300.0) if wait.isdigit() else _RUNSYNC_WAIT_S
        ended = asyncio.Event()
        self._awaited[job.id] = ended
        self._tell_ended(job)
        with suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), wait_s)
        del self._awaited[job.id]
        return _job(job)

    def _tell_ended(self, job: Job) -> None:
        if job.status.is_final and job.id in self._awaited:
            self._awaited[job.id].set()

    def _stream(self, job_id: str) -> web.Response:
        job = self.queue.find(job_id, self._clock())
        if job is None:
            return _job(None)
        parts = job.output if isinstance(job.output, list) else [job.output] if job.has_output else []
        return _json({"status": job.status.value, "stream": [{"output": part} for part in parts]})

    def _dispatch(self) -> None:
        """Start waiting jobs on free slots, and workers as the autoscaler says."""
        has_started = True
        while has_started:
            has_started = False
            self._scale()
            while (job := self.queue.take(self._clock())) is not None:
                has_started = self._fleet is not None
                lost = self._rng.random() < self.options.fail_rate
                if self._answer is not None and not self.options.latency_s:
                    self._finish_at_once(job, lost=lost)
                else:
                    self._start(job, lost=lost)

    def _scale(self) -> None:
        if self._fleet is None:
            return
        if self._next_step is not None:
            self._next_step.cancel()
        now = self._clock()
        wait_s = self._fleet.step(now) - now
        is_over = wait_s == math.inf
        self._next_step = None if is_over else asyncio.get_running_loop().call_later(wait_s, self._dispatch)

    def _finish_at_once(self, job: Job, *, lost: bool) -> None:
        answer = self._answer
        if lost or answer is None:
            self._lose(job)
        else:
            try:
                self.queue.complete(job, job.run, answer(job.request), self._clock())
            except WorkerFailure as failure:
                self.queue.fail(job, job.run, str(failure), self._clock())
            except Exception as error:  # noqa: BLE001 - whatever a worker raises fails only its job
                _LOG.warning(_DEFECT, job.id, exc_info=True)
                self.queue.fail(job, job.run, f"{type(error).__name__}: {error}", self._clock())
        self._tell_ended(job)

    def _start(self, job: Job, *, lost: bool) -> None:
        loop = asyncio.get_running_loop()
        if self._answer is not None and self.options.latency_s < self._allowed_s(job):
            self._at_work[job.id] = loop.call_later(self.options.latency_s, self._finish_later, job, lost)
        else:
            self._at_work[job.id] = loop.create_task(self._work(job, lost=lost))

    def _finish_later(self, job: Job, lost: bool) -> None:  # noqa: FBT001 - call_later passes by position
        self._at_work.pop(job.id, None)
        self._finish_at_once(job, lost=lost)
        self._dispatch()

    async def _work(self, job: Job, *, lost: bool) -> None:
        run = job.run
        try:
            async with asyncio.timeout(self._allowed_s(job)):
                await asyncio.sleep(self.options.latency_s)
                output = None if lost else await self._worker.run(job.request)
        except TimeoutError:
            # `find` forgets a job that has outlived its ttl; then there is nothing left to fail.
            if self.queue.find(job.id, self._clock()) is job:
                self.queue.fail(job, run, "executionTimeout exceeded", self._clock(), JobStatus.TIMED_OUT)
        except WorkerFailure as failure:
            self.queue.fail(job, run, str(failure), self._clock())
        except Exception as error:  # noqa: BLE001 - whatever a worker raises fails only its job
            _LOG.warning(_DEFECT, job.id, exc_info=True)
            self.queue.fail(job, run, f"{type(error).__name__}: {error}", self._clock())
        else:
            if lost:
                self._lose(job)
            else:
                self.queue.complete(job, run, output, self._clock())
        self._at_work.pop(job.id, None)
        self._tell_ended(job)
        self._dispatch()

    def _allowed_s(self, job: Job) -> float:
        """Seconds for which a job that starts now may run: its execution timeout, or the rest of its ttl."""
        return max(min(job.execution_timeout_s, job.submitted_at + job.ttl_s - self._clock()), 0.0)

    def _lose(self, job: Job) -> None:
        job.retries += 1
        self.queue.fail(job, job.run, _LOST, self._clock())

    def _drop(self, job_id: str) -> None:
        entry = self._at_work.pop(job_id, None)
        if entry is not None:
            entry.cancel()


_OPERATIONS = {operation.value: operation for operation in Operation}
_METHODS = dict.fromkeys(Operation, ("POST",)) | {
    Operation.STATUS: ("GET", "POST"),
    Operation.HEALTH: ("GET",),
    Operation.STREAM: ("GET", "POST"),
}


def _request(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: RequestHandler,
    writer: AbstractStreamWriter,
    task: asyncio.Task[None],
) -> web.BaseRequest:
    """Make a request object that accepts bodies as large as the API allows; aiohttp's default limit is 1 MiB."""
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=_MAX_SYNC_REQUEST_BYTES + 1)


def _json(data: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=dump(data), status=status, headers=headers, content_type="application/json")


def _job(job: Job | None) -> web.Response:
    return _error(404, "job not found") if job is None else _json(job_body(job.answer()))


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    return _json({"error": message}, status, headers)
