"""What a sweep makes of a line."""

from __future__ import annotations

from itertools import product

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.config import RequestOptions, SweepOptions
from batchrun.errors import UsageError
from batchrun.prompts.requests import build_request
from batchrun.prompts.shapes import LineError, parse_line
from batchrun.prompts.sweep import MAX_ROWS, Sweep, shown

PLAIN = RequestOptions()

parameters = st.sampled_from(["temperature", "top_p", "stop", "model", "max_tokens"])
VALUES = {
    "temperature": st.floats(0, 2, allow_nan=False),
    "top_p": st.floats(0, 1, allow_nan=False),
    "max_tokens": st.integers(1, 4096),
    "model": st.text(min_size=1, max_size=60),
    "stop": st.lists(st.text(max_size=5), max_size=3) | st.none() | st.text(max_size=5),
}
sweeps = st.builds(
    SweepOptions,
    st.lists(parameters, unique=True, max_size=3).flatmap(
        lambda keys: st.tuples(
            *(
                st.tuples(st.just(key), st.lists(VALUES[key], min_size=1, max_size=4, unique_by=shown).map(tuple))
                for key in keys
            )
        )
    ),
    st.integers(1, 4),
)
lines = st.sampled_from(
    [
        {"id": "q", "prompt": "hi"},
        {"id": "q", "prompt": "hi", "temperature": 1.5, "seed": 7},
        {"id": "q", "messages": [{"role": "user", "content": "hi"}], "sampling_params": {"top_p": 0.3}},
        {"id": "q", "input": {"prompt": "hi", "sampling_params": {"max_tokens": 3}}},
        {"custom_id": "q", "method": "POST", "url": "/v1/completions", "body": {"model": "m", "prompt": "hi"}},
    ]
)


def parsed(line: object):
    return parse_line(orjson.dumps(line))


def applied(line: object, *keys: tuple, repeat: int = 1) -> list[dict]:
    sweep = Sweep(SweepOptions(keys, repeat))
    return [build_request(sweep.apply(parsed(line), number), PLAIN) for number in range(sweep.size)]


@given(sweeps)
def test_every_combination_is_there_once_with_an_id_of_its_own(options: SweepOptions):
    sweep = Sweep(options)
    found = [sweep.variant(number) for number in range(sweep.size)]
    expected = list(product(*(values for _, values in options.keys), range(1, options.repeat + 1)))
    names = [key for key, _ in options.keys]
    assert [(*(v.values[name] for name in names), v.values.get("repeat", 1)) for v in found] == expected
    suffixes = [variant.suffix for variant in found]
    assert len(set(suffixes)) == len(suffixes)
    assert all(suffix.isprintable() for suffix in suffixes)


@given(sweeps, lines)
def test_a_row_asks_for_its_values_and_its_line_alone_would_ask_for_the_same(options: SweepOptions, line: dict):
    sweep, base = Sweep(options), parsed(line)
    for number in range(sweep.size):
        values, row = sweep.variant(number).values, sweep.apply(base, number)
        request = build_request(row, PLAIN)
        place = request.get("openai_input", request.get("sampling_params", {}))
        # A null is the line without that parameter.
        assert {key: place.get(key) for key in values if key != "repeat"} == {
            key: value for key, value in values.items() if key != "repeat"
        }
        assert build_request(parsed(row.line), PLAIN) == request
        assert row.carried == base.carried
        assert row.id == base.id + sweep.variant(number).suffix
    assert base == parsed(line)


@given(lines)
def test_samples_have_seeds_of_their_own_unless_the_line_says_which(line: dict):
    seeds = [
        request.get("openai_input", request.get("sampling_params", {}))["seed"] for request in applied(line, repeat=3)
    ]
    assert seeds == ([7, 7, 7] if "seed" in line else [1, 2, 3])


def test_without_a_sweep_a_line_stays_what_it_is():
    line = parsed({"id": "q", "prompt": "hi"})
    sweep = Sweep(SweepOptions())
    assert sweep.size == 1
    assert sweep.apply(line, 0) is line
    assert sweep.variant(0).suffix == ""


