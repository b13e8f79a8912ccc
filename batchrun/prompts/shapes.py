"""Parse a line of any known shape: its id, its request, and what is carried to its result.

    {"prompt": "...", ...} or a JSON string    {"prompt": ..., "sampling_params": {...}}
    {"messages": [...], ...}                   {"messages": ..., "sampling_params": {...}}
    {"input": {...}, ...}                      the object unchanged, for any worker
    {"custom_id", "method", "url", "body"}     {"openai_route": url, "openai_input": body}
    a line of batchrun's own error file        its `request`, again

`id` or `custom_id` names the line. Sampling parameters may be in `sampling_params` or beside the prompt. `metadata` and
every unknown field are carried to the result unchanged. Sampling values are not validated: which are valid depends on
the worker's version of vLLM. A null counts as an absent field, because tables write null where a row has no value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from unicodedata import category

import orjson

from batchrun.config import MAX_REQUEST_BYTES
from batchrun.errors import InputError
from batchrun.files.exactjson import dump, load
from batchrun.prompts.formats import not_utf8
from batchrun.prompts.routes import is_route, route_of
from batchrun.prompts.sampling import FIRST_PARAMETERS, SAMPLING_PARAMETERS, WHOLE_NUMBERS

READING = 3
"""The rules by which a line becomes its request. A run keeps those that it began with, so that they are the same for
all of its rows, and a line that was submitted keeps its derived id.

    1  knows fewer sampling parameters, and sends a null and a number such as 5.0 unchanged
    2  knows all parameters of vLLM, omits nulls, and sends 5.0 as 5 where a whole number is expected
    3  gives a line of an error file the id of its row, not the id of the line, which rows of a sweep share
"""

_MOST_BRACKETS_UNCHECKED = 200
"""A line with fewer is not nested too deeply to be written as JSON again, for which the limit is 254 levels."""
_OPENAI_KEYS = frozenset({"id", "custom_id", "method", "url", "body"})
_EXPECTED = (
    "expected `prompt`, `messages`, `input`, or an OpenAI batch line (`custom_id`, `method`, `url`, `body`); a template"
    " makes a prompt of other columns, for example --prompt 'Summarise: {{ column }}'"
)
_MAX_ID_CHARS = 512


class Shape(StrEnum):
    """Which of the known shapes a line has."""

    PROMPT = "prompt"
    MESSAGES = "messages"
    INPUT = "input"
    OPENAI = "openai"


_PROMPT, _MESSAGES = Shape.PROMPT, Shape.MESSAGES
"""Compared for every line: looking a member up in its class, or by its hash, takes as long as parsing a short line."""


class LineError(InputError):
    """A line cannot be used. The message has no file and line number: the caller adds them."""


@dataclass(slots=True)
class Prompt:
    """A parsed line. Do not change it; it is not frozen because that would add a tenth to the time to parse a line."""

    id: str | None
    """The line's own id; None if it has none."""
    shape: Shape
    request: dict[str, Any]
    """The request without any options applied."""
    carried: dict[str, Any]
    """`metadata` and every unknown field."""
    line: Any
    """The line's JSON value; for a line of an error file, the original line in it."""


def parse_line(raw: bytes, reading: int = READING, id_column: str | None = None) -> Prompt:
    """Parse a line.

    Args:
        raw: The line.
        reading: The rules of its run; see `READING`.
        id_column: The field with the line's id; None: `id` or `custom_id`.

    Raises:
        LineError: it is not JSON, has no known shape, or its request is larger than `/run` accepts.
    """
    line = load_line(raw)
    fallback_id = None
    if isinstance(line, dict) and "error" in line:
        fallback_id, line = unwrap_error_line(line)
    line_object: dict[str, Any]
    if isinstance(line, dict):
        line_object = line
    elif isinstance(line, str):
        line_object = {"prompt": line}
    else:
        raise LineError(f"expected an object or a string, found {_kind(line)}")
    if None in line_object.values():
        line_object = _without_null_fields(line_object, reading)
    shape = _shape(line_object)
    if id_column is None or fallback_id is not None:
        line_id = own_id(line_object if fallback_id is None or reading < 3 else {}, fallback_id)  # noqa: PLR2004
    else:
        line_id = id_in_column(line_object, id_column)
    if shape is _PROMPT:
        request, carried = read_prompt(line_object, reading)
    elif shape is _MESSAGES:
        request, carried = read_messages(line_object, reading)
    else:
        request, carried = (_read_openai if shape is Shape.OPENAI else _read_input)(line_object)
    if len(raw) > 2 * _MOST_BRACKETS_UNCHECKED and (
        len(raw) > MAX_REQUEST_BYTES or raw.count(b"[") + raw.count(b"{") > _MOST_BRACKETS_UNCHECKED
    ):
        refuse_what_cannot_be_sent(request)
    return Prompt(line_id, shape, request, carried, line)


