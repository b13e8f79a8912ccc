"""A run that is whole is said to be, and nothing that is broken is."""

from __future__ import annotations

import asyncio
import gzip
import shutil
import sqlite3
from typing import TYPE_CHECKING

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchrun.commands.findings import PROBLEMS, Verification, render, to_json
from batchrun.commands.verify import verify
from batchrun.config import SweepOptions
from batchrun.errors import StateError
from batchrun.prompts.shard import Shard
from batchrun.results.record import result_digest
from batchrun.scheduler.states import RowState
from batchrun.state.lock import StateLock
from batchrun.state.store import Store
from tests.support.command import batchrun
from tests.support.rehearsal import mixed_run, read_lines, rehearse, serving, write_lines

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
async def state(tmp_path: Path) -> Path:
    """A finished run of twelve rows, three of them failed."""
    return await mixed_run(tmp_path)


def kinds(found: Verification) -> dict[str, int]:
    return {problem.kind: problem.count for problem in found.problems}


def results_of(state: Path) -> Path:
    return state.with_name("out.jsonl")


def errors_of(state: Path) -> Path:
    return state.with_name("out.errors.jsonl")


def change(state: Path, sql: str) -> None:
    with Store(state) as store, store.transaction() as db:
        db.execute(sql)


def commit_length(state: Path) -> None:
    """Make the state file agree with the length of the results file."""
    change(state, f"UPDATE outputs SET committed_bytes = {results_of(state).stat().st_size}")


def test_a_finished_run_is_whole_and_its_sums_are_shown(state: Path):
    found = verify(state)
    assert found.is_whole
    assert found.notes == []
    assert (found.rows, found.counts[RowState.SUCCEEDED], found.counts[RowState.FAILED]) == (12, 9, 3)
    assert (found.results, found.failures, found.errors, found.lines) == (9, 3, 3, 12)
    text = render(found)
    assert "+ failed                 3  recorded failures: 3, in error files: 3" in text
    assert text.splitlines()[-1].startswith("OK: ")


async def test_a_run_that_was_never_finished_is_whole_and_says_what_has_not_run(tmp_path: Path):
    write_lines(tmp_path, [{"id": f"r{n}", "prompt": "x"} for n in range(5)])
    async with serving() as server:
        await rehearse(tmp_path, server.endpoint.base_url, limit=3)
    change(tmp_path / "out.jsonl.state", "INSERT INTO rows SELECT 9, 'r9', source, line, offset, length, digest,"
           " 0, NULL, 0, 0, 0, 0, NULL, NULL FROM rows WHERE row = 1")  # fmt: skip
    found = verify(tmp_path / "out.jsonl.state")
    assert found.is_whole
    assert (found.rows, found.not_run) == (4, 1)
    assert "+ not run                1" in render(found)


async def test_a_run_that_another_process_is_writing_does_not_look_broken(tmp_path: Path):
    write_lines(tmp_path, [{"id": f"r{n}", "prompt": f"{'bad' if n % 9 == 0 else 'good'} {n}"} for n in range(600)])
    seen = []
    async with serving(latency_s=0.02) as server:
        run = asyncio.create_task(rehearse(tmp_path, server.endpoint.base_url))
        while not run.done():
            if (tmp_path / "out.jsonl").exists():
                found = await asyncio.to_thread(verify, tmp_path / "out.jsonl.state")
                assert found.is_whole, render(found)
                seen.append(found)
            await asyncio.sleep(0.01)
        await run
    assert any(found.pid is not None and 0 < found.results < 600 for found in seen)
    assert verify(tmp_path / "out.jsonl.state").results == 600


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_no_change_to_a_results_file_goes_unseen(state: Path, data: st.DataObject):
    path = results_of(state)
    before = path.read_bytes()
    lines = before.splitlines(keepends=True)
    how = data.draw(st.sampled_from(["byte", "remove", "repeat", "insert", "drop"]))
    at = data.draw(st.integers(0, len(before) - 1))
    line = data.draw(st.integers(0, len(lines) - 1))
    byte = bytes([data.draw(st.integers(0, 255))])
    after = {
        "byte": before[:at] + byte + before[at + 1 :],
        "insert": before[:at] + byte + before[at:],
        "drop": before[:at] + before[at + 1 :],
        "remove": b"".join(lines[:line] + lines[line + 1 :]),
        "repeat": b"".join([*lines[: line + 1], *lines[line:]]),
    }[how]
    try:
        path.write_bytes(after)
        assert verify(state).is_whole is (after == before)
    finally:
        path.write_bytes(before)


