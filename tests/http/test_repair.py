"""What was lost or damaged is made good: results asked for again, a state file rebuilt, and nothing paid in silence."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import time
from random import Random
from typing import TYPE_CHECKING, Any

import orjson
import pytest

import batchrun
from batchrun.commands import verify as verification
from batchrun.errors import StateError
from batchrun.runs import repair
from batchrun.runs.closing import conclude
from batchrun.runs.driving import drive
from batchrun.runs.opening import open_run
from batchrun.runs.resumed import resumed_options
from batchrun.state.store import Store
from tests.support.claims import assert_adds_up
from tests.support.command import batchrun as batchrun_command
from tests.support.rehearsal import Listener, hurried, options_for, read_lines, serving, write_lines
from tests.support.workers import Picky

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.rehearsal import Server

ROWS = 12
PROMPTS = [{"id": f"r{n}", "prompt": f"p{n}", "metadata": n} for n in range(ROWS)]
HOUR_S = 3600


async def session(folder: Path, server: Server, *, fix: bool = False, later_s: float = 0, **given: Any) -> Listener:
    """One session at an endpoint that is not this process's own; `later_s` after now."""
    listener = Listener()
    options = options_for(folder, **{"endpoint": "abc", **given})
    with open_run(options, listener, clock=hurried, wall=lambda: time.time() + later_s, repair=fix) as run:
        summary = conclude(run, await drive(run, server.endpoint.base_url, Random(0)))
    assert summary.exit_code in (0, 3), summary.reason
    return listener


def results_of(folder: Path) -> Path:
    return folder / "out.jsonl"


def state_of(folder: Path) -> Path:
    return folder / "out.jsonl.state"


def said(listener: Listener, words: str) -> bool:
    return any(words in message for message in listener.messages)


def assert_whole(folder: Path, rows: int = ROWS) -> None:
    found = assert_adds_up(state_of(folder))
    assert (found.results, found.compared) == (rows, rows)
    texts = {record["id"]: record["text"] for record in read_lines(results_of(folder))}
    assert texts == {f"r{n}": f"p{n}" for n in range(rows)}


def lines_of(folder: Path) -> list[bytes]:
    return results_of(folder).read_bytes().splitlines(keepends=True)


def remove(folder: Path) -> None:
    results_of(folder).unlink()


def drop_a_line(folder: Path) -> None:
    results_of(folder).write_bytes(b"".join(lines_of(folder)[1:]))


def tear(folder: Path) -> None:
    results_of(folder).write_bytes(results_of(folder).read_bytes()[:-100])


def change_a_character(folder: Path) -> None:
    data = results_of(folder).read_bytes()
    results_of(folder).write_bytes(data.replace(b'"text":"p3"', b'"text":"q3"'))


def swap_two_answers(folder: Path) -> None:
    one, two, *others = (orjson.loads(line) for line in lines_of(folder))
    one["id"], two["id"] = two["id"], one["id"]
    results_of(folder).write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in (one, two, *others)))


def repeat_a_line(folder: Path) -> None:
    lines = lines_of(folder)
    results_of(folder).write_bytes(b"".join([*lines[:-1], lines[0]]))


def add_a_strange_line(folder: Path) -> None:
    with results_of(folder).open("ab") as file:
        file.write(b'{"id": "nobody"}\n')


def end_lines_as_windows_does(folder: Path) -> None:
    results_of(folder).write_bytes(results_of(folder).read_bytes().replace(b"\n", b"\r\n"))


DAMAGES = [
    (remove, ROWS, 0),
    (drop_a_line, 1, 0),
    (tear, 1, 1),
    (change_a_character, 1, 1),
    (swap_two_answers, 2, 2),
    (repeat_a_line, 1, 1),
    (add_a_strange_line, 0, 1),
    (end_lines_as_windows_does, 0, 0),
]
"""What is done to the results -> how many of them are lost, how many lines are set aside."""


