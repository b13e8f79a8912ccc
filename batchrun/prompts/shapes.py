"""What a line may be, and the request that it makes.

    {"prompt": "...", ...} or a JSON string    {"prompt": ..., "sampling_params": {...}}
    {"messages": [...], ...}                   {"messages": ..., "sampling_params": {...}}
    {"input": {...}, ...}                      the object as it is, for any worker
    {"custom_id", "method", "url", "body"}     {"openai_route": url, "openai_input": body}
    a line of an error file of ours            its `request`, again

`id` or `custom_id` names the line. Sampling parameters may stand in `sampling_params` or beside the prompt.
`metadata` and every field that is not known are carried to the result untouched. Sampling values are passed on
unvalidated: which are valid depends on the worker's version of vLLM.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import orjson

from batchrun.config import MAX_REQUEST_BYTES
from batchrun.errors import InputError
from batchrun.exactjson import dump, load

if TYPE_CHECKING:
    from batchrun.config import RequestOptions

SAMPLING_PARAMETERS = frozenset(
    # worker-vllm's documentation
    "n best_of presence_penalty frequency_penalty repetition_penalty temperature"  # noqa: SIM905 - words read better as words
    " top_p top_k min_p use_beam_search"
    " length_penalty early_stopping stop stop_token_ids ignore_eos max_tokens min_tokens seed skip_special_tokens"
    " spaces_between_special_tokens truncate_prompt_tokens include_stop_str_in_output"
    # what vLLM's OpenAI server takes beside them
    " max_completion_tokens logit_bias logprobs top_logprobs prompt_logprobs bad_words allowed_token_ids"
    " response_format guided_json guided_regex guided_choice guided_grammar structured_outputs tools tool_choice"
    " parallel_tool_calls chat_template chat_template_kwargs add_generation_prompt continue_final_message echo"
    " reasoning_effort model".split()
)
"""Fields beside `prompt` or `messages` that are sampling parameters; any other is carried to the result."""

_MOST_BRACKETS_UNCHECKED = 200
"""A line with fewer is nested less deep than what can be written as JSON again, which is 254 levels."""
_SHAPE_KEYS = ("prompt", "messages", "input")
_OPENAI_KEYS = frozenset({"custom_id", "method", "url", "body"})
_EXPECTED = "expected `prompt`, `messages`, `input`, or an OpenAI batch line (`custom_id`, `method`, `url`, `body`)"
_MAX_ID_CHARS = 512


class Shape(StrEnum):
    """Which of the known shapes a line has."""

    PROMPT = "prompt"
    MESSAGES = "messages"
    INPUT = "input"
    OPENAI = "openai"


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


def parse_line(raw: bytes) -> Prompt:
    """Understand a line.

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
    shape = _shape(line_object)
    line_id = _id(line_object, fallback_id)
    request, carried = _READERS[shape](line_object)
    if len(raw) > MAX_REQUEST_BYTES or raw.count(b"[") + raw.count(b"{") > _MOST_BRACKETS_UNCHECKED:
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
    if any(key in line for key in _PROMPT_KEYS) or not isinstance(facts, dict) or not isinstance(error, dict):
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


def _shape(line: dict[str, Any]) -> Shape:
    if "prompt" in line and "messages" not in line and "input" not in line and "body" not in line:
        return Shape.PROMPT
    found = [key for key in _SHAPE_KEYS if key in line]
    is_openai = "body" in line and "url" in line
    if is_openai and not found:
        return Shape.OPENAI
    if len(found) > 1 or is_openai:
        both = " and ".join(f"`{key}`" for key in [*found, *(["body"] if is_openai else [])])
        raise LineError(f"{both} in one line: it must be clear which one is asked for")
    if not found:
        keys = ", ".join(f"`{key}`" for key in list(line)[:5]) or "an empty object"
        raise LineError(f"no prompt in the line (it has {keys}): {_EXPECTED}")
    return _SHAPES[found[0]]


_SHAPES = {"prompt": Shape.PROMPT, "messages": Shape.MESSAGES, "input": Shape.INPUT}


def _id(line: dict[str, Any], fallback: Any) -> str | None:
    value, other = line.get("id"), line.get("custom_id")
    if value is None:
        value = fallback if other is None else other
    elif other is not None and value != other:
        raise LineError(f"`id` {value!r} and `custom_id` {other!r} differ")
    if value is None:
        return None
    if type(value) is str and 0 < len(value) <= _MAX_ID_CHARS and value.isprintable():
        return value
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise LineError(f"`id` must be a string or a number, not {_kind(value)}")
    text = str(value)
    if not text or not text.isprintable() or len(text) > _MAX_ID_CHARS:
        raise LineError(f"`id` must be 1 to {_MAX_ID_CHARS} printable characters")
    return text


def _read_prompt(line: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    prompt = line["prompt"]
    if type(prompt) is str and prompt:
        return _with_sampling({"prompt": prompt}, line, "prompt")
    texts = prompt if isinstance(prompt, list) else [prompt]
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise LineError("`prompt` must be a text that is not empty, or a list of such texts")
    return _with_sampling({"prompt": prompt}, line, "prompt")


def _read_messages(line: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    messages = line["messages"]
    if not isinstance(messages, list) or not messages:
        raise LineError("`messages` must be a list that is not empty")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise LineError(f"`messages[{index}]` must be an object with a `role`")
    return _with_sampling({"messages": messages}, line, "messages")


def _read_input(line: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    request = line["input"]
    if not isinstance(request, dict):
        raise LineError(f"`input` must be an object, not {_kind(request)}")
    if not request:
        raise LineError("`input` is empty: Runpod drops an empty input, and the job fails after a timeout")
    return request, {key: value for key, value in line.items() if key not in ("input", "id", "custom_id")}


def _read_openai(line: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    url, body, method = line["url"], line["body"], line.get("method", "POST")
    if method != "POST":
        raise LineError(f"`method` must be POST, not {method!r}")
    if not isinstance(url, str) or not url.startswith("/v1/"):
        raise LineError(f"`url` must be a path such as /v1/chat/completions, not {url!r}")
    if not isinstance(body, dict) or not body:
        raise LineError("`body` must be an object that is not empty")
    _refuse_stream(body)
    carried = {key: value for key, value in line.items() if key not in _OPENAI_KEYS and key != "id"}
    return {"openai_route": url, "openai_input": body}, carried


_READERS = {
    Shape.PROMPT: _read_prompt,
    Shape.MESSAGES: _read_messages,
    Shape.INPUT: _read_input,
    Shape.OPENAI: _read_openai,
}


def _with_sampling(request: dict[str, Any], line: dict[str, Any], key: str) -> tuple[dict[str, Any], dict[str, Any]]:
    inner = line.get("sampling_params")
    if inner is not None and not isinstance(inner, dict):
        raise LineError(f"`sampling_params` must be an object, not {_kind(inner)}")
    sampling = dict(inner) if inner else {}
    carried = {}
    for name, value in line.items():
        if name == key or name in _NOT_CARRIED:
            continue
        if name in SAMPLING_PARAMETERS:
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
