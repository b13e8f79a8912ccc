"""Somebody is told that a run is over, and a run never fails because nobody could be told."""

from __future__ import annotations

import pytest

from batchrun.commands.notify import failure_payload, notify, payload
from tests.support.notifications import listening
from tests.support.summaries import DONE as SUMMARY


async def test_one_json_object_with_a_text_is_sent():
    async with listening() as (url, heard):
        assert await notify(url, payload(SUMMARY)) is None
    (said,) = heard
    assert said["text"].startswith("batchrun ")
    assert f"{SUMMARY.succeeded:,} of {SUMMARY.total:,} rows succeeded" in said["text"]
    assert (said["event"], said["exit_code"]) == (SUMMARY.outcome, SUMMARY.exit_code)


@pytest.mark.parametrize("status", [302, 404, 500])
async def test_an_answer_that_is_no_success_is_told_without_the_url(status: int):
    async with listening(status) as (url, _):
        said = await notify(url, {"text": "x"})
    assert said == f"HTTP {status}"


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/T0KEN", "http://no.such.host.invalid/T0KEN", "http://[T0KEN"])
async def test_nobody_there_is_told_without_the_url(url: str):
    said = await notify(url, {"text": "x"})
    assert said
    assert "T0KEN" not in said


def test_an_unexpected_end_is_told_too():
    said = failure_payload(RuntimeError("boom"), "x.state")
    assert "RuntimeError: boom" in said["text"]
    assert said["exit_code"] == 1
