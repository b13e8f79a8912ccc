"""Runpod's queue API as pure functions: paths, request bodies, answers, errors. No I/O.

The client builds requests and parses answers with this module, the local endpoint parses requests and builds
answers with it, so the two cannot drift apart. Facts come from Runpod's documentation ("send requests",
"operation reference", "job states") and from the sources of runpod-python and worker-vllm; where a shape is
known from a single capture, or assumed, the docstring says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

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
"""Of one answer, decompressed: the API takes 20 MB from a worker at most (docs, handler functions), and some margin."""

JOB_STATUSES = frozenset({200, 201, 202, 400})
"""HTTP statuses whose body may be a job."""

MAX_ID_CHARS = 256
"""Of an ID that the API gives: of a job, of a worker."""

_MAX_TIME_MS = 30 * 86_400_000.0
"""A job lives 7 days at most: a longer time is a mistake, and would not fit into the state file at some length."""


class JobStatus(StrEnum):
    """A job's state, in Runpod's own words."""

    is_final: bool
    """Whether the job will not change any more."""

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


@dataclass(slots=True)
class JobAnswer:
    """What `/run`, `/status` or `/cancel` says of one job. All but `id` and `status` are optional on the wire."""

    id: str
    status: JobStatus
    """An unknown word (a RUNNING is documented, and never seen) is IN_PROGRESS: keep polling."""
    delay_ms: float | None = None
    """Time in the queue. It starts again when the platform dispatches the job a second time."""
    execution_ms: float | None = None
    worker_id: str | None = None
    retries: int = 0
    """How often the platform itself ran the job again: execution is at least once."""
    output: Any = None
    has_output: bool = False
    """Whether the answer had an `output` field at all; null counts."""
    error: Any = None
    """A string as a rule; an object from some handlers."""
    held_bytes: int = 0
    """What the client counts for it in its memory budget until it is released; 0 for a body to be sent."""

    @property
    def time_in_system_s(self) -> float | None:
        """Queue plus execution: the exact end of the job after its submission, however late it was asked for."""
        if self.delay_ms is None or self.execution_ms is None:
            return None
        return (self.delay_ms + self.execution_ms) / 1000


@dataclass(frozen=True, slots=True)
class Health:
    """What `/health` says. The docs show idle and running workers; the six fields are from a live capture."""

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
        """Workers that take jobs or soon will."""
        return self.serving + self.initializing

    @property
    def serving(self) -> int:
        """Workers that take jobs. `ready` overlaps idle and running, so it is a floor, not a part."""
        return max(self.idle + self.running, self.ready)


def operation_url(base_url: str, endpoint: str, operation: Operation, job_id: str | None = None) -> str:
    """The URL of an operation; `job_id` for those that are about one job."""
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
    """The `policy` object of a `/run` body; empty when everything is left to Runpod."""
    fields: dict[str, Any] = {}
    if policy.execution_timeout_s is not None:
        fields["executionTimeout"] = round(policy.execution_timeout_s * 1000)
    if policy.ttl_s is not None:
        fields["ttl"] = round(policy.ttl_s * 1000)
    if policy.low_priority:
        fields["lowPriority"] = True
    return fields


def parse_job(http_status: int, headers: Mapping[str, str], body: bytes) -> JobAnswer:
    """The answer of `/run`, `/status` or `/cancel`.

    A 400 whose body is a job with a status counts as that job's answer: public endpoints answer so for FAILED
    jobs (Runpod docs, public endpoints). A success with an ID and no status, or a number as its status, is a job in
    the queue: it exists, and to submit it again would be to pay twice. So are 201 and 202, which are not documented.

    Raises:
        CallError: of the class that fits the HTTP status; AmbiguousError when the body is no job.
    """
    if http_status not in JOB_STATUSES:
        raise call_error(http_status, headers, body)
    try:
        data = load(body)
    except orjson.JSONDecodeError:
        data = None
    if not isinstance(data, dict):
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
        raise AmbiguousError(f"the answer is no job: {_excerpt(body)}", http_status=http_status)
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
    """The answer of `/stream`: the pieces of the output that are new, and the job's state; None where it has none.

    It is `{"status", "stream": [{"output": piece}, ...]}` (recorded live); the documentation shows the bare list.
    Neither names the job, so one that does is checked.

    Raises:
        CallError: of the class that fits the HTTP status; AmbiguousError when the body is neither; MismatchedError when
            it names another job than `job_id`.
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
    """The answer of `/health`; a missing count is 0.

    Raises:
        CallError: of the class that fits the HTTP status; AmbiguousError when the body is not JSON.
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
    """The JSON object for `/health`: the inverse of `parse_health`, in the six-field shape of the capture."""
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
        raise AmbiguousError(f"the answer is no JSON object: {_excerpt(body)}", http_status=200)
    return data


def _remedy(body: bytes) -> str:
    """What to do about a success that is not JSON; empty where it may be JSON that did not arrive as a whole."""
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