def test_a_line_there_twice_in_the_place_of_another_is_named_with_the_row_that_is_missing(state: Path):
    path = results_of(state)
    lines = path.read_bytes().splitlines(keepends=True)
    lost = orjson.loads(lines[5])
    lines[5] = lines[0]
    path.write_bytes(b"".join(lines))
    commit_length(state)
    found = verify(state)
    assert kinds(found) == {"twice": 1, "missing": 1}
    assert f"out.jsonl:6 ({orjson.loads(lines[0])['id']})" in render(found)
    assert f"in.jsonl:{lost['source']['line']} ({lost['id']})" in render(found)
    assert render(found).splitlines()[-1] == "FAILED: 2 problems"


def test_a_line_of_another_run_and_one_of_a_failed_row_are_named(state: Path):
    path = results_of(state)
    line = orjson.loads(path.read_bytes().splitlines()[0])
    strange = [orjson.dumps({**line, "id": row_id}) + b"\n" for row_id in ("nobody", "r4", "r1\0")]
    path.write_bytes(path.read_bytes() + b"".join(strange))
    commit_length(state)
    found = verify(state)
    assert kinds(found) == {"unknown_row": 2, "not_succeeded": 1}
    assert "out.jsonl:11 (r4)" in render(found)


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        (b"\n", "out.jsonl:10"),
        (b"nonsense\n", "out.jsonl:10"),
        (b'{"id": "r1"}\n', "out.jsonl:10"),
        (b"[1]\n", "out.jsonl:10"),
        (b"\xff\xfe\n", "out.jsonl:10"),
    ],
)
def test_what_is_no_result_is_named_by_its_place(state: Path, line: bytes, seen: str):
    results_of(state).write_bytes(results_of(state).read_bytes() + line)
    commit_length(state)
    found = verify(state)
    assert kinds(found) == {"no_result": 1}
    assert seen in render(found)


def test_a_results_file_that_is_short_or_gone_is_a_problem_with_each_row_that_it_misses(state: Path):
    path = results_of(state)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    assert kinds(verify(state)) == {"file": 1, "missing": 1}
    assert f"{len(lines[-1])} bytes shorter" in render(verify(state))
    path.unlink()
    assert kinds(verify(state)) == {"file": 1, "missing": 9}
    path.mkdir()
    assert kinds(verify(state)) == {"file": 1, "missing": 9}


def test_what_a_crash_has_left_beyond_the_committed_length_is_noted_and_no_problem(state: Path):
    last = results_of(state).read_bytes().splitlines(keepends=True)[-1]
    row_id = orjson.loads(last)["id"]
    change(state, f"UPDATE outputs SET committed_bytes = committed_bytes - {len(last)}")
    change(state, f"UPDATE jobs SET status = NULL WHERE job = (SELECT job FROM rows WHERE id = '{row_id}')")
    change(state, f"UPDATE rows SET state = 2 WHERE id = '{row_id}'")
    change(state, "UPDATE sessions SET outcome = NULL")
    with results_of(state).open("ab") as file:
        file.write(b'{"id": "r')
    found = verify(state)
    assert found.is_whole
    assert found.uncommitted == 1
    assert "lines that are not committed yet: 1; the next session takes them over" in render(found)
    assert "incomplete last line of 9 bytes; the next session cuts it off" in render(found)


def test_a_line_beyond_the_committed_length_of_a_row_that_has_ended_is_a_problem(state: Path):
    first = orjson.loads(results_of(state).read_bytes().splitlines()[0])
    with results_of(state).open("ab") as file:
        for row_id in (first["id"], "r4", "nobody"):
            file.write(orjson.dumps({**first, "id": row_id}) + b"\n")
    assert kinds(verify(state)) == {"twice": 1, "ended": 1, "unknown_row": 1}


def test_changed_input_lines_are_counted_and_named(state: Path):
    path = state.with_name("in.jsonl")
    path.write_bytes(path.read_bytes().replace(b"good 2", b"evil 2").replace(b"good 7", b"evil 7"))
    found = verify(state)
    assert kinds(found) == {"changed": 2}
    assert f"{path}:2 (r2)" in render(found)
    assert found.lines == 10


