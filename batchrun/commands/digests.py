"""Compares files with what a run has recorded of them: inputs with the state file, results with the manifest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from batchrun.errors import OutputError
from batchrun.files.exactjson import load
from batchrun.results.record import iso_time
from batchrun.runs.manifest import digest_file, manifest_path
from batchrun.runs.superseding import committed_superseded, look_at_superseded
from batchrun.scheduler.states import RowState
from batchrun.state import figures
from batchrun.state.reader import StateReader
from batchrun.state.stored_options import find_options
from batchrun.state.superseded import Superseded


def changed_originals(store: StateReader) -> Iterator[str]:
    """The inputs that have changed since a copy of them was made; those that no longer exist are left out."""
    kept = store.get_setting("inputs")
    for source, recorded in zip(store.sources(), kept if isinstance(kept, list) else [], strict=False):
        origin = Path(source.origin)
        if source.file == source.origin or not origin.is_file():
            continue
        try:
            found = digest_file(origin)
        except OutputError as error:
            yield error.message
            continue
        if list(recorded)[1:] != [found.size_bytes, found.sha256]:
            yield source.path


def replaced_results(store: StateReader) -> Iterator[tuple[int, str]]:
    """For each file with results that `redo` has replaced, how many there are, and what is wrong with it; or nothing.

    A file is compared up to its committed length: beyond it, there may be the lines of an interrupted redo.
    """
    for path, known in committed_superseded(store).items():
        try:
            found = look_at_superseded(path, known.size_bytes) if path.exists() else Superseded()
        except OutputError as error:
            yield known.lines, error.message
            continue
        if found.size_bytes < known.size_bytes:
            yield known.lines, f"{path} has {found.size_bytes:,} bytes, but {known.size_bytes:,} were written"
        else:
            yield known.lines, "" if found == known else f"{path} is not as it was written"


def against_manifest(store: StateReader) -> Iterator[str]:
    """Where the manifest differs from the state and the results; nothing if it was written by another session."""
    options = find_options(store)
    if options is None:
        return
    path = manifest_path(options)
    try:
        data = load(path.read_bytes())
        if _session(data["sessions"][-1]) != _last_session(store):
            return
        counts = store.counts()
        recorded = {state: data["summary"][state.name.lower()] for state in (RowState.SUCCEEDED, RowState.FAILED)}
        files = {Path(entry["path"]).name: (entry["size_bytes"], entry["sha256"]) for entry in data["results"]}
    except FileNotFoundError:
        return
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        yield f"{path} is not a manifest of this run"
        return
    for state, count in recorded.items():
        if counts[state] != count:
            yield f"{path}: {count} {state.name.lower()}, but the state file has {counts[state]:,}"
    for output in store.outputs():
        results = store.results_path(output)
        if results.name in files and results.exists():
            found = digest_file(results)
            if files[results.name] != (found.size_bytes, found.sha256):
                yield f"{path}: its SHA-256 is not that of {results}"


def _session(entry: dict[str, Any]) -> tuple[object, object]:
    return entry["started_at"], entry["outcome"]


def _last_session(store: StateReader) -> tuple[object, object]:
    started_ms, _, outcome = figures.sessions(store)[-1]
    return iso_time(started_ms / 1000), outcome
