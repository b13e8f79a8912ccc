"""Runpod's queue API as pure functions: paths, request bodies, answers, errors. No I/O.

The client builds requests and parses answers with this module, and the local endpoint parses requests and builds
answers with it, so the two cannot drift apart. The facts are from Runpod's documentation ("send requests", "operation
reference", "job states") and from the source code of runpod-python and worker-vllm. If a shape is known only from a
single capture, or assumed, the docstring says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import orjson

from batchrun.config import JobPolicy
from batchrun.endpoint import loose_json
from batchrun.endpoint.call_errors import body_message, call_error
from batchrun.errors import (
    AmbiguousError,
    MismatchedError,
)
from batchrun.files.exactjson import dump, load

MAX_ANSWER_BYTES = 25_000_000
"""Size limit of a decompressed answer: the API accepts 20 MB from a worker (docs, handler functions), plus a margin."""

JOB_STATUSES = frozenset({200, 201, 202, 400})
"""The HTTP statuses whose body may be a job."""

MAX_ID_CHARS = 256
"""The longest ID of a job or a worker that is accepted from the API."""

_MAX_TIME_MS = 30 * 86_400_000.0
"""A job lives at most 7 days: a longer time is an error, and a very large one would not fit into the state file."""


class JobStatus(StrEnum):
    """A job's state, in Runpod's own words."""

    is_final: bool
    """Whether the state will not change any more."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"

    def __init__(self, word: str) -> None:
        self.is_final = word not in ("IN_QUEUE", "IN_PROGRESS")


class Operation(StrEnum):
    """An operation of an endpoint, named as in its path."""

    RUN = "run"
    STATUS = "status"
    CANCEL = "cancel"
    RETRY = "retry"
    HEALTH = "health"
    STREAM = "stream"
    RUNSYNC = "runsync"
    PURGE_QUEUE = "purge-queue"


class PackPart(NamedTuple):
    """The place of a row in a job of several rows."""

    size: int
    """The number of rows that the job was submitted with."""
    number: int
    """From 0."""
    input_tokens: int | None
    """Those of all rows of the job; None if not reported. The same applies to `output_tokens`."""
    output_tokens: int | None


@dataclass(slots=True)
class JobAnswer:
    """The answer of `/run`, `/status` or `/cancel` about one job. Only `id` and `status` are always on the wire."""

    id: str
    status: JobStatus
    """An unknown word (RUNNING is documented, but was never seen) counts as IN_PROGRESS: keep polling."""
    delay_ms: float | None = None
    """Time in the queue. It starts again if the platform dispatches the job a second time."""
    execution_ms: float | None = None
    worker_id: str | None = None
    retries: int = 0
    """How often the platform itself ran the job again: it executes each job at least once."""
    output: Any = None
    has_output: bool = False
    """Whether the answer had an `output` field at all; null counts."""
    error: Any = None
    """Usually a string; from some handlers an object."""
    held_bytes: int = 0
    """Bytes that the client counts for it in its memory budget until it is released; 0 for a body to be sent."""
    pack: PackPart | None = None
    """Set if this is one row's part of the answer of a job of several rows."""

    @property
    def time_in_system_s(self) -> float | None:
        """Time in the queue plus execution: when the job ended after its submission, however late it was polled."""
        if self.delay_ms is None or self.execution_ms is None:
            return None
        return (self.delay_ms + self.execution_ms) / 1000


@dataclass(frozen=True, slots=True)
class Health:
    """The answer of `/health`. The docs show only idle and running workers; all six fields are from a live capture."""

    in_queue: int
    in_progress: int
    completed: int
    failed: int
    idle: int
    initializing: int
    ready: int
    running: int
    throttled: int
    unhealthy: int

    @property
    def workers(self) -> int:
        """Workers that accept jobs or soon will."""
        return self.serving + self.initializing

    @property
    def serving(self) -> int:
        """Workers that accept jobs. `ready` overlaps with idle and running, so it is a lower bound, not an addend."""
        return max(self.idle + self.running, self.ready)