@pytest.mark.parametrize(("damage", "lost", "aside"), DAMAGES)
async def test_results_that_are_lost_or_damaged_are_fetched_again_without_paying(tmp_path: Path, damage, lost, aside):
    write_lines(tmp_path, PROMPTS)
    async with serving() as server:
        await session(tmp_path, server)
        damage(tmp_path)
        listener = await session(tmp_path, server, fix=True)
        assert server.seen["run"] == ROWS
    assert_whole(tmp_path)
    assert said(listener, f"lost or damaged: {lost:,} ({lost} to be polled") is bool(lost)
    kept = tmp_path / "out.jsonl.damaged"
    assert (kept.read_bytes().count(b"\n") if kept.exists() else 0) == aside


@pytest.mark.parametrize(("damage", "lost", "_aside"), DAMAGES)
async def test_only_what_the_endpoint_has_no_longer_is_paid_for_again(tmp_path: Path, damage, lost, _aside):
    write_lines(tmp_path, PROMPTS)
    async with serving() as server:
        await session(tmp_path, server)
        damage(tmp_path)
        listener = await session(tmp_path, server, fix=True, later_s=HOUR_S)
        assert server.seen["run"] == ROWS + lost
    assert_whole(tmp_path)
    assert said(listener, f"{lost} to be paid for again") is bool(lost)


async def test_a_result_that_the_endpoint_has_lost_too_is_paid_for_again(tmp_path: Path):
    write_lines(tmp_path, PROMPTS)
    async with serving() as server:
        await session(tmp_path, server)
    drop_a_line(tmp_path)
    async with serving() as other:
        await session(tmp_path, other, fix=True)
        assert other.seen["run"] == 1
    assert_whole(tmp_path)


@pytest.mark.parametrize("damage", [remove, drop_a_line, tear, add_a_strange_line, end_lines_as_windows_does])
async def test_without_repair_the_refusal_names_it_and_nothing_is_changed(tmp_path: Path, damage):
    write_lines(tmp_path, PROMPTS)
    async with serving() as server:
        await session(tmp_path, server)
        damage(tmp_path)
        before = results_of(tmp_path).read_bytes() if results_of(tmp_path).exists() else None
        with pytest.raises(StateError) as refused:
            await session(tmp_path, server)
    assert "--repair" in refused.value.hint
    assert (results_of(tmp_path).read_bytes() if results_of(tmp_path).exists() else None) == before


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda data: data[:-1], "restored the newline at the end of the last line"),
        (lambda data: data + b"\n", "cut off 1 byte of"),
        (lambda data: data + b" \n\n\t", "cut off 4 bytes"),
    ],
)
async def test_white_space_at_the_end_of_the_results_is_no_damage(tmp_path: Path, change, told):
    write_lines(tmp_path, PROMPTS)
    async with serving() as server:
        await session(tmp_path, server)
        whole = results_of(tmp_path).read_bytes()
        results_of(tmp_path).write_bytes(change(whole))
        listener = await session(tmp_path, server)
    assert results_of(tmp_path).read_bytes() == whole
    assert said(listener, told)


async def test_a_whole_run_is_left_as_it_is(tmp_path: Path):
    write_lines(tmp_path, PROMPTS)
    async with serving() as server:
        await session(tmp_path, server)
        before = results_of(tmp_path).stat()
        listener = await session(tmp_path, server, fix=True)
        assert server.seen["run"] == ROWS
    assert results_of(tmp_path).stat().st_ino == before.st_ino
    assert said(listener, "no results of succeeded rows are lost")


async def test_what_is_set_aside_never_takes_the_place_of_another_file(tmp_path: Path):
    write_lines(tmp_path, PROMPTS)
    (tmp_path / "out.jsonl.damaged").write_text("mine")
    (tmp_path / "out.jsonl.damaged-2").symlink_to(tmp_path / "elsewhere")
    async with serving() as server:
        await session(tmp_path, server)
        change_a_character(tmp_path)
        await session(tmp_path, server, fix=True)
    assert (tmp_path / "out.jsonl.damaged").read_text() == "mine"
    assert not (tmp_path / "elsewhere").exists()
    assert b'"text":"q3"' in (tmp_path / "out.jsonl.damaged-3").read_bytes()


