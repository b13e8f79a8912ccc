"""The options of a run that is resumed from its state file only."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

from batchrun.config import RunOptions
from batchrun.runs.repair import by_new_name
from batchrun.state.opening import accept_lost_log
from batchrun.state.reader import StateReader
from batchrun.state.stored_options import read_options


def resumed_options(state: Path, *, repair: bool = False) -> RunOptions:
    """The options that a run was started with, with the present paths of its inputs.

    Args:
        state: The state file.
        repair: Whether to accept that its log is missing, or that it was renamed together with its results.

    Raises:
        StateError: there is no such file, or it holds no run.
    """
    with contextlib.ExitStack() as stack:
        if repair:
            stack.enter_context(accept_lost_log(state, lambda: False))
        store = stack.enter_context(StateReader(state))
        options = read_options(store)
        options = replace(options, inputs=tuple(map(store.present_path, options.inputs)))
    return by_new_name(options) if repair else options