def operation_url(base_url: str, endpoint: str, operation: Operation, job_id: str | None = None) -> str:
    """The URL of an operation, with `job_id` if it is about one job."""
    url = f"{base_url.rstrip('/')}/{endpoint}/{operation.value}"
    return url if job_id is None else f"{url}/{job_id}"


def run_body(request: Mapping[str, Any], policy: JobPolicy) -> bytes:
    """The body of `/run` for one request (the `input` object), with the policy in milliseconds."""
    body: dict[str, Any] = {"input": request}
    fields = policy_fields(policy)
    if fields:
        body["policy"] = fields
    return dump(body)


def policy_fields(policy: JobPolicy) -> dict[str, Any]:
    """The `policy` object of a `/run` body; empty if everything is left to Runpod."""
    fields: dict[str, Any] = {}
    if policy.execution_timeout_s is not None:
        fields["executionTimeout"] = round(policy.execution_timeout_s * 1000)
    if policy.ttl_s is not None:
        fields["ttl"] = round(policy.ttl_s * 1000)
    if policy.low_priority:
        fields["lowPriority"] = True
    return fields


def parse_job(http_status: int, headers: Mapping[str, str], body: bytes) -> JobAnswer:
    """Parse the answer of `/run`, `/status` or `/cancel`.

    A 400 whose body is a job with a status counts as that job's answer: public endpoints send it for FAILED jobs
    (Runpod docs, public endpoints). A success with an ID and no status, or with a number as its status, counts as a job
    in the queue: the job exists, and submitting it again would mean paying twice. The same applies to 201 and 202,
    which are not documented.

    Raises:
        CallError: of the class for the HTTP status; AmbiguousError if the body is not a job.
    """
    if http_status not in JOB_STATUSES:
        raise call_error(http_status, headers, body)
    try:
        data = _load_object(body)
    except AmbiguousError as error:
        if http_status != 400:
            raise
        raise call_error(http_status, headers, body) from error
    job_id, word = data.get("id"), data.get("status")
    if (word is None or type(word) is int) and http_status != 400 and not data.get("error"):
        word = JobStatus.IN_QUEUE.value
    if not isinstance(job_id, str) or not job_id or not isinstance(word, str):
        if http_status == 400:
            raise call_error(http_status, headers, body)
        raise AmbiguousError(f"the answer is not a job: {_excerpt(body)}", http_status=http_status)
    worker_id = data.get("workerId")
    return JobAnswer(
        job_id,
        _STATUSES.get(word, JobStatus.IN_PROGRESS),
        _time_ms(data.get("delayTime")),
        _time_ms(data.get("executionTime")),
        worker_id if isinstance(worker_id, str) and len(worker_id) <= MAX_ID_CHARS else None,
        _count(data.get("retries")),
        data.get("output"),
        "output" in data,
        data.get("error"),
    )


def parse_stream(
    http_status: int, headers: Mapping[str, str], body: bytes, job_id: str | None = None
) -> tuple[list[Any], JobStatus | None]:
    """Parse the answer of `/stream`: the new pieces of the output, and the job's state, None if it is not given.

    It is `{"status", "stream": [{"output": piece}, ...]}` (recorded live); the documentation shows only the list.
    Neither contains the job's ID; if there is one, it is checked.

    Raises:
        CallError: of the class for the HTTP status; AmbiguousError if the body is neither; MismatchedError if it
            contains another ID than `job_id`.
    """
    if http_status != 200:
        raise call_error(http_status, headers, body)
    data = _load(body)
    if isinstance(data, dict) and data.get("id", job_id) not in (job_id, None):
        raise MismatchedError("the answer is the stream of another job")
    parts = (data.get("stream") or []) if isinstance(data, dict) else data
    if not isinstance(parts, list):
        raise AmbiguousError(f"the answer is not a stream: {_excerpt(body)}", http_status=http_status)
    pieces = [part.get("output") if isinstance(part, dict) and "output" in part else part for part in parts]
    word = data.get("status") if isinstance(data, dict) else None
    return pieces, _STATUSES.get(word, JobStatus.IN_PROGRESS) if isinstance(word, str) else None