def forget(folder: Path) -> None:
    results_of(folder).write_bytes(b"")
    with Store(state_of(folder)) as store, store.transaction() as db:
        db.execute("UPDATE rows SET state = 0")
        db.execute("UPDATE outputs SET committed_bytes = 0")


def drop_a_row(folder: Path) -> None:
    with Store(state_of(folder)) as store, store.transaction() as db:
        db.execute("DELETE FROM rows WHERE id = 'r5'")


def break_every_table(folder: Path) -> None:
    with Store(state_of(folder)) as store, store.transaction() as db:
        db.execute("DELETE FROM jobs WHERE job = (SELECT job FROM rows WHERE row = 2)")
        db.execute("UPDATE rows SET state = 2, job = 77 WHERE row = 3")
        db.execute("UPDATE rows SET state = 4 WHERE row = 4")
        db.execute("INSERT INTO failures VALUES (5, 'FAILED', 'platform', 'x', 'x', NULL, NULL)")
        db.execute("UPDATE rows SET same_as = 99 WHERE row = 6")
        db.execute("UPDATE jobs SET status = 'FAILED' WHERE job = (SELECT job FROM rows WHERE row = 7)")


@pytest.mark.parametrize("damage", [forget, drop_a_row, break_every_table])
async def test_a_state_that_contradicts_itself_is_made_good(tmp_path: Path, damage):
    write_lines(tmp_path, PROMPTS)
    async with serving() as server:
        await session(tmp_path, server)
        damage(tmp_path)
        assert not verification.verify(state_of(tmp_path)).is_whole
        await session(tmp_path, server, fix=True)
        assert server.seen["run"] == ROWS
    assert_whole(tmp_path)


async def test_a_row_that_was_removed_from_the_state_is_taken_up_by_the_same_command(tmp_path: Path):
    write_lines(tmp_path, PROMPTS)
    async with serving() as server:
        await session(tmp_path, server)
        with Store(state_of(tmp_path)) as store, store.transaction() as db:
            db.execute("DELETE FROM rows WHERE id = 'r5'")
            db.execute("DELETE FROM jobs WHERE carried NOT IN (SELECT row FROM rows)")
        kept = [line for line in lines_of(tmp_path) if b'"id":"r5"' not in line]
        results_of(tmp_path).write_bytes(b"".join(kept))
        with Store(state_of(tmp_path)) as store, store.transaction() as db:
            db.execute("UPDATE outputs SET committed_bytes = ?", (sum(map(len, kept)),))
        await session(tmp_path, server)
        assert server.seen["run"] == ROWS + 1
    assert_whole(tmp_path)


@pytest.mark.parametrize("form", ["batchrun", "openai"])
async def test_a_lost_state_file_is_rebuilt_from_input_and_results(tmp_path: Path, form: str):
    write_lines(tmp_path, PROMPTS)
    async with serving() as server:
        await session(tmp_path, server, limit=8, format=form)
        state_of(tmp_path).unlink()
        with pytest.raises(StateError) as refused:
            await session(tmp_path, server, format=form)
        assert "--repair" in refused.value.hint
        listener = await session(tmp_path, server, fix=True, format=form)
        assert server.seen["run"] == ROWS
        drop_a_line(tmp_path)
        await session(tmp_path, server, fix=True, format=form)
        assert server.seen["run"] == ROWS, "a job of before is not known by its ID"
    found = assert_adds_up(state_of(tmp_path))
    assert (found.results, found.compared) == (ROWS, ROWS)
    assert said(listener, "is rebuilt")
    assert said(listener, "the state did not know of: 8")


