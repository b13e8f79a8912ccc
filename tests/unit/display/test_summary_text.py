from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.display.summary import EndpointWork, FailureGroup, FewJobs, Snapshot, to_event
from batchrun.display.summary_text import render
from batchrun.display.units import duration
from tests.support.summaries import DONE

EMPTY = Snapshot(
    total=0,
    succeeded=0,
    failed=0,
    held=0,
    pending=0,
    waiting=0,
    queued=0,
    running=0,
    retries=0,
    unconfirmed=0,
    ended_in_session=0,
    elapsed_s=0.0,
    rows_per_s=0.0,
    tokens_per_s=None,
    input_tokens=0,
    output_tokens=0,
    window=400,
    jobs=0,
    note="",
)


@pytest.mark.parametrize(
    ("changes", "exit_code"),
    [
        ({}, 0),
        ({"total": 0, "succeeded": 0}, 0),
        ({"succeeded": 9_999, "failed": 1}, 3),
        ({"succeeded": 9_999, "held": 1}, 3),
        ({"outcome": "stopped"}, 4),
        ({"outcome": "interrupted"}, 130),
        ({"outcome": "interrupted", "succeeded": 9_999, "failed": 1}, 130),
    ],
)
def test_the_exit_code_follows_from_how_the_run_ended(changes, exit_code):
    assert replace(DONE, **changes).exit_code == exit_code


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.031, "31 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (1.44, "1.4 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3_599.6, "1 h 00 min"),
        (8_040, "2 h 14 min"),
        (360_000, "100 h 00 min"),
    ],
)
def test_a_duration_is_in_the_unit_that_a_person_would_use(seconds, text):
    assert duration(seconds) == text


def test_a_fast_queue_does_not_look_like_no_queue():
    assert "p50 31 ms, p90 250 ms, p99 1.4 s" in render(DONE)


def test_a_run_that_succeeded_leaves_nothing_to_do():
    text = render(DONE)
    assert text.strip().startswith("finished: 10,000 of 10,000 rows succeeded")
    assert "next" not in text


def test_what_to_do_next_is_said_for_everything_that_is_left():
    text = render(
        replace(
            DONE,
            outcome="interrupted",
            succeeded=9_000,
            failed=10,
            held=3,
            not_run=587,
            in_flight=400,
            truncated=12,
            rescue_by=1_767_225_600.0,
        )
    )
    next_steps = text.split("\nnext\n")[1].splitlines()
    assert "  resume: batchrun resume r.jsonl.state" in next_steps
    assert "  retry the failed rows: batchrun resume r.jsonl.state --retry-failed" in next_steps
    for words in (
        "jobs still at the endpoint: 400",
        "held rows: 3",
        "--unconfirmed resubmit",
        "texts cut off at max_tokens: 12",
    ):
        assert words in text
    assert "    batchrun redo r.jsonl.state --where finish_reason=length --set max_tokens=N" in next_steps


def test_answers_without_text_are_asked_for_again_but_not_tool_calls():
    assert "\n    batchrun redo r.jsonl.state --where text=\n" in render(replace(DONE, empty=2))
    text = render(replace(DONE, reasoning_only=2, tool_calls=3))
    assert "\n    batchrun redo r.jsonl.state --where text= --where finish_reason!=tool_calls\n" in text


NO_MODEL = FailureGroup("bad_request", 3, "r1", "The model `gpt-4o-mini` does not exist.")
LOST = FailureGroup("platform", 2, "r2", "job timed out after 1 retries")
WRONG = FailureGroup("invalid", 1, "r3", "`prompt` must be a non-empty string")


def test_a_request_that_was_refused_for_itself_is_to_be_changed_not_tried_again():
    errors = [Path("my r.errors.jsonl")]
    text = render(replace(DONE, succeeded=9_997, failed=3, failures=[NO_MODEL], errors=errors))
    assert "--retry-failed" not in text
    again = "\n    batchrun redo r.jsonl.state --failed --only bad_request --set KEY=VALUE\n"
    assert again in text
    assert again in render(replace(DONE, succeeded=9_996, failed=4, failures=[NO_MODEL, WRONG], errors=errors))
    text = render(replace(DONE, succeeded=9_995, failed=5, failures=[NO_MODEL, LOST], errors=errors))
    assert "batchrun resume r.jsonl.state --retry-failed --only platform\n" in text
    assert "requests refused because of their content: 3" in text
    text = render(replace(DONE, succeeded=9_999, failed=1, failures=[WRONG], errors=errors))
    assert "invalid lines: 1; fix them, then give the same command again\n" in text
    assert "--retry-failed" not in text
    text = render(replace(DONE, succeeded=9_998, failed=2, failures=[LOST], errors=errors))
    assert "batchrun resume r.jsonl.state --retry-failed\n" in text
    assert "--set" not in text