def job_body(answer: JobAnswer) -> dict[str, Any]:
    """The JSON object for a job's answer: the inverse of `parse_job`, used by the local endpoint."""
    data: dict[str, Any] = {"id": answer.id, "status": answer.status.value}
    if answer.delay_ms is not None:
        data["delayTime"] = round(answer.delay_ms)
    if answer.execution_ms is not None:
        data["executionTime"] = round(answer.execution_ms)
    if answer.retries:
        data["retries"] = answer.retries
    if answer.worker_id is not None:
        data["workerId"] = answer.worker_id
    if answer.has_output:
        data["output"] = answer.output
    if answer.error is not None:
        data["error"] = answer.error
    return data


def parse_health(http_status: int, headers: Mapping[str, str], body: bytes) -> Health:
    """Parse the answer of `/health`; a missing count is 0.

    Raises:
        CallError: of the class for the HTTP status; AmbiguousError if the body is not JSON.
    """
    if http_status != 200:
        raise call_error(http_status, headers, body)
    data = _load_object(body)
    jobs, workers = data.get("jobs"), data.get("workers")
    jobs = jobs if isinstance(jobs, dict) else {}
    workers = workers if isinstance(workers, dict) else {}
    return Health(
        in_queue=_count(jobs.get("inQueue")),
        in_progress=_count(jobs.get("inProgress")),
        completed=_count(jobs.get("completed")),
        failed=_count(jobs.get("failed")),
        idle=_count(workers.get("idle")),
        initializing=_count(workers.get("initializing")),
        ready=_count(workers.get("ready")),
        running=_count(workers.get("running")),
        throttled=_count(workers.get("throttled")),
        unhealthy=_count(workers.get("unhealthy")),
    )


def health_body(health: Health, *, retried: int = 0) -> dict[str, Any]:
    """The JSON object for `/health`: the inverse of `parse_health`, with the six fields of the capture."""
    return {
        "jobs": {
            "completed": health.completed,
            "failed": health.failed,
            "inProgress": health.in_progress,
            "inQueue": health.in_queue,
            "retried": retried,
        },
        "workers": {
            "idle": health.idle,
            "initializing": health.initializing,
            "ready": health.ready,
            "running": health.running,
            "throttled": health.throttled,
            "unhealthy": health.unhealthy,
        },
    }


_STATUSES = {status.value: status for status in JobStatus}


def _load(body: bytes) -> Any:
    try:
        return load(body)
    except orjson.JSONDecodeError as error:
        try:
            return loose_json.load(body)
        except ValueError:
            raise AmbiguousError(
                f"the answer is not JSON: {_excerpt(body)}", http_status=200, hint=_remedy(body)
            ) from error


def _load_object(body: bytes) -> dict[str, Any]:
    data = _load(body)
    if not isinstance(data, dict):
        raise AmbiguousError(f"the answer is not a JSON object: {_excerpt(body)}", http_status=200)
    return data


def _remedy(body: bytes) -> str:
    """What to do about a success that is not JSON; empty if it may be JSON that did not arrive completely."""
    if body.lstrip()[:1] in (b"", b"{"):
        return ""
    return "check --base-url, and whether a proxy or a network's login page answers in the API's place"


def _excerpt(body: bytes) -> str:
    return body_message(body[:2000]) if body.strip() else "it is empty"


def _time_ms(value: object) -> float | None:
    if value is None or isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if 0 <= value <= _MAX_TIME_MS else None


def _count(value: object) -> int:
    return value if isinstance(value, int) and 0 < value <= _MAX_COUNT else 0


_MAX_COUNT = 2**53
