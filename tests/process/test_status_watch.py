"""`status --watch` on a real terminal, and `ls`, while a run is in progress in another process."""

from __future__ import annotations

import fcntl
import os
import re
import select
import shlex
import signal
import sqlite3
import subprocess
import sys
import termios
from contextlib import closing
from typing import TYPE_CHECKING

import orjson
import pytest

from tests.support.command import BATCHRUN, ENVIRONMENT, assert_one_clear_line, batchrun, served, start, status
from tests.support.rehearsal import write_lines
from tests.support.terminals import OnTerminal, Screen
from tests.support.waiting import wait_for_lines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROWS = 400
ALL_LINES = re.compile(
    r"pace .*\njobs +\d+ in flight, window (?:[2-9]|10)\nworkers +2 running\n(?:endpoint .*\n)?cost +\$", re.DOTALL
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_lines(tmp_path, [{"id": f"r{n}", "prompt": f"prompt {n}"} for n in range(ROWS)])
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A run that takes minutes, and has its first results."""
    with served(workers=2, latency_s=0.3) as base_url:
        process = start(folder, base_url, "--price-per-hour", "2", "-j", "10")
        wait_for_lines(folder / "out.jsonl", 2)
        yield process
        process.kill()
        process.communicate()


WATCH = [*BATCHRUN, "status", "--watch", "--every", "0.2"]


def watching(folder: Path, columns: int = 80, lines: int = 24, **environ: str) -> OnTerminal:
    return OnTerminal(WATCH, columns, lines, {**ENVIRONMENT, **environ}, folder)


def assert_is_left_clean(screen: Screen) -> None:
    assert not screen.is_other
    assert screen.has_cursor
    assert not screen.scrolled


def test_a_run_is_watched_from_another_terminal_which_is_left_clean_while_the_run_continues(
    folder: Path, run: subprocess.Popen[str]
):
    seen = watching(folder)
    text = seen.look(lambda screen: ALL_LINES.search(screen.text()))  # nothing is left of an earlier, shorter screen
    assert seen.screen.is_other
    assert f"running, process {run.pid}" in text
    assert f"of {ROWS} rows" in text
    assert "32" in seen.screen.tones
    first = text.split(" of ")[0].splitlines()[-1]
    seen.look(lambda screen: f"\n{first} of" not in screen.text())
    seen.type(b"\x03")
    assert seen.end() == 130
    assert_is_left_clean(seen.screen)
    assert f"of {ROWS} rows" in seen.screen.text(), "what was seen last stays"
    assert "interrupted" not in seen.screen.text()
    assert run.poll() is None
    said = batchrun("ls", cwd=folder).stdout
    assert f"running, process {run.pid}" in said
    assert "/s" in said


def test_the_watch_ends_with_the_run_and_shows_how_it_ended(folder: Path, run: subprocess.Popen[str]):
    seen = watching(folder, 50, 12, NO_COLOR="1")
    seen.look(lambda screen: f"of {ROWS} rows" in screen.text())
    run.kill()
    run.wait()
    assert seen.end() == 0
    assert_is_left_clean(seen.screen)
    assert seen.screen.tones == set()
    assert "resume by " in seen.screen.text()
    assert "batchrun resume out.jsonl.state" in seen.screen.text()
    (listed,) = map(orjson.loads, batchrun("ls", "--json", cwd=folder).stdout.splitlines())
    assert (listed["process"], listed["status"], listed["pace"]) == (None, "cut off", None)
    assert listed["in_flight"] == 10
    assert listed["done"] == status(folder)["succeeded"]
    ((submitted_ms,),) = asked(
        folder, "SELECT min(j.submitted_ms) FROM rows r JOIN jobs j USING (job) WHERE r.state = 2"
    )
    assert submitted_ms / 1000 + 1800 <= listed["resume_by"] < submitted_ms / 1000 + 1830


def test_ctrl_z_shows_the_shell_and_the_screen_comes_back(folder: Path, run: subprocess.Popen[str]):
    shell = ["sh", "-mc", f"{shlex.join(WATCH)}; echo stopped; read line; fg > /dev/null"]
    seen = OnTerminal(shell, 80, 24, ENVIRONMENT, folder)
    seen.look(lambda screen: screen.is_other and "rows" in screen.text())
    seen.type(b"\x1a")
    seen.look(lambda screen: not screen.is_other and "stopped" in screen.text())
    assert seen.screen.has_cursor
    seen.type(b"\n")
    seen.look(lambda screen: screen.is_other and "rows" in screen.text())
    seen.type(b"\x03")
    assert seen.end() == 130
    assert_is_left_clean(seen.screen)
    assert run.poll() is None


def test_ctrl_z_in_the_middle_of_a_long_write_is_one_too(folder: Path):
    code = """
from batchrun.display.screen import Line
from batchrun.display.terminal import Terminal
from batchrun.files.streams import take_over
take_over()
terminal = Terminal()
with terminal.taken():
    terminal.draw([Line("x" * 1000)] * 1000)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, process_group=0) as process:
        assert process.stdout is not None
        while int.from_bytes(fcntl.ioctl(process.stdout, termios.FIONREAD, bytes(4)), sys.byteorder) < 50_000:
            assert process.poll() is None
        process.send_signal(signal.SIGTSTP)
        said = bytearray()
        while not os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED | os.WNOHANG)[1]):
            if select.select([process.stdout], [], [], 0.1)[0]:
                said += os.read(process.stdout.fileno(), 4096)
            assert process.poll() is None
        process.send_signal(signal.SIGCONT)
        said += process.stdout.read()
        assert process.wait() == 0
    assert said.count(b"x") == 1_000_000
    assert (said.count(b"\x1b[?1049h"), said.count(b"\x1b[?1049l")) == (2, 2)