def test_answers_that_were_not_valid_may_be_asked_for_in_another_way():
    text = render(replace(DONE, succeeded=9_998, failed=2, failures=[FailureGroup("invalid_output", 2, "r1", "cut")]))
    assert "batchrun resume r.jsonl.state --retry-failed\n" in text
    assert "answers that were not valid: 2; to ask again in another way:\n" in text
    assert "\n    batchrun redo r.jsonl.state --failed --only invalid_output --set KEY=VALUE\n" in text


def test_a_long_error_is_cut_at_the_edge_and_its_start_is_shown():
    text = render(replace(DONE, failures=[FailureGroup("handler_error", 2, "h-1", "x" * 200)]))
    line = next(line for line in text.splitlines() if "handler_error" in line)
    assert (len(line), "h-1: xxx" in line, line[-1]) == (78, True, "…")


counts = st.integers(0, 10_000_000)
messages = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=300)


@pytest.mark.slow
@given(counts, counts, counts, counts, messages, messages, st.sampled_from(["finished", "stopped", "interrupted"]))
def test_the_summary_fits_a_terminal_but_for_commands_and_paths(failed, held, in_flight, cut, message, hint, outcome):
    summary = replace(
        DONE,
        outcome=outcome,
        reason=" ".join(message),
        hint=" ".join(hint),
        failed=failed,
        held=held,
        in_flight=in_flight,
        truncated=cut,
        rescue_by=1_767_225_600.0,
        failures=[FailureGroup("bad_request", failed, "row-1", message)],
    )
    for line in render(summary).split("\n"):
        assert len(line) <= 78 or "batchrun resume" in line or "r.jsonl" in line


def test_a_summary_is_the_last_event_of_a_run():
    event = orjson.loads(to_event(replace(DONE, failures=[FailureGroup("platform", 2, "x", "lost")])))
    assert (event["event"], event["exit_code"], event["delay_ms"]["p50"], event["state"]) == (
        "summary",
        0,
        31,
        "r.jsonl.state",
    )
    assert event["failures"] == [{"kind": "platform", "rows": 2, "example_id": "x", "example_message": "lost"}]


@pytest.mark.parametrize(
    ("changes", "eta_s"),
    [({"total": 100}, None), ({"total": 100, "rows_per_s": 4.0, "succeeded": 60}, 10.0), ({"rows_per_s": 4.0}, 0.0)],
)
def test_the_time_that_is_left_is_unknown_without_a_rate(changes, eta_s):
    snapshot = replace(EMPTY, **changes)
    assert (snapshot.eta_s, snapshot.to_json()["eta_s"]) == (eta_s, eta_s)


def test_tokens_of_refused_answers_are_shown_apart():
    asked = replace(DONE, input_tokens=5, output_tokens=6, refused_input_tokens=1_000, refused_output_tokens=20)
    assert "  tokens      5 in, 6 out\n  refused     answers that were not valid: 1,000 in, 20 out\n" in render(asked)


def test_only_numbers_of_tries_that_a_row_took_are_shown():
    asked = replace(DONE, reasks=9)
    assert "  valid       7 after 1 try, 2 after 3 tries\n" in render(replace(asked, tries={"1": 7, "2": 0, "3": 2}))
    assert "  valid " not in render(replace(asked, succeeded=0, tries={"1": 0}))


def test_a_pool_says_what_each_endpoint_did_and_how_to_continue_without_one():
    endpoints = [EndpointWork("A", 90, 90, 0, 0, 9.0), EndpointWork("B", 15, 5, 0, 10, 1.0)]
    text = render(replace(DONE, outcome="stopped", succeeded=95, in_flight=10, rescue_by=0.0, endpoints=endpoints))
    assert "  endpoint B: 5 succeeded, 0 failed, 10 in flight, 1.0 rows/s\n" in text
    told = " ".join(text.split())
    assert "only B can answer these jobs; to give them up, give the command with the other endpoints and" in told
    assert "only B" not in render(replace(DONE, outcome="interrupted", in_flight=10, endpoints=endpoints))


def test_idle_workers_are_reported_with_what_to_do_about_them():
    packed = replace(DONE, packed_jobs=16, packed_rows=1000)
    assert "autoscaler" not in render(packed)
    few = replace(packed, few_jobs=[FewJobs("", 720.0, 0.95, 1.0, 3.0), FewJobs("b", 60.0, 0.5, 1.0, 0.0)])
    text = " ".join(render(few).split())
    assert "1.0 workers at work and 3.0 idle on average for 12 min" in text
    assert "0.0 idle at b on average for 1 min 00 s (50% of the time with shared jobs), and no job waited" in text
    assert text.count("an autoscaler counts jobs, not their rows") == 1
    assert max(map(len, render(few).splitlines())) <= 78