def load_line(raw: bytes) -> Any:
    """The JSON value of a line.

    Raises:
        LineError: it is not JSON.
    """
    try:
        return load(raw)
    except orjson.JSONDecodeError as error:
        raise LineError(f"invalid JSON at column {not_utf8(raw) or f'{error.colno}: {error.msg}'}") from error


def unwrap_error_line(line: dict[str, Any]) -> tuple[Any, Any]:
    """The row's id and the request in a line of an error file of either format; for another line, None and itself."""
    facts, error = line.get("batchrun", line), line["error"]
    if (
        any(line.get(key) is not None for key in PROMPT_KEYS)
        or not isinstance(facts, dict)
        or not isinstance(error, dict)
    ):
        return None, line
    is_ours = facts.get("status") in _FAILED_STATUSES and {"request", "source", "job"} <= facts.keys()
    if not is_ours or not ("kind" in error or "code" in error):
        return None, line
    return line.get("custom_id", line.get("id")), facts["request"]


PROMPT_KEYS = frozenset({"prompt", "messages", "input", "body"})
"""A line with one of these fields says by itself what is sent."""
_FAILED_STATUSES = frozenset(
    {"FAILED", "CANCELLED", "TIMED_OUT", "REJECTED", "EXPIRED", "UNCONFIRMED", "INVALID", "COMPLETED"}
)
"""The possible statuses of a row in an error file."""


def refuse_what_cannot_be_sent(request: dict[str, Any]) -> None:
    """Refuse a request that cannot be written as JSON, or is larger than `/run` accepts.

    Raises:
        LineError: it is such a request.
    """
    try:
        size_bytes = len(dump({"input": request}))
    except TypeError as error:
        raise LineError("the request is nested too deeply") from error
    if size_bytes > MAX_REQUEST_BYTES:
        raise LineError(f"the request has {size_bytes:,} bytes, but /run accepts at most {MAX_REQUEST_BYTES:,}")


def _without_null_fields(line: dict[str, Any], reading: int) -> dict[str, Any]:
    """A line without its null fields, except for carried ones."""
    absent = _SHAPE_KEYS if reading == 1 else _SHAPE_KEYS | SAMPLING_PARAMETERS
    return {key: value for key, value in line.items() if value is not None or key not in absent}


def _shape(line: dict[str, Any]) -> Shape:
    if "prompt" in line and "messages" not in line and "input" not in line and "body" not in line:
        return _PROMPT
    found = [key for key in _SHAPES if key in line]
    if line.get("body") is not None:
        if not found and ("url" in line or "custom_id" in line):
            return Shape.OPENAI
        if found and _is_openai(line):
            found.append("body")
    if len(found) > 1:
        both = " and ".join(f"`{key}`" for key in found)
        raise LineError(f"{both} in one line: only one of them is allowed")
    if not found:
        keys = ", ".join(f"`{key}`" for key in list(line)[:5]) or "an empty object"
        raise LineError(f"no prompt in the line (it has {keys}): {_EXPECTED}")
    return _SHAPES[found[0]]


def _is_openai(line: dict[str, Any]) -> bool:
    """Whether a line that also has a prompt is an OpenAI line: just `url` and `body` may describe a web page."""
    if not isinstance(line["body"], dict):
        return False
    return is_route(line.get("url")) or (line.get("custom_id") is not None and line.get("method") is not None)


_SHAPES = {"prompt": Shape.PROMPT, "messages": Shape.MESSAGES, "input": Shape.INPUT}
_SHAPE_KEYS = frozenset(_SHAPES)


def id_in_column(line: dict[str, Any], name: str) -> str:
    """The id in a field of a line.

    Raises:
        LineError: it has no such field, or the value cannot be an id.
    """
    try:
        found = own_id({"id": line.get(name)}, None)
    except LineError as error:
        raise LineError(error.message.replace("`id`", f"--id-column `{name}`"), error.hint) from error
    if found is None:
        raise LineError(f"--id-column: `{name}` is absent or empty: {columns_of(line)}")
    return found


def columns_of(row: Mapping[str, Any]) -> str:
    """The names of a row's columns, for a message."""
    names = [f"`{name}`" for name, value in row.items() if value is not None]
    more = ", ..." if len(names) > _MOST_NAMED else ""
    return f"the row has {', '.join(names[:_MOST_NAMED])}{more}" if names else "the row has no columns"


_MOST_NAMED = 12


def own_id(line: dict[str, Any], fallback: Any) -> str | None:
    """The `id` or `custom_id` of a line; None if it has none.

    Raises:
        LineError: the value cannot be an id, or there are two.
    """
    value, other = line.get("id"), line.get("custom_id")
    if value is None:
        value = fallback if other is None else other
    elif other is not None and value != other:
        raise LineError(f"`id` {value!r} and `custom_id` {other!r} differ")
    if value is None:
        return None
    if type(value) is str and 0 < len(value) <= _MAX_ID_CHARS and (value.isprintable() or _is_text(value)):
        return value
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise LineError(f"`id` must be a string or a number, not {_kind(value)}")
    text = str(value)
    if not text or not _is_text(text) or len(text) > _MAX_ID_CHARS:
        raise LineError(f"`id` must be 1 to {_MAX_ID_CHARS} printable characters")
    return text


