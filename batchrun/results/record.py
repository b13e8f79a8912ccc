"""The lines of the results file and of the error file. Their format is a contract with everyone who reads them.

Additional fields of an input line are carried to its result. If one has the name of a field of ours, it goes to
`carried`, so neither is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

import orjson

from batchrun.files.exactjson import load
from batchrun.results.text import Text, extract, is_token_count
from batchrun.results.thinking import split_think
from batchrun.results.written import write_line

_DIGEST_BYTES = 6
"""SQLite stores an integer of this size in this many bytes."""


class PackInfo(NamedTuple):
    """The place of a row in a job of several rows."""

    size: int
    number: int
    """From 0."""
    input_tokens: int | None
    """Those of all rows of the job; None if not reported. The same applies to `output_tokens`."""
    output_tokens: int | None


class JobInfo(NamedTuple):
    """The job that ended a row."""

    id: str | None
    endpoint: str
    attempts: int
    """The row's submissions, including the last one."""
    delay_ms: float | None
    execution_ms: float | None
    worker_id: str | None
    submitted_at: float | None
    """UTC epoch seconds."""
    completed_at: float | None
    """UTC epoch seconds."""
    retries: int = 0
    """How many times the platform itself ran the job again."""
    pack: PackInfo | None = None
    """The row's place in a job of several rows; None if the job was the row's own."""


@dataclass(frozen=True, slots=True)
class Record:
    """The part of a result line that a run reads back."""

    id: str
    delay_ms: float | None
    execution_ms: float | None
    """Of the whole job, also if several rows shared it."""
    input_tokens: int | None
    output_tokens: int | None
    finish_reason: str | None
    output: Any = field(compare=False, repr=False)
    """The output as received; in OpenAI's format, the body made from it."""
    text: Any = field(default=None, compare=False, repr=False)
    """The text as written; None if the line has none that differs from that of the output."""
    shared: tuple[str, int | None, int | None] | None = None
    """The ID of the job of several rows that answered the row, and its tokens; None if the job was the row's own."""
    is_cached: bool = False
    """Whether the answer came from the cache: it was paid for in another run, or earlier."""
    is_follower: bool = False
    """Whether it is the answer to the same request of another row of the run."""

    def tokens_once(self, seen: set[str]) -> tuple[int | None, int | None]:
        """The tokens to count: those of a shared job with its first record only, which is added to the jobs `seen`.

        Those of an answer from the cache were paid for by another row.
        """
        if self.is_cached:
            return None, None
        if self.shared is None:
            return self.input_tokens, self.output_tokens
        job_id, *tokens = self.shared
        if job_id in seen:
            return None, None
        seen.add(job_id)
        return tokens[0], tokens[1]

    @property
    def counts_as_cached(self) -> bool:
        """Whether the row was looked up in the cache and found."""
        return self.is_cached and not self.is_follower

    @property
    def marks(self) -> tuple[str, ...]:
        """What is notable about the answer, see `text.MARKS`."""
        return marks_of(self.output, self.text)


def marks_of(output: Any, written: Any) -> tuple[str, ...]:
    """What is notable about an answer whose text was written so, perhaps without its `<think>` blocks."""
    text = extract(output)
    return (text if written is None or written == text.text else split_think(text)).marks


def said_fields(text: Text) -> dict[str, Any]:
    """The fields of a record with what the model said; all but `text` are only there if there is something to say."""
    said: dict[str, Any] = {"text": text.text}
    if len(text.texts) > 1:
        said["texts"] = list(text.texts)
    if text.reasoning is not None:
        said["reasoning"] = text.reasoning
    if text.tool_calls is not None:
        said["tool_calls"] = text.tool_calls
    return said


