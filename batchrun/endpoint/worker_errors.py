"""Decode a worker's error: find a readable message in whatever a handler, an SDK and a platform wrapped it in.

A job's `error` is plain text, JSON in a string, a Python repr in a string, `handler: ... traceback: ...`, or an
object, and often several of these nested (observed with runpod-python 1.12.0 and worker-vllm 2.23 to 2.25). COMPLETED
jobs may have an error inside their output. Pure, and nothing here raises on any input.
"""

from __future__ import annotations

import ast
import re
import threading
import warnings
from dataclasses import dataclass
from typing import Any

import orjson

from batchrun.endpoint import validation_errors
from batchrun.files.event_stream import events, has_events, is_all_text
from batchrun.files.exactjson import dump

MAX_MESSAGE_CHARS = 500
"""A message is for a terminal and a table; the whole text is in `raw`."""

MAX_RAW_CHARS = 100_000
"""How much of the original is kept: a traceback is shorter, and every row of a broken deployment has one."""

MAX_LITERAL_CHARS = 100_000
"""Longer text is not parsed as Python: ast needs about 100 bytes of memory for each character of it."""

_MAX_DEPTH = 12
"""The most nested wrappings that are opened; no more than four were ever seen."""

OVERRUN = re.compile(r"executionTimeout exceeded\b")
"""The beginning of a job's error when it overran its execution timeout (recorded by users)."""

_NO_MESSAGE = "the job failed without an error message"


@dataclass(frozen=True, slots=True)
class WorkerError:
    """A decoded error of a job."""

    message: str
    """A readable message: one line, never empty, at most 500 characters."""
    raw: str
    """Exactly what was sent: the string itself, or the JSON text of anything else; empty if there was nothing. If it
    has more than 100,000 characters, the first of them, and a mark with the total number."""
    code: int | None = None
    """The innermost HTTP status (400 to 599) that was found; None if there is none."""
    error_type: str | None = None
    """The innermost type of exception or error that the worker named; None if there is none."""


def decode_error(raw: Any) -> WorkerError:
    """Decode an error of a job, whatever it is wrapped in.

    Args:
        raw: The `error` of a job as parsed from JSON, or what `find_hidden_error` returned; None if there is none.
    """
    findings = _Findings()
    message = _dig(raw, findings, 0)
    if not message and findings.error_type:
        message = findings.error_type
    line = _one_line(message, MAX_MESSAGE_CHARS) or _NO_MESSAGE
    return WorkerError(
        message=_one_line(_explained(line, findings.code), MAX_MESSAGE_CHARS),
        raw=_cut(_raw_text(raw)),
        code=findings.code,
        error_type=findings.error_type,
    )


def find_hidden_error(output: Any) -> Any | None:
    """The error inside a COMPLETED job's output, for `decode_error`; None if there is none.

    An error is an object with a truthy `error`, or with `error` as its `object` or `type`: as the output itself, as an
    element of a list, in a list of stream chunks, or in the data of a server-sent-events string. worker-vllm before
    2.12.1 and runpod-python before December 2024 complete such jobs. Because an `error` field can be legitimate data of
    some handlers, callers must let the user turn this check off.
    """
    if is_all_text(output):
        return _streamed_error(output)
    for part in output if isinstance(output, list) else (output,):
        if isinstance(part, list):
            hidden = next((chunk for chunk in part if _is_error(chunk)), None)
            hidden = hidden or _streamed_error([chunk for chunk in part if isinstance(chunk, str)])
        elif isinstance(part, str):
            hidden = _error_event(part)
        else:
            hidden = part if _is_error(part) else None
        if hidden is not None:
            return hidden
    return None


def is_empty_output(output: Any, *, has_output: bool) -> bool:
    """Whether a COMPLETED job has no data: its output is missing, null or [].

    This happens if the upload of the result failed, or if a generator handler's stream is not aggregated.
    """
    return not has_output or output is None or output == []


def without_controls(text: str) -> str:
    """A text without terminal colours and control characters, which loggers add and no other terminal should get."""
    return _CONTROLS.sub("", text)


_CONTROLS = re.compile(
    r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]"
)


class _Findings:
    """What was found so far; deeper findings replace shallower ones."""

    __slots__ = ("code", "error_type")

    def __init__(self) -> None:
        self.code: int | None = None
        self.error_type: str | None = None


_MESSAGE_KEYS = ("error_message", "message", "error", "errors", "detail", "msg", "description", "error_traceback")
_TYPE_KEYS = ("error_type", "type", "exception")
_CODE_KEYS = ("code", "status_code", "http_status", "status")

_CODE = re.compile(
    r"\bHTTP(?:/[\d.]+)?(?: status| error)?(?: code)?:? ?([45]\d\d)\b"
    r"|\b(?:status(?:[ _]code)?|error code)[:= ] ?([45]\d\d)\b"
    r"|\b([45]\d\d) (?:Client|Server) Error\b",
    re.IGNORECASE,
)
_WARNINGS = threading.Lock()
_SCANNED_CHARS = 4_000
"""Codes and types are near the beginning of a text, not in the middle of a page."""

