"""A run in the background: it outlives its terminal, is stopped and tuned from outside, and says why a start fails."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from batchrun.commands import stop as stopping
from batchrun.commands import tune as tuning
from batchrun.commands.brief_status import BriefStatusReader
from batchrun.commands.listing import render as listed
from batchrun.commands.status import RunStatus, read_status, render, to_json
from batchrun.display.screen import screen
from batchrun.errors import BatchrunError, StateError
from batchrun.scheduler.events import Tuned
from batchrun.state.lock import holder
from tests.support.claims import assert_adds_up, assert_each_id_once
from tests.support.command import BATCHRUN, ENVIRONMENT, KEYED, batchrun, served
from tests.support.rehearsal import write_lines
from tests.support.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROWS = 300


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_lines(tmp_path, [{"id": f"r{n}", "prompt": f"prompt {n}", "max_tokens": 4} for n in range(ROWS)])
    return tmp_path


def command(folder: Path, base_url: str, *options: str) -> list[str]:
    where = ["run", str(folder / "in.jsonl"), "-o", str(folder / "out.jsonl"), "--base-url", base_url, "-e", "abc"]
    return [*where, "--run-limit", "0", "--status-limit", "0", *(() if "-j" in options else ("-j", "4")), *options]


@contextmanager
def detached(*arguments: object, env: dict[str, str] = KEYED) -> Iterator[dict[str, Any]]:
    """Start a run in the background; what is printed of it."""
    started = batchrun(*arguments, "--detach", env=env)
    assert started.returncode == 0, started.stderr
    told = json.loads(started.stdout)
    with gone_at_the_end(told["pid"]):
        yield told


@contextmanager
def gone_at_the_end(pid: int) -> Iterator[None]:
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait_until(folder: Path, is_true: Callable[[RunStatus], object]) -> RunStatus:
    """The status of the run, once it is so."""
    seen: list[RunStatus] = []

    def look() -> object:
        with suppress(BatchrunError):  # the state file may just be being created
            seen[:] = [read_status(folder / "out.jsonl.state")]
        return seen and is_true(seen[0])

    wait_for(look)
    return seen[0]


def stop(folder: Path, *options: str) -> str:
    done = batchrun("stop", folder / "out.jsonl.state", *options, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return done.stderr


def assert_can_be_finished(folder: Path, base_url: str) -> None:
    done = batchrun(*command(folder, base_url, "-j", "100"), env=KEYED)
    assert done.returncode == 0, done.stderr
    assert_each_id_once(folder / "out.jsonl", ROWS)
    assert_adds_up(folder / "out.jsonl.state")


def test_a_run_outlives_its_terminal_and_a_hangup(folder: Path):
    with served(workers=40, latency_s=0.2) as base_url:
        assert_outlives_its_terminal(folder, base_url)
        assert_can_be_finished(folder, base_url)


def assert_outlives_its_terminal(folder: Path, base_url: str) -> None:
    parent, screen = pty.fork()
    if parent == 0:
        os.execve(BATCHRUN[0], [*BATCHRUN, *command(folder, base_url, "--detach", "--canary", "2")], KEYED)
    said = b""
    while b'"stop":' not in said:
        said += os.read(screen, 4096)
    assert os.waitpid(parent, 0)[1] == 0
    told = json.loads(said.decode().splitlines()[-1])
    pid, log = told["pid"], folder / "out.log"
    with gone_at_the_end(pid):
        os.close(screen)  # the terminal hangs up
        assert f"{ROWS} rows, 0 already done" in said.decode(), "what the run says at its start is shown"
        before = wait_until(folder, lambda status: status.pid == pid).succeeded
        assert before >= 2, "the canary is back"
        assert os.getsid(pid) == pid
        files = {str(Path(f"/proc/{pid}/fd/{fd}").readlink()) for fd in range(3)}
        assert files == {os.devnull, told["log"]} == {os.devnull, str(log)}
        os.kill(pid, signal.SIGHUP)
        wait_until(folder, lambda status: status.succeeded > before + 20)
        assert "\ninterrupted: " in stop(folder)
    assert "interrupted" in log.read_text()
    for path in folder.iterdir():
        assert b"rpa_SECRET" not in path.read_bytes()


def test_a_start_continues_when_its_parent_is_killed_and_resumes_when_it_is_killed_itself(folder: Path):
    with served(workers=4, latency_s=1.0) as slow:  # the canary takes long enough
        began = [*BATCHRUN, *command(folder, slow, "--detach", "--canary", "1")]
        parent = subprocess.Popen(began, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=KEYED)
        status = wait_until(folder, lambda status: status.in_flight)
        parent.kill()
        parent.wait()
        with gone_at_the_end(status.pid):
            status = wait_until(folder, lambda status: status.succeeded)
        wait_until(folder, lambda status: status.pid is None)
        assert "no process drives" in (said := stop(folder))
        assert f"killed, {status.succeeded} of {ROWS} rows" in said
        with detached("resume", folder / "out.jsonl.state", "-j", "8") as told:
            assert wait_until(folder, lambda status: status.in_flight == 8).pid == told["pid"]
    assert_adds_up(folder / "out.jsonl.state")


def test_a_start_that_fails_says_why_on_the_terminal_and_has_its_exit_code(folder: Path):
    with served(api_key="another") as base_url:
        for more, code, words in (("{not a line\n", 2, "in.jsonl:301: invalid JSON"), ("", 4, "key is not accepted")):
            lines = (folder / "in.jsonl").read_text()
            (folder / "in.jsonl").write_text(lines + more)
            done = batchrun(*command(folder, base_url, "--detach"), env=KEYED)
            (folder / "in.jsonl").write_text(lines)
            assert (done.returncode, done.stdout) == (code, ""), done.stderr
            assert words in done.stderr
            assert "Traceback" not in done.stderr
            assert (folder / "out.log").exists() == (code == 4), "a run that never began leaves nothing behind"
    (folder / "out.log").unlink()
    (folder / "out.log").mkdir()
    refused = batchrun(*command(folder, base_url, "--detach"), env=KEYED)
    assert (refused.returncode, "not a regular file" in refused.stderr) == (2, True)


def test_only_a_log_becomes_the_log(folder: Path):
    def refusal(*options: str) -> str:
        done = batchrun(*command(folder, "http://127.0.0.1:9", "--detach", *options), env=KEYED)
        assert (done.returncode, done.stdout) == (2, "")
        return done.stderr

    log = folder / "out.log"
    assert "would also be the log" in refusal("--cache", str(log))
    assert not log.exists()
    log.write_text("the notes of somebody\n")
    assert "but batchrun did not write it" in refusal()
    assert log.read_text() == "the notes of somebody\n"


def test_an_estimate_cannot_go_into_the_background(folder: Path):
    done = batchrun("estimate", *command(folder, "http://127.0.0.1:9", "--detach")[1:], env=KEYED)
    assert (done.returncode, sorted(folder.iterdir())) == (2, [folder / "in.jsonl"])
    assert "--detach" in done.stderr


def test_stdin_is_read_at_the_start_and_ctrl_c_reaches_a_run_that_starts(folder: Path):
    with served(workers=1, latency_s=30.0) as slow:
        began = [*BATCHRUN, *command(folder, slow, "--detach", "--canary", "1", "--on-interrupt", "leave")]
        began[began.index(str(folder / "in.jsonl"))] = "-"
        with (
            (folder / "in.jsonl").open() as lines,
            subprocess.Popen(began, stdin=lines, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=KEYED) as parent,
        ):
            assert wait_until(folder, lambda status: status.in_flight).total == ROWS
            parent.send_signal(signal.SIGINT)
            said = parent.communicate(timeout=30)
    assert (parent.returncode, said[0]) == (130, b"")
    assert b"interrupted: 0 of 300 rows" in said[1]


def test_stop_leaves_or_cancels_also_when_the_run_is_stopping_and_says_how_it_ended(folder: Path):
    state = folder / "out.jsonl.state"
    with served(workers=1, latency_s=60.0) as slow:
        with detached(*command(folder, slow)) as told:
            wait_until(folder, lambda status: status.in_flight == 4)
            first = subprocess.Popen([*BATCHRUN, "stop", state], stderr=subprocess.DEVNULL)
            wait_for(lambda: "stopping" in Path(told["log"]).read_text())
            said = stop(folder, "--leave")
            assert f"process {told['pid']}, which was asked to leave its jobs in flight" in said
            assert f"interrupted: 0 of {ROWS} rows succeeded, 4 in flight" in said
            assert read_status(state).pid is None
            assert first.wait(30) == 0
        with detached("resume", state):
            said = stop(folder, "--cancel")
            assert f"interrupted: 0 of {ROWS} rows succeeded\n" in said
    assert batchrun("stop", state, "--leave", "--cancel").returncode == 2
    assert batchrun("stop", folder / "none.state").returncode == 2


def test_a_run_that_still_reads_its_input_is_stopped_and_cannot_be_tuned_yet(folder: Path):
    first, *rest = (folder / "in.jsonl").read_bytes().splitlines(keepends=True)
    state = folder / "out.jsonl.state"
    with served(workers=1, latency_s=60.0) as slow:
        began = [*BATCHRUN, *command(folder, slow, "-q")]
        began[began.index(str(folder / "in.jsonl"))] = "-"
        with subprocess.Popen(began, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, env=KEYED) as run:
            lines = run.stdin
            assert lines is not None
            lines.write(first)
            lines.flush()
            wait_for(lambda: state.exists() and holder(state) is not None)
            with pytest.raises(StateError, match="is still reading its input"):
                tuning.tune(state, Tuned(concurrency=7), print)

            def carry_on(said: str) -> None:
                assert "was asked to exit, as soon as it has read its input" in said
                lines.write(b"".join(rest))
                lines.close()

            assert stopping.stop(state, "interrupt", carry_on).startswith(f"interrupted: 0 of {ROWS} rows succeeded\n")
            assert run.wait(30) == 130


def tune(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return batchrun("tune", folder / "out.jsonl.state", *options, env=ENVIRONMENT, BATCHRUN_MAX_COST="1")


def is_paused(folder: Path) -> list[bool]:
    """Whether each of the commands that look at a run says that it is paused."""
    state = folder / "out.jsonl.state"
    status, standing = read_status(state), BriefStatusReader(state).read()
    if standing.is_paused:
        assert {pace.left_s for pace in (status.pace, standing.pace) if pace is not None} <= {None}
    shown = "".join(line.text for line in screen(standing, time.time(), 79))
    words = [
        "paused (process " in render(status),
        "paused, process " in listed([standing]),
        "paused, process " in shown,
    ]
    return [*words, json.loads(to_json(status))["is_paused"], standing.to_json()["is_paused"]]


def test_a_run_is_tuned_from_elsewhere_and_later_sessions_keep_it(folder: Path):
    with (
        served(workers=40, latency_s=0.5) as base_url,
        detached(*command(folder, base_url, "-j", "2", "--price-per-hour", "2")) as told,
    ):
        assert tune(folder, "-j", "20").stderr == f"-j 20: applied by process {told['pid']}\n"
        wait_until(folder, lambda status: status.in_flight == 20)
        assert tune(folder, "--pause").returncode == 0
        assert all(is_paused(folder)), "it is said at once"
        done = wait_until(folder, lambda status: status.in_flight == status.submitting == 0).succeeded
        state, three = folder / "out.jsonl.state", (("-j", "20"), ("--deadline", "2h"), ("--max-cost", "90"))
        at_once = [subprocess.Popen([*BATCHRUN, "tune", state, *each], stderr=subprocess.PIPE) for each in three]
        assert all(b"applied by" in process.communicate(timeout=30)[1] for process in at_once), "none is lost"
        for options, words in (
            (("--deadline", "0.001s"), "this deadline has passed"),
            (("--pause", "--resume"), "both --pause and --resume"),
            ((), "no change is given"),
        ):
            refused = tune(folder, *options)
            assert (refused.returncode, words in refused.stderr) == (2, True), refused.stderr
        assert wait_until(folder, lambda _: True).succeeded == done, "it is paused"
        assert all(is_paused(folder))
        assert tune(folder, "--resume", "--max-cost", "60", "--deadline", "10h").returncode == 0
        assert not any(is_paused(folder))
        wait_until(folder, lambda status: status.succeeded > done)
        stop(folder, "--leave")
    log = (folder / "out.log").read_text()
    assert "tuned: -j 20\n" in log
    assert "tuned: --max-cost 60 --deadline 10h --resume\n" in log
    manifest = json.loads((folder / "out.manifest.json").read_text())
    changed = [sorted(each.keys() - {"at", "is_late"}) for each in manifest["tuned"]]
    assert (changed[:2], changed[-1]) == ([["concurrency"], ["is_paused"]], ["deadline_s", "is_paused", "max_cost"])
    assert sorted(changed[2:-1]) == [["concurrency"], ["deadline_s"], ["max_cost"]]
    guards, scheduler = manifest["options"]["guards"], manifest["options"]["scheduler"]
    assert (guards["max_cost"], guards["deadline_s"], scheduler["concurrency"]) == (60, 36000, 20)
    refused = tune(folder, "-j", "7")
    assert refused.returncode == 2
    assert f"batchrun resume {folder / 'out.jsonl.state'} -j 7\n" in refused.stderr