def result_line(
    *,
    row_id: str,
    text: Text,
    output: Any,
    carried: Mapping[str, Any],
    file: str,
    line: int,
    job: JobInfo | Mapping[str, Any],
    read: Mapping[str, Any] | None = None,
    variant: Mapping[str, Any] | None = None,
    possible_duplicate: bool = False,
    request: Any = None,
    write: Callable[[dict[str, Any]], bytes] | None = None,
) -> bytes:
    """The line of a row that succeeded, with its line end.

    `read` has what was read from the text, `parsed` if there is a schema. `request` is the row's input line, as in
    `error_line`; None: it is not written. `write` formats the record; None for our own format. A mapping as `job`
    belongs to an answer from the cache: the line is marked as `cached`.
    """
    record: dict[str, Any] = {"id": row_id, "status": "COMPLETED"}
    if not isinstance(job, JobInfo):
        record[CACHED] = True
    record |= said_fields(text)
    record["finish_reason"] = text.finish_reason
    if len(text.finish_reasons) > 1:
        record["finish_reasons"] = text.finish_reasons
    if read:
        record |= read
    record["usage"] = usage = {"input_tokens": text.input_tokens, "output_tokens": text.output_tokens}
    if text.reasoning_tokens is not None:
        usage["reasoning_tokens"] = text.reasoning_tokens
    if text.cached_tokens is not None:
        usage["cached_tokens"] = text.cached_tokens
    record["output"] = output
    if request is not None:
        record["request"] = request
    carry(record, carried)
    if variant:
        record["variant"] = variant
    record["source"] = {"file": file, "line": line}
    record["job"] = job_fields(job) if isinstance(job, JobInfo) else dict(job)
    if possible_duplicate:
        record["job"]["possible_duplicate"] = True
    return (write or write_line)(record)


def shared_line(
    answer: Mapping[str, Any],
    *,
    row_id: str,
    carried: Mapping[str, Any],
    file: str,
    line: int,
    variant: Mapping[str, Any] | None = None,
    request: Any = None,
    write: Callable[[dict[str, Any]], bytes] | None = None,
) -> bytes:
    """The line of a row that another row's job has answered, with its line end; `job.same_as` names the other row.

    Args:
        answer: The other row's record, as `result_line` wrote it.
        row_id: The row's id.
        carried: The additional fields of the row's own line.
        file: Its input file, as the user named it.
        line: The number of its line, 1-based.
        variant: The sweep values; None or empty without a sweep.
        request: The row's own input line, see `result_line`.
        write: Formats the record; None for our own format.
    """
    record = {"id": row_id, **{key: answer[key] for key in _ANSWER if key in answer}}
    if _is_cached(answer, answer["job"]):
        record[CACHED] = True
    if request is not None:
        record["request"] = request
    carry(record, carried)
    if variant:
        record["variant"] = variant
    record["source"] = {"file": file, "line": line}
    record["job"] = {**answer["job"], "same_as": answer["id"]}
    return (write or write_line)(record)


def read_record(line: bytes) -> Record | None:
    """The record in a line of a results file, in either format; None if `result_line` did not write it."""
    data = _facts(line)
    if data is None or data.get("status") != "COMPLETED" or not isinstance(data.get("id"), str):
        return None
    job, usage = data.get("job"), data.get("usage")
    if not isinstance(job, dict) or not isinstance(usage, dict):
        return None
    delay_ms, execution_ms, reason = job.get("delay_ms"), job.get("execution_ms"), data.get("finish_reason")
    counts, shared = _tokens(usage), None
    if isinstance(pack := job.get("pack"), dict):
        execution_ms = pack.get("execution_ms")
        if isinstance(job.get("id"), str) and "same_as" not in job:
            shared = (job["id"], *_tokens(pack.get("usage")))
    if not (_is_time(delay_ms) and _is_time(execution_ms) and (reason is None or isinstance(reason, str))):
        return None
    if not all(count is None or is_token_count(count) for count in (*counts, *(shared or ())[1:])):
        return None
    return Record(
        data["id"],
        delay_ms,
        execution_ms,
        *counts,
        reason,
        data.get("output"),
        data.get("text"),
        shared,
        is_cached=_is_cached(data, job),
        is_follower="same_as" in job,
    )


def _is_cached(record: Mapping[str, Any], job: Mapping[str, Any]) -> bool:
    """Whether a record is marked as an answer from the cache; an input line may have a field of that name, too."""
    return record.get(CACHED) is True and job.get("attempts") == 0


def _tokens(usage: Any) -> tuple[Any, Any]:
    return (usage.get("input_tokens"), usage.get("output_tokens")) if isinstance(usage, dict) else (None, None)


