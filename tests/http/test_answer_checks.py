"""A function of the user that checks answers: whatever it does, the run continues and says why."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest

from batchrun.config import AnswerOptions, RequestOptions
from batchrun.engine import check_process
from batchrun.engine.checking import Checker, CheckFailedError
from batchrun.engine.signals import Leaving, Wish
from batchrun.errors import StateError, UsageError
from batchrun.prompts.schemas import read_schema
from batchrun.runs.closing import conclude
from batchrun.runs.driving import drive
from batchrun.runs.opening import open_run
from batchrun.runs.trust import GivenByCommand
from tests.support.claims import assert_adds_up
from tests.support.rehearsal import Listener, hurried, options_for, read_lines, rehearse, serving, write_lines

RULES = """
import os, sys, time, json

def fine(record): return None
def true(record): return True
def false(record): return False
def says(record): return f"{record['text']} is\\n not  enough"
def raises(record): raise ValueError("boom")
def asserts(record): assert record["text"] == "other", "it is not the other"
def exits(record): sys.exit(3)
def dies(record): os.kill(os.getpid(), 9)
def wrong(record): return 17
def prints(record):
    print('{"reason": "printed"}', flush=True); os.write(1, b"raw\\n"); sys.stdin.read(); return None
def hangs(record):
    if record["text"] == "hang": time.sleep(600)
def slow(record): time.sleep(0.3)
def sees(record):
    return json.dumps({key: record.get(key, "none") for key in ("id", "text", "metadata", "request", "job")})
def ours(record): return None if record["metadata"]["want"] == record["parsed"]["n"] else "another number"
RULES = 3
def waits(record):
    open(FOLDER + "/called", "a").close()
    while not os.path.exists(FOLDER + "/go"): time.sleep(0.01)
def pid(record): return str(os.getpid())
FOLDER = os.path.dirname(__file__)
def halves(record): return "half of \\ud83d"
def leaks(record): raise ValueError("GET /?key=rpa_rehearsal")
def leaves(record):
    child = os.fork()
    if not child: time.sleep(600)
    return str(child)
def forks(record):
    if not os.fork(): raise SystemExit
class Mute(Exception):
    def __str__(self): raise RuntimeError
def mute(record): raise Mute
def talks(record): return "so much " * 5_000_000
class Deep:
    @staticmethod
    def rule(record): return "deep"
