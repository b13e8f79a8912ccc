"""The state file that a user means by a path."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from batchrun.config import FOLDER_STATE
from batchrun.errors import StateError
from batchrun.files.paths import behind_links, look_at, refuse_unspeakable


def state_file(given: str | os.PathLike[str], named: str = "state") -> Path:
    """The state file at a path, behind links; for a folder of results, the one in it. It need not exist.

    Args:
        given: The path as it was given.
        named: The argument that has this value, for messages.

    Raises:
        UsageError: the path is not usable, see `look_at`.
        StateError: it cannot be a state file.
    """
    text = os.fsdecode(given)
    found, path = look_at(text, named), Path(text)
    if (path / FOLDER_STATE).is_file():
        path /= FOLDER_STATE
    path = behind_links(path)
    refuse_unspeakable(path)
    if not path.name:
        raise StateError(
            f"{path} is a folder, not a state file",
            f"it is beside the results, as <output>.state, or in their folder, as {FOLDER_STATE}",
        )
    if found is not None and not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise StateError(f"{path} is a device or a pipe, not a state file", "give the path of a state file")
    return path
