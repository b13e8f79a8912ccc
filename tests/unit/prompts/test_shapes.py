from __future__ import annotations

import copy

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.config import MAX_REQUEST_BYTES, RequestOptions
from batchrun.prompts.identity import derived_id
from batchrun.prompts.requests import build_request, prompt_chars
from batchrun.prompts.shapes import LineError, Shape, parse_line

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
    of_sweep = orjson.dumps({**record, "request": {"id": "own", "prompt": "hi"}})
    assert parse_line(of_sweep).id == "x-1", "of a row of a sweep, which has its line's id and more"
    assert parse_line(of_sweep, reading=2).id == "own"


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
        (b"3", "an object or a string, found a number"),
        (b"[1]", "an object or a string, found a list"),
        (b"null", "a string, found null"),
        (b"{}", "no prompt in the line \\(it has an empty object\\): expected `prompt`"),
        (b'{"text": "x"}', "it has `text`"),
        (b'""', "`prompt` must be a non-empty string"),
        (b'{"prompt": 3}', "`prompt` must be"),
        (b'{"prompt": []}', "`prompt` must be"),
        (b'{"prompt": ["a", 1]}', "`prompt` must be"),
        (b'{"prompt": "x", "messages": []}', "`prompt` and `messages` in one line"),
        (b'{"prompt": "x", "url": "/v1/a", "body": {}}', "`prompt` and `body` in one line"),
        (b'{"messages": []}', "`messages` must be a non-empty list"),
        (b'{"messages": ["x"]}', "`messages\\[0\\]` must be an object with a `role`"),
        (b'{"input": []}', "`input` must be an object, not a list"),
        (b'{"input": {}}', "`input` is empty"),
        (b'{"prompt": "x", "sampling_params": 1}', "`sampling_params` must be an object"),
        (b'{"prompt": "x", "sampling_params": {"n": 1}, "n": 2}', "`n` has different values beside the prompt and in"),
        (b'{"prompt": "x", "stream": true}', "`stream` is not supported"),
        (b'{"prompt": "x", "sampling_params": {"stream": true}}', "`stream` is not supported"),
        (b'{"url": "/v1/a", "body": {"stream": true}}', "`stream` is not supported"),
        (b'{"url": "/v1/a", "body": {}}', "`body` must be"),
        (b'{"url": "/v1/a", "body": {"a": 1}, "method": "GET"}', "`method` must be POST"),
        (b'{"url": "https://x/v1/a", "body": {"a": 1}}', "`url` must be a path"),
        (b'{"prompt": "x", "id": true}', "`id` must be a string or a number, not true or false"),
        (b'{"prompt": "x", "id": ""}', "`id` must be 1 to 512 printable"),
        (b'{"prompt": "x", "id": "a\\nb"}', "`id` must be 1 to 512 printable"),
        (b'{"prompt": "x", "id": "a", "custom_id": "b"}', "`id` 'a' and `custom_id` 'b' differ"),
        (b'{"input": {"a": ' + b"[" * 400 + b"]" * 400 + b"}}", "nested too deeply"),
        (b'{"prompt": "' + b"x" * MAX_REQUEST_BYTES + b'"}', "/run accepts at most 10,000,000"),
    ],
)
def test_a_wrong_line_is_refused_with_what_is_wrong(raw, message):
    with pytest.raises(LineError, match=message):
        parse_line(raw)


@pytest.mark.parametrize(
    ("line", "request_"),
    [
        (
            {"prompt": "Say hi", "messages": None, "max_tokens": 16, "temperature": None},
            {"prompt": "Say hi", "sampling_params": {"max_tokens": 16}},
        ),
        (
            {"prompt": None, "messages": CHAT, "input": None, "max_tokens": None, "temperature": 0.2},
            {"messages": CHAT, "sampling_params": {"temperature": 0.2}},
        ),
        ({"prompt": "x", "sampling_params": {"n": None, "min_tokens": None}}, {"prompt": "x"}),
        (
            {"messages": [{"role": "user", "content": "hi", "name": None}, {"role": "assistant", "content": None}]},
            {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None}]},
        ),
        ({"input": {"image": "x", "prompt": None}, "prompt": None}, {"image": "x", "prompt": None}),
        (
            {"custom_id": "1", "method": None, "url": "/v1/x", "body": {"n": None}, "prompt": None},
            {"openai_route": "/v1/x", "openai_input": {"n": None}},
        ),
        ({"custom_id": "1", "method": None, "url": None, "body": None, "prompt": "x"}, {"prompt": "x"}),
    ],
)
def test_a_null_is_a_field_that_is_not_there(line, request_):
    assert parse(line).request == request_


