"""Clocks: one that counts sleep, one of the day that goes with it, and runs during which the wall clock is set."""

from __future__ import annotations

import shutil
import subprocess
import time
from random import Random
from typing import TYPE_CHECKING

import pytest

from batchrun.display.timeline import Point, Timeline
from batchrun.endpoint.protocol import JobAnswer, JobStatus
from batchrun.engine.clock import WallClock, steady_s
from batchrun.engine.endings import completed_ms
from batchrun.engine.signals import Leaving, Wish
from batchrun.runs.closing import conclude
from batchrun.runs.driving import drive
from batchrun.runs.opening import open_run
from tests.support.claims import assert_adds_up
from tests.support.command import KEYED, start, status
from tests.support.rehearsal import Listener, hurried, options_for, read_lines, serving, write_lines
from tests.support.waiting import wait_for_lines

if TYPE_CHECKING:
    from pathlib import Path

HOURS_S = 3 * 3600.0


class Machine:
    def __init__(self) -> None:
        self.steady_s, self.wall_s = 1000.0, 1_700_000_000.0
        self.wall = WallClock(lambda: self.steady_s, lambda: self.wall_s)


def test_seconds_go_on_as_they_do():
    before = steady_s()
    time.sleep(0.02)
    assert 0.02 <= steady_s() - before < 10


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="only Linux has a clock by this name")
def test_on_linux_seconds_are_those_since_the_machine_was_started_sleep_included():
    assert abs(steady_s() - time.clock_gettime(time.CLOCK_BOOTTIME)) < 1


@pytest.mark.parametrize("step_s", [HOURS_S, -HOURS_S])
def test_a_wall_clock_that_is_set_moves_no_time_of_a_session(step_s: float):
    machine = Machine()
    machine.steady_s += 10
    machine.wall_s += 10 + step_s
    assert machine.wall() == 1_700_000_010.0


def test_a_sleep_of_the_machine_is_time_of_day_too():
    machine = Machine()
    machine.steady_s += HOURS_S
    assert machine.wall() == 1_700_000_000.0 + HOURS_S


def test_a_job_is_not_over_before_it_was_submitted_though_the_clock_was_set_back_in_between():
    answer = JobAnswer("job-1", JobStatus.COMPLETED, delay_ms=31, execution_ms=1437)
    assert completed_ms(1_700_000_000_000, answer, 1_700_000_000_000 - 3_600_000) == 1_700_000_000_000


def test_a_timeline_continues_when_the_clock_was_set_back():
    timeline = Timeline([[1_700_000_000_000, 1, 1, 1, 1, 0, 0]])
    assert timeline.is_due(1_700_000_000_000 - 3_600_000)
    timeline.add(Point(1_700_000_000_000 - 3_600_000, 1, 1, 1, 1, 0, 0))
    assert not timeline.is_due(1_700_000_000_000 - 3_600_000 + 500)
    assert timeline.is_due(1_700_000_000_000 - 3_600_000 + 1_500)


@pytest.mark.parametrize("step_s", [HOURS_S, -HOURS_S, -50 * 365 * 86_400.0])
async def test_jobs_of_an_earlier_session_are_collected_whatever_the_wall_clock_says_now(tmp_path: Path, step_s: float):
    write_lines(tmp_path, [{"id": f"r{n}", "prompt": f"prompt {n}"} for n in range(8)])
    options = options_for(tmp_path)
    async with serving(latency_s=0.5) as server:
        leaving = Leaving()

        class Impatient(Listener):
            def update(self, snapshot) -> None:
                if snapshot.in_flight == 8:
                    leaving.ask(Wish.LEAVE)

        with open_run(options, Impatient(), clock=time.monotonic, wall=time.time) as run:
            outcome = await drive(run, server.endpoint.base_url, Random(0), leaving=leaving)
            assert conclude(run, outcome).in_flight == 8
        with open_run(options, Listener(), clock=hurried, wall=lambda: time.time() + step_s) as run:
            summary = conclude(run, await drive(run, server.endpoint.base_url, Random(0)))
    assert (summary.succeeded, server.seen["run"]) == (8, 8)
    jobs = [record["job"] for record in read_lines(options.output)]
    assert all(job["submitted_at"] <= job["completed_at"] for job in jobs)


def faketime_library() -> str | None:
    """The library that `faketime` preloads; None where there is none."""
    if shutil.which("faketime") is None:
        return None
    said = subprocess.run(["faketime", "-f", "+0", "env"], capture_output=True, text=True, check=False).stdout
    return next((line.split("=", 1)[1] for line in said.splitlines() if line.startswith("LD_PRELOAD=")), None)


@pytest.mark.parametrize("step", ["+3h", "-3h"])
def test_a_wall_clock_that_is_set_during_a_run_is_no_time_that_has_passed(
    tmp_path: Path, base_url: str, step: str, monkeypatch: pytest.MonkeyPatch
):
    library = faketime_library()
    if library is None:
        pytest.skip("libfaketime is not installed (apt-get install faketime)")
    set_by = tmp_path / "faketime"
    set_by.write_text("+0")
    for name, value in {
        "LD_PRELOAD": library,
        "FAKETIME_TIMESTAMP_FILE": str(set_by),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",  # else it also moves the timeouts of Python's own locks
    }.items():
        monkeypatch.setitem(KEYED, name, value)
    write_lines(tmp_path, [{"id": f"r{n}", "prompt": f"prompt {n}"} for n in range(600)])
    process = start(tmp_path, base_url, "--job-timeout", "30m", "--deadline", "1h")
    wait_for_lines(tmp_path / "out.jsonl", 50)
    set_by.write_text(step)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 0, said
    for name in ("LD_PRELOAD", "FAKETIME_TIMESTAMP_FILE"):
        monkeypatch.delitem(KEYED, name)
    assert_adds_up(tmp_path / "out.jsonl.state")
    standing = status(tmp_path)
    assert standing["counters"].get("calls_cancel", 0) == 0
    assert 0 < standing["elapsed_s"] < 600