def test_a_path_reaches_into_an_input_object_and_makes_what_is_missing():
    line = {"input": {"image": {"width": 1, "height": 2}}}
    assert applied(line, ("input.image.width", (5,))) == [{"image": {"width": 5, "height": 2}}]
    assert applied(line, ("image.width", (5,))) == [{"image": {"width": 5, "height": 2}}]
    assert applied(line, ("input.steps", (5,))) == [{"image": {"width": 1, "height": 2}, "steps": 5}]
    assert applied({"input": {"a": 1}}, ("b.c", (5,))) == [{"a": 1, "b": {"c": 5}}]


def test_a_path_into_a_body_reaches_an_openai_line():
    line = {"custom_id": "q", "method": "POST", "url": "/v1/completions", "body": {"prompt": "hi"}}
    (request,) = applied(line, ("body.extra.depth", (3,)))
    assert request["openai_input"] == {"prompt": "hi", "extra": {"depth": 3}}


def test_any_workers_input_gets_no_seed_that_nobody_knows_the_meaning_of():
    assert applied({"input": {"x": 1}}, repeat=2) == [{"x": 1}, {"x": 1}]


@pytest.mark.parametrize(
    ("line", "key", "words"),
    [
        ({"prompt": "hi"}, "input.steps", "a line with an `input` object"),
        ({"prompt": "hi"}, "body.user", "an OpenAI line"),
        ({"input": {"x": 1}}, "body.user", "an OpenAI line"),
        ({"input": {"x": 1}}, "temperature", "no sampling parameters"),
        ({"input": {"x": 1}}, "input.x.y", "the value around `y` is not an object"),
    ],
)
def test_a_key_that_a_line_has_no_place_for_is_said_so(line: dict, key: str, words: str):
    with pytest.raises(LineError, match="--sweep") as caught:
        applied(line, (key, (1,)))
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("key", "values", "words"),
    [
        ("temprature", (1,), "no such sampling parameter"),
        ("temperature", (), "no value is given"),
        ("temperature", (0.5, 0.5), "0.5 is given twice"),
        ("temperature", ("hot",), "'hot' is not a number"),
        ("temperature", ("",), "'' is not a number"),
        ("temperature", (True,), "is not a number"),
        ("max_tokens", (1.5,), "is not a whole number"),
        ("endpoint", ("a/b",), "is not an endpoint ID"),
        ("model", (7,), "is not the name of a model"),
        ("input..x", (1,), "between the dots is empty"),
        ("stream", (True,), "not supported in batch runs"),
    ],
)
def test_a_wrong_key_or_value_is_refused_by_name(key: str, values: tuple, words: str):
    with pytest.raises(UsageError) as caught:
        Sweep(SweepOptions(((key, values),)))
    assert words in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("key", ["temperature", "max_tokens", "model", "seed"])
def test_a_null_leaves_any_parameter_out(key: str):
    prompt = Sweep(SweepOptions(((key, (None, 1 if key != "model" else "m")),))).apply(
        parse_line(orjson.dumps({"prompt": "hi", key: 5})), 0
    )
    assert prompt.request == {"prompt": "hi"}


def test_a_product_beyond_ten_million_rows_is_refused_before_anything_is_made_of_it():
    keys = tuple((key, tuple(range(1000))) for key in ("max_tokens", "seed", "top_k"))
    with pytest.raises(UsageError, match=f"at most {MAX_ROWS:,}"):
        Sweep(SweepOptions(keys))


@given(st.lists(st.sampled_from(["a1", "b2", "c3"]), min_size=1, unique=True), st.integers(1, 3), st.integers(1, 3))
def test_an_endpoints_rows_are_found_by_arithmetic(endpoints: list[str], before: int, after: int):
    keys = (
        ("temperature", tuple(n / 10 for n in range(before))),
        ("endpoint", tuple(endpoints)),
        ("max_tokens", tuple(range(1, after + 1))),
    )
    sweep = Sweep(SweepOptions(keys, 2))
    for number in range(sweep.size):
        index = number // sweep.endpoint_stride % len(endpoints)
        assert sweep.variant(number).values["endpoint"] == endpoints[index]
