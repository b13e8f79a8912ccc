"""A row's prompt and answer for a terminal. Pure; what is printed goes through `text.visible`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from batchrun.display.text import clipped, columns_of
from batchrun.display.units import duration
from batchrun.results.exchange import Exchange
from batchrun.results.text import MARK_NAMES

_COLUMNS = 100
_INDENT = "  "


class Grade(NamedTuple):
    """The score by one scorer."""

    scorer: str
    value: float | None
    """None: the row could not be scored."""
    found: str | None
    """The answer that it has extracted."""
    reason: str | None


def whole(exchange: Exchange, variant: str, grades: Sequence[Grade]) -> str:
    """Everything about a row. `variant` is empty in a run without variants."""
    parts = [exchange.id, f"{_INDENT}{_figures(exchange, variant)}"]
    for turn in exchange.turns:
        parts += _section(turn.role or "prompt", turn.text)
    if not exchange.turns:
        parts += _section("prompt", "unknown: the input line is missing or has changed")
    if exchange.failure is not None:
        parts += _section(f"error: {exchange.failure.kind}", exchange.failure.message)
        parts += _section("sent by the worker or the API", exchange.failure.raw)
    parts += _section("reasoning", exchange.reasoning)
    for number, answer in enumerate(exchange.answers, 1):
        name = "answer" if len(exchange.answers) == 1 else f"answer {number}"
        parts += _section(name, "(no text)" if answer is None else answer or "(empty)")
    parts += _section("output", exchange.output)
    parts += _section("parsed", exchange.parsed)
    parts += _section("tool calls", exchange.tool_calls)
    if grades:
        parts += ["", "scores", *(f"{_INDENT}{_grade(grade)}" for grade in grades)]
    pairs = [*exchange.fields, *exchange.facts]
    width = max(columns_of(name) for name, _ in pairs)
    parts += ["", *(f"{name}{' ' * (width - columns_of(name))}  {_one_line(value)}" for name, value in pairs)]
    return "\n".join(parts) + "\n"


def brief(exchange: Exchange, grades: Sequence[Grade]) -> str:
    """Three lines about a row: its id and figures, the end of its prompt, the beginning of its answer."""
    scored = [f"{grade.scorer} {_value(grade)}" for grade in grades]
    top = " · ".join([exchange.id, *scored, _figures(exchange, "")])
    lines = [top, f"{_INDENT}? {exchange.prompt_line}", f"{_INDENT}> {exchange.answer_line}"]
    return "".join(f"{clipped(_one_line(line), _COLUMNS)}\n" for line in lines)


def _figures(exchange: Exchange, variant: str) -> str:
    failure = exchange.failure
    said = ["succeeded" if failure is None else f"failed ({failure.kind})"]
    said += [MARK_NAMES.get(mark, mark) for mark in exchange.marks]
    said += [variant] if variant else []
    said += [] if exchange.input_tokens is None else [f"{exchange.input_tokens:,} tokens in"]
    said += [] if exchange.output_tokens is None else [f"{exchange.output_tokens:,} out"]
    said += [] if exchange.execution_ms is None else [duration(exchange.execution_ms / 1000)]
    return " · ".join(said)


def _section(name: str, text: str | None) -> list[str]:
    return [] if not text else ["", name, *(f"{_INDENT}{line}" for line in text.split("\n"))]


def _grade(grade: Grade) -> str:
    found = [] if grade.found is None else [f"found {_one_line(grade.found)}"]
    return "  ".join([grade.scorer, _value(grade), *found, *filter(None, [grade.reason])])


def _value(grade: Grade) -> str:
    return "not scored" if grade.value is None else f"{grade.value:.3g}"


def _one_line(text: str) -> str:
    indent = text[: len(text) - len(text.lstrip(" "))]
    return indent + " ".join(text.split())