def test_a_missing_input_is_one_problem(state: Path):
    state.with_name("in.jsonl").unlink()
    found = verify(state)
    assert kinds(found) == {"file": 1}
    assert "in.jsonl: No such file or directory" in render(found)
    assert found.lines == 0


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("DELETE FROM failures WHERE row = 4", {"no_failure": 1}),
        ("INSERT INTO failures SELECT 1, status, kind, message, raw, NULL, NULL FROM failures LIMIT 1",
         {"stray_failure": 1}),
        ("INSERT INTO failures SELECT 99, status, kind, message, raw, NULL, NULL FROM failures LIMIT 1",
         {"stray_failure": 1}),
        ("UPDATE rows SET state = 2, job = 77 WHERE row = 1", {"no_job": 1, "not_succeeded": 1}),
        ("UPDATE rows SET state = 9 WHERE row = 1", {"damaged": 1}),
        ("UPDATE rows SET offset = x'00' WHERE row = 1", {"damaged": 1}),
        ("UPDATE outputs SET committed_bytes = 'x'", {"damaged": 1}),
        ("UPDATE rows SET state = 0 WHERE row = 1", {"not_succeeded": 1, "forgotten": 1}),
        ("UPDATE rows SET state = 3 WHERE row = 4",
         {"failed_job": 1, "stray_failure": 1, "missing": 1, "stray_error": 1}),
        ("UPDATE rows SET source = 7 WHERE row = 1", {"no_input": 1, "no_row": 1}),
        ("UPDATE rows SET same_as = 99 WHERE row = 1", {"no_leader": 1}),
        ("DELETE FROM rows WHERE row = 1", {"unknown_row": 1, "stray_job": 1, "no_row": 1}),
        ("UPDATE rows SET id = 'other' WHERE row = 1", {"unknown_row": 1, "missing": 1}),
    ],
)  # fmt: skip
def test_a_state_file_that_does_not_add_up_is_seen(state: Path, sql: str, expected: dict):
    change(state, sql)
    assert kinds(verify(state)) == expected


def test_an_error_file_that_does_not_fit_is_seen(state: Path):
    path = errors_of(state)
    lines = path.read_bytes().splitlines(keepends=True)
    record = orjson.loads(lines[0])
    path.write_bytes(
        b"".join([lines[0], lines[0], b"{}\n", orjson.dumps({**record, "id": "r1"}) + b"\n", lines[1][:9]])
    )
    found = verify(state)
    assert kinds(found) == {"no_error": 2, "error_twice": 1, "stray_error": 1, "missing_error": 2}
    assert "out.errors.jsonl:4 (r1)" in render(found)


def test_an_error_file_that_is_gone_is_noted_since_the_next_session_writes_it(state: Path):
    errors_of(state).unlink()
    found = verify(state)
    assert found.is_whole
    assert "out.errors.jsonl is missing (failed rows: 3); the next session writes it" in render(found)


@pytest.mark.parametrize("how", ["running", "cut off"])
def test_an_error_file_that_a_session_has_still_to_write_is_no_problem(state: Path, how: str):
    errors_of(state).write_bytes(errors_of(state).read_bytes().splitlines(keepends=True)[0])
    assert not verify(state).is_whole
    lock = StateLock(state) if how == "running" else None
    if how == "cut off":
        change(state, "INSERT INTO sessions (pid, started_ms, seen_ms) VALUES (1, 1, 1)")
    found = verify(state)
    assert found.is_whole
    assert "failed rows that are not in the error file: 2 (" in render(found)
    assert (found.pid is not None) is (how == "running")
    if lock:
        lock.release()


async def folder_run(folder: Path, a: list, b: list) -> Path:
    """A run of two inputs into a folder of results."""
    for name, lines in (("a", a), ("b", b)):
        write_lines(folder, lines)
        (folder / "in.jsonl").rename(folder / f"{name}.jsonl")
    inputs = (str(folder / "a.jsonl"), str(folder / "b.jsonl"))
    async with serving() as server:
        await rehearse(
            folder, server.endpoint.base_url, inputs=inputs, output=folder / "results", output_is_folder=True
        )
    return folder / "out.jsonl.state"


LINES = [{"id": f"r{n}", "prompt": f"good {n}"} for n in range(1, 7)]


async def test_a_result_in_the_file_of_another_input_is_seen(tmp_path: Path):
    state = await folder_run(tmp_path, LINES[:3], LINES[3:])
    assert verify(state).is_whole
    one, two = (tmp_path / "results" / f"{name}.results.jsonl" for name in "ab")
    shutil.copy(one, tmp_path / "kept")
    one.write_bytes(two.read_bytes())
    two.write_bytes((tmp_path / "kept").read_bytes())
    assert kinds(verify(state)) == {"wrong_file": 6}


