"""`estimate` and `run --confirm`: the pilot is a part of the run, and the estimate is what the rest then takes."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import orjson
import pytest

from batchrun.commands.status import read_status
from batchrun.state.pilot import pilot_rows
from batchrun.state.reader import StateReader
from tests.support.claims import assert_adds_up, assert_each_id_once
from tests.support.command import BATCHRUN, KEYED, batchrun, invoke, served
from tests.support.jobs import jobs_run
from tests.support.rehearsal import read_lines, write_lines
from tests.support.waiting import wait_for, wait_for_lines

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 80


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_lines(tmp_path, [{"id": f"r{n}", "prompt": f"prompt {n}", "max_tokens": 4} for n in range(ROWS)])
    monkeypatch.setenv("RUNPOD_API_KEY", "rpa_SECRET")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def arguments(base_url: str, *more: object) -> list[object]:
    """What both commands are given; the input is `in.jsonl` unless `more` begins with another one."""
    has_input = bool(more) and (str(more[0]) == "-" or not str(more[0]).startswith("-"))
    has_endpoint = any(each == "-e" or str(each).startswith("endpoint=") for each in more)
    where = [] if has_endpoint else ["-e", "abc"]
    given = more if has_input else ("in.jsonl", *more)
    return [*given, *where, "-o", "out.jsonl", "--base-url", base_url, "--progress", "none"]


def estimated(base_url: str, *more: object, code: int = 0) -> dict:
    done = batchrun("estimate", *arguments(base_url, *more), "--json")
    assert done.returncode == code, done.stderr
    return orjson.loads(done.stdout)


def test_the_pilot_is_drawn_at_random_and_the_run_continues_with_the_rest_in_input_order(folder: Path, base_url: str):
    found = estimated(base_url, "--pilot", 10, "-j", 1)
    first = [record["id"] for record in read_lines(folder / "out.jsonl")]
    assert (len(first), found["pilot_rows"], found["left"], found["pilot_failed"]) == (10, 10, ROWS - 10, 0)
    assert first != [f"r{n}" for n in range(10)]
    again = estimated(base_url, "--pilot", 10, "-j", 1)
    assert (again["left"], jobs_run(base_url)) == (ROWS - 10, 10), "it is not run twice"
    more = estimated(base_url, "--pilot", 15, "-j", 1)
    assert (more["left"], jobs_run(base_url)) == (ROWS - 15, 15)
    code, said = invoke("run", *arguments(base_url, "-j", 1))
    assert code == 0, said
    ids = [record["id"] for record in read_lines(folder / "out.jsonl")]
    assert ids[15:] == [f"r{n}" for n in range(ROWS) if f"r{n}" not in ids[:15]]
    assert_each_id_once(folder / "out.jsonl", ROWS)
    assert_adds_up(folder / "out.jsonl.state")
    assert jobs_run(base_url) == ROWS
    done = batchrun("estimate", *arguments(base_url, "-j", 1))
    assert (done.returncode, done.stdout) == (0, "")
    assert f"finished: {ROWS} of {ROWS} rows succeeded" in done.stderr


VARIED: dict[str, tuple[list[object], int]] = {
    "ordered": (["--ordered"], ROWS),
    "shared jobs": (["--pack", 8, "--pack-check", "off"], ROWS),
    "pool": (["-e", "abc,xyz"], ROWS),
    "sweep": (["--sweep", "temperature=0,1", "--repeat", 2], 4 * ROWS),
    "endpoints compared": (["--sweep", "endpoint=abc,xyz"], 2 * ROWS),
    "dedupe": (["--dedupe"], ROWS),
    "table": (["t.csv", "--prompt", "Label {{ n }}"], ROWS),
    "a limit": (["--limit", 50], 50),
    "OpenAI's format": (["--format", "openai"], ROWS),
}


@pytest.mark.parametrize("name", VARIED)
def test_a_pilot_of_any_run_leaves_each_row_once(folder: Path, base_url: str, name: str):
    more, total = VARIED[name]
    (folder / "t.csv").write_text("id,n\n" + "".join(f"r{n},{n}\n" for n in range(ROWS)))
    found = estimated(base_url, *more, "--pilot", 20, "--price-per-hour", 2)
    assert (found["pilot_rows"], found["left"]) == (20, total - 20)
    assert found["input_tokens"]["high"] > 0
    assert found["max_cost"] > 0
    assert set(found["workers"].values()) == {20}
    with StateReader(folder / "out.jsonl.state") as store:
        assert len(pilot_rows(store)) == 20
    code, said = invoke("run", *arguments(base_url, *more, "--price-per-hour", 2))
    assert code == 0, said
    assert_adds_up(folder / "out.jsonl.state")
    key = "custom_id" if "openai" in more else "id"
    ids = [record[key] for record in read_lines(folder / "out.jsonl")]
    assert len(ids) == len(set(ids)) == total
    if name == "ordered":
        assert ids == [f"r{n}" for n in range(ROWS)]


def test_stdin_is_read_once_and_the_run_continues_with_its_copy(folder: Path, base_url: str):
    with (folder / "in.jsonl").open("rb") as lines:
        done = batchrun("estimate", *arguments(base_url, "-", "--pilot", 10), "--json", stdin=lines)
    assert done.returncode == 0, done.stderr
    assert batchrun("run", *arguments(base_url, "-")).returncode == 0
    assert_each_id_once(folder / "out.jsonl", ROWS)
    assert jobs_run(base_url) == ROWS


def test_a_pilot_that_is_killed_loses_nothing_and_stays_the_same_pilot(folder: Path, base_url: str):
    command = [*BATCHRUN, "estimate", *map(str, arguments(base_url, "--pilot", 60, "-j", 1))]
    process = subprocess.Popen(command, env=KEYED, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for_lines(folder / "out.jsonl", 5)
    process.kill()
    process.communicate()
    with StateReader(folder / "out.jsonl.state") as store:
        drawn = pilot_rows(store)
    found = estimated(base_url, "--pilot", 60, "-j", 20)
    with StateReader(folder / "out.jsonl.state") as store:
        assert pilot_rows(store) == drawn
        assert (found["pilot_rows"], found["left"]) == (60, ROWS - 60)
        unconfirmed = store.counters().get("unconfirmed", 0)
    assert invoke("run", *arguments(base_url))[0] == 0
    assert_each_id_once(folder / "out.jsonl", ROWS)
    assert_adds_up(folder / "out.jsonl.state")
    assert ROWS <= jobs_run(base_url) <= ROWS + unconfirmed


def test_a_pilot_that_is_interrupted_is_a_run_that_is_interrupted(folder: Path, base_url: str):
    command = [*BATCHRUN, "estimate", *map(str, arguments(base_url, "--pilot", 70, "-j", 1))]
    process = subprocess.Popen(command, env=KEYED, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_lines(folder / "out.jsonl", 5)
    process.send_signal(signal.SIGINT)
    out, said = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert "interrupted: " in said
    assert invoke("run", *arguments(base_url))[0] == 0
    assert_each_id_once(folder / "out.jsonl", ROWS)


def test_without_a_pilot_only_characters_are_known_and_nothing_is_sent(folder: Path, base_url: str):
    done = batchrun("estimate", *arguments(base_url, "--pilot", 0))
    assert done.returncode == 0, done.stderr
    characters = sum(len(f"prompt {n}") for n in range(ROWS))
    assert f"80 rows with {characters:,} characters of prompts, about {characters // 4} tokens" in done.stdout
    assert "only characters are known" in done.stdout
    assert estimated(base_url, "--pilot", 0)["characters"] == characters
    assert sorted(path.name for path in folder.iterdir()) == ["in.jsonl"]
    assert jobs_run(base_url) == 0


def test_a_pilot_of_one_row_is_refused(folder: Path, base_url: str):
    code, said = invoke("estimate", *arguments(base_url, "--pilot", 1))
    assert (code, "one row gives no range" in said) == (2, True)
    assert sorted(path.name for path in folder.iterdir()) == ["in.jsonl"]


def test_of_a_run_that_its_pilot_has_finished_there_is_no_estimate(folder: Path, base_url: str):
    code, said = invoke("estimate", *arguments(base_url, "--pilot", ROWS + 1)[:-1], "plain")
    assert (code, jobs_run(base_url)) == (0, ROWS)
    assert f"pilot: up to {ROWS + 1} rows" in said
    assert "no row is left, so there is no estimate" in said
    assert f"finished: {ROWS} of {ROWS} rows succeeded" in said


@pytest.mark.parametrize(("more", "code"), [(("-j", 1), 4), ((), 3)])
def test_of_a_broken_endpoint_there_is_no_estimate(folder: Path, base_url: str, more: tuple, code: int):
    write_lines(folder, [{"id": f"r{n}", "prompt": "x", "max_tokens": -1} for n in range(ROWS)])
    done = batchrun("estimate", *arguments(base_url, "--pilot", 40, *more), "--json")
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert "bad_request" in done.stderr
    assert ("the first 20 finished rows all failed" in done.stderr) == (code == 4)


def test_rows_that_fail_in_the_pilot_are_counted(folder: Path, base_url: str):
    write_lines(folder, [{"id": f"r{n}", "prompt": "x", "max_tokens": -1 if n % 2 else 4} for n in range(ROWS)])
    found = estimated(base_url, "--pilot", 40, "--max-retries", 0, "--halt", "off", code=3)
    assert (found["pilot_rows"], found["left"]) == (40, ROWS - 40)
    assert 0 < found["pilot_failed"] < 40


def test_rows_that_the_cache_has_cost_nothing_in_the_estimate_either(folder: Path, base_url: str):
    cached = ["--cache", "answers.cache", "--set", "temperature=0"]
    code, said = invoke("run", *arguments(base_url, *cached, "--limit", ROWS // 2))
    assert code == 0, said
    for path in folder.glob("out.*"):
        path.unlink()
    found = estimated(base_url, *cached, "--pilot", 30)
    assert (found["pilot_rows"], found["left"]) == (30, ROWS - 30)
    assert found["jobs"]["low"] < found["jobs"]["high"] < ROWS - 30
    assert found["output_tokens"]["high"] < 4 * (ROWS - 30)


def test_if_the_cache_has_all_of_the_pilot_there_is_no_estimate(folder: Path, base_url: str):
    cached = ["--cache", "answers.cache", "--set", "temperature=0"]
    assert invoke("run", *arguments(base_url, *cached))[0] == 0
    for path in folder.glob("out.*"):
        path.unlink()
    code, said = invoke("estimate", *arguments(base_url, *cached, "--pilot", 10))
    assert (code, "the cache had every row of the pilot" in said) == (4, True), said


def test_a_run_is_not_confirmed_without_a_terminal(folder: Path, base_url: str):
    done = batchrun("run", *arguments(base_url, "--confirm"))
    assert done.returncode == 2
    assert "no terminal to ask on; nothing was sent" in done.stderr
    assert "batchrun estimate" in done.stderr
    assert jobs_run(base_url) == 0


def asked(folder: Path, base_url: str, answer: bytes, *options: object) -> tuple[int, str]:
    """The exit code of `run --confirm` on a terminal, and what it showed."""
    screen, side = pty.openpty()
    command = [*BATCHRUN, "run", *map(str, arguments(base_url, "--confirm", "--price-per-hour", 2, *options))]
    process = subprocess.Popen(command, env=KEYED, stdin=side, stdout=side, stderr=side, cwd=folder)
    os.close(side)
    said = b""
    while b"[y/N]" not in said:
        said += os.read(screen, 10_000)
    os.write(screen, answer)
    wait_for(lambda: process.poll() is not None)
    os.set_blocking(screen, False)
    try:
        while more := os.read(screen, 10_000):
            said += more
    except OSError:
        pass
    os.close(screen)
    return process.returncode, said.decode()


def test_a_run_that_is_confirmed_on_a_terminal_runs_the_rest_and_else_only_the_pilot(folder: Path, base_url: str):
    code, said = asked(folder, base_url, b"n\n")
    assert (code, jobs_run(base_url)) == (4, 30), said
    assert "estimate for the 50 rows left" in said
    assert "the rows of the pilot keep their results" in said
    code, said = asked(folder, base_url, b"y\n")
    assert (code, jobs_run(base_url)) == (0, ROWS), said
    assert_each_id_once(folder / "out.jsonl", ROWS)


def test_rows_that_have_failed_are_run_again_once_when_the_run_is_confirmed(folder: Path, base_url: str):
    lines = [orjson.loads(line) for line in (folder / "in.jsonl").read_bytes().splitlines()]
    write_lines(folder, [{**line, "temperature": -1} if n % 2 else line for n, line in enumerate(lines)])
    assert batchrun("run", *arguments(base_url, "--halt", "off", "--limit", 40)).returncode == 3
    code, said = asked(folder, base_url, b"y\n", "--halt", "off", "--retry-failed")
    assert (code, jobs_run(base_url)) == (3, ROWS // 2), said
    attempts = [record["job"]["attempts"] for record in read_lines(folder / "out.errors.jsonl")]
    assert sorted(attempts) == [1] * 20 + [2] * 20


def test_a_run_in_the_background_is_confirmed_in_the_foreground_first(folder: Path):
    with served(workers=4, latency_s=0.1) as base_url:
        code, said = asked(folder, base_url, b"y\n", "--detach")
        assert (code, said.count("estimate for the 50 rows left")) == (0, 1), said
        told = orjson.loads(said.splitlines()[-1])
        assert told["log"] == str(folder / "out.log")
        wait_for(lambda: "finished: 80 of 80 rows succeeded" in (folder / "out.log").read_text())
        wait_for(lambda: read_status(folder / "out.jsonl.state").pid != told["pid"])
        assert jobs_run(base_url) == ROWS
    assert_each_id_once(folder / "out.jsonl", ROWS)


def test_a_run_that_could_not_go_into_the_background_pays_for_no_pilot(folder: Path, base_url: str):
    (folder / "out.log").mkdir()
    code, said = invoke("run", *arguments(base_url, "--confirm", "--detach"))
    assert (code, "not a regular file" in said) == (2, True), said
    assert jobs_run(base_url) == 0


def compared(folder: Path, base_url: str, rows: int, number: int) -> tuple[float, float, float]:
    """Low end, time taken and high end of a run with an output of its own."""
    more = ["-o", f"out{number}.jsonl", "-e", "abc", "--base-url", base_url, "--progress", "none", "--limit", rows]
    more += ["--run-limit", 0, "--status-limit", 0]
    done = batchrun("estimate", folder / "in.jsonl", *more, "--json")
    assert done.returncode == 0, done.stderr
    low, high = orjson.loads(done.stdout)["staffing"][-1]["time_s"].values()
    began = time.monotonic()
    assert batchrun("run", folder / "in.jsonl", *more).returncode == 0
    return low, time.monotonic() - began, high


def test_the_run_takes_what_the_estimate_said(folder: Path):
    with served(workers=4, latency_s=0.1) as base_url:
        low, took, high = compared(folder, base_url, ROWS, 0)
    assert low <= took <= high + 1.5, "and a moment to start and to end"
    assert high < 4 * low + 2.5


@pytest.mark.slow
def test_nine_of_ten_runs_take_what_their_estimates_said(folder: Path):
    write_lines(folder, [{"id": f"r{n}", "prompt": f"prompt {n}"} for n in range(400)])
    said = []
    for number in range(10):
        workers, latency_s = (2, 5, 9)[number % 3], (0.05, 0.2)[number % 2]
        with served(workers=workers, latency_s=latency_s) as base_url:
            said.append(compared(folder, base_url, 30 + round(5 * workers / latency_s), number))
    assert sum(low <= took <= high for low, took, high in said) >= 9, said
