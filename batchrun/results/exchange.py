"""The prompt and the answer of a row, as texts for people to read. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from batchrun.files.exactjson import dump
from batchrun.results.cells import OURS, PARTS, Row
from batchrun.results.chats import messages_of
from batchrun.results.record import marks_of
from batchrun.results.text import CONTEXT_FULL, extract

_MOST_CHARS = 200_000
"""A longer text is cut: nobody reads it, and a browser would take seconds to draw it."""
_MOST_VALUE_CHARS = 2000
"""A longer text within JSON is cut: it is probably a picture."""
_FACTS = ("finish_reason", *(f"usage.{name}" for name in PARTS["usage"]), *(f"job.{name}" for name in PARTS["job"]))

_NAMES = {"id": "job", "delay_ms": "time in the queue", "execution_ms": "execution time"}


class Turn(NamedTuple):
    """A message of a prompt."""

    role: str
    text: str


class Failure(NamedTuple):
    """Why a row failed."""

    kind: str
    message: str
    raw: str
    """What the worker or the API sent; empty if the message says the same."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A row's prompt and its answer."""

    id: str
    file: str
    """Its input file, as the user named it."""
    line: int
    """The number of its line, 1-based."""
    turns: list[Turn]
    """The prompt; empty if it is unknown."""
    answers: list[str | None]
    """The text of each choice, None for one without text; empty if there is no answer, or not as text."""
    output: str | None
    """The answer as JSON, if it has no text; None if it has, or there is none."""
    reasoning: str | None
    parsed: str | None
    """As JSON; None: nothing was parsed. The same applies to `tool_calls`."""
    tool_calls: str | None
    failure: Failure | None
    """None: the row succeeded."""
    marks: tuple[str, ...]
    """The notable properties of the answer, see `text.MARKS`."""
    input_tokens: int | None
    output_tokens: int | None
    execution_ms: float | None
    facts: list[tuple[str, str]]
    """Named facts: tokens, times, the job."""
    fields: list[tuple[str, str]]
    """The row's own fields, by path, like `metadata.topic`."""

    @property
    def prompt_line(self) -> str:
        """The last message of the user, otherwise the last message; empty if it is unknown."""
        asked = [turn.text for turn in self.turns if turn.role == "user"] or [turn.text for turn in self.turns]
        return asked[-1] if asked else ""

    @property
    def answer_line(self) -> str:
        """The answer, or what replaces it: an error, JSON, or the model's reasoning."""
        if self.failure is not None:
            return f"{self.failure.kind}: {self.failure.message}"
        return next(iter(filter(None, (*self.answers, self.tool_calls, self.output, self.reasoning))), "")


def exchange_of(row: Row) -> Exchange:
    """The exchange of a row that was read with its request."""
    record = row.record
    error = record.get("error")
    failure = None
    if isinstance(error, dict):
        kind, message, raw = (str(error.get(name) or "") for name in ("kind", "message", "raw"))
        failure = Failure(kind, _cut(message), "" if raw in message else _cut(raw))
    output, usage = record.get("output"), _mapping(record.get("usage"))
    texts = record.get("texts") or [record.get("text") if failure is None else extract(output).text]
    answers = [_cut(text) if isinstance(text, str) else None for text in texts]
    has_text = any(answer is not None for answer in answers)
    execution_ms, source = _mapping(record.get("job")).get("execution_ms"), _mapping(record.get("source"))
    marks = () if failure is not None else marks_of(output, record.get("text"))
    return Exchange(
        id=str(record.get("id")),
        file=str(source.get("file", "")),
        line=source.get("line", 0),
        turns=_turns(row),
        answers=answers if has_text or (failure is None and record.get("tool_calls") is None) else [],
        output=None if has_text or output is None else readable(output),
        reasoning=_text(record.get("reasoning")),
        parsed=readable(record["parsed"]) if "parsed" in record else None,
        tool_calls=None if record.get("tool_calls") is None else readable(record["tool_calls"]),
        failure=failure,
        marks=tuple(mark for mark in marks if mark != CONTEXT_FULL),
        input_tokens=usage.get("input_tokens"),
        output_tokens=usage.get("output_tokens"),
        execution_ms=execution_ms,
        facts=_facts(record),
        fields=own_fields(record),
    )


def own_fields(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The fields from the row's input line, by path, with their values as text."""
    found = [(name, value) for name, value in record.items() if name not in OURS]
    for place in ("metadata", "carried"):
        inner = record.get(place)
        if isinstance(inner, dict):
            found += [(f"{place}.{name}", value) for name, value in inner.items()]
        elif inner is not None:
            found.append((place, inner))
    return [(name, value if isinstance(value, str) else readable(value)) for name, value in found]


def readable(value: Any) -> str:
    """A value as JSON to be read: indented, with very long texts cut; a text as it is."""
    if isinstance(value, str):
        return _cut(value)
    if not isinstance(value, (list, dict)):
        return dump(value).decode()
    try:
        return _cut(json.dumps(_shortened(value), ensure_ascii=False, indent=2))
    except RecursionError:
        return "(nested too deeply to be shown)"


def _facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = []
    for path in _FACTS:
        place, _, name = path.rpartition(".")
        value = _mapping(record.get(place)).get(name) if place else record.get(name)
        if value is not None:
            unit = " ms" if name in _NAMES and name.endswith("_ms") else ""
            found.append((_NAMES.get(name, name.replace("_", " ")), readable(value) + unit))
    source = _mapping(record.get("source"))
    return [*found, ("input", f"{source.get('file')}:{source.get('line')}")]


def _turns(row: Row) -> list[Turn]:
    if row.request is None:
        asked = row.record.get("request", row.line)
        return [] if asked is None else [Turn("line", readable(asked))]
    messages = messages_of(row.request)
    if messages is None:
        return [Turn("input", readable(row.request))]
    return [_turn(message) for message in messages]


def _turn(message: Any) -> Turn:
    if not isinstance(message, dict):
        return Turn("", readable(message))
    content = message.get("content")
    parts = content if isinstance(content, list) else [] if content is None else [content]
    texts = [_part(part) for part in parts]
    rest = {key: value for key, value in message.items() if key not in ("role", "content") and value is not None}
    if rest:
        texts.append(readable(rest))
    return Turn(str(message.get("role", "")), "\n".join(texts))


def _part(part: Any) -> str:
    """A part of a message: its text, or a description without the bytes of a picture."""
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return _cut(part["text"])
    return readable(part)


def _shortened(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _MOST_VALUE_CHARS:
        return f"{value[:60]}… ({len(value):,} characters)"
    if isinstance(value, list):
        return [_shortened(each) for each in value]
    if isinstance(value, dict):
        return {key: _shortened(each) for key, each in value.items()}
    return value


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARS else f"{text[:_MOST_CHARS]}\n… (cut: {len(text):,} characters)"


def _text(value: Any) -> str | None:
    return None if value is None else readable(value)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