_WRAPPER = re.compile(
    r"(?:vLLM returned )?HTTP ?[45]\d\d\W*|Error code: ?[45]\d\d\W*|(?:\w+\.)*\w*(?:Error|Exception):", re.IGNORECASE
)
"""A prefix of an error that adds nothing to its type and code."""
_CLASS_REPR = re.compile(r"<class '(?:[\w.]*\.)?(\w+)'>")
_LEADING_TYPE = re.compile(r"(?:\w+\.)*([A-Z]\w*(?:Error|Exception|Timeout))(?=:|$)")
# One line end, then blanks: with any whitespace on both sides, a few thousand blank lines would take minutes.
_HANDLER_TRACEBACK = re.compile(r"\n[ \t]*traceback:", re.IGNORECASE)
_TRACEBACK_START = "Traceback (most recent call last)"


def _dig(value: Any, findings: _Findings, depth: int) -> str:
    """The message inside `value`; empty if there is none."""
    if depth > _MAX_DEPTH:
        return ""
    if isinstance(value, str):
        return _dig_text(value.strip(), findings, depth)
    if isinstance(value, dict):
        return _dig_object(value, findings, depth)
    if isinstance(value, (list, tuple)):
        return _dig_list(value, findings, depth)
    if value is None or isinstance(value, bool):
        return ""
    return _repr(value)


def _dig_list(value: list[Any] | tuple[Any, ...], findings: _Findings, depth: int) -> str:
    if value and all(validation_errors.is_complaint(item) for item in value):
        return validation_errors.said(value, len(value))
    messages = [_dig(item, findings, depth + 1) for item in value[:3]]
    return "; ".join(message for message in messages if message)


def _dig_object(value: dict[Any, Any], findings: _Findings, depth: int) -> str:
    for key in _CODE_KEYS:
        findings.code = _http_code(value.get(key)) or findings.code
    for key in _TYPE_KEYS:
        name = value.get(key)
        if isinstance(name, str) and name and name != "error":
            named_class = _CLASS_REPR.fullmatch(name)
            findings.error_type = _one_line(named_class.group(1) if named_class else name, 100)
            break
    nested = value.get("error")
    if isinstance(nested, (dict, list)) and (message := _dig(nested, findings, depth + 1)):
        return message
    for key in _MESSAGE_KEYS:
        # A part without a message is not searched again: twice on each level would be 4,096 times at the bottom.
        if key == "error" and isinstance(nested, (dict, list)):
            continue
        if message := _dig(value.get(key), findings, depth + 1):
            return message
    return _raw_text(value) if value and not _only_labels(value) else ""


def _dig_text(text: str, findings: _Findings, depth: int) -> str:
    decoded = _literal(text)
    if decoded is not None:
        return _dig(decoded, findings, depth + 1)
    if match := _CODE.search(text, 0, _SCANNED_CHARS):
        findings.code = int(match.group(1) or match.group(2) or match.group(3))
    handler_said, *rest = _HANDLER_TRACEBACK.split(text, maxsplit=1)
    if rest:
        raised = _raised(rest[0])
        _note_type(raised, findings)
        message = handler_said.removeprefix("handler:").strip()
        return _dig_text(message or raised, findings, depth + 1) if depth < _MAX_DEPTH else raised
    if text.startswith(_TRACEBACK_START):
        text = _raised(text)
    _note_type(text, findings)
    if head := validation_errors.HEAD.search(text, 0, _SCANNED_CHARS):
        found = list(validation_errors.complaints(text[head.end() :], _literal))
        if found:
            return _joined(text[: head.start()], validation_errors.said(found, int(head.group(1))))
    start = text.find("{")
    if start > 0 and isinstance(embedded := _literal(text[start:]), dict):
        message = _dig(embedded, findings, depth + 1)
        return _joined(text[:start], message) if message else text
    return text


def _joined(before: str, message: str) -> str:
    """A message with the text before it, unless that is only a type or an HTTP code, which are known already."""
    kept = before.strip()
    if not kept or _WRAPPER.fullmatch(kept):
        return message
    return f"{kept} {message}" if kept[-1] in ":-=" else f"{kept}: {message}"


def named_route(message: str, request: Any) -> str:
    """If a message says that the worker has no such route, the message with the request's route.

    Args:
        message: As returned by `decode_error`.
        request: The job's `input` object.
    """
    if not message.startswith(NO_ROUTE) or not isinstance(request, dict):
        return message
    route = request.get("openai_route") or request.get("route")
    if not isinstance(route, str):
        return message
    return f"{NO_ROUTE[: -len(_SUCH_ROUTE)]}route {_one_line(route, 100)}{message.removeprefix(NO_ROUTE)}"