async def test_a_prompt_that_was_moved_to_another_input_after_it_had_run_is_noted(tmp_path: Path):
    await folder_run(tmp_path, LINES[:3], LINES[3:])
    state = await folder_run(tmp_path, LINES[:2], LINES[2:])
    found = verify(state)
    assert found.is_whole, render(found)
    assert found.results == 6
    assert "results in the file of another input, from which their lines were moved since: 1" in render(found)


def test_nothing_is_changed_by_looking(state: Path):
    before = {path.name: path.read_bytes() for path in state.parent.iterdir()}
    verify(state)
    assert {name: (state.parent / name).read_bytes() for name in before} == before


def test_as_json_it_is_one_object(state: Path):
    results_of(state).unlink()
    data = orjson.loads(to_json(verify(state)))
    assert (data["whole"], data["rows"], data["succeeded"], data["problem_count"]) == (False, 12, 9, 10)
    assert data["problems"][0] == {
        "kind": "file",
        "count": 1,
        "what": PROBLEMS["file"],
        "first": [f"{results_of(state)} is missing or empty"],
    }
    assert len(data["problems"][1]["first"]) == 5


def test_what_is_no_state_file_is_refused(tmp_path: Path):
    (tmp_path / "x").write_text("no")
    for name in ("x", "none", "."):
        with pytest.raises(StateError):
            verify(tmp_path / name)


def test_the_command_exits_with_0_only_for_a_whole_run(state: Path):
    done = batchrun("verify", str(state))
    assert (done.returncode, done.stderr) == (0, "")
    assert "OK: " in done.stdout
    path = results_of(state)
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    done = batchrun("verify", str(state), "--json")
    assert done.returncode == 1
    assert orjson.loads(done.stdout)["whole"] is False
    assert len(read_lines(path)) == 1
    done = batchrun("verify", "none.state")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no such state file" in done.stderr
    assert "Traceback" not in done.stderr


def without(state: Path, row_id: str) -> None:
    """Take a row out of the state with its result, so that the two agree."""
    lines = results_of(state).read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if orjson.loads(line)["id"] != row_id]
    results_of(state).write_bytes(b"".join(kept))
    change(state, f"DELETE FROM jobs WHERE job = (SELECT job FROM rows WHERE id = '{row_id}')")
    change(state, f"DELETE FROM rows WHERE id = '{row_id}'")
    commit_length(state)


def test_two_results_that_were_swapped_and_one_that_was_changed_are_named(state: Path):
    one, two, three, *others = (orjson.loads(line) for line in results_of(state).read_bytes().splitlines())
    one["id"], two["id"] = two["id"], one["id"]
    three["text"] = three["text"].replace("good", "evil")
    results_of(state).write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in (one, two, three, *others)))
    lost: list[str] = []
    found = verify(state, lost.append)
    assert kinds(found) == {"altered": 3}
    assert (found.lost, sorted(lost)) == (3, sorted([one["id"], two["id"], three["id"]]))
    assert f"{results_of(state)}:3 ({three['id']})" in render(found)


def test_each_result_is_compared_and_those_of_an_older_version_are_said_not_to_be(state: Path):
    assert verify(state).compared == 9
    change(state, "UPDATE rows SET result = NULL WHERE state = 3 AND row < 4")
    found = verify(state)
    assert (found.results, found.compared, found.is_whole) == (9, 6, True)
    assert "results that cannot be compared (older version, no digest): 3" in found.notes


def test_a_row_that_is_gone_with_its_job_and_its_result_is_missed_at_its_line(state: Path):
    without(state, "r5")
    found = verify(state)
    assert kinds(found) == {"no_row": 1}
    assert f"{state.with_name('in.jsonl')}:5" in render(found)


@pytest.mark.parametrize("how", ["finished", "cut off", "limited"])
async def test_lines_that_were_added_have_no_row_yet(tmp_path: Path, how: str):
    write_lines(tmp_path, [{"prompt": f"good {n % 4}"} for n in range(12)])
    async with serving() as server:
        await rehearse(tmp_path, server.endpoint.base_url, limit=12 if how == "limited" else None)
    state = tmp_path / "out.jsonl.state"
    with (tmp_path / "in.jsonl").open("ab") as file:
        file.write(b'\n{"prompt": "good 1"}\n  \n{"prompt": "new"}')
    if how == "cut off":
        change(state, "UPDATE sessions SET outcome = NULL")
    found = verify(state)
    assert kinds(found) == ({"no_row": 2} if how == "finished" else {})
    assert ("in.jsonl:14" in render(found), "in.jsonl:16" in render(found)) == ((how != "limited",) * 2)
    if how == "limited":
        assert "the input has more lines, but the run is limited to 12 rows" in found.notes
        without(state, read_lines(results_of(state))[0]["id"])
        assert kinds(verify(state)) == {"no_row": 1}


