"""The record of a row that failed: a line of an error file, which is also valid input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from batchrun.files.exactjson import load
from batchrun.results.record import JobInfo, job_fields
from batchrun.results.written import write_line

_MAX_PART_BYTES = 1_000_000


def error_line(
    *,
    row_id: str,
    status: str,
    kind: str,
    message: str,
    raw: str,
    request: Any,
    file: str,
    line: int,
    job: JobInfo | None,
    variant: Mapping[str, Any] | None = None,
    same_as: str | None = None,
    part: Any = None,
    write: Callable[[dict[str, Any]], bytes] | None = None,
) -> bytes:
    """The line of a row that failed, with its line end. When it is used as an input line, its `request` is run.

    Args:
        row_id: The row's id.
        status: The job's final state, or REJECTED, EXPIRED, UNCONFIRMED, INVALID.
        kind: The failure's short stable word.
        message: An explanation that a person can act on.
        raw: Exactly what the worker or the API sent.
        request: The input line as parsed, with the values of its variant.
        file: The input file, as the user named it.
        line: The number of the line, 1-based.
        job: The last job; None if nothing was submitted.
        variant: The sweep values; None or empty without a sweep.
        same_as: The id of the row whose job it was; None if it was the row's own.
        part: The output of the failed job; None if it had none.
        write: Formats the record; None for our own format.
    """
    record = {
        "id": row_id,
        "status": status,
        "error": {"kind": kind, "message": message, "raw": raw},
        **({} if part is None else {"output": part}),
        "request": request,
        **({"variant": variant} if variant else {}),
        "source": {"file": file, "line": line},
        "job": None if job is None else {**job_fields(job), **({"same_as": same_as} if same_as is not None else {})},
    }
    return (write or write_line)(record)


def part_bytes(output: Any) -> bytes:
    """The output of a job without a result, as JSON of at most a million bytes; a longer output is cut."""
    while len(written := write_line({"output": output})) > _MAX_PART_BYTES:
        if not isinstance(output, list) or len(output) < 3:  # noqa: PLR2004 - a piece and a mark
            output = [f"… (cut: {len(written):,} bytes)"]
        else:
            output = [*output[: len(output) // 2], f"… (cut: {len(output):,} pieces)"]
    return written.removeprefix(b'{"output":').removesuffix(b"}\n")


def read_error_id(line: bytes) -> str | None:
    """The row's id in a line of an error file, in either format; None if `error_line` did not write it."""
    try:
        data = load(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(data, dict) or not isinstance(data.get("error"), dict):
        return None
    row_id = data.get("custom_id", data.get("id"))
    return row_id if isinstance(row_id, str) else None
