"""Checks before a run writes or sends anything: its options match its state, and all files are its own."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from batchrun.config import RunOptions
from batchrun.errors import OutputError, StateError, UsageError, shown
from batchrun.files.exactjson import dump
from batchrun.files.paths import refuse_unspeakable
from batchrun.prompts.ownership import first_line, is_own_line
from batchrun.prompts.sources import Source
from batchrun.prompts.sweep import Sweep
from batchrun.results.reader import read_lines, size_of
from batchrun.results.record import tells_of_job
from batchrun.results.writer import errors_path
from batchrun.runs.locations import output_paths
from batchrun.runs.manifest import is_manifest_of, manifest_path
from batchrun.runs.pools import is_same_pool, refuse_lost_jobs
from batchrun.state.endpoints import known_endpoints
from batchrun.state.reader import StateReader
from batchrun.state.stored_options import find_options

_IDENTITY = {
    "base_url": "--base-url",
    "output": "--output",
    "shard": "--shard",
    "dedupe": "--dedupe",
    "with_request": "--with-request",
    "split_think": "--split-think",
}
_REQUEST_IDENTITY = {"override": "--set", "default": "--default", "chat": "--chat", "system": "--system"}
_REQUEST_IDENTITY |= {"id_column": "--id-column", "inline_files": "--inline-files", "schema": "--schema"}
_TEMPLATE_IDENTITY = {"prompt": "--prompt", "messages": "--messages-file", "raw": "--raw", "columns": "--columns"}
_TEMPLATE_IDENTITY |= {"image_column": "--image-column"}
_REQUEST_IDENTITY |= _TEMPLATE_IDENTITY
_SETTING = "files"
"""The setting that lists the files that the run has made, relative to the state file's folder."""


def refuse_other_options(store: StateReader, options: RunOptions) -> bool:
    """Refuse to resume a run with options that change its requests, if anything has been submitted.

    Returns:
        Whether such options have changed, and nothing has been submitted.

    Raises:
        StateError: options have changed; the message names each with both values.
    """
    stored = find_options(store)
    if stored is None:
        return False
    was_json, now_json = stored.to_json(), options.to_json()
    pairs = [(option, was_json[key], now_json[key]) for key, option in _IDENTITY.items()]
    if is_same_pool(stored, options):
        refuse_lost_jobs(store, known_endpoints(store, stored), options)
    else:
        pairs.insert(0, ("--endpoint", ",".join(stored.endpoints), ",".join(options.endpoints)))
    pairs.append(("--sweep", str(Sweep(stored.sweep)) or None, str(Sweep(options.sweep)) or None))
    if options.format != "auto":
        pairs.append(("--format", stored.format, options.format))
    was_asked, now_asked = _asked(was_json["request"]), _asked(now_json["request"])
    pairs += [(option, was_asked[key], now_asked[key]) for key, option in _REQUEST_IDENTITY.items()]
    differing = [
        f"{_given(option, was)} (now {_given(option, is_now)})"
        for option, was, is_now in pairs
        if was != is_now and not (option == "--base-url" and options.is_local)
    ]
    if differing and not store.is_untouched:
        raise StateError(
            f"{options.state} was created with {', '.join(differing)}",
            "resume with the same options, or start a new run with another --output; if you renamed the results"
            " together with their state file, add --repair",
        )
    # A lower limit removes no rows from a run that has submitted any.
    return bool(differing) or (stored.limit != options.limit and store.is_untouched)


def _asked(request: dict[str, Any]) -> dict[str, Any]:
    """The options of requests with those of the template among them. A template has the system message."""
    template = request["template"]
    if template is None:
        return {**request, **dict.fromkeys(_TEMPLATE_IDENTITY), "raw": False}
    return {**request, **{key: template[key] for key in (*_TEMPLATE_IDENTITY, "system")}}


def new_place(options: RunOptions) -> str:
    """The command that continues a run whose inputs were moved."""
    folder = "/" if options.output_is_folder else ""
    endpoints = ",".join(options.pool or (options.endpoint,))
    return f"batchrun run NEWPATH -e {endpoints} -o {options.output}{folder}, with the run's other options"


def _given(option: str, value: Any) -> str:
    """An option with its value as it would be given on the command line; `no --chat` if it would not be given."""
    if option == "--schema" and value is not None:
        value = dump(value).decode()
    elif isinstance(value, dict):
        value = " ".join(f"{key}={item}" for key, item in value.items())
    if isinstance(value, tuple):
        value = ",".join(value)
    if value in (None, False, ""):
        return f"no {option}"
    if option == "--inline-files":
        return option
    if isinstance(value, str) and ("\n" in value or len(value) > _SHOWN_CHARS):
        value = shown(value)
    return option if value is True else f"{option} {value}"


_SHOWN_CHARS = 120


def refuse_unspeakable_names(options: RunOptions, sources: Sequence[Source]) -> None:
    """Refuse file names that JSON and SQLite cannot store: results, error records and the state file contain them.

    Raises:
        UsageError: a name cannot be stored.
    """
    for path in (options.output, options.state, *(Path(source.path) for source in sources)):
        refuse_unspeakable(path)


