"""The options of a run that is resumed from its state file alone."""

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
    """The options that a state file's run was started with, with its inputs where they are now.

    Args:
        state: The state file.
        repair: Whether it may have lost its log, and its results may have been renamed together with it.

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
