"""The options that a run was started with, stored in its state file; read and written only here.

A file of an earlier version lacks newer options; `RunOptions.from_json` gives them their values.
"""

from __future__ import annotations

from batchrun.config import RunOptions
from batchrun.errors import StateError
from batchrun.state.database import Database

OPTIONS = "options"
"""The setting."""


def find_options(store: Database) -> RunOptions | None:
    """The options of a state file's run; None if it holds no run yet.

    Raises:
        StateError: they are damaged.
    """
    stored = store.get_setting(OPTIONS)
    if not isinstance(stored, dict):
        return None
    try:
        return RunOptions.from_json(stored, store.path)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise StateError(
            f"{store.path}: the options of its run cannot be read: the file is damaged, or a newer batchrun wrote it",
            "restore it from a copy, or use the version that wrote it",
        ) from error


def read_options(store: Database) -> RunOptions:
    """The options of a state file's run.

    Raises:
        StateError: it holds no run, or they are damaged.
    """
    options = find_options(store)
    if options is None:
        raise StateError(f"{store.path} holds no run", "start one with `batchrun run`")
    return options


def store_options(store: Database, options: RunOptions) -> None:
    """Store the options of a run, without those that apply only to this session.

    Raises:
        OutputError: the state cannot be written.
    """
    store.set_setting(OPTIONS, options.to_json())
