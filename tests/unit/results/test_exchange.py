"""What is shown of a row: its prompt and answer as texts, whatever the worker and the line look like."""

from __future__ import annotations

from typing import Any

import pytest

from batchrun.results.cells import Row
from batchrun.results.exchange import Failure, Turn, exchange_of


def record(**given: Any) -> dict:
    return {
        "id": "a", "status": "COMPLETED", "text": "42", "finish_reason": "stop", "output": "42",
        "usage": {"input_tokens": 3, "output_tokens": 1},
        "source": {"file": "in.jsonl", "line": 7},
        "job": {"id": "j", "endpoint": "e", "attempts": 2, "delay_ms": 5, "execution_ms": 70, "worker_id": None},
        **given,
    }  # fmt: skip


def failed(**given: Any) -> dict:
    data = record(status="FAILED", error={"kind": "timeout", "message": "too long", "raw": "raw text"})
    return {name: value for name, value in data.items() if name not in ("text", "output", "usage")} | given


ASKED = {"prompt": "6 * 7 ="}


def test_an_answer_has_its_prompt_figures_and_own_fields():
    found = exchange_of(Row(record(metadata={"topic": "sums", "level": 2}, note=[1]), ASKED, ASKED))
    assert found.turns == [Turn("user", "6 * 7 =")]
    assert (found.answers, found.output, found.failure) == (["42"], None, None)
    assert (found.input_tokens, found.output_tokens, found.execution_ms) == (3, 1, 70)
    assert found.fields == [("note", "[\n  1\n]"), ("metadata.topic", "sums"), ("metadata.level", "2")]
    assert ("time in the queue", "5 ms") in found.facts
    assert ("input", "in.jsonl:7") in found.facts
    assert "worker id" not in dict(found.facts)


def test_a_chat_keeps_its_roles_and_a_picture_is_left_out():
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is this?"}, picture]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "t"}]},
    ]
    found = exchange_of(Row(record(), {}, {"messages": messages}))
    assert [turn.role for turn in found.turns] == ["system", "user", "assistant"]
    assert found.turns[1].text.startswith("What is this?\n{")
    assert "characters)" in found.turns[1].text
    assert len(found.turns[1].text) < 1000
    assert '"tool_calls"' in found.turns[2].text
    assert found.prompt_line == found.turns[1].text


def test_an_input_of_another_worker_is_shown_as_json():
    found = exchange_of(Row(record(text=None, output={"image": "B" * 5000}), {}, {"seed": 1}))
    assert found.turns == [Turn("input", '{\n  "seed": 1\n}')]
    assert found.answers == [None]
    assert found.output.startswith('{\n  "image": "BBB')
    assert len(found.output) < 200


def test_a_failure_has_its_kind_message_and_the_partial_answer():
    found = exchange_of(Row(failed(), {}, ASKED))
    assert found.failure == Failure("timeout", "too long", "raw text")
    assert (found.answers, found.answer_line) == ([], "timeout: too long")
    part = exchange_of(Row(failed(output=[{"choices": [{"index": 0, "text": "half an"}]}]), {}, ASKED))
    assert part.answers == ["half an"]


def test_what_was_sent_is_shown_once():
    found = exchange_of(Row(failed(error={"kind": "k", "message": "it said: boom", "raw": "boom"}), {}, ASKED))
    assert found.failure.raw == ""


@pytest.mark.parametrize("row", [Row(record()), Row(failed(request=None))])
def test_a_prompt_whose_line_is_gone_is_empty(row: Row):
    assert exchange_of(row).turns == []
    assert exchange_of(row).prompt_line == ""


def test_reasoning_several_answers_parsed_values_and_tool_calls_are_there():
    given = {"texts": ["a", None], "text": "a", "reasoning": "hm", "parsed": 2**70, "tool_calls": [{"f": "\ud800"}]}
    found = exchange_of(Row(record(**given), {}, ASKED))
    assert found.answers == ["a", None]
    assert (found.reasoning, found.parsed) == ("hm", str(2**70))
    assert "\ud800" in found.tool_calls


def test_a_very_long_text_is_cut_and_says_so():
    found = exchange_of(Row(record(text="x" * 300_000), {}, ASKED))
    assert found.answers[0].endswith("… (cut: 300,000 characters)")


def test_a_value_nested_without_end_is_not_an_error():
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    assert exchange_of(Row(record(parsed=deep), {}, ASKED)).parsed == "(nested too deeply to be shown)"


def test_marks_are_those_of_the_answer():
    assert exchange_of(Row(record(text="", output=""), {}, ASKED)).marks == ("empty",)
