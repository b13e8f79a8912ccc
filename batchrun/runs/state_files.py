"""Finds the state files in folders."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from batchrun.config import FOLDER_STATE
from batchrun.errors import UsageError
from batchrun.state.opening import did_you_mean, log_of
from batchrun.state.schema import may_be_state

_SUFFIX = ".state"


def state_files(folders: Iterable[Path]) -> list[Path]:
    """The state files in folders, and in folders of results within them; the most recently written first.

    They are recognized by their names and their first bytes. A path may also be a state file itself.

    Raises:
        UsageError: there is no such folder, it cannot be read, or it is a file that is not a state file.
    """
    found: dict[Path, float] = {}
    for folder in folders:
        for path in [folder] if folder.is_file() else _inside(folder):
            with suppress(OSError):
                if may_be_state(path):
                    found[path] = written_at(path)
                elif path is folder:
                    hint = did_you_mean(path, "it is beside the results: <output>.state")
                    raise UsageError(f"{path} is neither a folder nor a state file", hint)
    return sorted(found, key=lambda path: (-found[path], path))


def newest_state(folder: Path) -> Path:
    """The most recently written state file in a folder.

    Raises:
        UsageError: there is none.
    """
    found = state_files([folder])
    if not found:
        raise UsageError(
            "no STATE is given, and there is no state file in this folder",
            "give its path: it is beside the results, as <output>.state",
        )
    return found[0]


def written_at(state: Path) -> float:
    """When a state file or its log was last written, UTC epoch seconds.

    Raises:
        OSError: it cannot be read.
    """
    at = state.stat().st_mtime
    with suppress(OSError):
        at = max(at, log_of(state).stat().st_mtime)
    return at


def _inside(folder: Path) -> list[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror}", "give a folder, or a state file") from error
    # Not resolved: people recognize the paths that they gave.
    beside = [entry for entry in entries if entry.name.endswith(_SUFFIX) and entry.is_file()]
    return beside + [inner for entry in entries if (inner := entry / FOLDER_STATE).is_file()]
