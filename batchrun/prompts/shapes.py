"""What a line may be, and the request that it makes.

    {"prompt": "...", ...} or a JSON string    {"prompt": ..., "sampling_params": {...}}
    {"messages": [...], ...}                   {"messages": ..., "sampling_params": {...}}
    {"input": {...}, ...}                      the object as it is, for any worker
    {"custom_id", "method", "url", "body"}     {"openai_route": url, "openai_input": body}
    a line of an error file of ours            its `request`, again

`id` or `custom_id` names the line. Sampling parameters may stand in `sampling_params` or beside the prompt.
`metadata` and every field that is not known are carried to the result untouched. Sampling values are passed on
unvalidated: which are valid depends on the worker's version of vLLM. A null is an absent field, as every table writes
them where a row lacks a column.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from unicodedata import category

import orjson

from batchrun.config import MAX_REQUEST_BYTES, RequestOptions
from batchrun.errors import InputError
from batchrun.files.exactjson import dump, load
from batchrun.prompts.routes import is_route, route_of
from batchrun.prompts.sampling import BEFORE, SAMPLING_PARAMETERS, WHOLE_NUMBERS

READING = 3
"""The rules by which a line becomes its request. A run keeps those that it began with, so that all of its rows are
asked for alike, and a line that was submitted keeps its derived id.

    1  knows fewer sampling parameters, and sends a null and a number such as 5.0 as they are
    2  knows all of vLLM's, leaves out what is null, and sends 5.0 as 5 where a whole number is wanted
    3  calls a line of an error file what its row was called, where rows of a sweep share the id of their line
"""

_MOST_BRACKETS_UNCHECKED = 200
"""A line with fewer is nested less deep than what can be written as JSON again, which is 254 levels."""
_OPENAI_KEYS = frozenset({"id", "custom_id", "method", "url", "body"})
_EXPECTED = "expected `prompt`, `messages`, `input`, or an OpenAI batch line (`custom_id`, `method`, `url`, `body`)"
_MAX_ID_CHARS = 512


class Shape(StrEnum):
    """Which of the known shapes a line has."""

    PROMPT = "prompt"
    MESSAGES = "messages"
    INPUT = "input"
    OPENAI = "openai"


_PROMPT, _MESSAGES = Shape.PROMPT, Shape.MESSAGES
"""Compared for every line: to look a member up in its class, or by its hash, takes as long as to read a short line."""


class LineError(InputError):
    """A line cannot be used. The message has no file and line number: those are the caller's."""


@dataclass(slots=True)
class Prompt:
    """A line as it was understood. Not to be changed; a frozen one would cost a tenth of the reading of a line."""

    id: str | None
    """The line's own id; None when it has none."""
    shape: Shape
    request: dict[str, Any]
    """What it asks for by itself, without options."""
    carried: dict[str, Any]
    """`metadata` and every unknown field."""
    line: Any
    """The line as parsed; of a line of an error file the original that is in it."""


def parse_line(raw: bytes, reading: int = READING) -> Prompt:
    """Understand a line.

    Args:
        raw: The line.
        reading: By which rules; those of its run, see `READING`.

    Raises:
        LineError: it is no JSON, of no known shape, or its request is larger than `/run` takes.
    """
    try:
        line = load(raw)
    except orjson.JSONDecodeError as error:
        raise LineError(f"invalid JSON at column {_not_utf8(raw) or f'{error.colno}: {error.msg}'}") from error
    fallback_id = None
    if isinstance(line, dict) and "error" in line:
        fallback_id, line = _of_error_line(line)
    line_object: dict[str, Any]
    if isinstance(line, dict):
        line_object = line
    elif isinstance(line, str):
        line_object = {"prompt": line}
    else:
        raise LineError(f"{_kind(line)} where an object or a string was expected")
    if None in line_object.values():
        line_object = _present(line_object, reading)
    shape = _shape(line_object)
    line_id = _id(line_object if fallback_id is None or reading < 3 else {}, fallback_id)  # noqa: PLR2004
    if shape is _PROMPT:
        request, carried = _read_prompt(line_object, reading)
    elif shape is _MESSAGES:
        request, carried = _read_messages(line_object, reading)
    else:
        request, carried = (_read_openai if shape is Shape.OPENAI else _read_input)(line_object)
    if len(raw) > 2 * _MOST_BRACKETS_UNCHECKED and (
        len(raw) > MAX_REQUEST_BYTES or raw.count(b"[") + raw.count(b"{") > _MOST_BRACKETS_UNCHECKED
    ):
        _refuse_what_cannot_be_sent(request)
    return Prompt(line_id, shape, request, carried, line)