def refuse_shared_files(options: RunOptions, sources: Sequence[Source]) -> None:
    """Refuse to overwrite an input, to use one file for two purposes, and to write to anything but a regular file.

    Raises:
        UsageError: names the file and its purposes.
    """
    taken: dict[object, str] = {}
    for source in sources:
        for key in _keys(Path(source.path)):
            taken.setdefault(key, f"the input {source.path}")
    for path, what in _written(options, sources):
        mode = _mode(path)
        if mode is not None and not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a device, a pipe or a socket"
            raise UsageError(f"{path} cannot be {what}: it is {kind}", "give another --output or --state")
        keys = _keys(path)
        other = next((taken[key] for key in keys if key in taken), None)
        if other is not None:
            raise UsageError(f"{path} cannot be both {what} and {other}", "give another --output or --state")
        taken.update(dict.fromkeys(keys, what))
    cache = options.answers.cache
    if cache is not None and (other := next((taken[key] for key in _keys(Path(cache)) if key in taken), None)):
        raise UsageError(f"{cache} cannot be both the cache and {other}", "give another --cache")


def refuse_foreign_files(
    options: RunOptions, sources: Sequence[Source], store: StateReader | None, *, repair: bool = False
) -> None:
    """Refuse to overwrite a file that this run has not written. Empty files may be overwritten.

    Args:
        options: The run's options.
        sources: The run's inputs.
        store: The run's state; None: the run is new, so no file is its own.
        repair: Whether to accept results and error files that batchrun has written as the run's own.

    Raises:
        StateError: a file belongs to somebody else.
    """
    own = None if store is None else OwnFiles(store)
    for path, what in _written(options, sources):
        if what.startswith("the state") or not _has_content(path):
            continue
        if own is None and what == _RESULTS and not repair:
            raise StateError(
                f"{path} exists, but its state file {options.state} does not, or holds no run",
                "add --repair to rebuild the state file from the input and the results; or move the results away, or"
                " give another --output",
            )
        if own is None and what == _RESULTS:
            _refuse_foreign_results(path, options)
        if repair and _is_error_file(path):
            continue
        if what != _RESULTS and not (is_manifest_of(path, options.state) if own is None else path in own):
            raise StateError(
                f"{path} exists, and this run did not write it, but it would become {what}",
                "move it away, or give another --output",
            )


def _refuse_foreign_results(path: Path, options: RunOptions) -> None:
    if not any(tells_of_job(line.raw, options.endpoints) for line in read_lines(path, end=size_of(path))):
        raise StateError(
            f"{path} has no results of endpoint {' or '.join(options.endpoints)}: no state file can be rebuilt from it",
            "move it away, or give another --output",
        )


_RESULTS = "the results"


def _written(options: RunOptions, sources: Sequence[Source]) -> Iterator[tuple[Path, str]]:
    """Every path that a run writes, once, and its purpose."""
    yield options.state, "the state file"
    for suffix in ("-wal", "-shm", "-journal"):
        yield options.state.with_name(options.state.name + suffix), "the state file's log"
    for path in dict.fromkeys(output_paths(options, sources)):
        yield path, _RESULTS
        yield errors_path(path), "the error file"
    yield manifest_path(options), "the manifest"


def _keys(path: Path) -> set[object]:
    """What identifies a file: its path without links, and its device and inode if it exists."""
    keys: set[object] = {os.path.realpath(path)}
    try:
        status = path.stat()
    except OSError:
        return keys
    return keys | {(status.st_dev, status.st_ino)}


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror}", "check the name and its permissions, or give another --output or --state"
        ) from error


def _has_content(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


class OwnFiles:
    """The error files and manifests that a run has written, as listed in its state file.

    A manifest that names the state file belongs to the run, too. A state file of an earlier version has no list: there,
    an error file belongs to the run if its first line is an error record.

    Args:
        store: The run's state file.
    """

    def __init__(self, store: StateReader) -> None:
        self._store = store
        self._folder = store.path.absolute().parent
        listed = store.get_setting(_SETTING)
        self._listed = listed if isinstance(listed, list) else None

    def __contains__(self, path: Path) -> bool:
        if self._name(path) in (self._listed or ()):
            return True
        return is_manifest_of(path, self._store.path) or (self._listed is None and _is_error_file(path))

    def adopt(self, paths: Iterable[Path]) -> None:
        """If the state file has no list, because it was rebuilt, list those of the paths that are error files."""
        if self._listed is None:
            self._listed = [self._name(path) for path in paths if _is_error_file(path)]
            self._store.set_setting(_SETTING, self._listed)

    def claim(self, path: Path) -> None:
        """List a file that the run is about to write.

        Raises:
            OutputError: the file exists and belongs to somebody else; or the state cannot be written.
        """
        if _has_content(path) and path not in self:
            raise OutputError(
                f"{path} exists, and this run did not write it, so it is not overwritten",
                "move it away, then give the same command again",
            )
        if self._name(path) not in (self._listed or ()):
            self._listed = [*(self._listed or []), self._name(path)]
            self._store.set_setting(_SETTING, self._listed)

    def _name(self, path: Path) -> str:
        return os.path.relpath(path, self._folder)


def _is_error_file(path: Path) -> bool:
    try:
        return is_own_line(first_line(path))
    except OSError:
        return False
