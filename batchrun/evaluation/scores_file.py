"""The scores file beside a state file: one JSON line for each row and scorer, in input order for each scorer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from batchrun.errors import StateError
from batchrun.files.exactjson import load
from batchrun.results.writer import write_whole
from batchrun.results.written import write_line

_FIELDS = ("id", "scorer", "value", "extracted", "reason")


@dataclass(frozen=True, slots=True)
class Score:
    """The score of one row by one scorer."""

    id: str
    """The row's id, as in its record."""
    scorer: str
    """As the user gave it, for example `exact`."""
    value: float | None
    """From 0 (wrong) to 1 (right); None: the row could not be scored."""
    extracted: Any
    """The answer that was found in the text; None: there is none, or the scorer extracts none."""
    reason: str | None
    """The reason for the value; None if there is none."""
    file: str | None = None
    """The row's input file, as in its record, if several inputs have the id; else None."""


def scores_path(state: Path) -> Path:
    """The scores of `results.jsonl.state` are in `results.scores.jsonl` beside it."""
    return state.with_name(f"{state.name.removesuffix('.state').removesuffix('.jsonl')}.scores.jsonl")


def read_scores(path: Path) -> Iterator[Score]:
    """The scores in a file; none if it does not exist.

    Raises:
        StateError: it cannot be read, or a line is not a score.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                yield _score(path, number, line)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StateError(f"{path}: the scores cannot be read: {error.strerror or error}", "check the file") from error


def is_scores_file(path: Path) -> bool:
    """Whether a file begins with a score, or does not exist."""
    try:
        next(read_scores(path), None)
    except StateError:
        return False
    return True


def replace_scores(path: Path, scorer: str, scores: Iterable[Score]) -> int:
    """Replace the scores of one scorer, and keep those of others; returns how many were written.

    The file is replaced by a rename.

    Raises:
        StateError: the present file is not a scores file.
        OutputError: the file cannot be written.
    """
    written = 0

    def lines() -> Iterator[bytes]:
        nonlocal written
        yield from (_line(score) for score in read_scores(path) if score.scorer != scorer)
        for score in scores:
            written += 1
            yield _line(score)

    write_whole(path, lines())
    return written


def _line(score: Score) -> bytes:
    data = asdict(score)
    if score.file is None:
        del data["file"]
    return write_line(data)


def _score(path: Path, number: int, line: bytes) -> Score:
    try:
        data = load(line)
        row_id, scorer, value, extracted, reason = (data[name] for name in _FIELDS)
        file = data.get("file")
    except (orjson.JSONDecodeError, AttributeError, LookupError, TypeError):
        data = None
    if (
        data is None
        or not (isinstance(row_id, str) and isinstance(scorer, str) and isinstance(file, str | None))
        or not isinstance(reason, str | None)
        or not (value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1))
    ):
        raise StateError(
            f"{path}:{number}: this is not a line of a scores file", "move the file away, and score the run again"
        )
    return Score(row_id, scorer, None if value is None else float(value), extracted, reason, file)