def _is_text(value: str) -> bool:
    """Whether a text has neither controls nor line ends. Names and emoji may have joiners and spaces of all kinds."""
    return not any(category(char) in _NO_TEXT for char in value)


_NO_TEXT = frozenset({"Cc", "Cs", "Zl", "Zp"})


def read_prompt(line: dict[str, Any], reading: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The request of a line with a `prompt`, and what is carried.

    Raises:
        LineError: a field of it is not valid.
    """
    prompt = line["prompt"]
    if type(prompt) is str and prompt:
        return _with_sampling({"prompt": prompt}, line, "prompt", reading)
    texts = prompt if isinstance(prompt, list) else [prompt]
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise LineError("`prompt` must be a non-empty string or a list of non-empty strings")
    return _with_sampling({"prompt": prompt}, line, "prompt", reading)


def read_messages(line: dict[str, Any], reading: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The request of a line with `messages`, and what is carried.

    Raises:
        LineError: a field of it is not valid.
    """
    messages = line["messages"]
    if not isinstance(messages, list) or not messages:
        raise LineError("`messages` must be a non-empty list")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise LineError(f"`messages[{index}]` must be an object with a `role`")
        if None in message.values() and reading > 1:
            messages = [*messages[:index], _without_nulls(message), *messages[index + 1 :]]
    return _with_sampling({"messages": messages}, line, "messages", reading)


def _without_nulls(message: dict[str, Any]) -> dict[str, Any]:
    """A message without its null fields, except `content`, which by the API's rules is null in a tool call."""
    return {key: value for key, value in message.items() if value is not None or key == "content"}


def _read_input(line: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    request = line["input"]
    if not isinstance(request, dict):
        raise LineError(f"`input` must be an object, not {_kind(request)}")
    if not request:
        raise LineError("`input` is empty: Runpod drops an empty input, and the job fails after a timeout")
    return request, {key: value for key, value in line.items() if key not in ("input", "id", "custom_id")}


def _read_openai(line: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    body, method = line["body"], line.get("method")
    if method is not None and method != "POST":
        raise LineError(f"`method` must be POST, not {method!r}")
    url = route = line.get("url")
    if type(url) is not str or not url.startswith("/v1/"):
        route = route_of(url, body)
    if route is None:
        raise LineError(_NO_ROUTE if url is None else f"{_WRONG_URL}, not {url!r}")
    if not isinstance(body, dict) or not body:
        raise LineError("`body` must be a non-empty object")
    _refuse_stream(body)
    carried = {key: value for key, value in line.items() if key not in _OPENAI_KEYS}
    return {"openai_route": route, "openai_input": body}, carried


_NO_ROUTE = (
    "the line has no `url`, and its `body` has neither `messages` nor `prompt`: add a `url` such as /v1/embeddings"
)
_WRONG_URL = "`url` must be a path such as /v1/chat/completions"


def _with_sampling(
    request: dict[str, Any], line: dict[str, Any], key: str, reading: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    inner = line.get("sampling_params")
    if inner is not None and not isinstance(inner, dict):
        raise LineError(f"`sampling_params` must be an object, not {_kind(inner)}")
    sampling = {} if not inner else dict(inner) if reading == 1 else _normalized(inner)
    known = FIRST_PARAMETERS if reading == 1 else SAMPLING_PARAMETERS
    carried = {}
    for name, value in line.items():
        if name == key or name in _NOT_CARRIED:
            continue
        if name in known:
            if type(value) is float and reading > 1:
                value = _as_integer(name, value)  # noqa: PLW2901 - the normalized value
            if inner and name in sampling and sampling[name] != value:
                raise LineError(f"`{name}` has different values beside the prompt and in `sampling_params`")
            sampling[name] = value
        else:
            carried[name] = value
    if "stream" in line:
        _refuse_stream(line)
    if "stream" in sampling:
        _refuse_stream(sampling)
    if sampling:
        request["sampling_params"] = sampling
    return request, carried


def _normalized(sampling: dict[str, Any]) -> dict[str, Any]:
    return {name: _as_integer(name, value) for name, value in sampling.items() if value is not None}


def _as_integer(name: str, value: Any) -> Any:
    """A parameter's value; a float that a table with gaps made of a whole number is an integer again."""
    if type(value) is float and value.is_integer() and abs(value) < _EXACT and name in WHOLE_NUMBERS:
        return int(value)
    return value


_EXACT = 2**53
"""Below this, a float is exactly the whole number that it was made of."""


_NOT_CARRIED = frozenset({"sampling_params", "id", "custom_id", "stream"})


def _refuse_stream(fields: dict[str, Any]) -> None:
    """Streaming splits answers into pieces, which nobody reads early here, and can damage multi-byte text."""
    if fields.get("stream"):
        raise LineError("`stream` is not supported in batch runs: remove it")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
