"""The pass that validates the lines also hashes the files, as they are on disk."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from batchrun.errors import UsageError
from batchrun.runs import validation
from batchrun.runs.validation import Validation
from batchrun.state.records import SourceRecord
from tests.support.rehearsal import Listener, options_for

BODIES = [
    b'{"prompt": "a"}\n{"prompt": "b"}\n',
    b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n  {"prompt": "b"}',
    b'{"prompt": "a"}\n{"broken\n',
    b'{"prompt": "a"}\n' + b"\n" * 300_000 + b'{"prompt": "b"}\n',
    b'{"prompt": "' + b"x" * 300_000 + b'"}\n' * 2,
]


def validated(folder: Path, body: bytes, **given: object) -> tuple[Validation, int]:
    path = folder / "in.jsonl"
    path.write_bytes(body)
    record = SourceRecord(0, "in.jsonl", str(path), str(path), "", 1)
    found = Validation(options_for(folder, **given), [record], 1, Listener(), is_new=True)
    return found, sum(1 for _ in found.lines())


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("limit", [None, 1])
def test_the_digest_of_an_input_is_that_of_its_bytes_wherever_the_reading_stops(
    tmp_path: Path, monkeypatch, body: bytes, limit: int | None
):
    monkeypatch.setattr(validation, "digest_file", None)
    found, _ = validated(tmp_path, body, limit=limit)
    assert found.digests() == [("in.jsonl", len(body), hashlib.sha256(body).hexdigest())]


def test_lines_that_are_appended_after_they_were_read_are_in_the_digest(tmp_path: Path):
    found, _ = validated(tmp_path, BODIES[0])
    with (tmp_path / "in.jsonl").open("ab") as file:
        file.write(b'"more"\n')
    whole = (tmp_path / "in.jsonl").read_bytes()
    assert found.digests() == [("in.jsonl", len(whole), hashlib.sha256(whole).hexdigest())]


def test_a_line_that_is_wrong_is_a_problem_and_no_row(tmp_path: Path):
    found, rows = validated(tmp_path, BODIES[2])
    assert (rows, found.problems.count) == (1, 1)
    assert str(found.problems).startswith("in.jsonl:2: ")


def test_a_sweep_of_too_many_rows_is_refused_before_the_first_of_them(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(validation, "MAX_ROWS", 5)
    given = options_for(tmp_path)
    record = SourceRecord(0, "in.jsonl", str(tmp_path / "in.jsonl"), str(tmp_path / "in.jsonl"), "", 1)
    (tmp_path / "in.jsonl").write_bytes(b'"a"\n"b"\n')
    swept = replace(given, sweep=replace(given.sweep, repeat=3))
    with pytest.raises(UsageError, match="3 rows per line"):
        next(Validation(swept, [record], 1, Listener(), is_new=True).lines())
