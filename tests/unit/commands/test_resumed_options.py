"""What a resumed run keeps of earlier sessions, and what takes it off."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from batchrun.commands.local_endpoint import as_before, keep_worker
from batchrun.commands.run_options import guards
from batchrun.commands.session_arguments import ResumeArguments
from batchrun.config import GuardOptions
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
    with Store(tmp_path / "s.state") as store:
        keep_worker(ResumeArguments(model_file=Path("m.gguf")), EchoWorker(), store)
    with pytest.raises(UsageError, match="was started with --model-file"):
        as_before(ResumeArguments(), tmp_path / "s.state")
