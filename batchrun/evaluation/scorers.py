"""The scorers: each compares the answer in a record with the row's reference. Pure.

A scorer is a function from a record to a `Judgement`. Functions of the user, `py:FILE:FUNCTION`, run elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

from batchrun.errors import UsageError, shown
from batchrun.evaluation.references import (
    NORMALIZATIONS,
    are_equal,
    as_choice,
    as_number,
    as_text,
    choice_in,
    normalized,
    number_in,
)
from batchrun.files.exactjson import load
from batchrun.results.paths import values_at
from batchrun.results.structured import NotJsonError, json_in
from batchrun.results.thinking import without_think

DEFAULT_REFERENCE = "metadata.reference"
FUNCTION = "py:"
"""The beginning of the name of a scorer that is a user's function."""
PATTERN = "regex:"
NAMES = ("exact", "contains", "number", "choice", "json", f"{PATTERN}PATTERN", f"{FUNCTION}FILE:FUNCTION")
_NO_TOLERANCE = "0"
_TOLERANCE = re.compile(r"(\d+(?:\.\d+)?(?:[eE]-?\d+)?)(%?)")
_MOST_CHARS = 1000
"""A longer extracted text is cut."""
_MOST_DIGITS = 18
"""Many JSON readers cannot represent a longer integer exactly."""


class Judgement(NamedTuple):
    """A scorer's verdict on a record; see `Score`."""

    value: float | None
    extracted: Any = None
    reason: str | None = None


_NO_TEXT = Judgement(0.0, None, "the answer has no text")
Scorer = Callable[[dict[str, Any]], Judgement]


@dataclass(frozen=True, slots=True)
class Rules:
    """How answers are compared."""

    reference: str = DEFAULT_REFERENCE
    """The path of the right answer in a record."""
    normalize: tuple[str, ...] = ()
    """Some of `NORMALIZATIONS`."""
    tolerance: str = _NO_TOLERANCE
    """How far a number may be from the reference; with `%`, relative to it."""


def scorer_of(name: str, rules: Rules) -> Scorer:
    """The scorer of this name.

    Raises:
        UsageError: there is none, its pattern is not a regular expression, or the rules do not fit it.
    """
    if not all(rules.reference.split(".")):
        raise UsageError(f"--reference {shown(rules.reference)} is not a path", "for example metadata.reference")
    if wrong := [word for word in rules.normalize if word not in NORMALIZATIONS]:
        raise UsageError(f"--normalize {shown(wrong[0])} is unknown", f"choose one of {', '.join(NORMALIZATIONS)}")
    is_within = _nearness(rules.tolerance)
    if name != "number" and rules.tolerance != _NO_TOLERANCE:
        raise UsageError("--tolerance needs --with number", "remove it, or score with number")
    if name.startswith(PATTERN):
        return _regex(name.removeprefix(PATTERN), rules)
    match name:
        case "exact" | "contains":
            return _Compared(rules, "text", as_text, is_equal=_same if name == "exact" else _within, is_text=True)
        case "number":
            return _Compared(rules, "number", as_number, number_in, is_equal=is_within)
        case "choice":
            return _Compared(rules, "letter from A to E", as_choice, choice_in, is_equal=_same)
        case "json":
            return _Json(rules)
    raise UsageError(f"--with {shown(name)}: there is no such scorer", f"choose one of {', '.join(NAMES)}")


def reference_of(record: dict[str, Any], path: str) -> Any:
    """The value at a path of a record; None if there is none."""
    return next(values_at(record, path.split(".")), None)


def _answer(record: dict[str, Any]) -> str:
    """The text of a record, without `<think>` blocks; empty if it is blank, or there is none."""
    text = record.get("text")
    text = without_think(text) if isinstance(text, str) else ""
    return "" if text.isspace() else text


def _same(answer: Any, reference: Any) -> bool:
    return bool(answer == reference)


def _within(answer: str, reference: str) -> bool:
    return reference in answer


def _nearness(tolerance: str) -> Callable[[Decimal, Decimal], bool]:
    parts = _TOLERANCE.fullmatch(tolerance.strip())
    if parts is None:
        raise UsageError(
            f"--tolerance {shown(tolerance)} is neither a number nor a percentage", "for example 0.01 or 1%"
        )
    allowed = Decimal(parts[1])

    def is_within(answer: Decimal, reference: Decimal) -> bool:
        if answer == reference:
            return True
        try:
            return abs(answer - reference) <= (abs(reference) * allowed / 100 if parts[2] else allowed)
        except InvalidOperation:  # beyond any exponent
            return False

    return is_within


