"""`batchrun redo`: runs rows again that have ended, in the same run. Their old results move to another file."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from batchrun.commands.redo_arguments import RedoArguments
from batchrun.commands.run import refuse_unknown_kinds, run
from batchrun.commands.run_options import row_override
from batchrun.config import RunOptions
from batchrun.display.summary import Observer, Summary
from batchrun.engine.signals import Leaving
from batchrun.errors import InputError, UsageError
from batchrun.files.exactjson import dump
from batchrun.files.streams import stdin_bytes
from batchrun.results.conditions import Conditions
from batchrun.runs.choosing import Chosen, Selection, choose
from batchrun.runs.superseding import Redo, refuse_foreign_superseded
from batchrun.runs.trust import GivenByCommand
from batchrun.state.lock import StateLock
from batchrun.state.reader import StateReader

_MOST_ID_BYTES = 1 << 16
"""A longer line is no id."""


def redo(
    options: RunOptions,
    given: RedoArguments,
    *,
    observer: Observer,
    confirm: Callable[[str], object],
    api_key: str | None = None,
    confirmed: GivenByCommand,
    leaving: Leaving | None = None,
) -> Summary:
    """Run rows again that have ended.

    Args:
        options: The options in the run's state file, with the guards of this session.
        given: Which rows, and the options of this session.
        observer: Receives messages and progress for the user.
        confirm: Called with what will be run and paid for; raises an error if the user does not agree.
        api_key: None: it is looked up, see `find_key`.
        confirmed: Which options the command itself gives.
        leaving: Lets other threads ask the session to leave; None: none will.

    Raises:
        BatchrunError: nothing was sent, or batchrun has a defect. Before the user has agreed, nothing has changed.
    """
    override = row_override(given.set, options.sweep)
    selection = _selection(given)
    # A process that drives the run is named before anything is read or asked.
    StateLock(options.state).release()
    with StateReader(options.state) as store:
        refuse_foreign_superseded(store)
    chosen = choose(options.state, selection)
    confirm(describe(chosen, override, options.scheduler.reask))
    return run(
        options,
        given,
        observer=observer,
        api_key=api_key,
        resumed=True,
        confirmed=confirmed,
        redo=Redo(chosen, override),
        leaving=leaving,
    )


def describe(chosen: Chosen, override: Mapping[str, Any], reasks: int) -> str:
    """What is about to be run and paid for; `reasks` is how often each row may be asked again."""
    kinds = [f"{chosen.succeeded:,} with a result, which is set aside"] * bool(chosen.succeeded)
    kinds += [f"{chosen.failed:,} failed"] * bool(chosen.failed)
    lines = [f"rows to run again: {chosen.rows:,} ({', '.join(kinds)})"]
    if override:
        lines.append("with " + " ".join(f"{key}={_shown(value)}" for key, value in override.items()))
    if chosen.joined:
        lines.append(f"rows among them that share the answer of a chosen row: {chosen.joined:,}")
    if chosen.unfinished:
        lines.append(f"rows left alone, because they have not finished or were never valid: {chosen.unfinished:,}")
    if chosen.waiting:
        lines.append(f"rows that have not finished, which are run, too: {chosen.waiting:,}")
    jobs = chosen.jobs(amended=bool(override))
    more = f", and up to {jobs * reasks:,} more for answers that are not valid" if reasks else ""
    return "\n".join([*lines, f"jobs to pay for: {jobs:,}{more}"])


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else dump(value).decode()


def _selection(given: RedoArguments) -> Selection:
    """Which rows are to be run again.

    Raises:
        UsageError: the options say nothing of it, or contradict each other.
    """
    if not (given.where or given.ids is not None or given.failed):
        raise UsageError(
            "no rows are chosen",
            "give --where CONDITION, --ids FILE or --failed, for example --where finish_reason=length",
        )
    if given.kinds and not given.failed:
        raise UsageError("--only needs --failed", "add --failed, or remove --only")
    refuse_unknown_kinds(given.kinds)
    return Selection(
        Conditions(given.where), None if given.ids is None else _numbered_ids(given.ids), given.failed, given.kinds
    )


def _numbered_ids(given: Path | tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """The ids of a program, or in a file, each after its place; blank lines are skipped.

    Raises:
        InputError: it cannot be read, or is not text.
    """
    if isinstance(given, tuple):
        yield from ((f"id {number:,}", text) for number, text in enumerate(given, 1))
        return
    name = "stdin" if str(given) == "-" else str(given)
    try:
        with nullcontext(stdin_bytes()) if name == "stdin" else given.open("rb") as file:
            for number, raw in enumerate(iter(lambda: file.readline(_MOST_ID_BYTES), b""), 1):
                text = raw.removeprefix(BOM_UTF8).decode().strip()
                if text:
                    yield f"{name}:{number}", text
    except OSError as error:
        raise InputError(f"--ids {given}: {error.strerror}", "give a file with one id a line") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--ids {given} is not UTF-8 text", "give a file with one id a line") from error
