from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.cli.values import key_values
from batchrun.commands.verify import verify
from batchrun.config import JobPolicy, RequestOptions
from batchrun.endpoint.protocol import JobStatus, parse_job, run_body
from batchrun.files.exactjson import dump, has_large_integer, load, on_one_line
from batchrun.prompts.identity import derived_id, request_key
from batchrun.prompts.ownership import is_own_line
from batchrun.prompts.requests import build_request
from batchrun.prompts.shapes import parse_line
from batchrun.results.record import read_record
from batchrun.results.written import write_line
from tests.support.rehearsal import rehearse, serving

UINT128 = 340282366920938463463374607431768211455
LARGE = [2**64, -(2**63) - 1, UINT128, -UINT128, 10**308, 10**400, 10**4299]


@pytest.mark.parametrize("number", LARGE)
def test_an_integer_beyond_64_bits_keeps_its_value_in_a_line_a_request_and_an_output(number: int):
    line = b'{"id": %d, "input": {"seed": %d}, "metadata": {"hash": [%d]}}' % (number, number, number)
    if len(str(number)) > 512:
        line = line.replace(b'"id": %d, ' % number, b"")
    prompt = parse_line(line)
    assert prompt.id in (None, str(number))
    assert prompt.carried == {"metadata": {"hash": [number]}}
    body = run_body(build_request(prompt, RequestOptions()), JobPolicy())
    assert json.loads(body) == {"input": {"seed": number}}
    answer = parse_job(200, {}, b'{"id": "j", "status": "COMPLETED", "output": {"hash":%d}}' % number)
    assert (answer.status, answer.output) == (JobStatus.COMPLETED, {"hash": number})
    assert json.loads(write_line({"output": answer.output, "text": "ü"})) == {"output": {"hash": number}, "text": "ü"}


def test_requests_that_differ_in_the_last_digit_of_a_large_integer_are_two():
    one, other = (parse_line(b'{"input": {"seed": %d}}' % seed) for seed in (UINT128, UINT128 - 1))
    assert derived_id(one) != derived_id(other)
    assert request_key(one.request) != request_key(other.request)


def test_a_request_with_a_large_integer_has_one_identity_whatever_the_order_of_its_keys():
    one = parse_line(b'{"input": {"seed": %d, "a": 1.0, "b": "\xc3\xbc"}}' % UINT128)
    other = parse_line(b'{"input": {"b": "\\u00fc", "a": 1.0, "seed": %d}}' % UINT128)
    assert derived_id(one) == derived_id(other)


numbers = (
    st.integers(-(10**40), 10**40) | st.integers(-(2**65), 2**65) | st.floats(allow_nan=False, allow_infinity=False)
)
values = st.recursive(
    numbers | st.text() | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(values, st.booleans(), st.booleans())
def test_what_is_written_is_read_as_it_was(value, indented, spaced):
    written = dump(value, orjson.OPT_INDENT_2 if indented else 0)
    other = json.dumps(value, ensure_ascii=spaced, separators=(", ", ": ") if spaced else (",", ":")).encode()
    assert load(written) == load(other) == value


@given(st.binary(max_size=30), st.integers(19, 40), st.integers(0, 8))
def test_no_large_integer_is_overlooked_wherever_it_stands(before: bytes, digits: int, shift: int):
    assert has_large_integer(b" " * shift + before + b",-" + b"9" * digits + b"}")


@pytest.mark.parametrize(
    "text",
    [
        b'{"logprob": -0.00012345678901234567, "token": "12345678901234567890"}',
        b'{"loss": 1234567890123456789012.5, "next": 12345678901234567890e3}',
        b'{"id": "sync-00000000-0000-4000-8000-000000000007-e1", "created": 1729425952}',
    ],
)
def test_what_only_resembles_a_large_integer_is_read_once(text: bytes):
    assert not has_large_integer(text)
    assert load(text) == orjson.loads(text)


@pytest.mark.parametrize("text", [b"[%d, NaN]", b"[%d, 1e999]", b'[%d, "\\ud800"]', b"[%d", b"[%d]]", b"[\x00%d]"])
def test_what_is_not_json_is_refused_beside_a_large_integer_as_well(text: bytes):
    with pytest.raises(orjson.JSONDecodeError):
        load(text.replace(b"%d", b"1" * 400))


@pytest.mark.parametrize("value", [{"a": UINT128, "b": float("nan")}, [UINT128, "\ud800"], [10**5000]])
def test_what_cannot_be_written_is_a_type_error_as_always(value):
    with pytest.raises(TypeError):
        dump(value)


def test_options_take_large_integers_as_they_are():
    assert key_values(None, None, (f"seed={UINT128}",)) == {"seed": UINT128}


@pytest.mark.parametrize("number", [UINT128, 10**400 + 7], ids=["128 bits", "401 digits"])
async def test_a_whole_run_changes_no_large_integer_and_reads_its_own_lines(tmp_path, number: int):
    lines = [
        {"id": number - n, "input": {"seed": number - n, "request_id": f"r{n}"}, "metadata": {"hash": number}}
        for n in range(2)
    ]
    (tmp_path / "in.jsonl").write_bytes(b"".join(dump(line) + b"\n" for line in lines))
    async with serving() as server:
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url)
        assert rehearsal.summary.exit_code == 0
        again = await rehearse(tmp_path, server.endpoint.base_url)
        assert again.summary.exit_code == 0
    written = [load(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    assert {record["id"]: record["output"]["echo"]["seed"] for record in written} == {
        str(number): number,
        str(number - 1): number - 1,
    }
    assert all(record["metadata"] == {"hash": number} for record in written)
    assert verify(tmp_path / "out.jsonl.state").is_whole
    assert all(is_own_line(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines())
    assert all(read_record(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines())


@given(st.text(st.sampled_from("a\u0085\u2028\u2029é✓界\x0b\x1c\n")))
def test_json_of_ours_is_one_line_for_whoever_splits_it(text: str):
    line = on_one_line(orjson.dumps({"text": text, text: 1}, option=orjson.OPT_APPEND_NEWLINE))
    assert len(line.decode().splitlines()) == 1
    assert orjson.loads(line) == {"text": text, text: 1}
