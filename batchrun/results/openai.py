"""Converts records to the result and error lines of the OpenAI batch API and `vllm run-batch`, and back.

    {"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error", "batchrun": {...}}

`batchrun` has the rest of our record, and readers of that format ignore it: status, usage, the line's own fields,
variant, source, job. It includes the output only if that is not the body; otherwise `output_in_body` says how the body
was made from the output. It includes the text, the reasoning and the tool calls only if the output alone does not tell
them. So a line can be converted to our record and back without loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from batchrun.files.exactjson import dump, on_one_line
from batchrun.results.completion import RequestTarget, body_of
from batchrun.results.record import SAID, said_fields
from batchrun.results.text import extract
from batchrun.results.written import TOO_DEEP, deep_json, write_line

_IN_BODY = "output_in_body"


def openai_line(record: dict[str, Any], target: Callable[[], RequestTarget]) -> bytes:
    """A result line in OpenAI's format, with its line end.

    Args:
        record: As `result_line` makes it.
        target: Returns the route and model of its request; called only if the answer alone does not tell.
    """
    try:
        return on_one_line(dump(openai_record(record, target), orjson.OPT_APPEND_NEWLINE))
    except (TypeError, RecursionError):
        shallow = {key: value if _can_be_written(value) else TOO_DEEP for key, value in record.items()}
        return write_line(openai_record(shallow, target))


def openai_record(record: Mapping[str, Any], target: Callable[[], RequestTarget]) -> dict[str, Any]:
    """A record in OpenAI's format."""
    is_told = {key: record[key] for key in SAID if key in record} == said_fields(extract(record["output"]))
    facts = {key: value for key, value in record.items() if key != "id" and not (is_told and key in SAID)}
    body = body_of(record, target)
    if body.added is not None:
        place = {"in_list": isinstance(record["output"], list), "added": body.added}
        facts = {(_IN_BODY if key == "output" else key): place if key == "output" else facts[key] for key in facts}
    job_id = record["job"]["id"]
    return {
        "id": f"batch_req_{job_id}",
        "custom_id": record["id"],
        "response": {"status_code": 200, "request_id": str(job_id), "body": body.value},
        "error": None,
        "batchrun": facts,
    }


def batchrun_record(data: Mapping[str, Any]) -> dict[str, Any]:
    """The record that `openai_record` was given."""
    facts = data["batchrun"]
    place = facts.get(_IN_BODY)
    if place is None:
        output = facts["output"]
    else:
        body = data["response"]["body"]
        output = {key: value for key, value in body.items() if key not in place["added"]}
        output = [output] if place["in_list"] else output
    record: dict[str, Any] = {"id": data["custom_id"], "status": facts["status"]}
    if "text" not in facts:
        record |= said_fields(extract(output))
    for key, value in facts.items():
        if key in (_IN_BODY, "output"):
            record["output"] = output
        else:
            record[key] = value
    return record


def is_openai(data: Mapping[str, Any]) -> bool:
    """Whether a parsed line of a results file is in OpenAI's format."""
    return "status" not in data and "custom_id" in data


def openai_error_line(record: dict[str, Any], code: int | None = None, error_type: str | None = None) -> bytes:
    """An error line in OpenAI's format, with its line end. As an input line, it stands for its request.

    Args:
        record: As `error_line` makes it.
        code: The HTTP status of the model server or of the API; None if there was none: `response` is then null.
        error_type: The worker's name for the error; None if unknown.
    """
    error, job = record["error"], record["job"]
    request_id = str(record["id"] if job is None or job["id"] is None else job["id"])
    said = {"message": error["message"], "type": error_type or error["kind"], "param": None, "code": code}
    facts = {key: value for key, value in record.items() if key not in ("id", "error")}
    facts["raw"] = error["raw"]
    return write_line(
        {
            "id": f"batch_req_{(job or {}).get('id') or record['id']}",
            "custom_id": record["id"],
            "response": code and {"status_code": code, "request_id": request_id, "body": {"error": said}},
            "error": {"code": error["kind"], "message": error["message"]},
            "batchrun": facts,
        }
    )


def _can_be_written(value: Any) -> bool:
    try:
        deep_json(value)
    except RecursionError:
        return False
    return True
