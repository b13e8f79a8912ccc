"""`batchrun tune`: changes a run while a process drives it."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable
from pathlib import Path

from batchrun.commands.asking import no_answer
from batchrun.commands.tune_arguments import TuneArguments
from batchrun.engine.clock import steady_s
from batchrun.engine.orders import as_options
from batchrun.errors import StateError, UsageError
from batchrun.scheduler.events import Tuned
from batchrun.state import figures
from batchrun.state.lock import Holder, holder, signs_of_life
from batchrun.state.reader import StateReader
from batchrun.state.schema import holds_run
from batchrun.state.store import Store
from batchrun.state.stored_options import read_options
from batchrun.state.tunings import Tuning, applied_tunings, refuse_older_version, request_tuning

_LOOK_AGAIN_S = 0.1
_PATIENCE_S = 15.0
"""A process applies a change within two seconds, unless it is suspended or still starting, which may take long."""


def change_of(given: TuneArguments) -> Tuned:
    """The change that the options ask for. Options from the environment are meant for `run`, and are ignored.

    Raises:
        UsageError: no change is given, or two contradictory ones.
    """
    named = {
        name: getattr(given, name)
        for name in ("concurrency", "max_cost", "deadline", "pause", "resume")
        if name not in given.from_environment
    }
    if named.get("pause") and named.get("resume"):
        raise UsageError("both --pause and --resume are given", "remove one of them")
    is_paused = True if named.get("pause") else False if named.get("resume") else None
    change = Tuned(named.get("concurrency"), named.get("max_cost"), named.get("deadline"), is_paused)
    if change == Tuned():
        raise UsageError("no change is given", "give -j, --max-cost, --deadline, --pause or --resume")
    return change


def tune(state: Path, change: Tuned, tell: Callable[[str], None], *, patience_s: float = _PATIENCE_S) -> str:
    """Change a run, and wait until the process that drives it has applied the change.

    Args:
        state: The run's state file.
        change: What to change.
        tell: Called with a message if it takes long.
        patience_s: How long the process may give no sign of life, in seconds.

    Returns:
        What was changed, for people.

    Raises:
        UsageError: no process drives the run, or the change makes no sense for it.
        StateError: the process gives no sign of life, or ends before it applies the change.
    """
    who = holder(state)
    try:
        with StateReader(state) as store:
            who = _refuse_useless(store, who, change)
            refuse_older_version(store)
    except StateError as error:
        if who is None or holds_run(state):
            raise
        raise StateError(
            f"{state}: {who} is still reading its input, so there is nothing to tune yet",
            "give the command again when `batchrun status` shows the run",
        ) from error
    with Store(state, tell=tell) as store:
        number = request_tuning(store, change)
    asked_at = seen_at = steady_s()
    seen, has_told = signs_of_life(state, who), False
    while (applied := _find_applied(state, number)) is None:
        # Not while the file is open here: looking for the holder would drop SQLite's locks.
        if (now := holder(state)) is None:
            if (applied := _find_applied(state, number)) is not None:
                break
            raise StateError(f"{state}: the run ended before it applied the change", _resume(state, change))
        if (signs := signs_of_life(state, now)) != seen:
            seen, seen_at = signs, steady_s()
        if steady_s() - seen_at > patience_s:
            raise no_answer(state, now)
        if steady_s() - asked_at > patience_s and not has_told:
            has_told = True
            tell(f"{now} is still starting, and applies the change when it is under way; Ctrl-C only ends the wait")
        time.sleep(_LOOK_AGAIN_S)
    text = f"{as_options(change)}: applied by {who}"
    if applied.is_late:
        text += "; the run is about to end, so the change takes effect when you resume it"
    return text


def _find_applied(state: Path, number: int) -> Tuning | None:
    with StateReader(state) as store:
        return next((tuning for tuning in applied_tunings(store) if tuning.number == number), None)


def _refuse_useless(store: StateReader, who: Holder | None, change: Tuned) -> Holder:
    """Refuse a change that makes no sense; returns the process that applies it."""
    if who is None:
        raise UsageError(f"no process drives {store.path}, so there is nothing to tune", _resume(store.path, change))
    guards = read_options(store).guards
    if change.max_cost not in (None, math.inf) and not guards.have_price:
        raise UsageError(
            "--max-cost: this run has no price per worker",
            f"stop it, then give both: batchrun resume {shlex.quote(str(store.path))} --price-per-hour PRICE"
            f" --max-cost {change.max_cost:g}",
        )
    sessions = figures.sessions(store)
    if change.deadline_s is not None and sessions:
        running_s = time.time() - sessions[-1].started_ms / 1000
        if change.deadline_s <= running_s:
            raise UsageError(
                f"--deadline: the session began {running_s / 60:,.0f} min ago, so this deadline has passed",
                "give a later one, counted from that start; to end the run now, use `batchrun stop`",
            )
    return who


def _resume(state: Path, change: Tuned) -> str:
    """How to resume with the change; a pause does not apply to a run that has ended."""
    options = as_options(Tuned(change.concurrency, change.max_cost, change.deadline_s))
    resume = f"batchrun resume {shlex.quote(str(state))}"
    return f"give it when you resume: {resume} {options}" if options else f"if rows are left: {resume}"
