"""The manifest of a run: inputs, options, results, times and cost, in one JSON file without secrets."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from batchrun.config import RunOptions
from batchrun.display.summary import Summary
from batchrun.files.exactjson import dump, load, on_one_line
from batchrun.results.record import iso_time
from batchrun.results.writer import write_whole, writing
from batchrun.state.figures import SessionTimes
from batchrun.state.tunings import Tuning

VERSION = 1
"""Version of the manifest's format."""
_BLOCK_BYTES = 1 << 20


class FileDigest(NamedTuple):
    """The size and SHA-256 of a file at one moment."""

    path: str
    size_bytes: int
    sha256: str


class FileHash:
    """Computes the SHA-256 of a file while it is being read for another purpose, from the beginning."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._size_bytes = 0

    def update(self, block: bytes | memoryview) -> None:
        """Add the next bytes of the file."""
        self._sha256.update(block)
        self._size_bytes += len(block)

    def finish(self, path: Path, shown: str) -> FileDigest:
        """The digest of the whole file; the rest that was not read yet is read now.

        Args:
            path: The file.
            shown: Its path in the manifest.

        Raises:
            OutputError: it cannot be read.
        """
        with writing(path), path.open("rb") as file:
            file.seek(self._size_bytes)
            while block := file.read(_BLOCK_BYTES):
                self.update(block)
        return FileDigest(shown, self._size_bytes, self._sha256.hexdigest())


def digest_file(path: Path, shown: str | None = None) -> FileDigest:
    """A file's length and SHA-256.

    Args:
        path: The file.
        shown: Its path in the manifest; None: `path`.

    Raises:
        OutputError: it cannot be read.
    """
    with writing(path), path.open("rb") as file:
        return FileDigest(shown or str(path), path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def manifest_path(options: RunOptions) -> Path:
    """The manifest of `results.jsonl` is `results.manifest.json`, that of a folder is `batchrun.manifest.json` in it.

    A manifest that an earlier version has written beside the folder stays there.
    """
    output = options.output
    beside = output.with_name(f"{output.name.removesuffix('.jsonl')}.manifest.json")
    is_within = options.output_is_folder and not is_manifest_of(beside, options.state)
    return output / "batchrun.manifest.json" if is_within else beside


def is_manifest_of(path: Path, state: Path) -> bool:
    """Whether a file is a manifest written by batchrun that names this state file."""
    if path.suffix != ".json":
        return False
    try:
        data = load(path.read_bytes())
        return "manifest_version" in data and Path(data["state"]).name == state.name
    except (OSError, orjson.JSONDecodeError, TypeError, KeyError):
        return False


def write_manifest(
    path: Path,
    *,
    batchrun_version: str,
    written_at: float,
    options: RunOptions,
    summary: Summary,
    inputs: Sequence[FileDigest],
    results: Sequence[FileDigest],
    superseded: Sequence[FileDigest],
    sessions: Sequence[SessionTimes],
    tunings: Sequence[Tuning] = (),
    token: str | None = None,
) -> None:
    """Write a manifest, replacing the file by a rename.

    Args:
        path: The file.
        batchrun_version: The program's version.
        written_at: UTC epoch seconds.
        options: The options of the run.
        summary: The outcome of the run.
        inputs: The input files as they were read.
        results: The results files as they are.
        superseded: The files with the results that `redo` has replaced.
        sessions: The sessions of the run.
        tunings: What was changed during the run.
        token: See `write_whole`.

    Raises:
        OutputError: it cannot be written; an older manifest is unchanged.
    """
    options_json = options.to_json()
    summary_json = summary.to_json()
    for known in ("results", "errors", "manifest", "state"):
        del summary_json[known]
    data: dict[str, Any] = {
        "manifest_version": VERSION,
        "batchrun_version": batchrun_version,
        "written_at": iso_time(written_at),
        "endpoint": ", ".join(options.endpoints),
        "base_url": options_json["base_url"],
        "inputs": [digest._asdict() for digest in inputs],
        "results": [digest._asdict() for digest in results],
        "superseded": [digest._asdict() for digest in superseded],
        "errors": [str(path) for path in summary.errors],
        "state": str(summary.state),
        "options": options_json,
        "sessions": [
            {
                "started_at": iso_time(session.started_ms / 1000),
                "ended_at": iso_time(session.seen_ms / 1000),
                "outcome": session.outcome,
            }
            for session in sessions
        ],
        "tuned": [{"at": iso_time(tuning.at_ms / 1000), **tuning.to_json()} for tuning in tunings],
        "summary": summary_json,
    }
    write_whole(path, [on_one_line(dump(data, orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))], token=token)
