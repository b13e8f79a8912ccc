"""Files that a crash, a full disk or somebody else has left in pieces, and what the next session makes of them."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import orjson
import pytest

from batchrun.errors import InputError, OutputError, StateError, UsageError
from batchrun.results.writer import recover
from batchrun.runs.closing import conclude
from batchrun.runs.driving import drive
from batchrun.runs.opening import open_run
from batchrun.state.store import Store
from tests.support.command import BATCHRUN
from tests.support.disks import files_of_at_most
from tests.support.rehearsal import Listener, hurried, options_for, read_lines, rehearse, serving, write_lines

PROMPTS = [{"id": f"r{n}", "prompt": f"p{n}"} for n in range(12)]
IDS = sorted(line["id"] for line in PROMPTS)


def state_of(folder: Path) -> Path:
    return folder / "out.jsonl.state"


def log_of(folder: Path) -> Path:
    return folder / "out.jsonl.state-wal"


def state_and_log(folder: Path) -> tuple[bytes, bytes]:
    """Their bytes; an empty log is as good as none."""
    return state_of(folder).read_bytes(), log_of(folder).read_bytes() if log_of(folder).exists() else b""


def wall() -> float:
    return 1_800_000_000.0


def as_before_the_commit_of(folder: Path, count: int) -> int:
    """Make the state what it was before the last result lines were committed; returns the committed length."""
    lines = (folder / "out.jsonl").read_bytes().splitlines(keepends=True)
    committed = sum(map(len, lines[:-count]))
    with Store(state_of(folder)) as store, store.transaction() as db:
        for line in lines[-count:]:
            row_id = orjson.loads(line)["id"]
            db.execute("UPDATE jobs SET status = NULL WHERE job = (SELECT job FROM rows WHERE id = ?)", (row_id,))
            db.execute("UPDATE rows SET state = 2 WHERE id = ?", (row_id,))
        db.execute("UPDATE outputs SET committed_bytes = ?", (committed,))
    return committed


def succeeded(folder: Path) -> list[str]:
    with Store(state_of(folder)) as store:
        return [row for (row,) in store.query("SELECT id FROM rows WHERE state = 3 ORDER BY id")]


def open_and_close(folder: Path, **given: object) -> None:
    with open_run(options_for(folder, **given), Listener(), clock=hurried, wall=wall):
        pass


@pytest.fixture
def in_memory(tmp_path: Path):
    """A folder in memory, where the system has one: a disk would be waited for several times for each byte."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.mark.parametrize("uncommitted", [1, 2])
async def test_results_torn_at_any_byte_are_taken_over_or_asked_for_again(
    in_memory: Path, monkeypatch, uncommitted: int
):
    monkeypatch.chdir(in_memory)  # short names make short lines, and fewer bytes to cut at
    write_lines(in_memory, PROMPTS)
    async with serving() as server:
        await rehearse(in_memory, server.endpoint.base_url, inputs=("in.jsonl",))
        committed = as_before_the_commit_of(in_memory, uncommitted)
        whole, state = (in_memory / "out.jsonl").read_bytes(), state_of(in_memory).read_bytes()
        last = max(committed, whole[:-1].rindex(b"\n"))
        # Each byte of the last line; behind another one each seventh of both: that one is torn as a line that is alone.
        cuts = range(last, len(whole) + 1) if uncommitted == 1 else range(committed, len(whole) + 1, 7)
        for number, length in enumerate(cuts):
            (in_memory / "out.jsonl").write_bytes(whole[:length])
            state_of(in_memory).write_bytes(state)
            open_and_close(in_memory, inputs=("in.jsonl",))
            kept = read_lines(in_memory / "out.jsonl")
            assert sorted(record["id"] for record in kept) == succeeded(in_memory), length
            assert len(kept) == whole[:length].count(b"\n"), length
            if number % 100 == 0:
                rehearsal = await rehearse(in_memory, server.endpoint.base_url, inputs=("in.jsonl",))
                assert (sorted(rehearsal.ids()), rehearsal.summary.exit_code) == (IDS, 0)
    assert server.seen["run"] == len(PROMPTS), "a job whose ID is known was submitted again"


