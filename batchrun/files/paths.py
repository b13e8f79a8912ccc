"""Paths that a user named, looked at before anything else is done with them."""

from __future__ import annotations

import os
from pathlib import Path

from batchrun.errors import UsageError, shown


def look_at(path: str | Path, named: str, kind: type[UsageError] = UsageError) -> os.stat_result | None:
    """What is at a path that a user named; None when nothing is, or only a link that leads nowhere.

    Args:
        path: As it was given.
        named: The option or argument that it is the value of.
        kind: The class of the error.

    Raises:
        UsageError: nobody can tell, so nothing can be opened there: the path is empty, too long, a link to itself, in a
            folder that may not be entered, or relative while the current folder is gone.
    """
    if not str(path):
        raise kind(f"{named} is empty", "is a variable of the shell not set? `.` is the current folder")
    try:
        if not os.path.isabs(path):  # noqa: PTH117 - a text may end in a slash, which a Path loses
            _refuse_gone_folder(kind)
        return os.stat(path)  # noqa: PTH116 - as above
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise kind(f"{path}: {error.strerror or error}", "check the path") from error
    except ValueError as error:
        raise kind(f"{named} {shown(str(path))} is no path: {error}", "check the path") from error


def behind_links(path: Path) -> Path:
    """The file that a link leads to, else the path as it is: what belongs to a state file is beside that file."""
    # Not `Path.is_symlink`, which raises for a path that cannot be looked at: `look_at` says so better.
    return Path(os.path.realpath(path)) if os.path.islink(path) else path  # noqa: PTH114


def refuse_unspeakable(path: Path) -> None:
    """Refuse a path that neither JSON nor SQLite can name: results, errors and the state name their files.

    Raises:
        UsageError: its name, or that of a folder above it, is not valid UTF-8.
    """
    name = str(path.absolute())
    try:
        name.encode()
    except UnicodeEncodeError as error:
        readable = os.fsencode(name).decode("utf-8", "backslashreplace")
        raise UsageError(f"{readable}: the name is not valid UTF-8", "rename it, or make a link to it") from error


def _refuse_gone_folder(kind: type[UsageError]) -> None:
    try:
        os.getcwd()  # noqa: PTH109 - it is only asked whether there is one
    except OSError as error:
        raise kind("the current folder is gone", "change to another one") from error
