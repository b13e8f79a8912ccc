"""What is said of the fields of lines: what is sent, what is carried, and what is probably a mistake."""

from __future__ import annotations

import json

import orjson
import pytest

from batchrun.config import RequestOptions, SweepOptions
from batchrun.errors import InputError
from batchrun.prompts.fields import Fields
from batchrun.prompts.sampling import FIRST_PARAMETERS, SAMPLING_PARAMETERS, Kind, expected_type, suggestion
from batchrun.prompts.shapes import parse_line
from batchrun.prompts.sweep import Sweep

CHAT = [{"role": "user", "content": "Name three colours."}]


def findings_of(*lines: object, sweep: SweepOptions | None = None, **options):
    fields = Fields(RequestOptions(**options), Sweep(sweep or SweepOptions()))
    for number, line in enumerate(lines, 1):
        fields.add(parse_line(orjson.dumps(line)), "in.jsonl", number)
    return fields.findings()


def warnings_of(*lines: object, **options) -> list[tuple[str, str]]:
    return [(each.kind, each.field) for each in findings_of(*lines, **options) if each.is_warning]


def test_each_thing_is_said_once_with_its_count_and_its_first_place():
    lines = [{"prompt": "x", "max_tokens": 5}, *[{"prompt": "x", "max_tokens": 5, "temprature": 1, "topic": "a"}] * 3]
    assert [str(each) for each in findings_of(*lines)] == [
        "in.jsonl:2: warning: `temprature` is carried to the result, not sent: did you mean `temperature`? (3 lines)",
        "in.jsonl:1: note: `max_tokens` is sent as a parameter (4 lines)",
        "in.jsonl:2: note: `topic` is carried to the result, not sent (3 lines)",
    ]


@pytest.mark.parametrize(
    ("line", "warning"),
    [
        ({"prompt": "x"}, ("no_max_tokens", "max_tokens")),
        ("x", ("no_max_tokens", "max_tokens")),
        ({"prompt": "x", "max_tokens": None}, ("no_max_tokens", "max_tokens")),
        ({"prompt": "x", "max_tokens": 5, "max_new_tokens": 5}, ("not_sent", "max_new_tokens")),
        ({"prompt": "x", "max_tokens": 5, "extra_body": {"top_k": 1}}, ("not_sent", "extra_body")),
        ({"prompt": "x", "max_tokens": 5, "guided_decoding_backend": "x"}, ("not_sent", "guided_decoding_backend")),
        ({"prompt": "x", "max_tokens": 5, "best_of": 3}, ("ignored", "best_of")),
        ({"prompt": "x", "max_tokens": 5, "early_stopping": True}, ("ignored", "early_stopping")),
        ({"prompt": "x", "max_tokens": 5, "max_completion_tokens": 4}, ("ignored", "max_completion_tokens")),
        ({"messages": CHAT, "guided_choice": ["red", "green"]}, ("ignored", "guided_choice")),
        ({"messages": CHAT, "suffix": "."}, ("ignored", "suffix")),
        ({"prompt": "x", "sampling_params": {"max_tokens": 4, "no_such_thing": 1}}, ("ignored", "no_such_thing")),
        ({"prompt": "x", "max_tokens": 8.5}, ("wrong_type", "max_tokens")),
        ({"prompt": "x", "max_tokens": 8, "seed": "eleven"}, ("wrong_type", "seed")),
        ({"prompt": "x", "max_tokens": 8, "temperature": [0]}, ("wrong_type", "temperature")),
        ({"prompt": "x", "max_tokens": 8, "stop": 5}, ("wrong_type", "stop")),
        ({"messages": CHAT, "logprobs": 2}, ("wrong_type", "logprobs")),
        ({"messages": CHAT, "response_format": "json"}, ("wrong_type", "response_format")),
        ({"input": {"prompt": "hi", "max_tokens": 512}}, ("not_sent", "max_tokens")),
        ({"input": {"messages": CHAT, "temprature": 1}}, ("not_sent", "temprature")),
        ({"input": {"prompt": "x", "sampling_params": {"top_k": 1}}}, ("no_max_tokens", "max_tokens")),
        ({"input": {"messages": CHAT}, "max_tokens": 3}, ("not_sent", "max_tokens")),
        ({"url": "/v1/completions", "body": {"prompt": "x"}}, ("no_max_tokens", "max_tokens")),
        ({"url": "/v1/completions", "body": {"prompt": "x", "max_tokens": 3, "tools": []}}, ("ignored", "tools")),
        ({"custom_id": "a", "body": {"messages": CHAT, "max_tokens": "many"}}, ("wrong_type", "max_tokens")),
    ],
)
def test_a_field_that_does_not_do_what_its_name_says_is_warned_of(line: object, warning: tuple[str, str]):
    assert warnings_of(line) == [warning]