async def test_of_a_sweep_each_line_has_all_of_its_rows(tmp_path: Path):
    write_lines(tmp_path, [{"id": f"r{n}", "prompt": "x"} for n in range(3)])
    sweep = SweepOptions((("temperature", (0, 1)),), repeat=2)
    async with serving() as server:
        await rehearse(tmp_path, server.endpoint.base_url, sweep=sweep)
    state = tmp_path / "out.jsonl.state"
    assert verify(state).is_whole
    without(state, read_lines(results_of(state))[5]["id"])
    assert kinds(verify(state)) == {"no_row": 1}


async def test_of_a_shard_only_the_lines_that_fall_to_it_have_rows(tmp_path: Path):
    lines = [{"id": f"r{n}", "prompt": "x"} for n in range(20)]
    write_lines(tmp_path, lines)
    async with serving() as server:
        await rehearse(tmp_path, server.endpoint.base_url, shard="1/2")
    state = tmp_path / "out.jsonl.state"
    assert verify(state).is_whole
    more = [{"id": f"s{n}", "prompt": "x"} for n in range(20)]
    write_lines(tmp_path, [*lines, *more])
    found = verify(state)
    assert kinds(found) == {"no_row": sum(Shard(1, 2).holds(line["id"]) for line in more)}
    write_lines(tmp_path, lines)
    without(state, read_lines(results_of(state))[0]["id"])
    assert kinds(verify(state)) == {"no_row": 1}


async def test_a_compressed_input_is_compared_with_what_was_copied_of_it(tmp_path: Path):
    path = tmp_path / "in.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "a"}\n'))
    async with serving() as server:
        await rehearse(tmp_path, server.endpoint.base_url, inputs=(str(path),))
    state = tmp_path / "out.jsonl.state"
    assert verify(state).is_whole
    path.write_bytes(gzip.compress(b'{"prompt": "b"}\n'))
    assert kinds(verify(state)) == {"source": 1}
    path.unlink()
    assert verify(state).is_whole


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (b'"succeeded": 9', b'"succeeded": 8', "8 succeeded, but the state file has 9"),
        (b'"sha256": "', b'"sha256": "0', "its SHA-256 is not that of"),
        (b'"summary"', b'"x"', "is not a manifest of this run"),
        (b"}", b"", "is not a manifest of this run"),
        (b'"outcome": "finished"', b'"outcome": null', None),
    ],
)
def test_a_manifest_that_says_otherwise_is_a_problem_unless_it_is_of_an_earlier_session(state: Path, old, new, told):
    path = state.with_name("out.manifest.json")
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    found = verify(state)
    assert set(kinds(found)) == (set() if told is None else {"manifest"})
    assert told is None or told in render(found)


def test_results_of_an_older_version_are_still_compared_with_the_manifest(state: Path):
    change(state, "UPDATE rows SET result = NULL")
    data = results_of(state).read_bytes()
    results_of(state).write_bytes(data.replace(b'"text":"good 2"', b'"text":"evil 2"'))
    assert kinds(verify(state)) == {"manifest": 1}


def test_a_run_that_was_copied_with_its_input_is_compared_with_the_copy(state: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for entry in tmp_path.iterdir():
        if entry.is_file():
            shutil.copy(entry, copy)
    assert verify(copy / state.name).is_whole
    (copy / "in.jsonl").write_bytes((copy / "in.jsonl").read_bytes().replace(b"good 2", b"evil 2"))
    assert kinds(verify(copy / state.name)) == {"changed": 1}
    assert verify(state).is_whole


@settings(max_examples=200)
@given(st.integers(-(2**63), 2**63 - 1))
def test_the_state_keeps_every_64_bit_number_as_it_is(number: int):
    with sqlite3.connect(":memory:") as db:
        (kept,) = db.execute(
            "SELECT json_extract(value, '$[0]') FROM json_each(?)", (orjson.dumps([[number]]),)
        ).fetchone()
    assert kept == number


def test_a_digest_is_a_number_of_48_bits_that_changes_with_its_line_but_not_with_its_end():
    digests = {result_digest(b'{"id":%d}' % number) for number in range(1000)}
    assert len(digests) == 1000
    assert max(map(abs, digests)) < 2**47
    assert result_digest(b"x\n") == result_digest(b"x\r\n") == result_digest(b"x") != result_digest(b"y")