def _not_utf8(raw: bytes) -> str | None:
    """Which column of a line is not UTF-8, and what helps; None: all of it is."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        column = len(raw[: error.start].decode()) + 1
        return (
            f"{column}: byte 0x{raw[error.start]:02x} is not UTF-8; a file in Latin-1 or cp1252 is converted by:"
            " iconv -f CP1252 -t UTF-8 FILE"
        )
    return None


def _of_error_line(line: dict[str, Any]) -> tuple[Any, Any]:
    """The row's id and the request in a line of an error file, in either format; of another line none, and itself."""
    facts, error = line.get("batchrun", line), line["error"]
    if (
        any(line.get(key) is not None for key in _PROMPT_KEYS)
        or not isinstance(facts, dict)
        or not isinstance(error, dict)
    ):
        return None, line
    is_ours = facts.get("status") in _FAILED_STATUSES and {"request", "source", "job"} <= facts.keys()
    if not is_ours or not ("kind" in error or "code" in error):
        return None, line
    return line.get("custom_id", line.get("id")), facts["request"]


_PROMPT_KEYS = frozenset({"prompt", "messages", "input", "body"})
_FAILED_STATUSES = frozenset(
    {"FAILED", "CANCELLED", "TIMED_OUT", "REJECTED", "EXPIRED", "UNCONFIRMED", "INVALID", "COMPLETED"}
)
"""What the status of a row in an error file may be."""


def build_request(prompt: Prompt, options: RequestOptions) -> dict[str, Any]:
    """The `input` object to send: what the line asks for, with the options applied.

    `--set` and `--default` go to the sampling parameters, or into the body of an OpenAI line. An `input` object gets
    them only when it is made for vLLM, that is has `prompt` or `messages`: what another worker does with
    sampling parameters nobody knows. `--chat` and `--system` leave `input` objects alone.
    """
    if not (options.override or options.default or options.chat or options.system):
        return prompt.request
    request = dict(prompt.request)
    match prompt.shape:
        case Shape.PROMPT:
            if (options.chat or options.system) and isinstance(request["prompt"], str):
                request = {"messages": [{"role": "user", "content": request.pop("prompt")}], **request}
                request["messages"] = _with_system(request["messages"], options.system)
        case Shape.MESSAGES:
            request["messages"] = _with_system(request["messages"], options.system)
        case Shape.OPENAI:
            body = {**options.default, **request["openai_input"], **options.override}
            if isinstance(body.get("messages"), list):
                body["messages"] = _with_system(body["messages"], options.system)
            request["openai_input"] = body
            return request
        case Shape.INPUT:
            if "prompt" not in request and "messages" not in request:
                return request
    own = request.get("sampling_params")
    if own is not None and not isinstance(own, dict):
        return request  # an `input` object is any worker's: what it means by this is its own affair
    sampling = {**options.default, **(own or {}), **options.override}
    if sampling:
        request["sampling_params"] = sampling
    return request


def prompt_chars(value: Any) -> int:
    """How many characters of text a request holds, keys and media aside: an estimate of what the model reads."""
    total, stack = 0, [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, dict):
            stack.extend(v for k, v in item.items() if k not in _NO_TEXT_KEYS)
        elif isinstance(item, list):
            stack.extend(item)
    return total


_NO_TEXT_KEYS = frozenset({"role", "type", "image_url", "input_audio", "openai_route", "sampling_params", "model"})


def _refuse_what_cannot_be_sent(request: dict[str, Any]) -> None:
    try:
        size_bytes = len(dump({"input": request}))
    except TypeError as error:
        raise LineError("the request is nested too deep") from error
    if size_bytes > MAX_REQUEST_BYTES:
        raise LineError(f"the request has {size_bytes:,} bytes, /run takes {MAX_REQUEST_BYTES:,}")


def _present(line: dict[str, Any], reading: int) -> dict[str, Any]:
    """A line without the fields that are null and would mean something if they were not; what is carried stays."""
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
        raise LineError(f"{both} in one line: it must be clear which one is asked for")
    if not found:
        keys = ", ".join(f"`{key}`" for key in list(line)[:5]) or "an empty object"
        raise LineError(f"no prompt in the line (it has {keys}): {_EXPECTED}")
    return _SHAPES[found[0]]


