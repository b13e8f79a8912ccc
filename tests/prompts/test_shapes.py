from __future__ import annotations

import copy

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.config import MAX_REQUEST_BYTES, RequestOptions
from batchrun.prompts.identity import derived_id
from batchrun.prompts.shapes import LineError, Shape, build_request, parse_line, prompt_chars

CHAT = [{"role": "user", "content": "hi"}]


def parse(line):
    return parse_line(orjson.dumps(line))


@pytest.mark.parametrize(
    ("line", "shape", "request_"),
    [
        ("hello", "prompt", {"prompt": "hello"}),
        ({"prompt": "hi"}, "prompt", {"prompt": "hi"}),
        ({"prompt": ["a", "b"]}, "prompt", {"prompt": ["a", "b"]}),
        (
            {"prompt": "hi", "temperature": 0, "stop": ["x"]},
            "prompt",
            {"prompt": "hi", "sampling_params": {"temperature": 0, "stop": ["x"]}},
        ),
        (
            {"prompt": "hi", "sampling_params": {"new_in_vllm": 1}, "max_tokens": 5},
            "prompt",
            {"prompt": "hi", "sampling_params": {"new_in_vllm": 1, "max_tokens": 5}},
        ),
        ({"messages": CHAT, "seed": 1}, "messages", {"messages": CHAT, "sampling_params": {"seed": 1}}),
        ({"input": {"image": "x", "temperature": 1}}, "input", {"image": "x", "temperature": 1}),
        (
            {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": CHAT}},
            "openai",
            {"openai_route": "/v1/chat/completions", "openai_input": {"messages": CHAT}},
        ),
        (
            {"url": "/v1/completions", "body": {"prompt": "x"}},
            "openai",
            {"openai_route": "/v1/completions", "openai_input": {"prompt": "x"}},
        ),
    ],
)
def test_each_documented_shape_makes_its_request(line, shape, request_):
    prompt = parse(line)
    assert (prompt.shape.value, prompt.request) == (shape, request_)


def test_a_line_of_an_error_file_is_its_request_again_under_its_id():
    record = {"id": "x-1", "status": "FAILED", "error": {"kind": "platform"}, "request": {"prompt": "hi"}}
    record |= {"source": {"file": "in.jsonl", "line": 1}, "job": None}
    prompt = parse(record)
    assert (prompt.id, prompt.request, prompt.line) == ("x-1", {"prompt": "hi"}, {"prompt": "hi"})
    assert parse({**record, "request": "bare"}).request == {"prompt": "bare"}
    assert parse({**record, "request": {"id": "own", "prompt": "hi"}}).id == "own"


@pytest.mark.parametrize(
    "own",
    [
        {"error": "timeout", "request": "GET /orders", "status": 504},
        {"error": {"kind": "x"}, "request": "GET /orders", "status": "FAILED", "source": {}, "job": None},
        {"error": {"kind": "x"}, "batchrun": {"request": "GET /orders", "status": "FAILED", "source": {}, "job": {}}},
    ],
)
def test_a_line_with_a_prompt_of_its_own_is_asked_whatever_its_columns_are_called(own: dict):
    prompt = parse({"id": "log-1", "prompt": "What went wrong here?", **own})
    assert prompt.request == {"prompt": "What went wrong here?"}
    assert prompt.carried == own


def test_metadata_and_unknown_fields_are_carried_untouched():
    prompt = parse({"id": 7, "prompt": "hi", "max_tokens": 3, "metadata": {"a": [1]}, "topic": "rain", "split": None})
    assert prompt.id == "7"
    assert prompt.carried == {"metadata": {"a": [1]}, "topic": "rain", "split": None}
    openai = parse({"custom_id": "a", "url": "/v1/x", "body": {"a": 1}, "metadata": 1, "note": 2})
    assert openai.carried == {"metadata": 1, "note": 2}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"{'prompt': 1}", "invalid JSON at column"),
        (b'{"prompt": NaN}', "invalid JSON"),
        (b'{"prompt": "\xff"}', "invalid JSON"),
        (b"3", "a number where an object or a string"),
        (b"[1]", "a list where an object or a string"),
        (b"null", "null where"),
        (b"{}", "no prompt in the line \\(it has an empty object\\): expected `prompt`"),
        (b'{"text": "x"}', "it has `text`"),
        (b'""', "`prompt` must be a text that is not empty"),
        (b'{"prompt": 3}', "`prompt` must be"),
        (b'{"prompt": []}', "`prompt` must be"),
        (b'{"prompt": ["a", 1]}', "`prompt` must be"),
        (b'{"prompt": "x", "messages": []}', "`prompt` and `messages` in one line"),
        (b'{"prompt": "x", "url": "/v1/a", "body": {}}', "`prompt` and `body` in one line"),
        (b'{"messages": []}', "`messages` must be a list that is not empty"),
        (b'{"messages": ["x"]}', "`messages\\[0\\]` must be an object with a `role`"),
        (b'{"input": []}', "`input` must be an object, not a list"),
        (b'{"input": {}}', "`input` is empty"),
        (b'{"prompt": "x", "sampling_params": 1}', "`sampling_params` must be an object"),
        (b'{"prompt": "x", "sampling_params": {"n": 1}, "n": 2}', "`n` stands beside the prompt and in"),
        (b'{"prompt": "x", "stream": true}', "`stream` is of no use"),
        (b'{"prompt": "x", "sampling_params": {"stream": true}}', "`stream` is of no use"),
        (b'{"url": "/v1/a", "body": {"stream": true}}', "`stream` is of no use"),
        (b'{"url": "/v1/a", "body": {}}', "`body` must be"),
        (b'{"url": "/v1/a", "body": {"a": 1}, "method": "GET"}', "`method` must be POST"),
        (b'{"url": "https://x/v1/a", "body": {"a": 1}}', "`url` must be a path"),
        (b'{"prompt": "x", "id": true}', "`id` must be a string or a number, not true or false"),
        (b'{"prompt": "x", "id": ""}', "`id` must be 1 to 512 printable"),
        (b'{"prompt": "x", "id": "a\\nb"}', "`id` must be 1 to 512 printable"),
        (b'{"prompt": "x", "id": "a", "custom_id": "b"}', "`id` 'a' and `custom_id` 'b' differ"),
        (b'{"input": {"a": ' + b"[" * 400 + b"]" * 400 + b"}}", "nested too deep"),
        (b'{"prompt": "' + b"x" * MAX_REQUEST_BYTES + b'"}', "/run takes 10,000,000"),
    ],
)
def test_a_wrong_line_is_refused_with_what_is_wrong(raw, message):
    with pytest.raises(LineError, match=message):
        parse_line(raw)