def read_job(line: bytes) -> JobInfo | None:
    """The job in a line of a results file, in either format; None if there is none."""
    job = (_facts(line) or {}).get("job")
    if not isinstance(job, dict):
        return None
    try:
        return JobInfo(
            id=str(job["id"]),
            endpoint=str(job["endpoint"]),
            attempts=int(job["attempts"]),
            delay_ms=job["delay_ms"],
            execution_ms=job["execution_ms"],
            worker_id=job["worker_id"],
            submitted_at=datetime.fromisoformat(job["submitted_at"]).timestamp(),
            completed_at=datetime.fromisoformat(job["completed_at"]).timestamp(),
        )
    except (LookupError, TypeError, ValueError):
        return None


def tells_of_job(line: bytes, endpoints: Collection[str]) -> bool:
    """Whether a line is a result of a job at one of the endpoints."""
    job = None if read_record(line) is None else read_job(line)
    return job is not None and job.endpoint in endpoints


def result_digest(line: bytes) -> int:
    """A signed 48-bit digest of a result line; whitespace at its end is ignored."""
    return int.from_bytes(blake2b(line.rstrip(), digest_size=_DIGEST_BYTES).digest(), "big", signed=True)


def source_file(line: bytes) -> str | None:
    """The input file named in a line of a results file, in either format; None if there is none."""
    source = (_facts(line) or {}).get("source")
    file = source.get("file") if isinstance(source, dict) else None
    return file if isinstance(file, str) else None


def _facts(line: bytes) -> dict[str, Any] | None:
    """The fields of our record in a line: all of them, or in OpenAI's format those in `batchrun`."""
    try:
        data = load(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(data, dict):
        return None
    if "status" not in data and isinstance(facts := data.get("batchrun"), dict):
        response = data.get("response")
        body = response.get("body") if isinstance(response, dict) else None
        return {"output": body, **facts, "id": data.get("custom_id")}
    return data


_MAX_MS = 1e12


def _is_time(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value is None or (is_number and 0 <= value <= _MAX_MS)


SAID = ("text", "texts", "reasoning", "tool_calls")
"""The fields of `said_fields`."""
CACHED = "cached"
"""The field that marks an answer from the cache, and the counter of such rows."""
_ANSWER = ("status", *SAID, "finish_reason", "finish_reasons", "parsed", "usage", "output")
_OURS = frozenset({"id", *_ANSWER, "output_in_body", "variant", "source", "job", "carried"})


def carry(record: dict[str, Any], carried: Mapping[str, Any]) -> None:
    """Add the fields of an input line to a record."""
    hidden = {}
    for key, value in carried.items():
        if key in _OURS or key in record:
            hidden[key] = value
        else:
            record[key] = value
    if hidden:
        record["carried"] = hidden


def job_fields(job: JobInfo) -> dict[str, Any]:
    """The `job` of a record."""
    data: dict[str, Any] = {
        "id": job.id,
        "endpoint": job.endpoint,
        "attempts": job.attempts,
        "delay_ms": _whole(job.delay_ms),
        "execution_ms": _whole(job.execution_ms),
        "worker_id": job.worker_id,
        "submitted_at": iso_time(job.submitted_at),
        "completed_at": iso_time(job.completed_at),
    }
    if job.retries:
        data["platform_retries"] = job.retries
    if job.pack is not None:
        size, number, input_tokens, output_tokens = job.pack
        data["execution_ms"] = None if job.execution_ms is None else _whole(round(job.execution_ms / size, 3))
        usage = {"input_tokens": input_tokens, "output_tokens": output_tokens}
        data["pack"] = {"size": size, "index": number, "usage": usage, "execution_ms": _whole(job.execution_ms)}
    return data


@lru_cache(256)
def iso_time(epoch_s: float | None) -> str | None:
    """`2026-01-01T00:00:00.000Z`; None stays None. Cached, because the rows of a job have the same times."""
    if epoch_s is None:
        return None
    second, ms = divmod(round(epoch_s * 1000), 1000)
    return f"{_iso_second(second)}.{ms:03d}Z"


@lru_cache(256)
def _iso_second(epoch_s: int) -> str:
    """Cached, because thousands of results may have the same second."""
    return datetime.fromtimestamp(epoch_s, UTC).isoformat(timespec="seconds").removesuffix("+00:00")


def _whole(number: float | None) -> int | float | None:
    return int(number) if number is not None and number == int(number) else number