@pytest.mark.parametrize(
    "line",
    [
        {"prompt": "x", "max_tokens": 5.0, "temperature": 0, "stop": ["."], "seed": None},
        {
            "prompt": "x",
            "max_tokens": 5,
            "logprobs": 1,
            "metadata": {"max_new_tokens": 1},
            "topic": "rain",
            "text": "x",
        },
        {"messages": CHAT, "max_completion_tokens": 4, "logprobs": True, "top_logprobs": 2},
        {"messages": CHAT, "documents": [{"title": "a", "text": "b"}], "thinking_token_budget": 64},
        {"input": {"prompt": "a cat", "seed": 5, "num_inference_steps": 20, "guidance_scale": 7.5, "n": 1}},
        {"input": {"image": "x", "temperature": "hot"}},
        {"input": {"openai_route": ["x"], "openai_input": {"n": "x"}}},
        {"url": "/v1/embeddings", "body": {"model": "m", "input": "x", "dimensions": 3}},
        {"url": "/v1/chat/completions", "body": {"model": "m", "messages": CHAT}, "model": "gpt-4", "seed": 1},
    ],
)
def test_what_may_well_be_meant_is_not_warned_of(line: object):
    assert warnings_of(line) == []


def test_the_options_that_change_what_is_sent_count():
    assert warnings_of({"prompt": "x"}, default={"max_tokens": 3}) == []
    assert warnings_of({"prompt": "x", "tools": [], "max_tokens": 3}, chat=True) == []
    assert warnings_of({"prompt": "x", "max_tokens": "many"}, override={"max_tokens": 3}) == []
    assert warnings_of({"prompt": "x"}, sweep=SweepOptions((("max_tokens", (8, 16)),))) == []


@pytest.mark.parametrize(
    ("line", "keys", "options", "counts"),
    [
        ({"prompt": "x", "temperature": 0}, (), {}, [3]),
        ({"prompt": "x", "temperature": 0.0}, (), {}, [3]),
        ({"messages": CHAT, "temperature": 0}, (), {}, [3]),
        ({"input": {"prompt": "x", "sampling_params": {"temperature": 0}}}, (), {}, [3]),
        ({"prompt": "x"}, (), {"default": {"temperature": 0}}, [3]),
        ({"prompt": "x", "temperature": 1}, (), {"override": {"temperature": 0}}, [3]),
        ({"prompt": "x", "temperature": 1}, (("temperature", (0.5, 0)),), {}, [3]),
        ({"prompt": "x", "temperature": 0}, (("temperature", (0.5, 1)),), {}, []),
        ({"prompt": "x", "temperature": 0}, (), {"override": {"temperature": 0.5}}, []),
        ({"prompt": "x", "temperature": 1}, (), {"default": {"temperature": 0}}, []),
        ({"prompt": "x"}, (), {}, []),
        ({"input": {"image": "x", "temperature": 0}}, (), {}, []),
    ],
)
def test_samples_at_temperature_0_are_warned_about(line: object, keys: tuple, options: dict, counts: list[int]):
    found = findings_of(line, line, line, sweep=SweepOptions(keys, repeat=4), **options)
    assert [each.count for each in found if each.kind == "same_samples"] == counts
    assert "same_samples" not in {each.kind for each in findings_of(line, sweep=SweepOptions(keys), **options)}


def test_lines_at_another_temperature_are_not_counted_as_equal_samples():
    lines = [{"prompt": "x", "temperature": value} for value in (1, 0, 2, 0, 0)]
    found = findings_of(*lines, sweep=SweepOptions(repeat=2))
    assert [(each.line, each.count) for each in found if each.kind == "same_samples"] == [(2, 3)]


