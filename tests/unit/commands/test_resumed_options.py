"""What a resumed run keeps of earlier sessions, and what takes it off."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from batchrun.commands.local_endpoint import as_before, keep_worker
from batchrun.commands.session_arguments import ResumeArguments
from batchrun.commands.session_options import guards, session_options
from batchrun.config import GuardOptions, InterruptPolicy, JobPolicy, RunOptions
from batchrun.errors import UsageError
from batchrun.local.echo import EchoWorker
from batchrun.local.upstream import UpstreamWorker
from batchrun.local.workers import Worker
from batchrun.state.store import Store

KNOWN = GuardOptions(price_per_hour=1.0, max_cost=5.0, deadline_s=60.0, job_timeout_s=9.0, canary=3)


def test_a_limit_stays_until_it_is_changed_or_taken_off():
    assert guards(ResumeArguments(), KNOWN) == KNOWN
    given = ResumeArguments(max_cost=math.inf, deadline=math.inf, job_timeout=8.0)
    assert guards(given, KNOWN) == GuardOptions(price_per_hour=1.0, job_timeout_s=8.0, canary=3)


def test_a_budget_that_is_off_needs_no_price():
    assert guards(ResumeArguments(max_cost=math.inf), GuardOptions()).max_cost is None
    with pytest.raises(UsageError, match="needs --price-per-hour"):
        guards(ResumeArguments(max_cost=1.0), GuardOptions())


def resumed(state: Path, given: ResumeArguments, worker: Worker, again: ResumeArguments) -> ResumeArguments:
    with Store(state) as store:
        keep_worker(given, worker, store)
    return as_before(again, state)


def test_a_run_that_is_resumed_keeps_its_worker_unless_another_is_given(tmp_path: Path):
    state, auto = tmp_path / "s.state", ResumeArguments()
    assert as_before(auto, state) is auto, "there is no run yet"
    assert resumed(state, auto, EchoWorker(), auto).worker == "echo"
    other = ResumeArguments(worker="smollm2")
    assert resumed(state, auto, EchoWorker(), other) is other


def test_a_server_or_a_model_file_must_be_named_again(tmp_path: Path):
    url = "http://127.0.0.1:9/v1"
    given = ResumeArguments(upstream=url)
    assert resumed(tmp_path / "s.state", given, UpstreamWorker(url), given) is given
    with pytest.raises(UsageError, match="was started with --upstream"):
        as_before(ResumeArguments(), tmp_path / "s.state")
    model_file = tmp_path / "m.gguf"
    model_file.touch()
    with Store(tmp_path / "s.state") as store:
        keep_worker(ResumeArguments(model_file=model_file), EchoWorker(), store)
    with pytest.raises(UsageError, match="was started with --model-file"):
        as_before(ResumeArguments(), tmp_path / "s.state")


def test_every_guard_and_the_window_may_change_and_nothing_else_does():
    known = RunOptions(("p.jsonl",), "abc", Path("o.jsonl"), output_is_folder=False, state=Path("s"), guards=KNOWN)
    known = replace(
        known, scheduler=replace(known.scheduler, concurrency=4), policy=JobPolicy(60, 90, low_priority=True)
    )
    assert session_options(ResumeArguments(), known) == known
    given = ResumeArguments(concurrency="auto", ttl=99, execution_timeout=61, canary=1, on_interrupt="leave")
    then = session_options(given, known)
    assert (then.scheduler.concurrency, then.policy) == (None, JobPolicy(61, 99, low_priority=True))
    assert then.guards == replace(KNOWN, canary=1, on_interrupt="leave")
    assert session_options(ResumeArguments(concurrency=9), known).scheduler == replace(known.scheduler, concurrency=9)


def test_the_former_word_for_leave_still_works_also_in_a_state_file():
    given = ResumeArguments(on_interrupt=cast("InterruptPolicy", "detach"))
    assert guards(given, GuardOptions()).on_interrupt == "leave"
    known = RunOptions(("p.jsonl",), "abc", Path("o.jsonl"), output_is_folder=False, state=Path("s"))
    stored = known.to_json()
    stored["guards"]["on_interrupt"] = "detach"
    assert RunOptions.from_json(stored, Path("s")).guards.on_interrupt == "leave"