async def test_results_of_another_endpoint_and_strange_lines_are_no_part_of_a_rebuilt_state(tmp_path: Path):
    write_lines(tmp_path, PROMPTS)
    async with serving() as server:
        await session(tmp_path, server)
        state_of(tmp_path).unlink()
        lines = lines_of(tmp_path)
        strange = [lines[0].replace(b'"endpoint":"abc"', b'"endpoint":"xyz"'), b"nonsense\n", lines[1][:40] + b"\n"]
        results_of(tmp_path).write_bytes(b"".join([*strange, *lines[2:]]))
        await session(tmp_path, server, fix=True)
        assert server.seen["run"] == ROWS + 2
    assert_whole(tmp_path)
    assert (tmp_path / "out.jsonl.damaged").read_bytes() == b"".join(strange)


@pytest.mark.parametrize("content", [b"mine\n", b'{"id": "r1", "status": "COMPLETED"}\n', b"\0" * 99])
async def test_no_state_is_rebuilt_over_a_file_that_is_somebody_elses(tmp_path: Path, content: bytes):
    write_lines(tmp_path, PROMPTS)
    results_of(tmp_path).write_bytes(content)
    async with serving() as server:
        with pytest.raises(StateError, match="has no results of endpoint abc"):
            await session(tmp_path, server, fix=True)
    assert results_of(tmp_path).read_bytes() == content
    assert not state_of(tmp_path).exists()
    assert not (tmp_path / "out.jsonl.damaged").exists()


async def test_failed_rows_of_a_lost_state_are_submitted_again_and_that_is_said(tmp_path: Path):
    write_lines(tmp_path, [*PROMPTS[:4], {"id": "bad", "prompt": "bad one"}])
    async with serving(worker=Picky()) as server:
        await session(tmp_path, server)
        state_of(tmp_path).unlink()
        listener = await session(tmp_path, server, fix=True)
        assert server.seen["run"] == 6
    assert said(listener, "including failed ones")
    assert verification.verify(state_of(tmp_path)).is_whole


@pytest.mark.parametrize("command", ["run", "resume"])
async def test_a_state_file_that_has_lost_its_log_is_continued_from_the_results(tmp_path: Path, command: str):
    write_lines(tmp_path, PROMPTS)
    async with serving() as server:
        await session(tmp_path, server, limit=4)
        looker = sqlite3.connect(state_of(tmp_path))
        # As long as somebody else looks on, the log is not folded into the file: this is what a crash leaves.
        looker.execute("SELECT count(*) FROM rows").fetchone()
        await session(tmp_path, server)
        copy = tmp_path / "copy"
        copy.mkdir()
        for name in ("in.jsonl", "out.jsonl", "out.jsonl.state"):
            shutil.copy(tmp_path / name, copy)
        looker.close()
        address = ("--endpoint", "abc", "--base-url", server.endpoint.base_url) if command == "run" else ()
        asked = ("run", "in.jsonl", "-o", "out.jsonl", *address) if command == "run" else ("resume", "out.jsonl.state")
        refused = await asyncio.to_thread(batchrun_command, *asked, cwd=copy)
        assert (refused.returncode, "--repair" in refused.stderr) == (2, True), refused.stderr
        again = await asyncio.to_thread(batchrun_command, *asked, cwd=copy)
        assert again.stderr == refused.stderr
        if command == "run":
            await session(copy, server, fix=True)
            assert server.seen["run"] <= ROWS + 8
            assert_whole(copy)
        else:
            assert resumed_options(state_of(copy), repair=True).endpoint == "abc"
            assert not (copy / "out.jsonl.state-wal").exists()


EQUAL = [{"id": f"r{n}", "prompt": "same", "metadata": n} for n in range(6)]