def test_an_outage_is_shown_as_the_obstacle(folder: Path):
    process = start(folder, "http://127.0.0.1:9/v2")
    try:
        wait_for_lines(folder / "out.jsonl.state", 1)
        seen = watching(folder)
        text = seen.look(lambda screen: "obstacle" in screen.text())
        assert "waiting for the endpoint: " in text
        seen.type(b"\x03")
        seen.end()
        assert "obstacle: waiting for the endpoint" in batchrun("status", cwd=folder).stdout
    finally:
        process.kill()
        process.communicate()


def asked(folder: Path, sql: str) -> list[tuple]:
    with closing(sqlite3.connect(f"file:{folder / 'out.jsonl.state'}?mode=ro", uri=True)) as db:
        return db.execute(sql).fetchall()


@pytest.fixture
def finished(folder: Path) -> Path:
    write_lines(folder, [{"id": f"r{n}", "prompt": "p"} for n in range(3)])
    done = batchrun("run", "in.jsonl", "-e", "local", "--worker", "echo", "-o", "out.jsonl", "-q", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_where_stdout_is_not_a_terminal_the_screens_are_plain_text(finished: Path):
    done = batchrun("status", "--watch", cwd=finished)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("out.jsonl.state")
    assert "finished\n" in done.stdout
    assert "\x1b" not in done.stdout
    (line,) = batchrun("status", "--watch", "--json", cwd=finished).stdout.splitlines()
    assert (orjson.loads(line)["status"], orjson.loads(line)["done"]) == ("finished", 3)


def test_looking_needs_no_permission_to_write(finished: Path):
    (finished / "out.jsonl.state").chmod(0o400)
    finished.chmod(0o500)
    try:
        for command in (["status"], ["status", "--watch"], ["ls"]):
            assert batchrun(*command, cwd=finished).returncode == 0
    finally:
        finished.chmod(0o700)


def test_ls_lists_what_there_is_the_newest_first_and_names_what_cannot_be_read(finished: Path):
    inner = finished / "results"
    inner.mkdir()
    done = batchrun("run", "in.jsonl", "-e", "local", "--worker", "echo", "-o", "results/", "-q", cwd=finished)
    assert done.returncode == 0, done.stderr
    (finished / "foreign.state").write_text("another program's file, long enough to be a database" * 20)
    (finished / "folder.state").mkdir()
    whole = (finished / "out.jsonl.state").read_bytes()
    (finished / "torn.state").write_bytes(whole[:5000])
    done = batchrun("ls", "--json", cwd=finished)
    found = {orjson.loads(line)["state"]: orjson.loads(line) for line in done.stdout.splitlines()}
    assert done.returncode == 0
    assert list(found) == ["torn.state", "results/batchrun.state", "out.jsonl.state"]
    assert "damaged" in found["torn.state"]["problem"]
    assert found["results/batchrun.state"]["status"] == "finished"
    text = batchrun("ls", ".", inner, cwd=finished).stdout
    assert "100.0%" in text
    assert f"{inner}/batchrun.state" in text
    assert batchrun("status", cwd=inner).stdout.startswith("batchrun.state")


def test_where_there_is_nothing_to_look_at_one_line_says_so(tmp_path: Path):
    assert_one_clear_line(batchrun("status", cwd=tmp_path), 2, "no state file in this folder")
    assert_one_clear_line(batchrun("status", "--watch", cwd=tmp_path), 2, "no state file in this folder")
    assert_one_clear_line(batchrun("ls", "nowhere", cwd=tmp_path), 2, "nowhere: No such file or directory")
    assert_one_clear_line(batchrun("status", "a.state", "--every", "3", cwd=tmp_path), 2, "--every needs --watch")
    assert_one_clear_line(batchrun("status", "a.state", "--watch", cwd=tmp_path), 2, "there is no such state file")
    assert batchrun("ls", cwd=tmp_path).stdout == "no state files\n"
    write_lines(tmp_path, ["p"])
    assert_one_clear_line(batchrun("ls", "in.jsonl", cwd=tmp_path), 2, "in.jsonl is neither a folder nor a state file")