def _is_openai(line: dict[str, Any]) -> bool:
    """Whether a line with a prompt of its own is an OpenAI line, too: `url` and `body` alone may be those of a page."""
    if not isinstance(line["body"], dict):
        return False
    return is_route(line.get("url")) or (line.get("custom_id") is not None and line.get("method") is not None)


_SHAPES = {"prompt": Shape.PROMPT, "messages": Shape.MESSAGES, "input": Shape.INPUT}
_SHAPE_KEYS = frozenset(_SHAPES)


def _id(line: dict[str, Any], fallback: Any) -> str | None:
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
    """Whether a text has neither controls nor line ends. Joiners and spaces of all kinds belong to names and emoji."""
    return not any(category(char) in _NO_TEXT for char in value)


_NO_TEXT = frozenset({"Cc", "Cs", "Zl", "Zp"})


def _read_prompt(line: dict[str, Any], reading: int) -> tuple[dict[str, Any], dict[str, Any]]:
    prompt = line["prompt"]
    if type(prompt) is str and prompt:
        return _with_sampling({"prompt": prompt}, line, "prompt", reading)
    texts = prompt if isinstance(prompt, list) else [prompt]
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise LineError("`prompt` must be a text that is not empty, or a list of such texts")
    return _with_sampling({"prompt": prompt}, line, "prompt", reading)


def _read_messages(line: dict[str, Any], reading: int) -> tuple[dict[str, Any], dict[str, Any]]:
    messages = line["messages"]
    if not isinstance(messages, list) or not messages:
        raise LineError("`messages` must be a list that is not empty")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise LineError(f"`messages[{index}]` must be an object with a `role`")
        if None in message.values() and reading > 1:
            messages = [*messages[:index], _without_nulls(message), *messages[index + 1 :]]
    return _with_sampling({"messages": messages}, line, "messages", reading)


def _without_nulls(message: dict[str, Any]) -> dict[str, Any]:
    """A message without its null fields, but for `content`, which a call of a tool has as null by the API's rules."""
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
        raise LineError("`body` must be an object that is not empty")
    _refuse_stream(body)
    carried = {key: value for key, value in line.items() if key not in _OPENAI_KEYS}
    return {"openai_route": route, "openai_input": body}, carried


_NO_ROUTE = (
    "no `url` beside the `body`, which has neither `messages` nor `prompt`: say where it goes, as /v1/embeddings"
)
_WRONG_URL = "`url` must be a path such as /v1/chat/completions"


def _with_sampling(
    request: dict[str, Any], line: dict[str, Any], key: str, reading: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    inner = line.get("sampling_params")
    if inner is not None and not isinstance(inner, dict):
        raise LineError(f"`sampling_params` must be an object, not {_kind(inner)}")
    sampling = {} if not inner else dict(inner) if reading == 1 else _as_meant(inner)
    known = BEFORE if reading == 1 else SAMPLING_PARAMETERS
    carried = {}
    for name, value in line.items():
        if name == key or name in _NOT_CARRIED:
            continue
        if name in known:
            if type(value) is float and reading > 1:
                value = _whole(name, value)  # noqa: PLW2901 - the value as it is meant
            if inner and name in sampling and sampling[name] != value:
                raise LineError(f"`{name}` stands beside the prompt and in `sampling_params` with different values")
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


def _as_meant(sampling: dict[str, Any]) -> dict[str, Any]:
    return {name: _whole(name, value) for name, value in sampling.items() if value is not None}


def _whole(name: str, value: Any) -> Any:
    """A parameter's value; a whole number again, where a table with gaps has made it a float."""
    if type(value) is float and value.is_integer() and abs(value) < _EXACT and name in WHOLE_NUMBERS:
        return int(value)
    return value


_EXACT = 2**53
"""Below it a float is the whole number that it was made of."""


_NOT_CARRIED = frozenset({"sampling_params", "id", "custom_id", "stream"})


def _refuse_stream(fields: dict[str, Any]) -> None:
    """Streaming cuts answers into pieces that nobody reads early here, and can damage multi-byte text."""
    if fields.get("stream"):
        raise LineError("`stream` is of no use in a batch: take it out")


def _with_system(messages: list[Any], system: str | None) -> list[Any]:
    first = messages[0] if messages else None
    if system is None or (isinstance(first, dict) and first.get("role") in ("system", "developer")):
        return messages
    return [{"role": "system", "content": system}, *messages]


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