@pytest.mark.parametrize("kept", ["leader", "followers", "none", "one follower"])
async def test_rows_that_share_a_job_get_their_results_back_from_one_another(tmp_path: Path, kept: str):
    write_lines(tmp_path, EQUAL)
    async with serving() as server:
        await session(tmp_path, server, dedupe=True)
        lines = lines_of(tmp_path)
        by_kind = {"leader": lines[:1], "followers": lines[1:], "none": [], "one follower": lines[3:4]}
        results_of(tmp_path).write_bytes(b"".join(by_kind[kept]))
        await session(tmp_path, server, dedupe=True, fix=True, later_s=0 if kept == "none" else HOUR_S)
        assert server.seen["run"] == 1
    assert_adds_up(state_of(tmp_path))
    assert sorted((record["id"], record["metadata"]) for record in read_lines(results_of(tmp_path))) == [
        (f"r{n}", n) for n in range(6)
    ]


async def test_a_lost_state_of_rows_that_share_a_job_is_rebuilt(tmp_path: Path):
    write_lines(tmp_path, EQUAL)
    async with serving() as server:
        await session(tmp_path, server, dedupe=True)
        state_of(tmp_path).unlink()
        results_of(tmp_path).write_bytes(b"".join(lines_of(tmp_path)[2:]))
        await session(tmp_path, server, dedupe=True, fix=True)
        assert server.seen["run"] == 1
    found = assert_adds_up(state_of(tmp_path))
    assert found.results == 6


async def test_the_tokens_of_results_that_were_fetched_again_are_counted_once(tmp_path: Path):
    write_lines(tmp_path, PROMPTS)
    async with serving() as server:
        await session(tmp_path, server)
        with Store(state_of(tmp_path)) as store:
            before = store.counters()
        drop_a_line(tmp_path)
        await session(tmp_path, server, fix=True)
        with Store(state_of(tmp_path)) as store:
            after = store.counters()
    assert (after["input_tokens"], after["output_tokens"]) == (before["input_tokens"], before["output_tokens"])


class Crash(BaseException):
    """The process is gone."""


STEPS = ("begin", "stage_results", "set_aside", "write_whole", "reconcile")


def crash_at(monkeypatch: pytest.MonkeyPatch, step: str, when: str) -> None:
    """Let the process die before a step of a repair, behind it, or while the lines of its file are written."""
    real = getattr(repair, step)

    def doomed(*args: Any, **kwargs: Any) -> None:
        if when == "within":
            first, lines = args
            real(first, half(lines))
        elif when == "behind":
            real(*args, **kwargs)
        raise Crash

    monkeypatch.setattr(repair, step, doomed)


def half(lines: Any) -> Any:
    yield next(lines)
    raise Crash


def count_set_aside(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("out.jsonl.damaged*"))


@pytest.mark.parametrize("again", ["same command", "with repair"])
@pytest.mark.parametrize(
    ("step", "when"),
    [(step, when) for step in STEPS for when in ("before", "behind")]
    + [("set_aside", "within"), ("write_whole", "within")],
)
async def test_a_repair_that_dies_anywhere_is_finished_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, when: str, again: str
):
    write_lines(tmp_path, PROMPTS)
    async with serving() as server:
        await session(tmp_path, server)
        swap_two_answers(tmp_path)
        tear(tmp_path)
        with monkeypatch.context() as patched:
            crash_at(patched, step, when)
            with pytest.raises(Crash):
                await session(tmp_path, server, fix=True)
        if (step, when, again) == ("begin", "before", "same command"):
            with pytest.raises(StateError):
                await session(tmp_path, server)
        await session(tmp_path, server, fix=again == "with repair" or (step, when) == ("begin", "before"))
        assert server.seen["run"] == ROWS
    assert_whole(tmp_path)
    assert count_set_aside(tmp_path) >= 3


@pytest.mark.parametrize(
    ("step", "when"),
    [(step, when) for step in ("begin", "stage_results", "write_whole", "reconcile") for when in ("before", "behind")],
)
async def test_a_rebuild_that_dies_anywhere_is_finished_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, when: str
):
    write_lines(tmp_path, PROMPTS)
    async with serving() as server:
        await session(tmp_path, server)
        state_of(tmp_path).unlink()
        tear(tmp_path)
        with monkeypatch.context() as patched:
            crash_at(patched, step, when)
            with pytest.raises(Crash):
                await session(tmp_path, server, fix=True)
        await session(tmp_path, server, fix=True)
        assert server.seen["run"] == ROWS + 1
    assert_whole(tmp_path)