@pytest.mark.parametrize(
    ("tail", "kept"),
    [
        (lambda lines: b"\0" * 4096, 10),
        (lambda lines: b"\0" * 4096 + b"\n", 10),
        (lambda lines: lines[0] + b"\0" * 700, 11),
        (lambda lines: lines[0] + b"\0" * 700 + lines[1][90:], 11),
        (lambda lines: lines[0][:50] + b"\0" * 700 + lines[0][70:] + lines[1], 10),
        (lambda lines: b"\0" * len(lines[0]) + lines[1][:60], 10),
    ],
    ids=["nothing-else", "with-an-end", "behind-a-line", "and-an-end-of-a-line", "hole-before-a-line", "and-torn"],
)
async def test_blocks_that_a_loss_of_power_left_unwritten_are_cut_off(tmp_path: Path, tail, kept):
    write_lines(tmp_path, PROMPTS)
    async with serving() as server:
        await rehearse(tmp_path, server.endpoint.base_url)
        committed = as_before_the_commit_of(tmp_path, 2)
        whole = (tmp_path / "out.jsonl").read_bytes()
        (tmp_path / "out.jsonl").write_bytes(whole[:committed] + tail(whole[committed:].splitlines(keepends=True)))
        open_and_close(tmp_path)
        assert len(read_lines(tmp_path / "out.jsonl")) == kept
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url)
    assert (sorted(rehearsal.ids()), rehearsal.summary.exit_code) == (IDS, 0)
    assert server.seen["run"] == len(PROMPTS)


@pytest.mark.parametrize(
    "tail",
    [b"\0" * 600 + b"\n" + b"nonsense\n", b'{"id": "stranger"}\n' + b"\0" * 9, "two words\n".encode("utf-16-le")],
)
async def test_strange_lines_among_unwritten_blocks_are_refused_and_left_alone(tmp_path: Path, tail):
    write_lines(tmp_path, PROMPTS)
    async with serving() as server:
        await rehearse(tmp_path, server.endpoint.base_url)
    with (tmp_path / "out.jsonl").open("ab") as file:
        file.write(tail)
    before = (tmp_path / "out.jsonl").read_bytes()
    with pytest.raises(StateError, match="a line that this run did not write"):
        open_and_close(tmp_path)
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_a_hole_is_measured_with_all_that_follows_it(tmp_path: Path):
    (tmp_path / "r.jsonl").write_bytes(b"done\nwhole\n\0\0\0rest\nlater\ntorn")
    tail = recover(tmp_path / "r.jsonl", 5)
    assert (tail.lines, tail.cut_bytes, tail.behind_hole) == ([b"whole\n"], 18, [b"later\n"])


@pytest.fixture
async def crashed(tmp_path: Path):
    """A run of which all but the last two results were committed: half in the state file, half in its log."""
    folder = tmp_path / "crashed"
    folder.mkdir()
    write_lines(folder, PROMPTS)
    async with serving() as server:
        await rehearse(folder, server.endpoint.base_url, limit=6)
        looker = sqlite3.connect(state_of(folder))
        # As long as somebody else looks on, the log is not folded into the file: this is what a crash leaves.
        looker.execute("SELECT count(*) FROM rows").fetchone()
        await rehearse(folder, server.endpoint.base_url)
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*-shm"))
        looker.close()
        yield copy, server.endpoint.base_url


