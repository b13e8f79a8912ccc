"""A run is one still where its folder was moved, renamed or copied, and a copy never reads what the original reads."""

from __future__ import annotations

import shutil
from pathlib import Path

import orjson
import pytest

from batchrun.commands.verify import verify
from tests.support.command import invoke


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """A run of four lines of six, all of it in one folder."""
    (tmp_path / "one").mkdir()
    monkeypatch.chdir(tmp_path / "one")
    write(Path("in.jsonl"), 6)
    assert run("in.jsonl", "-o", "r.jsonl", "--limit", 4)[0] == 0
    return tmp_path / "one"


def write(path: Path, count: int, word: str = "question") -> None:
    path.write_bytes(b"".join(orjson.dumps({"prompt": f"{word} {n}"}) + b"\n" for n in range(count)))


def run(*arguments: object) -> tuple[int, str]:
    return invoke("run", *arguments, "-e", "local", "--worker", "echo", "--progress", "none")


def records(path: Path) -> list[dict]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


@pytest.mark.parametrize("command", ["resume", "run"])
def test_a_moved_folder_continues_with_the_input_that_was_moved_with_it(folder: Path, monkeypatch, command: str):
    moved = folder.rename(folder.parent / "two")
    monkeypatch.chdir(moved)
    assert verify(moved / "r.jsonl.state").is_whole
    write(moved / "in.jsonl", 7)
    arguments = ("in.jsonl", "-o", "r.jsonl")
    code, said = run(*arguments) if command == "run" else invoke("resume", "r.jsonl.state", "--progress", "none")
    assert code == 0, said
    assert verify(moved / "r.jsonl.state").is_whole
    found = records(moved / "r.jsonl")
    assert len(found) == (7 if command == "run" else 4)
    assert {record["source"]["file"] for record in found} == {"in.jsonl"}
    assert not folder.exists()


def test_a_copy_takes_its_own_input_and_the_original_is_as_it_was(folder: Path, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    copy = folder.parent / "copy"
    shutil.copytree(folder, copy)
    write(copy / "in.jsonl", 4, "other")
    write(copy / "in.jsonl", 9)
    monkeypatch.chdir(folder.parent)
    assert run("copy/in.jsonl", "-o", "copy/r.jsonl")[0] == 0
    assert len(records(copy / "r.jsonl")) == 9
    assert invoke("resume", "copy/r.jsonl.state", "--progress", "none")[0] == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_copy_without_its_input_does_not_read_that_of_the_original(folder: Path, monkeypatch):
    copy = folder.parent / "copy"
    shutil.copytree(folder, copy)
    (copy / "in.jsonl").unlink()
    monkeypatch.chdir(copy)
    code, said = invoke("verify", "r.jsonl.state")
    assert (code, f"{copy / 'in.jsonl'}: No such file" in said) == (1, True)
    assert f"batchrun run NEWPATH -e local -o {copy / 'r.jsonl'}" in said
    code, said = invoke("resume", "r.jsonl.state", "--progress", "none")
    assert (code, f"{copy / 'in.jsonl'}: no such file" in said) == (2, True)
    assert f"batchrun run NEWPATH -e local -o {copy / 'r.jsonl'}" in said
    assert run(folder / "in.jsonl", "-o", copy / "r.jsonl")[0] == 0
    assert len(records(copy / "r.jsonl")) == 6


def test_an_input_of_elsewhere_stays_where_it_is_when_the_run_is_moved(tmp_path: Path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "far").mkdir()
    monkeypatch.chdir(tmp_path)
    write(Path("in.jsonl"), 3)
    assert run("in.jsonl", "-o", "run/r.jsonl")[0] == 0
    Path("run").rename("far/run")
    assert verify(Path("far/run/r.jsonl.state")).is_whole
    assert invoke("resume", "far/run/r.jsonl.state", "--progress", "none")[0] == 0


def test_a_cancel_in_a_copy_does_not_make_it_forget_where_its_input_is(folder: Path, monkeypatch):
    moved = folder.rename(folder.parent / "two")
    monkeypatch.chdir(moved)
    assert invoke("cancel", "r.jsonl.state", "--progress", "none")[0] == 0
    assert verify(moved / "r.jsonl.state").is_whole


def test_an_input_that_was_moved_with_the_run_needs_no_further_word_as_long_as_it_is_the_same(
    tmp_path: Path, base_url: str, monkeypatch
):
    monkeypatch.setenv("RUNPOD_API_KEY", "rpa_MOVED_0123456789abcdef")
    (tmp_path / "one" / "out").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "one")
    write(Path("in.jsonl"), 3)
    more = ("--base-url", base_url, "--progress", "none")
    assert invoke("run", "in.jsonl", "-e", "abc", "-o", "out/r.jsonl", "--limit", "2", *more)[0] == 0
    monkeypatch.chdir(tmp_path)
    shutil.copytree("one", "two")
    assert invoke("resume", "two/out/r.jsonl.state", "--progress", "none")[0] == 0
    shutil.copytree("one", "three")
    write(Path("three/in.jsonl"), 3, "secret")
    code, said = invoke("resume", "three/out/r.jsonl.state", "--progress", "none")
    assert (code, "which is outside its folder" in said) == (2, True)
