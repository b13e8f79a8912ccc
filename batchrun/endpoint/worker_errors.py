"""What a worker's error says: a readable message out of whatever a handler, an SDK and a platform wrapped it in.

A job's `error` is plain text, JSON in a string, a Python repr in a string, `handler: ... traceback: ...`, or an
object, often several of these around each other (observed with runpod-python 1.12.0 and worker-vllm 2.23 to 2.25).
COMPLETED jobs may carry an error inside their output. Pure, and nothing here raises on any input.
"""

from __future__ import annotations

import ast
import re
import threading
import warnings
from dataclasses import dataclass
from typing import Any

import orjson

MAX_MESSAGE_CHARS = 500
"""A message is for a terminal and a table; the whole is in `raw`."""

MAX_RAW_CHARS = 100_000
"""Of what was sent that are kept: a traceback is shorter, and every row of a bad deployment brings one."""

MAX_LITERAL_CHARS = 100_000
"""Longer text is not parsed as Python: ast needs about 100 bytes of memory for each character of it."""

_MAX_DEPTH = 12
"""Wrappings that are opened; four are the most that was ever seen."""

_NO_MESSAGE = "the job failed without an error message"


@dataclass(frozen=True, slots=True)
class WorkerError:
    """An error of a job, decoded."""

    message: str
    """What a person can act on: one line, never empty, at most 500 characters."""
    raw: str
    """Exactly what was sent: the string itself, or the JSON text of anything else; empty when there was nothing. Of
    more than 100,000 characters the first, and a mark that says how many there were."""
    code: int | None = None
    """An HTTP status (400 to 599) found inside, the innermost one; None when there is none."""
    error_type: str | None = None
    """The exception's or error's type as the worker named it, the innermost one; None when it did not."""


def decode_error(raw: Any) -> WorkerError:
    """What an error of a job says, whatever it is wrapped in.

    Args:
        raw: The `error` of a job as parsed from JSON, or what `find_hidden_error` returned; None for none at all.
    """
    findings = _Findings()
    message = _dig(raw, findings, 0)
    if not message and findings.error_type:
        message = findings.error_type
    return WorkerError(
        message=_one_line(message, MAX_MESSAGE_CHARS) or _NO_MESSAGE,
        raw=_cut(_raw_text(raw)),
        code=findings.code,
        error_type=findings.error_type,
    )


def find_hidden_error(output: Any) -> Any | None:
    """What a COMPLETED job's output says went wrong, for `decode_error`; None when it says nothing of the kind.

    An error is an object with a truthy `error`, or with `error` as its `object` or `type`: as the output itself,
    as an element of a list, in a list of stream chunks, or in the data of a server-sent-events string.
    worker-vllm before 2.12.1 and runpod-python before December 2024 complete such jobs. An `error` field can be
    legitimate data of some handler, so whoever calls this makes it switchable.
    """
    if isinstance(output, list) and output and all(isinstance(part, str) for part in output):
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
    """Whether a COMPLETED job brought no data: its output is missing, null or [].

    A failed upload of the result looks so, and a generator handler whose stream is not aggregated.
    """
    return not has_output or output is None or output == []


def without_controls(text: str) -> str:
    """A text without the colours and controls of a terminal: loggers add them, and messages are shown on others."""
    return _CONTROLS.sub("", text)


_CONTROLS = re.compile(
    r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]"
)


class _Findings:
    """What was found on the way down; deeper finds replace shallower ones."""

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
"""Codes and types stand near the start of a text, not in the middle of a page of it."""

_CLASS_REPR = re.compile(r"<class '(?:[\w.]*\.)?(\w+)'>")
_LEADING_TYPE = re.compile(r"(?:\w+\.)*([A-Z]\w*(?:Error|Exception))(?=:|$)")
# One line end, then blanks: with any whitespace on both sides, a few thousand blank lines take minutes to search.
_HANDLER_TRACEBACK = re.compile(r"\n[ \t]*traceback:", re.IGNORECASE)
_TRACEBACK_START = "Traceback (most recent call last)"


def _dig(value: Any, findings: _Findings, depth: int) -> str:
    """The message inside `value`, empty when there is none."""
    if depth > _MAX_DEPTH:
        return ""
    if isinstance(value, str):
        return _dig_text(value.strip(), findings, depth)
    if isinstance(value, dict):
        return _dig_object(value, findings, depth)
    if isinstance(value, (list, tuple)):
        messages = [_dig(item, findings, depth + 1) for item in value[:3]]
        return "; ".join(message for message in messages if message)
    if value is None or isinstance(value, bool):
        return ""
    return _repr(value)


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
        # What has said nothing once is not asked again: twice on each level is 4,096 times at the bottom.
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
        _note_type(_last_line(rest[0]), findings)
        message = handler_said.removeprefix("handler:").strip()
        return _dig_text(message, findings, depth + 1) if message and depth < _MAX_DEPTH else _last_line(rest[0])
    if text.startswith(_TRACEBACK_START):
        text = _last_line(text)
    _note_type(text, findings)
    start = text.find("{")
    if start > 0 and isinstance(embedded := _literal(text[start:]), dict):
        return _dig(embedded, findings, depth + 1) or text
    return text


def _literal(text: str) -> Any | None:
    """The object, list or string that a text is the JSON or the Python repr of; None when it is neither."""
    if not text or text[0] not in "{[\"'":
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        if len(text) > MAX_LITERAL_CHARS:
            return None
    try:
        # Invalid escapes in a repr that was cut or edited make the parser warn; that is of no use to anybody here. What
        # is to be ignored is the process's, so threads take turns.
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
    """Whether an object has nothing to tell but its kind, as `{"error": {}}` or `{"type": "ValueError"}`."""
    labels = {*_TYPE_KEYS, *_CODE_KEYS, "object", "param"}
    return all(key in labels or not item for key, item in value.items())


def _is_error(part: Any) -> bool:
    return isinstance(part, dict) and bool(
        part.get("error") or part.get("object") == "error" or part.get("type") == "error"
    )


def _streamed_error(pieces: list[str]) -> Any | None:
    # A stream is cut into pieces at any byte, so events are whole only when the pieces are joined again; but behind
    # pieces of plain text an event begins with its own piece.
    return _error_event("".join(pieces)) or _error_event(
        "".join(f"\n{piece}" if piece.startswith(("data:", "event:")) else piece for piece in pieces)
    )


def _error_event(text: str) -> Any | None:
    if "data:" not in text or '"error"' not in text:
        return None
    # Not splitlines: a line separator within a JSON string ends no line of an event.
    for line in text.split("\n"):
        if not line.startswith("data:") or '"error"' not in line:
            continue
        try:
            event = orjson.loads(line.removeprefix("data:"))
        except orjson.JSONDecodeError:
            continue
        if _is_error(event):
            return event
    return None


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""


def _one_line(text: str, max_chars: int) -> str:
    # A repr may hold half a surrogate pair, which no JSON file can.
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
        return orjson.dumps(raw).decode()
    except TypeError:
        return _repr(raw)


def _repr(raw: Any) -> str:
    try:
        return repr(raw)
    except RecursionError:
        return "an object that is nested too deeply to be shown"
    except ValueError:
        # A repr may hold a hexadecimal number of more digits than Python writes out in decimal.
        return "an object with a number that is too long to be shown"