async def test_a_run_that_was_repaired_and_cut_off_is_whole_but_for_what_has_not_run(tmp_path: Path):
    write_lines(tmp_path, PROMPTS)
    async with serving() as server:
        await session(tmp_path, server)
        drop_a_line(tmp_path)
        for later_s in (0, HOUR_S):
            options = options_for(tmp_path, endpoint="abc")
            with open_run(options, Listener(), clock=hurried, wall=lambda: time.time() + later_s, repair=True):  # noqa: B023
                pass
            found = assert_adds_up(state_of(tmp_path))
            assert found.not_run == 1


LOCAL = ("--endpoint", "local", "--worker", "echo", "--progress", "plain")


def test_the_commands_name_what_is_lost_and_make_it_good(tmp_path: Path):
    write_lines(tmp_path, PROMPTS)
    assert batchrun_command("run", "in.jsonl", *LOCAL, "-o", "out.jsonl", cwd=tmp_path).returncode == 0
    change_a_character(tmp_path)
    results_of(tmp_path).write_bytes(b"".join(line for line in lines_of(tmp_path) if b'"id":"r7"' not in line))
    listed = batchrun_command("verify", "out.jsonl.state", "--repair-list", cwd=tmp_path)
    assert (listed.returncode, sorted(listed.stdout.split()), listed.stderr) == (1, ["r3", "r7"], "")
    shown = batchrun_command("verify", "out.jsonl.state", cwd=tmp_path)
    assert "results lost or damaged: 2; recover them: batchrun resume out.jsonl.state --repair" in shown.stdout
    refused = batchrun_command("resume", "out.jsonl.state", cwd=tmp_path)
    assert (refused.returncode, "--repair" in refused.stderr) == (2, True)
    mended = batchrun_command(
        "resume", "out.jsonl.state", "--repair", "--worker", "echo", "--progress", "plain", cwd=tmp_path
    )
    assert (mended.returncode, "2 to be paid for again" in mended.stderr) == (0, True), mended.stderr
    assert_whole(tmp_path)
    assert batchrun_command("verify", "out.jsonl.state", "--repair-list", cwd=tmp_path).stdout == ""


@pytest.mark.parametrize("command", ["run", "resume"])
def test_results_and_state_that_were_renamed_together_are_one_run_still(tmp_path: Path, command: str):
    write_lines(tmp_path, PROMPTS)
    batchrun_command("run", "in.jsonl", *LOCAL, "-o", "out.jsonl", cwd=tmp_path)
    for name in ("out.jsonl", "out.jsonl.state"):
        (tmp_path / name).rename(tmp_path / name.replace("out", "new"))
    asked = ("run", "in.jsonl", *LOCAL, "-o", "new.jsonl") if command == "run" else ("resume", "new.jsonl.state")
    refused = batchrun_command(*asked, cwd=tmp_path)
    assert (refused.returncode, "--repair" in refused.stderr) == (2, True), refused.stderr
    done = batchrun_command(*asked, "--repair", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert verification.verify(tmp_path / "new.jsonl.state").results == ROWS
    assert not results_of(tmp_path).exists()


def test_a_program_can_ask_for_it(tmp_path: Path):
    def run(**given: Any) -> batchrun.Summary:
        output = results_of(tmp_path)
        return batchrun.run(PROMPTS, endpoint="local", worker="echo", output=output, progress="none", **given)

    assert run().succeeded == ROWS
    drop_a_line(tmp_path)
    with pytest.raises(StateError):
        run()
    assert run(repair=True).succeeded == ROWS
    assert_whole(tmp_path)
    state_of(tmp_path).unlink()
    assert run(repair=True).succeeded == ROWS
    assert_whole(tmp_path)
