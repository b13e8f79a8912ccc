"""Runpod's queue API as pure functions: paths, request bodies, answers, errors. No I/O.

The client builds requests and parses answers with this module, the local endpoint parses requests and builds
answers with it, so the two cannot drift apart. Facts come from Runpod's documentation ("send requests",
"operation reference", "job states") and from the sources of runpod-python and worker-vllm; where a shape is
known from a single capture, or assumed, the docstring says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

import orjson

from batchrun.config import JobPolicy
from batchrun.endpoint import loose_json
from batchrun.endpoint.worker_errors import without_controls
from batchrun.errors import (
    AmbiguousError,
    CallError,
    DeniedError,
    MismatchedError,
    NotFoundError,
    RejectedError,
    ThrottledError,
)
from batchrun.files.exactjson import dump, load

MAX_ANSWER_BYTES = 25_000_000
"""Of one answer, decompressed: the API takes 20 MB from a worker at most (docs, handler functions), and some margin."""

MAX_ERROR_BYTES = 100_000
"""Of an error's body that are read and kept: an API's reason is shorter."""

JOB_STATUSES = frozenset({200, 201, 202, 400})
"""HTTP statuses whose body may be a job."""

MAX_ID_CHARS = 256
"""Of an ID that the API gives: of a job, of a worker."""

MAX_RETRY_AFTER_S = 120.0
"""A longer Retry-After is taken for a mistake: no window of this API is longer than 10 s."""

_MAX_MESSAGE_CHARS = 300
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


def call_error(http_status: int, headers: Mapping[str, str], body: bytes) -> CallError:
    """The error that an HTTP status means, with what the body says. A 400 of an endpoint without a queue is a denial.

    Runpod documents 400, 401, 404, 429 and 500; the rest is what its users report, or what an edge such as
    Cloudflare may answer. On 429 the job was not accepted; on 5xx nobody knows.
    """
    facts: dict[str, Any] = {
        "http_status": http_status,
        "raw": body[:MAX_ERROR_BYTES].decode("utf-8", "replace"),
        "from_api": is_api_error(body),
    }
    is_redirect = 300 <= http_status < 400
    said = f"redirects to {_origin(headers.get('Location'))}" if is_redirect else body_message(body)
    message = f"HTTP {http_status}: {said}"
    retry_after_s = parse_retry_after(headers.get("Retry-After"))
    if http_status in (408, 429):
        return ThrottledError(message, retry_after_s=retry_after_s, **facts)
    if http_status in (404, 410):
        return NotFoundError(message, **facts)
    if http_status in (401, 402, 403, 407, 425) or is_redirect or (http_status == 400 and _OTHER_KIND.search(said)):
        return DeniedError(message, **facts)
    if 400 <= http_status < 500:
        return RejectedError(message, **facts)
    return AmbiguousError(message, retry_after_s=retry_after_s, **facts)


def is_api_error(body: bytes) -> bool:
    """Whether an error's body is the API's own: a JSON object that says something in one of the API's words.

    Its recorded errors are such objects, and the pages of an edge are HTML, plain text or empty. Cloudflare's own JSON
    errors name Cloudflare.
    """
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    if not isinstance(data, dict) or any("cloudflare" in key for key in data):
        return False
    return any(data.get(key) for key in ("error", "message", "detail"))


def _origin(location: str | None) -> str:
    """Where a redirect leads, without what may be secret in it."""
    try:
        parts = urlsplit(location or "")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host:
        return "another path of the same server" if location else "nowhere"
    return _one_line(f"{parts.scheme or 'the same scheme'}://{host}" + (f":{port}" if port else ""))


def parse_retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header, clamped to 0..120; None without one, or for a date.

    A date needs a clock that agrees with the server's; backoff does as well without it.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        return None
    if seconds != seconds:  # noqa: PLR0124 - NaN is the one number that differs from itself
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)


def body_message(body: bytes) -> str:
    """What an error body says, as one line of at most 300 characters.

    Takes the usual fields of a JSON object, the title of an HTML page, or the text itself.
    """
    return _one_line(_said(body)) or "empty answer"


def _said(body: bytes) -> str:
    text = body.decode("utf-8", "replace").strip()
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        title = _TITLE.search(text)
        return title.group(1) if title else text
    for key in ("error", "message", "detail", "title"):
        value = data.get(key) if isinstance(data, dict) else None
        if isinstance(value, dict):
            value = value.get("message", value)
        if value:
            return value if isinstance(value, str) else _json_text(value)
    return text


_OTHER_KIND = re.compile(r"not allowed for QB API", re.IGNORECASE)
"""A 400 for the queue's operations at a load-balancing endpoint (recorded by users)."""
_STATUSES = {status.value: status for status in JobStatus}

# Nothing here can run across another tag: thousands of tags that are never closed would take minutes to search.
_TITLE = re.compile(r"<title[^<>]*>([^<]*)</title>", re.IGNORECASE)


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


def _one_line(text: str) -> str:
    line = " ".join(without_controls(text).split())
    return line if len(line) <= _MAX_MESSAGE_CHARS else line[: _MAX_MESSAGE_CHARS - 1] + "…"


def _time_ms(value: object) -> float | None:
    if value is None or isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if 0 <= value <= _MAX_TIME_MS else None


def _json_text(value: Any) -> str:
    try:
        return dump(value).decode()
    except TypeError:
        return "nested too deeply to be shown"


def _count(value: object) -> int:
    return value if isinstance(value, int) and 0 < value <= _MAX_COUNT else 0


_MAX_COUNT = 2**53