def test_a_value_that_only_some_lines_have_wrong_is_counted_on_those():
    lines = [{"input": {"prompt": "x", "sampling_params": {"max_tokens": n}}} for n in (4.0, 8.5, 4.0, 9.5)]
    assert [(each.count, each.line) for each in findings_of(*lines) if each.kind == "wrong_type"] == [(2, 2)]


def test_lines_of_which_each_has_a_field_of_its_own_cost_no_end_of_memory():
    fields = Fields(RequestOptions(), Sweep(SweepOptions()))
    for number in range(6000):
        fields.add(parse_line(orjson.dumps({"prompt": "x", "max_tokens": 1, f"c{number}": 1})), "in.jsonl", number)
    assert len(fields._sets) == 4096
    assert sum(each.count for each in fields.findings() if each.kind == "carried") == 6000
    assert len(fields.findings()) < 300
    told: list[str] = []
    fields.tell_all(told.append, strict=False)
    assert len(told) < 30


def test_strict_makes_errors_of_warnings_and_not_of_notes():
    fields = Fields(RequestOptions(), Sweep(SweepOptions()))
    fields.add(parse_line(b'{"prompt": "x", "max_tokens": 5, "topic": "rain"}'), "in.jsonl", 1)
    fields.tell_all(lambda _: None, strict=True)
    fields.add(parse_line(b'{"prompt": "x", "max_tokens": 5, "topp": 1}'), "in.jsonl", 2)
    with pytest.raises(InputError, match=r"in.jsonl:2: warning: `topp` .* did you mean `top_p`"):
        fields.tell_all(lambda _: None, strict=True)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("temperatur", "temperature"),
        ("Temperature", "temperature"),
        ("maxTokens", "max_tokens"),
        ("max_new_tokens", "max_tokens"),
        ("top-p", "top_p"),
        ("sampling_parameters", "sampling_params"),
        ("repeat_penalty", "repetition_penalty"),
    ],
)
def test_a_misspelt_name_leads_to_the_right_one(name: str, near: str):
    assert near in suggestion(name)


@pytest.mark.parametrize(
    "name", ["topic", "title", "model_name", "document", "n_tokens", "request", "top_1", "session"]
)
def test_a_column_of_a_dataset_is_no_misspelt_parameter(name: str):
    assert suggestion(name) == ""


def test_a_value_fits_as_vllm_takes_it():
    assert expected_type("logprobs", 2) == expected_type("logprobs", True) == ""
    assert expected_type("logprobs", 2, (Kind.MESSAGES,)) == "true or false"
    assert expected_type("n", True) == "a whole number"
    assert (
        expected_type("max_tokens", 5.0)
        == expected_type("temperature", None)
        == expected_type("no_such_thing", 1)
        == ""
    )


def test_the_first_reading_knows_what_the_version_before_knew():
    assert len(FIRST_PARAMETERS) == 45
    assert {"temperature", "guided_json", "model", "tools"} <= FIRST_PARAMETERS
    assert {"documents", "priority", "user", "thinking_token_budget"} <= SAMPLING_PARAMETERS - FIRST_PARAMETERS
    assert json.dumps(sorted(FIRST_PARAMETERS - SAMPLING_PARAMETERS)) == "[]"


def test_advice_on_a_name_is_looked_for_once_however_many_sets_of_names_lines_have():
    before = suggestion.cache_info().misses
    fields = Fields(RequestOptions(), Sweep(SweepOptions()))
    for number in range(3000):
        row = {f"sparse{bit}": 1 for bit in range(12) if number >> bit & 1}
        fields.add(parse_line(orjson.dumps({"prompt": "x", **row})), "r.csv", number + 1)
    assert suggestion.cache_info().misses - before == 12


def test_a_picture_whose_path_is_sent_instead_of_its_content_is_warned_of():
    def line(url: str) -> dict:
        parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]
        return {"messages": [{"role": "user", "content": parts}], "max_tokens": 9}

    batch = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": line("b.png")}
    sent = [line("https://example.com/a.png"), line("data:image/png;base64,AAAA"), line("a.png"), line("c.png"), batch]
    text = "`image_url` is the path of a file, and is sent as it is: --inline-files sends the content"
    assert [(each.text, each.line, each.count) for each in findings_of(*sent) if each.kind == "path"] == [(text, 3, 3)]
    assert warnings_of(*sent, inline_files="anywhere") == []
    # A worker may have a volume with files, and serve them.
    assert warnings_of(line("file:///volume/a.png")) == []
