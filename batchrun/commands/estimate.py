"""`batchrun estimate`, `batchrun run --confirm`: runs a pilot as part of the run, and estimates the rest."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial

import orjson

from batchrun.commands.dry_run import CHARS_PER_TOKEN, Planned
from batchrun.commands.run import run
from batchrun.commands.session_arguments import SessionArguments
from batchrun.config import RunOptions
from batchrun.display.estimate import Estimate
from batchrun.display.summary import Observer, Summary, warn
from batchrun.display.units import counted
from batchrun.engine.signals import Leaving
from batchrun.errors import UsageError
from batchrun.runs.pilot import read_estimate

_RANDOM_SEED = 0
"""The same pilot gives the same estimate."""


@dataclass(frozen=True, slots=True)
class PilotReport:
    """The result of a pilot."""

    summary: Summary
    """The summary of its session."""
    estimate: Estimate | None
    """None if the pilot was stopped, all of its rows failed, or no row is left."""


def estimate(
    options: RunOptions,
    given: SessionArguments,
    pilot: int,
    *,
    observer: Observer,
    api_key: str | None = None,
    leaving: Leaving | None = None,
) -> PilotReport:
    """Run the pilot, or what is left of it, and estimate the rest of the run.

    Args:
        options: The options of the run.
        given: The options of this session.
        pilot: The number of rows, at least two. Rows of earlier pilots of the run count.
        observer: Receives messages and progress for the user.
        api_key: None: it is looked up, see `find_key`.
        leaving: Lets other threads ask the session to leave; None if no thread does.

    Raises:
        UsageError: the pilot has one row.
        StoppedError: too few rows of it have ended.
        BatchrunError: nothing was sent, or batchrun has a defect.
    """
    if pilot < 2:  # noqa: PLR2004 - a range needs two
        raise UsageError(f"--pilot {pilot}: one row gives no range", "give at least 2; 30 is a good number")
    observer.message(f"pilot: up to {counted(pilot, 'row')}, drawn at random; they are part of the run")
    summary = run(options, given, observer=observer, api_key=api_key, leaving=leaving, pilot=pilot)
    if summary.outcome == "finished":
        observer.message("no row is left, so there is no estimate")
    if summary.outcome != "pilot":
        return PilotReport(summary, None)
    found = read_estimate(options.state, random.Random(_RANDOM_SEED))  # noqa: S311 - samples, not secrets
    if found is None:
        observer.message("every row of the pilot failed, so there is no estimate")
    return PilotReport(summary, found)


@dataclass(frozen=True, slots=True)
class PromptCounts:
    """What is known about a run without a pilot."""

    rows: int
    characters: int
    """The characters in the text of all prompts."""

    def __str__(self) -> str:
        tokens = counted(self.characters // CHARS_PER_TOKEN, "token")
        return (
            f"{counted(self.rows, 'row')} with {counted(self.characters, 'character')} of prompts, about {tokens}\n"
            "nothing was sent: without a pilot only characters are known, not the length of the answers, the time or"
            " the cost\n"
        )

    def to_json(self) -> bytes:
        """One JSON object and a newline."""
        data = {"pilot_rows": 0, "left": self.rows, "characters": self.characters}
        return orjson.dumps(
            {**data, "input_tokens_about": self.characters // CHARS_PER_TOKEN}, option=orjson.OPT_APPEND_NEWLINE
        )


def count(options: RunOptions, observer: Observer) -> PromptCounts:
    """Count the characters of all requests, and send nothing.

    Raises:
        InputError: an input cannot be read, or a line of it is invalid.
    """
    planned = Planned(options, observer)
    for _ in planned:
        pass
    planned.fields.tell_all(partial(warn, observer), strict=options.strict)
    return PromptCounts(planned.count, planned.chars)