class _Compared:
    """Compares the answer extracted from the text with the reference; a list holds several right answers."""

    def __init__(
        self,
        rules: Rules,
        kind: str,
        read: Callable[[Any], Any],
        extract: Callable[[str], Any] = str,
        *,
        is_equal: Callable[[Any, Any], bool],
        is_text: bool = False,
    ) -> None:
        self._rules = rules
        self._kind = kind
        self._read = read
        self._extract = extract
        self._is_equal = is_equal
        self._is_text = is_text
        self._extracts = is_equal is not _within

    def __call__(self, record: dict[str, Any]) -> Judgement:
        path = self._rules.reference
        reference = reference_of(record, path)
        if reference is None or reference == []:
            return Judgement(None, None, f"there is no {path}")
        read = [self._read(each) for each in (reference if isinstance(reference, list) else [reference])]
        if None in read:
            return Judgement(None, None, f"{path} is not a {self._kind}: {shown(str(reference))}")
        text = _answer(record)
        if not text:
            return _NO_TEXT
        answer = self._extract(text)
        if answer is None:
            return Judgement(0.0, None, f"the answer has no {self._kind}")
        if self._is_text:
            answer, *read = (normalized(each, self._rules.normalize) for each in (answer, *read))
        is_right = any(self._is_equal(answer, each) for each in read)
        extracted = _written(answer) if self._extracts else None
        return Judgement(float(is_right), extracted, None if is_right else f"expected {_expected(read)}")


def _regex(pattern: str, rules: Rules) -> Scorer:
    if not pattern:
        raise UsageError(
            f"--with {PATTERN} has no pattern, so every text would match", "for example 'regex:Answer: (.*)'"
        )
    flags = re.IGNORECASE if "case" in rules.normalize else re.NOFLAG
    try:
        compiled = re.compile(pattern, flags)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(
            f"--with {PATTERN}{shown(pattern)}: this is not a regular expression: {error}",
            "to match a special character literally, put a backslash before it",
        ) from error
    if compiled.groups:
        return _Compared(rules, "match", as_text, lambda text: _group(compiled, text), is_equal=_same, is_text=True)

    def score(record: dict[str, Any]) -> Judgement:
        found = compiled.search(_answer(record))
        return Judgement(0.0, None, "the answer has no match") if found is None else Judgement(1.0, _written(found[0]))

    return score


def _group(pattern: re.Pattern[str], text: str) -> str | None:
    """The text of the first group that took part in the last match."""
    groups: tuple[str | None, ...] = ()
    for match in pattern.finditer(text):
        groups = match.groups()
    return next((group for group in groups if group is not None), None)


class _Json:
    """Compares the JSON value in the text, or the parsed answer, with the reference."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules

    def __call__(self, record: dict[str, Any]) -> Judgement:
        reference = reference_of(record, self._rules.reference)
        if reference is None:
            return Judgement(None, None, f"there is no {self._rules.reference}")
        text = _answer(record)
        if "parsed" in record:
            answer = record["parsed"]
        elif not text:
            return _NO_TEXT
        else:
            try:
                answer = json_in(text)
            except NotJsonError as error:
                return Judgement(0.0, None, f"the answer is not JSON: {error}")
        is_right = are_equal(answer, reference) or (isinstance(reference, str) and _is_written_as(answer, reference))
        return Judgement(float(is_right), answer, None if is_right else f"expected {_expected([reference])}")


def _is_written_as(answer: Any, reference: str) -> bool:
    """Whether a reference is the JSON text of an answer."""
    try:
        return are_equal(answer, load(reference.encode()))
    except ValueError:
        return False


def _written(answer: Any) -> Any:
    """The extracted answer, as JSON."""
    if isinstance(answer, Decimal):
        return _plain(answer)
    return answer if len(answer) <= _MOST_CHARS else f"{answer[:_MOST_CHARS]}…"


def _plain(number: Decimal) -> int | float | str:
    """A number as JSON; as text if it would lose digits."""
    if number == number.to_integral_value() and number.adjusted() < _MOST_DIGITS:
        return int(number)
    return float(number) if Decimal(str(float(number))) == number else str(number)


def _expected(references: Collection[Any]) -> str:
    return " or ".join(shown(str(_plain(each) if isinstance(each, Decimal) else each)) for each in references)
