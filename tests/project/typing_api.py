"""What a type checker sees of the Python API; mypy reads it, nothing runs it.

A line with `type: ignore` must be refused: mypy is strict, and tells of those that are not needed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Literal, assert_type

import batchrun


def a_file_and_a_folder_and_requests_are_run() -> None:
    summary = batchrun.run("prompts.jsonl", endpoint="abc", output="results.jsonl", set={"max_tokens": 256})
    assert_type(summary, batchrun.Summary)
    batchrun.run([Path("a.jsonl"), Path("b.jsonl")], endpoint="abc", output=Path("results"), sweep={"n": [1, 2]})
    batchrun.run(({"prompt": f"{n}"} for n in range(3)), endpoint="local", output="r.jsonl", worker="echo")


def a_summary_has_counts_files_and_a_reason(summary: batchrun.Summary) -> None:
    assert_type((summary.total, summary.succeeded, summary.failed, summary.exit_code), tuple[int, int, int, int])
    assert_type(summary.outcome, Literal["finished", "stopped", "interrupted", "cancelled", "pilot"])
    assert_type((summary.reason, summary.hint), tuple[str, str])
    assert_type((summary.results, summary.errors), tuple[list[Path], list[Path]])
    assert_type(summary.wall_s, float)
    assert_type(summary.input_tokens, int | None)


def results_are_read_later(state: Path) -> None:
    results = batchrun.load(state)
    assert_type(results, batchrun.Results)
    for record in results.records(with_errors=True):
        assert_type(record, dict[str, Any])
    batchrun.run(
        "reviews.csv", endpoint="abc", output="r.jsonl", prompt="Sum up: {{ review }}", schema={"type": "object"}
    )
    assert_type(batchrun.check(["a.jsonl", Path("b.csv")], prompt="{{ review }}").is_good, bool)
    assert_type(batchrun.status(state).succeeded, int)
    assert_type(batchrun.verify(state).is_whole, bool)
    assert_type(batchrun.export(state, "r.parquet", columns=["id", "text"]).results, int)
    assert_type(batchrun.redo(state, where=["finish_reason=length"], set={"max_tokens": 512}), batchrun.Summary)
    assert_type(batchrun.cancel(state), batchrun.Summary)
    assert_type(batchrun.stop(state, how="leave").succeeded, int)
    assert_type(batchrun.view(state).rows, int)
    batchrun.tune(state, concurrency="auto", pause=True)
    if (found := batchrun.estimate("a.jsonl", endpoint="abc", output="r.jsonl", pilot=30)) is not None:
        assert_type(found.left, int)


async def questions() -> AsyncIterator[Mapping[str, Any]]:
    yield {"prompt": "x"}


async def a_stream_gives_records() -> None:
    async with batchrun.stream(questions(), endpoint="abc", state="answers.state") as records:
        assert_type(records, batchrun.Stream)
        async for record in records:
            assert_type(record, dict[str, Any])
    assert_type(records.summary, batchrun.Summary | None)
    async for record in batchrun.stream(["one", {"prompt": "two"}], endpoint="abc", state="answers.state"):
        assert_type(record["id"], Any)


def errors_have_a_message_and_a_hint_and_are_one_family() -> None:
    try:
        batchrun.run("prompts.jsonl", endpoint="abc", output="results.jsonl")
    except batchrun.InputError as error:
        assert_type(error.message, str)
    except (batchrun.UsageError, batchrun.StoppedError) as error:
        assert_type(error.hint, str)
    except batchrun.BatchrunError as error:
        assert_type(error.exit_code, int)


def what_is_wrong_is_refused() -> None:
    batchrun.run("prompts.jsonl", endpoint="abc")  # type: ignore[call-arg]
    batchrun.run("prompts.jsonl", endpoint="abc", output="r.jsonl", on_interrupt="flee")  # type: ignore[arg-type]
    batchrun.run("prompts.jsonl", endpoint="abc", output="r.jsonl", max_token=3)  # type: ignore[call-arg]
    batchrun.stream(["x"], endpoint=None, state="s.state")  # type: ignore[arg-type]
    batchrun.nothing()  # type: ignore[attr-defined]
