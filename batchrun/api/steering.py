"""The commands that steer a run which another process may be driving, as functions: `stop`, `tune` and `cancel`."""

from __future__ import annotations

from functools import partial
from typing import Literal, get_args

from batchrun.api.arguments import refuse_out_of_bounds
from batchrun.api.calls import run_to_end
from batchrun.api.commands import PathLike
from batchrun.api.loaded import Summary
from batchrun.commands import cancel as cancelling
from batchrun.commands import stop as stopping
from batchrun.commands import tune as tuning
from batchrun.commands.confirming import confirmed
from batchrun.commands.session_arguments import CancelArguments
from batchrun.commands.status import RunStatus, read_status
from batchrun.commands.stop import How
from batchrun.commands.tune_arguments import TuneArguments
from batchrun.display.progress import NullObserver
from batchrun.errors import UsageError, shown
from batchrun.runs.resumed import resumed_options
from batchrun.runs.state_path import state_file


def cancel(state: PathLike, *, api_key: str | None = None, base_url: str | None = None) -> Summary:
    """Cancel the jobs in flight of a run. If another process is driving the run, it cancels the jobs and exits.

    Args:
        state: The state file.
        api_key: None: that of RUNPOD_API_KEY, else that in `~/.runpod/config.toml`.
        base_url: Confirms the URL of the run's jobs, if the state file does not prove that you chose it.

    Raises:
        BatchrunError: nothing was cancelled.
    """
    options = resumed_options(state_file(state))
    given = confirmed(CancelArguments(base_url=base_url), options)
    work = partial(cancelling.cancel, options, observer=NullObserver(), api_key=api_key, confirmed=given)
    return Summary.of(run_to_end(work, options.guards.on_interrupt))


def stop(state: PathLike, *, how: How = "interrupt") -> RunStatus:
    """End the process that drives a run, and wait until it has exited; if none does, nothing changes.

    Args:
        state: The state file.
        how: `interrupt` does what the run does at Ctrl-C; `leave` and `cancel` say what to do with its jobs in flight.

    Returns:
        The status of the run afterwards.

    Raises:
        UsageError: `how` is invalid.
        StateError: there is no such run, or its process does not respond.
    """
    if how not in get_args(How):
        raise UsageError(f"how={shown(how)} is not valid", f"give {', '.join(get_args(How))}")
    stopping.stop(state_file(state), how, NullObserver().message)
    return read_status(state_file(state))


def tune(
    state: PathLike,
    *,
    concurrency: int | Literal["auto"] | None = None,
    max_cost: float | None = None,
    deadline: float | None = None,
    pause: bool | None = None,
) -> None:
    """Change a run that another process drives; returns when that process has applied the change. None changes nothing.

    Args:
        state: The state file.
        concurrency: Jobs in flight at once; `auto`: just enough to keep every worker busy.
        max_cost: Budget of the whole run in dollars; `math.inf` removes it.
        deadline: Seconds from the start of the session; `math.inf` removes it.
        pause: Whether nothing more is submitted for now.

    Raises:
        UsageError: no process drives the run, or an argument is invalid.
        StateError: the process does not take the change up.
    """
    given = TuneArguments(
        concurrency=concurrency,
        max_cost=max_cost,
        deadline=deadline,
        pause=pause is True,
        resume=pause is False,
    )
    refuse_out_of_bounds(given)
    tuning.tune(state_file(state), tuning.change_of(given), NullObserver().message)