def test_what_is_null_and_means_nothing_is_carried_as_it_is():
    assert parse({"prompt": "x", "messages": None, "n": None, "split": None}).carried == {"split": None}


def test_a_whole_number_that_a_table_made_a_float_is_whole_again():
    line = {
        "prompt": "x",
        "max_tokens": 5.0,
        "temperature": 1.0,
        "sampling_params": {"seed": 7.0, "n": 1.5},
        "topic": 2.0,
    }
    prompt = parse(line)
    assert orjson.dumps(prompt.request["sampling_params"]) == b'{"seed":7,"n":1.5,"max_tokens":5,"temperature":1.0}'
    assert prompt.carried == {"topic": 2.0}


@pytest.mark.parametrize(
    "own",
    [
        {"url": "https://example.org/1", "body": "The article."},
        {"url": "https://example.org/1", "body": {"html": "The article."}, "custom_id": "n1"},
        {"body": {"html": "The article."}},
        {"url": "/about", "body": "The article."},
    ],
)
def test_a_prompt_may_have_columns_named_url_and_body(own: dict):
    prompt = parse({"prompt": "Summarise the article", **own})
    assert prompt.request == {"prompt": "Summarise the article"}
    assert prompt.carried == {key: value for key, value in own.items() if key != "custom_id"}


def test_a_prompt_beside_a_whole_openai_line_is_refused():
    line = {"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": {"prompt": "a"}, "prompt": "b"}
    with pytest.raises(LineError, match="`prompt` and `body` in one line"):
        parse(line)


@pytest.mark.parametrize(
    ("url", "route"),
    [
        ("/v1/anything/new", "/v1/anything/new"),
        ("/score", "/score"),
        ("/rerank", "/rerank"),
        ("/v2/rerank", "/v2/rerank"),
        ("/pooling", "/pooling"),
        ("/chat/completions", "/v1/chat/completions"),
        ("/embeddings", "/v1/embeddings"),
        ("/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21", "/v1/chat/completions"),
        ("https://api.openai.com/v1/chat/completions", "/v1/chat/completions"),
        ("https://api.runpod.ai/v2/abc/openai/v1/completions", "/v1/completions"),
        ("https://x.openai.azure.com/openai/deployments/d/chat/completions?api-version=1", "/v1/chat/completions"),
        ("http://127.0.0.1:8000/v2/rerank", "/v2/rerank"),
    ],
)
def test_the_url_of_an_openai_line_may_be_any_path_or_that_of_another_server(url: str, route: str):
    assert parse({"custom_id": "1", "method": "POST", "url": url, "body": {"a": 1}}).request["openai_route"] == route


@pytest.mark.parametrize("url", ["", "/", "https://example.org/page", "score", "ftp://x/v1/completions", 5, ["/v1/x"]])
def test_a_url_that_is_no_route_is_refused(url: object):
    with pytest.raises(LineError, match="`url` must be a path"):
        parse({"custom_id": "1", "method": "POST", "url": url, "body": {"a": 1}})


def test_a_body_alone_is_what_it_looks_like():
    assert parse({"custom_id": "1", "body": {"messages": CHAT}}).request["openai_route"] == "/v1/chat/completions"
    assert parse({"custom_id": "1", "body": {"prompt": "x"}}).request["openai_route"] == "/v1/completions"
    with pytest.raises(LineError, match="the line has no `url`, and its `body`"):
        parse({"custom_id": "1", "body": {"input": "x"}})


@pytest.mark.parametrize(
    "line_id", ["\U0001f469\u200d\U0001f680", "10\u00a0km", "\u0915\u094d\u200d\u0937", "\u4e00\u3000", "\ue000"]
)
def test_an_id_may_have_joiners_and_spaces_of_all_kinds(line_id: str):
    assert parse({"id": line_id, "prompt": "x"}).id == line_id


@pytest.mark.parametrize("line_id", ["a\u2028b", "a\u2029b", "a\u0085b", "a\tb", "\x1b[0m", ""])
def test_an_id_that_would_break_a_line_is_refused(line_id: str):
    with pytest.raises(LineError, match="printable"):
        parse({"id": line_id, "prompt": "x"})


def test_the_first_reading_asks_for_what_it_always_did():
    line = {"prompt": "x", "max_tokens": 5.0, "n": None, "documents": ["a"], "sampling_params": {"seed": None}}
    prompt = parse_line(orjson.dumps(line), 1)
    assert orjson.dumps(prompt.request) == (b'{"prompt":"x","sampling_params":{"seed":null,"max_tokens":5.0,"n":null}}')
    assert prompt.carried == {"documents": ["a"]}


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