_SUCH_ROUTE = "such route"
NO_ROUTE = f"the worker has no {_SUCH_ROUTE}"
"""The beginning of the message for a route that the worker does not know."""
_NOT_FOUND = 404
_NOT_ALLOWED = 405
_NEEDS_PARSER = re.compile(r"requires? --(?:enable-auto-tool-choice|tool-call-parser)\b")
_WAITED = re.compile(r"(?:\w+\.)*\w*(?:TimeoutError|Timeout|TimedOut)")
"""A timeout inside the worker whose message is only its type."""


def _explained(message: str, code: int | None) -> str:
    """A message with its meaning and what to do, if it does not contain them.

    For an unknown route, and for a GET where a body is expected, vLLM gives only HTTP's own words (observed with 0.32).
    The settings are worker-vllm's.
    """
    if code == _NOT_FOUND and message == "Not Found":
        return f"{NO_ROUTE} (HTTP 404): it is misspelt, or this model or this version of vLLM does not serve it"
    if code == _NOT_ALLOWED and message == "Method Not Allowed":
        return f"{message}: the route needs another method; without `openai_input` or `body`, a GET is sent"
    if _NEEDS_PARSER.search(message):
        return (
            f"{message}: in the endpoint's settings set ENABLE_AUTO_TOOL_CHOICE=true, and TOOL_CALL_PARSER to the"
            " parser that fits the model"
        )
    if OVERRUN.match(message):
        return (
            f"{message}: the job ran longer than its limit, which is 10 min unless it is set; raise"
            " --execution-timeout, or ask for less"
        )
    if _WAITED.fullmatch(message):
        return (
            f"{message}: the worker itself waited too long for an answer; worker-vllm waits REQUEST_TIMEOUT seconds"
            " for vLLM: raise that setting of the endpoint, or ask for fewer tokens"
        )
    return message


def _literal(text: str) -> Any | None:
    """The object, list or string whose JSON or Python repr a text is; None if it is neither."""
    if not text or text[0] not in "{[\"'":
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        if len(text) > MAX_LITERAL_CHARS:
            return None
    try:
        # Invalid escapes in a repr that was cut or edited make the parser warn, which helps nobody here. The warning
        # filters belong to the whole process, so threads take turns.
        with _WARNINGS, warnings.catch_warnings(action="ignore"):
            return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _note_type(text: str, findings: _Findings) -> None:
    if match := _LEADING_TYPE.match(text, 0, _SCANNED_CHARS):
        findings.error_type = match.group(1)


def _http_code(value: Any) -> int | None:
    if isinstance(value, str) and len(value) == len("400") and value.isdecimal():
        value = int(value)
    if isinstance(value, int) and 400 <= value <= 599:  # noqa: PLR2004 - the range of HTTP errors
        return value
    return None


def _only_labels(value: dict[Any, Any]) -> bool:
    """Whether an object contains nothing but its kind, such as `{"error": {}}` or `{"type": "ValueError"}`."""
    labels = {*_TYPE_KEYS, *_CODE_KEYS, "object", "param"}
    return all(key in labels or not item for key, item in value.items())


def _is_error(part: Any) -> bool:
    return isinstance(part, dict) and bool(
        part.get("error") or part.get("object") == "error" or part.get("type") == "error"
    )


def _streamed_error(pieces: list[str]) -> Any | None:
    # A stream is cut at any byte, so events are complete only after the pieces are joined; but after pieces of plain
    # text, an event begins with a piece of its own.
    return _error_event("".join(pieces)) or _error_event(
        "".join(f"\n{piece}" if has_events(piece) else piece for piece in pieces)
    )


def _error_event(text: str) -> Any | None:
    if "data:" not in text or '"error"' not in text:
        return None
    return next((event for event in events(text, '"error"') if _is_error(event)), None)


def _raised(traceback: str) -> str:
    """The exception at the end of a traceback, with all lines of its message."""
    lines = traceback.strip().splitlines()
    frame = max((number for number, line in enumerate(lines) if line.startswith('  File "')), default=len(lines))
    for number in range(frame + 1, len(lines)):
        if lines[number][:1].strip():
            return "\n".join(lines[number:])
    return lines[-1].strip() if lines else ""


def _one_line(text: str, max_chars: int) -> str:
    # A repr may contain half a surrogate pair, which no JSON file can.
    line = " ".join(without_controls(text[: max_chars * 20]).split()).encode("utf-8", "replace").decode()
    return line if len(line) <= max_chars else line[: max_chars - 1] + "…"


def _cut(text: str) -> str:
    return text if len(text) <= MAX_RAW_CHARS else f"{text[:MAX_RAW_CHARS]}… (cut: {len(text):,} characters)"


def _raw_text(raw: Any) -> str:
    if isinstance(raw, str):
        return raw
    if raw is None:
        return ""
    try:
        return dump(raw).decode()
    except TypeError:
        return _repr(raw)


def _repr(raw: Any) -> str:
    try:
        return repr(raw)
    except RecursionError:
        return "an object that is nested too deeply to be shown"
    except ValueError:
        # A repr may contain a hexadecimal number with more digits than Python writes in decimal.
        return "an object with a number that is too long to be shown"