def test_a_large_line_with_a_small_request_is_fine():
    assert parse({"prompt": "x", "metadata": "m" * MAX_REQUEST_BYTES}).request == {"prompt": "x"}


@pytest.mark.parametrize(
    ("line", "options", "request_"),
    [
        (
            {"prompt": "x", "temperature": 1},
            {"override": {"temperature": 0}, "default": {"max_tokens": 9, "temperature": 5}},
            {"prompt": "x", "sampling_params": {"max_tokens": 9, "temperature": 0}},
        ),
        ({"prompt": "x"}, {"chat": True}, {"messages": [{"role": "user", "content": "x"}]}),
        ({"prompt": ["x", "y"]}, {"chat": True}, {"prompt": ["x", "y"]}),
        (
            {"prompt": "x", "seed": 1},
            {"system": "S"},
            {
                "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "x"}],
                "sampling_params": {"seed": 1},
            },
        ),
        ({"messages": CHAT}, {"system": "S"}, {"messages": [{"role": "system", "content": "S"}, *CHAT]}),
        (
            {"messages": [{"role": "system", "content": "own"}, *CHAT]},
            {"system": "S"},
            {"messages": [{"role": "system", "content": "own"}, *CHAT]},
        ),
        (
            {"url": "/v1/chat/completions", "body": {"messages": CHAT, "top_p": 1}},
            {"override": {"top_p": 0.5}, "default": {"seed": 3}, "system": "S"},
            {
                "openai_route": "/v1/chat/completions",
                "openai_input": {
                    "seed": 3,
                    "messages": [{"role": "system", "content": "S"}, *CHAT],
                    "top_p": 0.5,
                },
            },
        ),
        ({"input": {"image": "x"}}, {"override": {"temperature": 0}, "system": "S"}, {"image": "x"}),
        (
            {"input": {"prompt": "x"}},
            {"override": {"temperature": 0}},
            {"prompt": "x", "sampling_params": {"temperature": 0}},
        ),
        ({"prompt": "x"}, {}, {"prompt": "x"}),
    ],
)
def test_options_are_applied_where_they_make_sense(line, options, request_):
    assert build_request(parse(line), RequestOptions(**options)) == request_


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
words = st.sampled_from(
    ["prompt", "messages", "input", "id", "custom_id", "method", "url", "body", "sampling_params", "stream", "metadata"]
)
lines = json_values | st.dictionaries(words, json_values | st.just("/v1/x") | st.just("POST") | st.just(CHAT))
all_options = RequestOptions({"temperature": 0}, {"seed": 1}, chat=True, system="S")


@given(st.binary() | lines.map(orjson.dumps))
def test_any_line_is_understood_or_refused_and_what_is_understood_can_be_sent(raw):
    try:
        prompt = parse_line(raw)
    except LineError as error:
        assert error.message  # noqa: PT017 - refusing is one of the two right answers
        return
    before = copy.deepcopy(prompt.request)
    assert isinstance(orjson.dumps(build_request(prompt, all_options)), bytes)
    assert prompt.request == before, "building a request changed the prompt"
    assert len(derived_id(prompt)) == 16
    assert prompt_chars(prompt.request) >= 0


@given(st.dictionaries(st.text(min_size=1), json_values, min_size=1), st.randoms(use_true_random=False))
def test_an_id_does_not_depend_on_key_order_white_space_or_what_is_carried(fields, rng):
    shuffled = list(fields.items())
    rng.shuffle(shuffled)
    one = parse_line(orjson.dumps({"input": fields, "metadata": 1}))
    two = parse_line(orjson.dumps({"note": 2, "input": dict(shuffled)}, option=orjson.OPT_INDENT_2))
    assert derived_id(one) == derived_id(two)


def test_different_requests_have_different_ids_and_options_change_none():
    assert derived_id(parse({"prompt": "x"})) != derived_id(parse({"prompt": "x", "seed": 1}))
    assert derived_id(parse("x")) == derived_id(parse({"prompt": "x", "metadata": {"a": 1}}))
    assert parse("x").shape is Shape.PROMPT


def test_prompt_characters_are_those_of_texts_only():
    message = {
        "role": "user",
        "content": [{"type": "text", "text": "abc"}, {"type": "image_url", "image_url": "x" * 99}],
    }
    assert prompt_chars({"messages": [message], "sampling_params": {"stop": "zzzz"}}) == 3
