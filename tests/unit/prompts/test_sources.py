from __future__ import annotations

import gzip
import io
import os
from typing import TYPE_CHECKING

import pytest

from batchrun.errors import InputError
from batchrun.prompts.ownership import is_own_line
from batchrun.prompts.sources import Source, SourceKind, find_sources, iter_source

if TYPE_CHECKING:
    from pathlib import Path

LINES = b'"a"\n"b"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jsonl", "a.jsonl", "a.results.jsonl", "a.errors.jsonl", "notes.txt"):
        (tmp_path / name).write_bytes(LINES)
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(LINES))
    (tmp_path / "sub.jsonl").mkdir()
    return tmp_path


def test_a_folder_means_its_prompt_files_in_name_order_without_our_own(folder: Path):
    found = find_sources([str(folder)])
    assert [(source.name, source.kind) for source in found] == [
        ("a.jsonl", SourceKind.FILE),
        ("b.jsonl", SourceKind.FILE),
        ("c.jsonl.gz", SourceKind.COPIED),
    ]


def test_an_error_file_that_is_named_is_taken(folder: Path):
    assert find_sources([str(folder / "a.errors.jsonl")])[0].name == "a.errors.jsonl"


def test_gzip_is_known_by_its_content_and_stdin_by_its_dash(folder: Path):
    (folder / "packed").write_bytes(gzip.compress(LINES))
    kinds = [source.kind for source in find_sources([str(folder / "packed"), "-"])]
    assert kinds == [SourceKind.COPIED, SourceKind.STDIN]


def test_a_fifo_is_read_once_like_stdin(tmp_path: Path):
    os.mkfifo(tmp_path / "fifo")
    assert find_sources([str(tmp_path / "fifo")])[0].kind is SourceKind.STDIN


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["none.jsonl"], "none.jsonl: no such file or folder"),
        (["a.jsonl", "./a.jsonl"], "is given twice"),
        (["-", "-"], "- is given twice"),
        (["empty"], "the folder has no"),
        (["a.jsonl/x"], "check|Not a directory"),
    ],
)
def test_wrong_inputs_are_named(folder: Path, monkeypatch, names, message):
    (folder / "empty").mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=message):
        find_sources(names)


@pytest.mark.parametrize("kind", ["plain", "gzip", "stdin"])
def test_every_kind_gives_the_same_lines(folder: Path, kind: str):
    source = {
        "plain": Source(str(folder / "a.jsonl"), SourceKind.FILE),
        "gzip": Source(str(folder / "c.jsonl.gz"), SourceKind.COPIED),
        "stdin": Source("-", SourceKind.STDIN),
    }[kind]
    assert [line.raw for line in iter_source(source, io.BytesIO(LINES))] == [b'"a"', b'"b"']


@pytest.mark.parametrize(
    "content",
    [gzip.compress(LINES * 1000, mtime=0)[:-20], b"\x1f\x8bnonsense", b"plain text"],
    ids=["cut off", "nonsense", "plain text"],
)
def test_a_broken_gzip_file_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "x.jsonl.gz").write_bytes(content)
    (source,) = find_sources([str(tmp_path / "x.jsonl.gz")])
    with pytest.raises(InputError, match="not a complete gzip file"):
        list(iter_source(source, io.BytesIO()))


RESULT = b'{"id":"a","status":"COMPLETED","text":"x","output":[],"source":{"file":"i","line":1},"job":{"id":"j-u1"}}\n'
FAILURE = (
    b'{"id":"a","status":"FAILED","error":{"kind":"platform"},"request":1,"source":{"file":"i","line":1},"job":null}\n'
)
OPENAI = b'{"id":"b","custom_id":"a","batchrun":{"status":"COMPLETED","source":{"file":"i","line":1},"job":{}}}\n'


@pytest.mark.parametrize("line", [RESULT, FAILURE, OPENAI], ids=["result", "failure", "OpenAI"])
def test_what_a_run_has_written_into_a_folder_is_not_read_and_that_is_said(folder: Path, line: bytes):
    (folder / "out.jsonl").write_bytes(line)
    said: list[str] = []
    found = find_sources([str(folder)], tell=said.append)
    assert "out.jsonl" not in [source.name for source in found]
    assert said[1:] == [f"{folder / 'out.jsonl'} is skipped: a run wrote it"]
    assert find_sources([str(folder / "out.jsonl")])[0].name == "out.jsonl"


def test_files_with_names_that_runs_give_are_skipped_in_one_line_that_leaves_out_those_of_this_run(folder: Path):
    # The first of them is there already.
    names = ["a.errors.jsonl", "a.results.jsonl", "b.results.jsonl", "d.superseded.jsonl", "e.manifest.json"]
    for name in (*names, "mine.results.jsonl", "mine.results.errors.jsonl"):
        (folder / name).write_bytes(LINES)
    said: list[str] = []
    found = find_sources([str(folder)], results=folder / "mine.results.jsonl", tell=said.append)
    assert not {*names, "mine.results.errors.jsonl"} & {source.name for source in found}
    assert said == [f"{folder}: files that a run wrote are skipped: {', '.join(names[:3])}, ..."]


@pytest.mark.parametrize(
    "line",
    [
        b'{"prompt": "a", "source": {"file": "x"}}\n',
        b'{"prompt": "a", "source": "web", "status": 1, "job": 2}\n',
        b'["source"]\n',
        b'"source"\n',
        b'{"source": \n',
    ],
)
def test_a_line_of_the_user_is_not_taken_for_one_of_a_run(line: bytes):
    assert not is_own_line(line)


def test_the_copies_beside_a_state_file_are_not_read_and_files_of_such_a_name_without_one_are(folder: Path):
    names = ("s.0-0123456789ab.jsonl", "s.stdin.jsonl", "s.1.jsonl", "s.requests.jsonl")
    for name in names:
        (folder / name).write_bytes(LINES)
    assert set(names) <= {source.name for source in find_sources([str(folder)])}
    (folder / "s").write_bytes(b"SQLite format 3\0")
    assert not set(names) & {source.name for source in find_sources([str(folder)])}


def test_pipes_of_the_shell_are_known_by_their_order():
    first, second = os.pipe(), os.pipe()
    try:
        found = find_sources([f"/dev/fd/{second[0]}", f"/dev/fd/{first[0]}"])
    finally:
        for end in (*first, *second):
            os.close(end)
    assert [source.origin for source in found] == ["pipe:1", "pipe:2"]