@pytest.mark.parametrize("log", ["left", "removed", "torn", "folded"])
async def test_a_truncated_state_file_is_refused_or_continues_and_never_begins_anew(crashed, tmp_path: Path, log: str):
    kept, base_url = crashed
    if log == "folded":
        Store(state_of(kept)).close()
    whole = state_of(kept).read_bytes()
    results = (kept / "out.jsonl").read_bytes()
    assert log_of(kept).exists() == (log != "folded")
    outcomes = set()
    for pages in range(len(whole) // 4096 + 1):
        folder = tmp_path / str(pages)
        shutil.copytree(kept, folder)
        (folder / "in.jsonl").write_bytes((kept / "in.jsonl").read_bytes())
        state_of(folder).write_bytes(whole[: pages * 4096])
        if log == "removed":
            log_of(folder).unlink()
        if log == "torn":
            os.truncate(log_of(folder), log_of(folder).stat().st_size // 2)
        before = state_and_log(folder)
        options = options_for(folder, inputs=(str(tmp_path / "crashed" / "in.jsonl"),))
        try:
            with open_run(options, Listener(), clock=hurried, wall=wall) as run:
                summary = conclude(run, await drive(run, base_url, Random(0)))
        except StateError as error:
            outcomes.add("refused" if error.hint else "refused without a way out")
            assert (folder / "out.jsonl").read_bytes() == results
            assert state_and_log(folder) == before
        else:
            outcomes.add("went on")
            assert (summary.exit_code, summary.succeeded) == (0, len(PROMPTS))
            assert sorted(record["id"] for record in read_lines(folder / "out.jsonl")) == IDS
    # Half of a log may hold all submissions, depending on how they were grouped: then the results behind it are taken
    # over, as after a crash.
    may_continue = {"removed": set(), "torn": outcomes & {"went on"}}.get(log, {"went on"})
    assert outcomes == {"refused"} | may_continue


async def test_a_state_file_that_is_older_than_its_results_is_refused_as_it_is(tmp_path: Path):
    write_lines(tmp_path, PROMPTS)
    async with serving() as server:
        await rehearse(tmp_path, server.endpoint.base_url)
    as_before_the_commit_of(tmp_path, 2)
    with closing(sqlite3.connect(state_of(tmp_path))) as db, db:
        db.execute("UPDATE rows SET state = 0, job = NULL WHERE state = 2")
    before = state_of(tmp_path).read_bytes(), (tmp_path / "out.jsonl").read_bytes()
    with pytest.raises(StateError, match=r"is older than its results: .*, which it has not submitted"):
        open_and_close(tmp_path)
    assert (state_of(tmp_path).read_bytes(), (tmp_path / "out.jsonl").read_bytes()) == before


@pytest.mark.parametrize("content", [b"", None])
async def test_a_state_file_that_was_emptied_is_no_new_run_over_old_results(tmp_path: Path, content):
    write_lines(tmp_path, PROMPTS)
    async with serving() as server:
        await rehearse(tmp_path, server.endpoint.base_url)
        before = (tmp_path / "out.jsonl").read_bytes()
        state_of(tmp_path).unlink()
        if content is None:
            Store(state_of(tmp_path)).close()
        else:
            state_of(tmp_path).write_bytes(content)
        with pytest.raises(StateError, match="or holds no run"):
            await rehearse(tmp_path, server.endpoint.base_url)
        assert (tmp_path / "out.jsonl").read_bytes() == before
        (tmp_path / "out.jsonl").unlink()
        again = await rehearse(tmp_path, server.endpoint.base_url)
    assert sorted(again.ids()) == IDS


async def try_to_run(folder: Path, base_url: str) -> None:
    """A run that may stop early or not begin, but only with an exit code of its own."""
    with suppress(OutputError):
        rehearsal = await rehearse(folder, base_url)
        assert rehearsal.summary.exit_code in {0, 4}, rehearsal.summary.reason
    for line in (folder / "out.jsonl").read_bytes().splitlines() if (folder / "out.jsonl").exists() else ():
        orjson.loads(line)


@pytest.mark.parametrize("limit", [*range(0, 4200, 300), *range(4096, 150_000, 8192), 32_767, 32_768, 49_152])
async def test_a_disk_that_is_full_at_any_moment_stops_the_run_and_the_next_one_is_whole(tmp_path: Path, limit: int):
    write_lines(tmp_path, PROMPTS)
    async with serving() as server:
        with files_of_at_most(limit):
            await try_to_run(tmp_path, server.endpoint.base_url)
        if state_of(tmp_path).exists():
            kept = succeeded(tmp_path)
            assert set(kept) <= {record["id"] for record in read_lines(tmp_path / "out.jsonl")}
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url)
    assert (sorted(rehearsal.ids()), rehearsal.summary.exit_code) == (IDS, 0)
    assert server.seen["run"] <= len(PROMPTS) + rehearsal.summary.unconfirmed


@pytest.mark.parametrize("limit", [0, 3000, 40_000])
def test_a_full_disk_is_exit_4_with_a_reason_and_the_same_command_continues(tmp_path: Path, limit: int):
    write_lines(tmp_path, [{"id": f"r{n}", "prompt": "x" * 400} for n in range(60)])
    command = [*BATCHRUN, "run", str(tmp_path / "in.jsonl"), "-e", "local", "--worker", "echo", "-o"]
    command += [str(tmp_path / "out.jsonl"), "--progress", "none"]
    program = f"import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, -1));"
    program += (
        f" sys.argv = {['batchrun', *command[len(BATCHRUN) :]]!r}; runpy.run_module('batchrun', run_name='__main__')"
    )
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    full = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)
    assert full.returncode == 4, full.stderr
    assert "Traceback" not in full.stderr
    assert "cannot be" in full.stderr
    roomy = subprocess.run(command, capture_output=True, text=True, check=False)
    assert roomy.returncode == 0, roomy.stderr
    assert len({record["id"] for record in read_lines(tmp_path / "out.jsonl")}) == 60
    assert len(read_lines(tmp_path / "out.jsonl")) == 60


