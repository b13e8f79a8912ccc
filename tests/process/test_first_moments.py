"""Signals from the first line of the command to its last, as process 1 of a container too."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.command import BATCHRUN, KEYED, start
from tests.support.rehearsal import read_lines, write_lines
from tests.support.terminals import stalled_terminal
from tests.support.waiting import wait_for, wait_for_lines

if TYPE_CHECKING:
    from pathlib import Path

AT_AN_IMPORT = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path, target=None):
        if name == moment:
            os.kill(os.getpid(), number)

number, moment = getattr(signal, sys.argv[1]), sys.argv[2]
sys.meta_path.insert(0, Finder())
sys.argv[1:] = ["check", "nowhere.jsonl"]
from batchrun.__main__ import main
main()
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
@pytest.mark.parametrize("moment", ["batchrun.cli.app", "click", "batchrun.commands.check", "batchrun.prompts.sources"])
def test_a_signal_while_something_is_imported_ends_the_command_quietly(number: str, moment: str):
    done = subprocess.run([sys.executable, "-c", AT_AN_IMPORT, number, moment], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (130, b"")


IN_A_CALLBACK = """
import os, signal, weakref
from batchrun.cli import app

def command():
    thing = weakref.WeakSet()
    heard = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    del thing
    print("it was lost")

app.main = command
from batchrun.__main__ import main
main()
"""


def test_a_signal_in_a_callback_whose_exceptions_are_only_printed_ends_the_command_quietly():
    done = subprocess.run([sys.executable, "-c", IN_A_CALLBACK], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


WHILE_IT_LEAVES = """
import os, signal, sys
from batchrun.cli import app

def interrupted(*_):
    os.kill(os.getpid(), signal.SIGINT)

app.main = sys.exit = interrupted
from batchrun.__main__ import main
main()
"""


def test_a_second_signal_while_the_command_leaves_is_no_traceback():
    done = subprocess.run([sys.executable, "-c", WHILE_IT_LEAVES], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (130, b"")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_input_is_read_is_an_interrupt_without_a_traceback(tmp_path: Path, number: signal.Signals):
    process = subprocess.Popen(
        [*BATCHRUN, "run", "-", "-e", "abc", "--base-url", "http://127.0.0.1:9/v2", "-o", str(tmp_path / "out.jsonl")],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=KEYED,
    )
    wait_for((tmp_path / "out.jsonl.state").exists)
    process.send_signal(number)
    said = process.communicate(timeout=20)[1]
    assert process.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said


def unshare() -> list[str] | None:
    """What starts a command as process 1; None where that is not permitted."""
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*command, "true"], check=False, capture_output=True).returncode
    ):
        return None
    return command


@pytest.mark.parametrize("number", ["TERM", "INT"])
def test_as_process_1_a_signal_is_heard_from_the_first_line_on(tmp_path: Path, number: str):
    command = unshare()
    if command is None:
        pytest.skip("no permission to make a process namespace")
    inside = f'{sys.executable} -c "$PROGRAM" SIG{number} batchrun.cli.app'
    done = subprocess.run(
        [*command, "bash", "-c", f"exec {inside}"],
        env={**KEYED, "PROGRAM": AT_AN_IMPORT},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, b"")


def test_as_process_1_a_run_collects_what_is_in_flight_and_ends(tmp_path: Path, base_url: str, monkeypatch):
    command = unshare()
    if command is None:
        pytest.skip("no permission to make a process namespace")
    monkeypatch.setattr("tests.support.command.BATCHRUN", [*command, *BATCHRUN])
    write_lines(tmp_path, [{"id": f"r{n}", "prompt": f"prompt {n}"} for n in range(3000)])
    process = start(tmp_path, base_url)
    wait_for_lines(tmp_path / "out.jsonl", 20)
    (child,) = subprocess.run(
        ["ps", "--no-headers", "-o", "pid", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    subprocess.run(["kill", "-TERM", child], check=True)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 130, said
    assert "interrupted" in said
    assert 20 <= len(read_lines(tmp_path / "out.jsonl")) < 3000


def test_a_terminal_that_nobody_reads_holds_up_neither_the_run_nor_its_signals(tmp_path: Path, base_url: str):
    write_lines(tmp_path, [{"id": f"r{n}", "prompt": f"prompt {n}"} for n in range(30_000)])
    with stalled_terminal() as side:
        process = subprocess.Popen(
            [
                *BATCHRUN,
                *("run", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"), "--base-url", base_url),
                *("-e", "abc", "--run-limit", "0", "--status-limit", "0", "--progress", "bar", "--verbose"),
            ],
            stderr=side,
            env=KEYED,
        )
        wait_for_lines(tmp_path / "out.jsonl", 1000)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert process.wait(30) == 130
        assert time.monotonic() - began < 15
