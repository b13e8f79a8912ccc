"""Which requests have one answer, and which requests are the same."""

from __future__ import annotations

import pytest

from batchrun.prompts.identity import whole_request
from batchrun.prompts.sampling import is_sampled


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"prompt": "p"}, True),
        ({"prompt": "p", "sampling_params": {"temperature": 0}}, False),
        ({"prompt": "p", "sampling_params": {"temperature": 0.0}}, False),
        ({"prompt": "p", "sampling_params": {"temperature": False}}, True),
        ({"prompt": "p", "sampling_params": {"temperature": "0"}}, True),
        ({"prompt": "p", "sampling_params": {"temperature": 0.7}}, True),
        ({"prompt": "p", "sampling_params": {"temperature": 0.7, "seed": 0}}, False),
        ({"prompt": "p", "sampling_params": {"seed": 7}}, False),
        ({"prompt": "p", "sampling_params": {"seed": -1}}, True),
        ({"prompt": "p", "sampling_params": {"seed": None}}, True),
        ({"openai_route": "/v1/chat/completions", "openai_input": {"messages": []}}, True),
        ({"openai_route": "/v1/chat/completions", "openai_input": {"temperature": 0}}, False),
        ({"openai_route": "/v1/chat/completions", "openai_input": {}, "temperature": 0}, True),
        ({"openai_route": "/v1/embeddings", "openai_input": {"input": "p"}}, False),
        ({"openai_route": "/v2/rerank", "openai_input": {"query": "p"}}, False),
        ({"image": "a cat", "seed": 3}, False),
        ({"image": "a cat"}, True),
    ],
)
def test_a_request_is_sampled_unless_its_temperature_is_0_or_it_has_a_seed(request_: dict, expected: bool):
    assert is_sampled(request_) is expected


def test_the_order_of_parameters_does_not_matter_and_that_of_a_schema_does():
    one = {"prompt": "p", "sampling_params": {"temperature": 0, "top_k": 3}}
    assert whole_request(one) == whole_request({"sampling_params": {"top_k": 3, "temperature": 0}, "prompt": "p"})
    for other in (
        {**one, "sampling_params": {"temperature": 0.0, "top_k": 3}},
        {**one, "sampling_params": {"temperature": False, "top_k": 3}},
        {**one, "more": None},
    ):
        assert whole_request(other) != whole_request(one)
    first, second = ({"openai_input": {"tools": [keys]}} for keys in ({"a": 1, "b": 2}, {"b": 2, "a": 1}))
    assert whole_request(first) != whole_request(second)
