"""Check the paths that a user gave, before anything else is done with them."""

from __future__ import annotations

import os
from pathlib import Path

from batchrun.errors import UsageError, shown


def look_at(path: str | Path, named: str, kind: type[UsageError] = UsageError) -> os.stat_result | None:
    """The status of the file at a path that a user gave; None if there is none, or only a dangling link.

    Args:
        path: As it was given.
        named: The option or argument that has this value.
        kind: The class of the error.

    Raises:
        UsageError: the path cannot be checked, nor anything opened there: it is empty, too long, a link to itself, in
            a folder that may not be entered, or relative while the current folder no longer exists.
    """
    if not str(path):
        raise kind(f"{named} is empty", "is a shell variable unset? `.` is the current folder")
    try:
        if not os.path.isabs(path):  # noqa: PTH117 - a string may end in a slash, which a Path drops
            _refuse_gone_folder(kind)
        return os.stat(path)  # noqa: PTH116 - as above
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise kind(f"{path}: {error.strerror or error}", "check the path") from error
    except ValueError as error:
        raise kind(f"{named} {shown(str(path))} is not a path: {error}", "check the path") from error


def behind_links(path: Path) -> Path:
    """The target of a link, or the path itself if it is none: a state file's other files are beside its target."""
    # `Path.is_symlink` raises for a path whose status cannot be read, which `look_at` reports better.
    return Path(os.path.realpath(path)) if os.path.islink(path) else path  # noqa: PTH114


def refuse_unspeakable(path: Path) -> None:
    """Refuse a path that neither JSON nor SQLite can hold: results, errors and the state contain paths.

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
        os.getcwd()  # noqa: PTH109 - only checks that there is one
    except OSError as error:
        raise kind("the current folder no longer exists", "change to another one") from error
