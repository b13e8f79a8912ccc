"""Recognize files that a run has written: in a folder of prompts they are not prompts."""

from __future__ import annotations

import re
from pathlib import Path

import orjson

from batchrun.files.exactjson import load
from batchrun.files.locks import is_held_here
from batchrun.prompts.forms import Form, form_of

_SQLITE_MAGIC = b"SQLite format 3\0"
_MOST_BYTES_OF_A_FIRST_LINE = 16 << 20
OWN_SUFFIXES = (".results.jsonl", ".errors.jsonl", ".superseded.jsonl", ".scores.jsonl", ".manifest.json")
"""Files that a run writes. In a folder of prompts they are skipped; named explicitly, they are inputs."""
_COPY = re.compile(r"(.+)\.(?:\d+(?:-[0-9a-f]{12})?|stdin|requests)\.jsonl")
"""The name of an input's copy, or of a program's requests: it begins with the name of the state file beside it."""
_BESIDE = re.compile(r".+\.state(?:-wal|-shm|-journal|\.lock)?")
"""The names of a state file and of what belongs to it, unless it was given another name."""
_EXPORTED = {"id", "text", "finish_reason", "status"}
"""Columns that each exported table has."""


def is_own_file(path: Path) -> bool:
    """Whether a run wrote a file: its state, results or failures, a table of them, or an input's copy.

    Raises:
        OSError: it cannot be read.
    """
    copy = _COPY.fullmatch(path.name)
    if copy is not None:
        state = path.with_name(copy.group(1))
        if is_held_here(state):
            return True
        if state.is_file() and _is_state(state):
            return True
    return _is_state(path) or is_own_line(first_line(path)) or _columns(path) >= _EXPORTED


def has_own_name(name: str) -> bool:
    """Whether a run gives such a name to what it writes."""
    return name.endswith(OWN_SUFFIXES) or _BESIDE.fullmatch(name) is not None


def first_line(path: Path) -> bytes:
    """The first line of a file, or the first 16 MiB of a longer one.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return file.readline(_MOST_BYTES_OF_A_FIRST_LINE)


def is_own_line(line: bytes) -> bool:
    """Whether a line is from a results or error file, in either format."""
    if b'"source"' not in line:
        return False
    try:
        data = load(line)
    except orjson.JSONDecodeError:
        return False
    facts = data.get("batchrun", data) if isinstance(data, dict) else None
    if not isinstance(facts, dict) or not isinstance(facts.get("source"), dict):
        return False
    return {"file", "line"} <= facts["source"].keys() and {"status", "job"} <= facts.keys()


def _is_state(path: Path) -> bool:
    if is_held_here(path):  # to close it would drop SQLite's locks
        return True
    with path.open("rb") as file:
        return file.read(len(_SQLITE_MAGIC)) == _SQLITE_MAGIC


def _columns(path: Path) -> set[str]:
    """The columns of a table that may be an export; none of another file."""
    line = first_line(path)
    match form_of(path.name, line):
        case Form.CSV | Form.TSV:
            import csv

            header = line.decode("utf-8-sig", errors="replace").strip()
            rows = csv.reader([header], delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            return set(next(rows, []))
        case Form.PARQUET:
            from batchrun.prompts.parquetrows import column_names

            return set(column_names(path))
        case _:
            return set()