@pytest.mark.parametrize("name", ["inputs", "output", "state"])
def test_a_file_name_that_is_no_utf_8_is_refused_and_nothing_is_left_behind(tmp_path: Path, name: str):
    path = tmp_path / os.fsdecode(b"b\xff.jsonl")
    write_lines(tmp_path, PROMPTS)
    (tmp_path / "in.jsonl").rename(path)
    given = (
        {"inputs": (str(path),)} if name == "inputs" else {"inputs": (__file__,), name: path.with_name(path.name + "2")}
    )
    with pytest.raises(UsageError, match=r"b\\xff.jsonl2?: the name is not valid UTF-8"):
        open_and_close(tmp_path, **given)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_what_is_no_regular_file_or_was_there_before_is_never_removed(tmp_path: Path):
    (tmp_path / "in.jsonl").write_text("not a prompt\n")
    os.mkfifo(state_of(tmp_path))
    with pytest.raises(UsageError, match="is a device, a pipe or a socket"):
        open_and_close(tmp_path)
    assert state_of(tmp_path).is_fifo()
    state_of(tmp_path).unlink()
    state_of(tmp_path).write_bytes(b"")
    with pytest.raises(InputError):
        open_and_close(tmp_path)
    assert state_of(tmp_path).exists()


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of its own, with room for 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no file system may be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("room", [0, *range(4096, 320_000, 28_672)])
async def test_a_file_system_without_room_stops_the_run_and_room_lets_it_continue(small_disk: Path, room: int):
    write_lines(small_disk, [{"id": f"r{n}", "prompt": "x" * 500} for n in range(12)])
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file:
        file.write(b"x" * (shutil.disk_usage(small_disk).free - room))
    async with serving() as server:
        await try_to_run(small_disk, server.endpoint.base_url)
        filler.unlink()
        rehearsal = await rehearse(small_disk, server.endpoint.base_url)
    assert (sorted(rehearsal.ids()), rehearsal.summary.exit_code) == (IDS, 0)
    assert server.seen["run"] <= len(PROMPTS) + rehearsal.summary.unconfirmed


def once(do, at_poll=6):
    """A fault that lets the first half of the jobs pass, and does something to the files behind them."""
    polls = {"left": at_poll}

    async def fault(request, operation):
        if operation == "status":
            polls["left"] -= 1
            if polls["left"] == 0:
                do()

    return fault


def move(path: Path) -> None:
    path.rename(path.with_name("moved"))


def replace_by_a_copy(path: Path) -> None:
    shutil.copy(path, path.with_name("copy"))
    path.with_name("copy").replace(path)


