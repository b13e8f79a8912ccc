"""The results in input order: all of them, once, whole or not at all."""

from __future__ import annotations

import asyncio
import io
import os
import shlex
import subprocess
from functools import partial
from typing import TYPE_CHECKING

import orjson
import pytest

from batchrun.commands.export import Exported, export
from batchrun.errors import OutputError, StateError, UsageError
from batchrun.runs import exported as module
from batchrun.state.positions import Position, Positions
from batchrun.state.store import Store
from tests.support.command import BATCHRUN
from tests.support.command import batchrun as as_text
from tests.support.disks import files_of_at_most
from tests.support.rehearsal import mixed_run, read_lines, rehearse, serving, write_lines

if TYPE_CHECKING:
    from pathlib import Path

batchrun = partial(as_text, text=False)

IN_ORDER = [f"r{n}" for n in range(1, 13) if n % 4]


@pytest.fixture
async def state(tmp_path: Path) -> Path:
    """A finished run of twelve rows, three of them failed, whose results stand in the opposite order."""
    state = await mixed_run(tmp_path)
    path = tmp_path / "out.jsonl"
    lines = sorted(path.read_bytes().splitlines(keepends=True), key=lambda line: -orjson.loads(line)["source"]["line"])
    path.write_bytes(b"".join(lines))
    return state


def out(state: Path, target: Path | None = None) -> list[str]:
    stdout = io.BytesIO()
    export(state, target, stdout)
    lines = stdout.getvalue().splitlines() if target is None else target.read_bytes().splitlines()
    return [orjson.loads(line)["id"] for line in lines]


def change(state: Path, sql: str) -> None:
    with Store(state) as store, store.transaction() as db:
        db.execute(sql)


def commit_length(state: Path) -> None:
    size_bytes = state.with_name("out.jsonl").stat().st_size
    change(state, f"UPDATE outputs SET committed_bytes = {size_bytes}")


def test_results_come_in_input_order_each_as_it_stands_in_its_file(state: Path, tmp_path: Path):
    assert out(state, tmp_path / "x.jsonl") == IN_ORDER
    exported, results = ((tmp_path / name).read_bytes().splitlines() for name in ("x.jsonl", "out.jsonl"))
    assert sorted(exported) == sorted(results)
    assert out(state) == IN_ORDER


def test_what_was_exported_is_told(state: Path, tmp_path: Path):
    exported = export(state, tmp_path / "x.jsonl", io.BytesIO())
    assert str(exported) == f"9 of 12 rows exported to {tmp_path / 'x.jsonl'} (3 failed)"
    assert str(Exported("x", 1, 4, 1)) == "1 of 4 rows exported to x (1 failed, 2 not finished)"
    assert str(Exported("x", 4, 4, 0)) == "4 of 4 rows exported to x"


async def test_inputs_follow_one_another_as_they_were_given(tmp_path: Path):
    for name, ids in (("b", ("r1", "r2")), ("a", ("r3", "r4"))):
        write_lines(tmp_path, [{"id": row_id, "prompt": "x"} for row_id in ids])
        (tmp_path / "in.jsonl").rename(tmp_path / f"{name}.jsonl")
    inputs = (str(tmp_path / "b.jsonl"), str(tmp_path / "a.jsonl"))
    async with serving() as server:
        folder = {"inputs": inputs, "output": tmp_path / "results", "output_is_folder": True}
        await rehearse(tmp_path, server.endpoint.base_url, **folder)
    assert out(tmp_path / "out.jsonl.state") == ["r1", "r2", "r3", "r4"]


def old_export(folder: Path) -> bytes:
    """An export with one line, named x."""
    line = (folder / "out.jsonl").read_bytes().splitlines(keepends=True)[0]
    (folder / "x").write_bytes(line)
    return line


async def test_a_reordered_input_gives_the_new_order(tmp_path: Path):
    lines = [{"id": f"r{n}", "prompt": f"good {n}"} for n in range(1, 6)]
    async with serving() as server:
        for order in (lines, lines[::-1]):
            write_lines(tmp_path, order)
            await rehearse(tmp_path, server.endpoint.base_url)
    assert out(tmp_path / "out.jsonl.state") == ["r5", "r4", "r3", "r2", "r1"]


def test_only_what_is_committed_is_exported(state: Path, tmp_path: Path):
    path = tmp_path / "out.jsonl"
    last = path.read_bytes().splitlines(keepends=True)[-1]
    row_id = orjson.loads(last)["id"]
    change(state, f"UPDATE outputs SET committed_bytes = committed_bytes - {len(last)}")
    change(state, f"UPDATE rows SET state = 2 WHERE id = '{row_id}'")
    assert out(state) == [one for one in IN_ORDER if one != row_id]


