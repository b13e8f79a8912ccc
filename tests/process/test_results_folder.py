"""With `-o FOLDER/` all that a run writes is in that folder, so that it can be kept, moved and copied as one."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from batchrun.commands.verify import verify
from tests.support.command import invoke

OURS = ["a.results.jsonl", "b.results.jsonl", "batchrun.manifest.json", "batchrun.state", "batchrun.state.lock"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("a.jsonl", "b.jsonl"):
        Path(name).write_bytes(b"".join(orjson.dumps({"id": f"{name}-{n}", "prompt": "x"}) + b"\n" for n in range(3)))
    return tmp_path / "here"


def run(*arguments: object) -> tuple[int, str]:
    return invoke("run", *arguments, "-e", "local", "--worker", "echo", "--progress", "none")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(("-wal", "-shm", ".lock")))


@pytest.mark.parametrize("output", ["out/", "."])
def test_state_and_manifest_are_in_the_folder_of_results(folder: Path, output: str):
    assert run("a.jsonl", "b.jsonl", "-o", output)[0] == 0
    into = folder / output
    assert set(names(into)) >= set(OURS[:4])
    assert names(folder.parent) == ["here"]
    assert names(folder) == (
        ["a.jsonl", "b.jsonl", "out"] if output == "out/" else sorted([*OURS[:4], "a.jsonl", "b.jsonl"])
    )
    for command in ("verify", "status", "resume"):
        assert invoke(command, output, *(["--progress", "none"] if command == "resume" else []))[0] == 0


def test_the_same_command_finds_the_state_of_a_renamed_folder(folder: Path):
    assert run("a.jsonl", "b.jsonl", "-o", "out/", "--limit", 2)[0] == 0
    Path("out").rename("kept")
    assert run("a.jsonl", "b.jsonl", "-o", "kept/")[0] == 0
    assert names(folder) == ["a.jsonl", "b.jsonl", "kept"]
    assert verify(folder / "kept" / "batchrun.state").is_whole


def test_a_run_whose_state_is_beside_its_folder_continues_there(folder: Path):
    assert run("a.jsonl", "b.jsonl", "-o", "out/", "--state", "out.state", "--limit", 4)[0] == 0
    Path("out/batchrun.manifest.json").rename("out.manifest.json")
    before = Path("out.manifest.json").read_bytes()
    assert run("a.jsonl", "b.jsonl", "-o", "out/")[0] == 0
    assert names(folder) == ["a.jsonl", "b.jsonl", "out", "out.manifest.json", "out.state"]
    assert names(folder / "out") == OURS[:2]
    assert Path("out.manifest.json").read_bytes() != before
    assert verify(folder / "out.state").is_whole


def test_a_start_that_is_refused_leaves_no_folder(folder: Path):
    Path("a.jsonl").write_text('{"no": "prompt"}\n')
    assert run("a.jsonl", "-o", "out/")[0] == 2
    assert names(folder) == ["a.jsonl", "b.jsonl"]


def test_a_lost_state_of_several_error_files_is_rebuilt_and_all_of_them_are_the_runs_own(folder: Path):
    for name in ("a.jsonl", "b.jsonl"):
        with Path(name).open("ab") as file:
            file.write(orjson.dumps({"id": f"{name}-bad", "prompt": "x", "max_tokens": 0}) + b"\n")
    errors = ["a.results.errors.jsonl", "b.results.errors.jsonl"]
    assert run("a.jsonl", "b.jsonl", "-o", "out/")[0] == 3
    assert set(errors) <= set(names(folder / "out"))
    Path("out/batchrun.state").unlink()
    assert run("a.jsonl", "b.jsonl", "-o", "out/", "--repair")[0] == 3
    assert run("a.jsonl", "b.jsonl", "-o", "out/")[0] == 3
    assert set(errors) <= set(names(folder / "out"))
    assert verify(folder / "out" / "batchrun.state").is_whole