"""


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "rules.py"
    path.write_text(RULES)
    (tmp_path / "broken.py").write_text("def rule(:\n")
    (tmp_path / "leaves.py").write_text("raise SystemExit\n")
    return path


async def checked(folder: Path, function: str, *texts: str, reask: int = 0, timeout_s: float = 20.0, **given: Any):
    """Run an echo of these texts, each answer checked by a function of the rules."""
    write_lines(folder, [{"id": f"r{n}", "prompt": text, "metadata": {"n": n}} for n, text in enumerate(texts)])
    answers = AnswerOptions(check=f"{folder / 'rules.py'}:{function}", check_timeout_s=timeout_s)
    async with serving() as server:
        return await rehearse(folder, server.endpoint.base_url, answers=answers, scheduler={"reask": reask}, **given)


@pytest.mark.parametrize("function", ["fine", "true", "prints"])
async def test_an_answer_that_the_function_accepts_is_a_result(rules: Path, function: str):
    done = await checked(rules.parent, function, "one", "two")
    assert sorted(record["text"] for record in done.results) == ["one", "two"]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("false", "refused by "),
        ("says", "one is not enough"),
        ("raises", "ValueError: boom"),
        ("asserts", "it is not the other"),
        ("exits", "SystemExit: 3"),
        ("dies", "the check's process ended by signal 9"),
        ("wrong", "the check returned a value of type int; expected None, True, False or a text"),
        ("halves", "half of \\ud83d"),
        ("mute", "Mute"),
        ("talks", "so much so much"),
        ("Deep.rule", "deep"),
    ],
)
async def test_what_it_returns_or_raises_is_the_reason(rules: Path, function: str, message: str):
    done = await checked(rules.parent, function, "one")
    (record,) = done.errors
    assert record["error"]["kind"] == "invalid_output"
    assert record["error"]["message"].startswith(message)
    assert record["error"]["raw"] == "one"
    assert_adds_up(rules.parent / "out.jsonl.state")


async def test_a_fork_that_comes_back_from_the_function_gives_no_verdict(rules: Path):
    done = await checked(rules.parent, "forks", *map(str, range(20)))
    assert len(done.results) == 20, "else the other rows would get its verdict"


async def test_a_row_that_it_refuses_is_asked_again(rules: Path):
    done = await checked(rules.parent, "says", "one", reask=2)
    assert done.errors[0]["job"]["attempts"] == 3
    assert done.summary.reasks == 2


async def test_a_call_that_hangs_is_ended_and_the_others_are_answered(rules: Path):
    done = await checked(rules.parent, "hangs", *["fine"] * 20, "hang", *["good"] * 20, timeout_s=1.0)
    (record,) = done.errors
    assert record["error"]["message"] == "the check took longer than 1 s"
    assert len(done.results) == 40


async def test_it_sees_the_record_with_its_line_and_before_its_job(rules: Path):
    done = await checked(rules.parent, "sees", "one")
    seen = json.loads(done.errors[0]["error"]["message"])
    line = {"id": "r0", "prompt": "one", "metadata": {"n": 0}}
    assert seen == {"id": "r0", "text": "one", "metadata": {"n": 0}, "request": line, "job": "none"}


async def test_it_sees_the_value_that_a_schema_found(rules: Path):
    lines = [{"prompt": json.dumps({"n": n}), "metadata": {"want": n // 3 * 3}} for n in range(6)]
    write_lines(rules.parent, lines)
    async with serving() as server:
        done = await rehearse(
            rules.parent,
            server.endpoint.base_url,
            answers=AnswerOptions(check=f"{rules}:ours"),
            request=RequestOptions(schema=read_schema("n int")),
        )
    assert sorted(record["parsed"]["n"] for record in done.results) == [0, 3]
    assert {record["error"]["message"] for record in done.errors} == {"another number"}


async def test_a_record_of_many_megabytes_goes_through_the_pipe(rules: Path):
    done = await checked(rules.parent, "fine", "x" * 3_000_000)
    assert done.summary.succeeded == 1


@pytest.mark.parametrize(
    ("check", "message"),
    [
        ("no_such_module:rule", "no_such_module cannot be imported: ModuleNotFoundError"),
        ("{rules}:nothing", "has no nothing"),
        ("{rules}:RULES", "RULES is not a function"),
        ("{folder}/broken.py:rule", "broken.py cannot be imported: SyntaxError"),
        ("{folder}/missing.py:rule", "missing.py cannot be imported: FileNotFoundError"),
        ("{folder}/leaves.py:rule", "leaves.py cannot be imported: SystemExit"),
    ],
)
async def test_one_that_cannot_be_found_is_refused_before_anything_is_written(rules: Path, check: str, message: str):
    write_lines(rules.parent, [{"prompt": "one"}])
    answers = AnswerOptions(check=check.format(rules=rules, folder=rules.parent))
    async with serving() as server:
        with pytest.raises(UsageError, match=message):
            await rehearse(rules.parent, server.endpoint.base_url, answers=answers)
        assert not server.seen
    assert not (rules.parent / "out.jsonl.state").exists()


async def test_answers_that_are_still_being_checked_at_the_end_are_checked_in_the_next_session(rules: Path):
    folder, leaving = rules.parent, Leaving()
    write_lines(folder, [{"id": "a", "prompt": "one"}])
    options = options_for(folder, answers=AnswerOptions(check=f"{rules}:waits", check_timeout_s=60.0))

    async with serving() as server:
        with open_run(options, Listener(), clock=hurried, wall=time.time) as opened:
            work = drive(opened, server.endpoint.base_url, Random(0), leaving=leaving)
            outcome = await _leaving_when(folder / "called", leaving, work)
            summary = conclude(opened, outcome)
        assert (summary.outcome, summary.in_flight) == ("interrupted", 1)
        (folder / "go").touch()
        leaving = Leaving()
        with open_run(options, Listener(), clock=hurried, wall=time.time) as opened:
            summary = conclude(opened, await drive(opened, server.endpoint.base_url, Random(0), leaving=leaving))
        assert (summary.succeeded, server.seen["run"]) == (1, 1)
    assert [record["id"] for record in read_lines(options.output)] == ["a"]


async def _leaving_when(path: Path, leaving: Leaving, work: Any) -> Any:
    def look() -> None:
        if path.exists():
            leaving.ask(Wish.LEAVE)
        else:
            loop.call_later(0.01, look)

    loop = asyncio.get_running_loop()
    loop.call_soon(look)
    return await work


async def test_its_processes_end_with_the_run(rules: Path):
    done = await checked(rules.parent, "pid", *map(str, range(8)))
    pids = {int(record["error"]["message"]) for record in done.errors}
    assert 1 <= len(pids) <= 4
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_the_key_is_redacted_in_what_the_function_says(rules: Path):
    done = await checked(rules.parent, "leaks", "one", key="rpa_rehearsal")
    assert [record["error"]["message"] for record in done.errors] == ["ValueError: GET /?key=[redacted]"]


async def test_what_the_function_has_started_neither_delays_the_end_of_the_run_nor_outlives_it(rules: Path):
    began = time.monotonic()
    done = await checked(rules.parent, "leaves", "one")
    assert time.monotonic() - began < 120
    (record,) = done.errors
    wait_until_gone(int(record["error"]["message"]))


def wait_until_gone(pid: int) -> None:
    """Wait until a process has ended; one that nobody waits for may be left as a zombie."""
    with suppress(FileNotFoundError, ProcessLookupError):
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)


async def test_it_runs_at_the_side_of_the_event_loop(rules: Path):
    checker = Checker(f"{rules}:hangs", 0.5)
    began = time.monotonic()
    try:
        with pytest.raises(CheckFailedError, match=r"longer than 0\.5 s"):
            await checker.reason(b'{"text": "hang"}\n')
        assert await checker.reason(b'{"text": "fine"}\n') is None, "it is started again"
    finally:
        checker.close()
    assert time.monotonic() - began < 60


def test_its_process_ends_when_its_pipe_does(rules: Path):
    program = Path(check_process.__file__)
    running = subprocess.run(
        [sys.executable, "-P", program, f"{rules}:says", "1"],
        input=b'{"text": "one"}\n',
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert [json.loads(line) for line in running.stdout.splitlines()] == [
        {"ready": True},
        {"reason": "one is\n not  enough"},
    ]


async def test_a_state_file_alone_makes_nobody_call_a_function(rules: Path):
    await checked(rules.parent, "fine", "one")
    await asyncio.to_thread(rules.unlink)
    options = options_for(rules.parent, answers=AnswerOptions(check=f"{rules}:fine"))
    for key in (None, "rpa_other"):
        given = GivenByCommand(paths=False, check=False)
        with (
            pytest.raises(StateError, match=r"calls .*rules\.py:fine") as refused,
            open_run(options, Listener(), clock=hurried, wall=time.time, api_key=key, given=given),
        ):
            pass
        assert f"--check {rules}:fine" in refused.value.hint


async def test_a_function_that_a_holder_of_the_key_has_chosen_is_called(rules: Path):
    write_lines(rules.parent, [{"prompt": "one"}])
    options = options_for(rules.parent, answers=AnswerOptions(check=f"{rules}:fine"))
    for given in (GivenByCommand(), GivenByCommand(paths=False, check=False)):
        with open_run(options, Listener(), clock=hurried, wall=time.time, api_key="rpa_mine", given=given):
            pass


async def test_a_module_chosen_in_one_folder_is_not_called_in_another(rules: Path, tmp_path_factory, monkeypatch):
    write_lines(rules.parent, [{"prompt": "one"}])
    options = options_for(rules.parent, answers=AnswerOptions(check="rules:fine"))
    monkeypatch.chdir(rules.parent)
    with open_run(options, Listener(), clock=hurried, wall=time.time, api_key="rpa_mine"):
        pass
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "rules.py").write_text("open('called', 'w').close()\ndef fine(record): pass\n")
    monkeypatch.chdir(elsewhere)
    given = GivenByCommand(paths=False, check=False)
    with (
        pytest.raises(StateError, match="calls rules:fine"),
        open_run(options, Listener(), clock=hurried, wall=time.time, api_key="rpa_mine", given=given),
    ):
        pass
    assert not (elsewhere / "called").exists()