async def test_a_run_that_is_going_on_gives_its_results_so_far(tmp_path: Path):
    write_lines(tmp_path, [{"id": f"r{n:04}", "prompt": "x"} for n in range(400)])
    sizes = set()
    async with serving(latency_s=0.02) as server:
        run = asyncio.create_task(rehearse(tmp_path, server.endpoint.base_url))
        while not run.done():
            if (tmp_path / "out.jsonl").exists():
                ids = await asyncio.to_thread(out, tmp_path / "out.jsonl.state")
                assert ids == sorted(set(ids))
                sizes.add(len(ids))
            await asyncio.sleep(0.01)
        await run
    assert any(0 < size < 400 for size in sizes)
    assert len(out(tmp_path / "out.jsonl.state")) == 400


@pytest.mark.parametrize(
    "name",
    ["out.jsonl", "out.errors.jsonl", "out.jsonl.state", "out.jsonl.state-wal", "out.jsonl.state.lock", "in.jsonl"],
)
@pytest.mark.parametrize("way", ["itself", "relative", "symlink", "hard link"])
def test_the_files_of_the_run_are_never_written_over(state: Path, tmp_path: Path, name: str, way: str, monkeypatch):
    target = path = tmp_path / name
    if way == "relative":
        monkeypatch.chdir(tmp_path)
        target = type(path)("..") / tmp_path.name / name
    elif way in ("symlink", "hard link") and path.exists():
        target = tmp_path / "link"
        target.symlink_to(path) if way == "symlink" else target.hardlink_to(path)
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(UsageError, match="a file of the run itself"):
        export(state, target, io.BytesIO())
    assert before is None or path.read_bytes() == before


def test_a_file_that_is_not_an_export_is_never_written_over(state: Path, tmp_path: Path):
    for name, content in (("prompts.jsonl", b'{"prompt": "mine"}\n'), ("notes.txt", b"mine"), ("data", b"\0" * 100)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match="exists, and nothing in it shows that batchrun wrote it"):
            export(state, tmp_path / name, io.BytesIO())
        assert (tmp_path / name).read_bytes() == content