@pytest.mark.parametrize("do", [Path.unlink, move, replace_by_a_copy])
@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.state"])
async def test_a_file_that_somebody_takes_away_while_the_run_continues_stops_it(tmp_path: Path, do, name):
    write_lines(tmp_path, PROMPTS)
    async with serving(once(lambda: do(tmp_path / name)), workers=1) as server:
        stopped = await rehearse(tmp_path, server.endpoint.base_url, scheduler={"concurrency": 2})
        assert stopped.summary.exit_code == 4
        assert name in stopped.summary.reason
        assert stopped.summary.hint
        assert server.seen["run"] < len(PROMPTS)


async def test_results_that_were_moved_away_and_are_put_back_are_gone_on_with(tmp_path: Path):
    write_lines(tmp_path, PROMPTS)
    results = tmp_path / "out.jsonl"
    async with serving(once(lambda: move(results)), workers=1) as server:
        await rehearse(tmp_path, server.endpoint.base_url, scheduler={"concurrency": 2})
        (tmp_path / "moved").rename(results)
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url)
    assert (sorted(rehearsal.ids()), rehearsal.summary.exit_code) == (IDS, 0)
    assert server.seen["run"] <= len(PROMPTS) + rehearsal.summary.unconfirmed


@pytest.mark.parametrize("becomes", ["nothing", "a file"])
async def test_a_folder_that_goes_while_the_run_continues_stops_it(tmp_path: Path, becomes):
    folder = tmp_path / "run"
    folder.mkdir()
    write_lines(folder, PROMPTS)

    def go() -> None:
        shutil.rmtree(folder)
        if becomes == "a file":
            folder.write_text("")

    async with serving(once(go), workers=1) as server:
        options = options_for(folder, scheduler={"concurrency": 2})
        with open_run(options, Listener(), clock=hurried, wall=wall) as run:
            outcome = await drive(run, server.endpoint.base_url, Random(0))
    assert outcome.kind == "stopped"
    assert "out.jsonl" in outcome.error.message


def change_attribute(change: str, path: Path) -> bool:
    return subprocess.run(["chattr", change, str(path)], capture_output=True, check=False).returncode == 0


@pytest.fixture
def made_immutable():
    return []


@pytest.fixture
def mutable(made_immutable: list[Path]):
    """Gives them back."""

    def give_back() -> None:
        while made_immutable:
            change_attribute("-i", made_immutable.pop())

    yield give_back
    give_back()


@pytest.fixture
def on_disk():
    """A folder that is not in memory, where an immutable file that is open could still be written."""
    with TemporaryDirectory(dir="/var/tmp") as name:
        yield Path(name)


@pytest.fixture
def immutable(made_immutable: list[Path], on_disk: Path, mutable):
    """Makes files that even root may not write to."""

    def make(path: Path) -> bool:
        made_immutable.append(path)
        return change_attribute("+i", path)

    (on_disk / "probe").write_text("")
    if shutil.which("chattr") is None or not make(on_disk / "probe"):
        pytest.skip("no file can be made immutable here")
    return make


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.state-wal", "."])
async def test_what_turns_read_only_while_the_run_continues_stops_it_and_it_continues_later(
    on_disk: Path, immutable, mutable, name
):
    folder = on_disk / "run"
    folder.mkdir()
    write_lines(folder, PROMPTS)
    async with serving(once(lambda: immutable(folder / name)), workers=1) as server:
        stopped = await rehearse(folder, server.endpoint.base_url, scheduler={"concurrency": 2})
        mutable()
        assert stopped.summary.exit_code == 4
        rehearsal = await rehearse(folder, server.endpoint.base_url)
    assert (sorted(rehearsal.ids()), rehearsal.summary.exit_code) == (IDS, 0)
    assert server.seen["run"] <= len(PROMPTS) + rehearsal.summary.unconfirmed


async def test_the_last_commit_that_fails_makes_a_stopped_run_of_a_finished_one(tmp_path: Path):
    write_lines(tmp_path, PROMPTS[:1])
    async with serving(once((tmp_path / "out.jsonl").unlink, at_poll=1)) as server:
        stopped = await rehearse(tmp_path, server.endpoint.base_url)
    assert (stopped.summary.outcome, stopped.summary.exit_code) == ("stopped", 4)
    assert "out.jsonl" in stopped.summary.reason
