"""What `--dry-run` says about the jobs that rows would share."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from batchrun.config import RequestOptions
from batchrun.runs.pack_plan import PackPlan
from tests.support.rehearsal import options_for

if TYPE_CHECKING:
    from pathlib import Path

ROUTES = {"prompt": "/v1/completions", "messages": "/v1/chat/completions"}
CHAT = [{"role": "user", "content": "hi"}]


def asked(**fields: Any) -> dict[str, Any]:
    """A request of 64 tokens at most."""
    key = next(key for key in ROUTES if key in fields)
    return {"openai_route": ROUTES[key], "openai_input": {"max_tokens": 64, **fields}}


def plan(folder: Path, requests: list[dict[str, Any]], *, pack: int | None = 16, **given: Any) -> str:
    found = PackPlan(options_for(folder, scheduler={"pack": pack}, **given))
    for request in requests:
        found.add(request)
    return found.message().removesuffix("; jobs get smaller near the end of a run")


def test_rows_that_ask_for_the_same_fill_jobs_and_the_rest_shares_one(tmp_path):
    rows = [asked(prompt=f"p {n}") for n in range(40)] + [asked(messages=CHAT) for _ in range(17)]
    left = "1 row alone (1 left over or like no other)"
    assert plan(tmp_path, rows) == f"--pack 16: 3 jobs of 16 rows, 1 job of 8 rows, {left}"


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ({"openai_route": "/v1/completions", "openai_input": {"prompt": "p"}}, "without max_tokens"),
        (asked(messages=CHAT, tools=[{}]), "with tools"),
        (asked(messages=CHAT, n=2), "with n=2"),
        (asked(prompt="p", stream=True), "with stream"),
        (asked(prompt="p", max_tokens=1_000_000), "whose answers may be too large for one job"),
        (asked(prompt=["p", "q"]), "whose prompt is not a single one"),
        ({"text": "p"}, "that are neither chats nor completions"),
        ({"openai_route": "/v1/embeddings", "openai_input": {"input": "p"}}, "that are neither chats nor completions"),
        ({"prompt": "p", "sampling_params": {"temperature": 0}}, "without max_tokens"),
    ],
)
def test_each_reason_to_be_alone_is_stated(tmp_path, request_, why):
    rows = [*[asked(prompt=f"p {n}") for n in range(16)], request_, request_]
    assert plan(tmp_path, rows) == f"--pack 16: 1 job of 16 rows, 2 rows alone (2 {why})"


def test_rows_with_the_content_of_files_are_alone(tmp_path):
    request = replace(RequestOptions(), inline_files="in_folder")
    said = plan(tmp_path, [asked(prompt="p")] * 4, request=request)
    assert said == "--pack 16: 4 rows alone (4 with the content of files)"


def test_large_prompts_and_large_answers_make_jobs_smaller(tmp_path):
    large = [asked(prompt=f"{n}" + "x" * 1_000_000) for n in range(21)]
    assert plan(tmp_path, large).startswith("--pack 16: 3 jobs of 7 rows")
    long = [asked(prompt=f"p {n}", max_tokens=100_000) for n in range(12)]
    assert plan(tmp_path, long).startswith("--pack 16: 2 jobs of 6 rows")


def test_auto_depends_on_the_number_of_rows(tmp_path):
    few = plan(tmp_path, [asked(prompt=f"p {n}") for n in range(100)], pack=None)
    assert few == "--pack auto: each row has a job of its own, so that every worker has enough jobs"
    many = plan(tmp_path, [asked(prompt=f"p {n}") for n in range(1800)], pack=None)
    assert many == "--pack auto (10): 180 jobs of 10 rows"