async def test_the_files_of_another_run_are_never_written_over(state: Path, tmp_path: Path):
    (tmp_path / "other.jsonl").write_bytes(b'{"id": "r9", "prompt": "good"}\n')
    other = {"output": tmp_path / "other.out.jsonl", "state": tmp_path / "other.out.jsonl.state"}
    async with serving() as server:
        await rehearse(tmp_path, server.endpoint.base_url, inputs=(str(tmp_path / "other.jsonl"),), **other)
    for name in ("other.out.jsonl", "other.out.jsonl.state", "other.out.manifest.json", "other.jsonl"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(UsageError, match=r"belongs to the run of|shows that batchrun wrote it"):
            export(state, tmp_path / name, io.BytesIO())
        assert (tmp_path / name).read_bytes() == before


def test_a_file_that_has_the_name_of_one_that_is_not_whole_is_left_alone(state: Path, tmp_path: Path):
    (tmp_path / "x.part").write_bytes(b"mine")
    assert out(state, tmp_path / "x") == IN_ORDER
    assert (tmp_path / "x.part").read_bytes() == b"mine"


def test_a_folder_or_a_device_is_no_target(state: Path, tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for target, words in ((tmp_path, "is a folder"), (tmp_path / "pipe", "is not a regular file")):
        with pytest.raises(UsageError, match=words):
            export(state, target, io.BytesIO())


def test_an_older_export_is_replaced_and_a_new_folder_is_made(state: Path, tmp_path: Path):
    old_export(tmp_path)
    assert out(state, tmp_path / "x") == IN_ORDER
    assert out(state, tmp_path / "new" / "x") == IN_ORDER
    assert not list(tmp_path.rglob("*.part"))


def test_a_results_file_that_is_short_or_gone_is_refused_and_nothing_is_written(state: Path, tmp_path: Path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    old = old_export(tmp_path)
    with pytest.raises(StateError, match=r"out.jsonl is 1 bytes shorter"):
        export(state, tmp_path / "x", io.BytesIO())
    path.unlink()
    with pytest.raises(StateError, match="bytes shorter") as caught:
        export(state, tmp_path / "x", io.BytesIO())
    assert "batchrun verify" in caught.value.hint
    assert (tmp_path / "x").read_bytes() == old


@pytest.mark.parametrize(
    ("change_id", "words"),
    [
        ("nobody", r"out.jsonl:10 belongs to no row of this run \(id 'nobody'\)"),
        ("r4", r"out.jsonl:10 belongs to a row that has not succeeded \(id 'r4'\)"),
        ("r1", r"out.jsonl:10 is a duplicate \(id 'r1'\)"),
        (None, r"out.jsonl:10 is not a result"),
    ],
)
def test_a_line_that_is_not_the_one_result_of_its_row_is_refused_by_its_place(
    state: Path, tmp_path: Path, change_id: str | None, words: str
):
    path = tmp_path / "out.jsonl"
    line = orjson.loads(path.read_bytes().splitlines()[0])
    with path.open("ab") as file:
        file.write(orjson.dumps({**line, "id": change_id}) + b"\n")
    commit_length(state)
    with pytest.raises(StateError, match=words) as caught:
        export(state, tmp_path / "x", io.BytesIO())
    assert caught.value.hint == f"list all problems: batchrun verify {state}"
    assert not (tmp_path / "x").exists()


def test_a_row_that_succeeded_and_has_no_line_is_refused(state: Path, tmp_path: Path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[2:]))
    commit_length(state)
    with pytest.raises(StateError, match="succeeded rows without a line in the results: 2"):
        export(state, None, io.BytesIO())


def test_results_that_change_between_the_two_passes_leave_no_file(state: Path, tmp_path: Path, monkeypatch):
    place = module.find_positions

    def place_and_cut(*arguments: object, **more: object) -> None:
        place(*arguments, **more)
        os.truncate(tmp_path / "out.jsonl", 100)

    monkeypatch.setattr(module, "find_positions", place_and_cut)
    with pytest.raises(StateError, match="was changed while it was read"):
        export(state, tmp_path / "x", io.BytesIO())
    assert not {"x", "x.part"} & {path.name for path in tmp_path.iterdir()}


def test_a_full_disk_leaves_an_older_export_as_it_was(state: Path, tmp_path: Path):
    old = old_export(tmp_path)
    with files_of_at_most(500), pytest.raises(OutputError, match="cannot be written"):
        export(state, tmp_path / "x", io.BytesIO())
    assert (tmp_path / "x").read_bytes() == old
    assert not list(tmp_path.glob("*.part"))


def test_positions_come_back_by_source_then_line_then_row():
    places = [
        Position(2, 1, 5, 1, 0, 9, 0, 0, b"", 0),
        Position(1, 9, 4, 1, 9, 9, 0, 0, b"", 0),
        Position(1, 2, 3, 1, 18, 9, 0, 0, b"", 0),
        Position(1, 9, 2, 1, 27, 9, 0, 0, b"", 0),
    ]
    with Positions() as positions:
        positions.add(places[:2])
        positions.add(places[2:])
        assert [place.row for place in positions] == [3, 2, 4, 5]


def test_the_command_writes_a_file_or_stdout_and_counts_on_stderr(state: Path, tmp_path: Path):
    done = batchrun("export", str(state), "-o", str(tmp_path / "x"))
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.decode() == f"9 of 12 rows exported to {tmp_path / 'x'} (3 failed)\n"
    done = batchrun("export", str(state), "-o", "-")
    assert (done.returncode, done.stdout) == (0, (tmp_path / "x").read_bytes())
    assert done.stderr == b"9 of 12 rows exported to stdout (3 failed)\n"


def test_stdout_that_is_the_results_file_itself_is_refused(state: Path, tmp_path: Path):
    before = (tmp_path / "out.jsonl").read_bytes()
    with (tmp_path / "out.jsonl").open("ab") as file:
        done = batchrun("export", str(state), "-o", "-", stdout=file)
    assert done.returncode == 2
    assert b"a file of the run itself" in done.stderr
    assert (tmp_path / "out.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.state", "-o", "x"], b"there is no such state file"),
        (["out.jsonl", "-o", "x"], b"is not a state file"),
        (["out.jsonl.state"], b"`batchrun export` needs --output"),
        (["out.jsonl.state", "-o", ""], b"--output is empty"),
        (["out.jsonl.state", "-o", "."], b"is a folder"),
    ],
)
def test_wrong_usage_is_exit_2_and_one_clear_line(state: Path, tmp_path: Path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    done = batchrun("export", *arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert words in done.stderr
    assert b"Traceback" not in done.stderr
    assert not (tmp_path / "x").exists()


def test_a_reader_that_goes_away_is_no_traceback(state: Path):
    done = subprocess.run(
        f"{shlex.join(BATCHRUN)} export {state} -o - | true", shell=True, capture_output=True, check=False
    )
    assert b"Traceback" not in done.stderr


def test_the_exported_records_are_those_of_the_results_file(state: Path, tmp_path: Path):
    export(state, tmp_path / "x", io.BytesIO())
    by_id = {record["id"]: record for record in read_lines(tmp_path / "out.jsonl")}
    assert read_lines(tmp_path / "x") == [by_id[row_id] for row_id in IN_ORDER]
