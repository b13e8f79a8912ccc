"""Whatever a file, a server or a worker sends: an answer of the documented type or one of our own errors, soon."""

from __future__ import annotations

import gzip
import io
import json
import time
from typing import TYPE_CHECKING

import orjson
import pytest
from aiohttp import web
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from batchrun.config import JobPolicy, RequestOptions
from batchrun.endpoint.call_errors import MAX_RETRY_AFTER_S, body_message, call_error, parse_retry_after
from batchrun.endpoint.protocol import JobAnswer, JobStatus, parse_health, parse_job, run_body
from batchrun.endpoint.worker_errors import (
    MAX_MESSAGE_CHARS,
    WorkerError,
    decode_error,
    find_hidden_error,
    is_empty_output,
)
from batchrun.errors import CallError, InputError
from batchrun.local.workers import WorkerFailure
from batchrun.prompts.identity import derived_id, line_digest
from batchrun.prompts.lines import LineReader, iter_lines
from batchrun.prompts.requests import build_request, prompt_chars
from batchrun.prompts.shapes import LineError, Prompt, Shape, parse_line
from batchrun.prompts.sources import find_sources, iter_source
from batchrun.results.record import JobInfo, Record, read_record, result_line
from batchrun.results.text import Text, extract
from tests.support.rehearsal import read_lines, rehearse, serving, write_lines
from tests.support.workers import Answering

if TYPE_CHECKING:
    from pathlib import Path

VLLM_ERROR = (
    '{\'message\': \'vLLM returned HTTP 400: {"error": {"message": "max_tokens must be at least 1"}}\','
    " 'type': 'worker_error', 'code': None}"
)
OLD_VLLM_ERROR = "{'error': {'message': 'too long', 'type': 'BadRequestError', 'param': None, 'code': 400}}"
RAISED = "handler: boom \ntraceback: Traceback (most recent call last):\n  File x\nRuntimeError: boom"
SDK_ERROR = json.dumps(
    {
        "error_type": "<class 'ValueError'>",
        "error_message": "na\u00efve",
        "error_traceback": "Traceback...\nValueError: x",
    }
)
ERRORS = [VLLM_ERROR, OLD_VLLM_ERROR, RAISED, SDK_ERROR, "job timed out after 1 retries", "Unexpected argument 'x'"]
EVENTS = 'data: {"choices":[{"delta":{"content":"a"}}]}\n\ndata: {"error": {"message": "late"}}\n\ndata: [DONE]\n\n'
OUTPUTS = [
    [{"choices": [{"tokens": ["full text"]}], "usage": {"input": 5, "output": 100}}],
    [{"choices": [{"tokens": ["a", "b"]}]}, {"choices": [{"tokens": ["c"]}], "usage": {"input": 5, "output": 3}}],
    [{"object": "chat.completion", "choices": [{"message": {"role": "assistant", "content": "hi"}}]}],
    [{"choices": [{"index": 0, "text": "x", "finish_reason": "length"}], "usage": {"prompt_tokens": 1}}],
    {"object": "response", "output": [{"content": [{"type": "output_text", "text": "r"}]}], "status": "completed"},
    [EVENTS],
    [EVENTS[:20], EVENTS[20:]],
    [[{"choices": [{"delta": {"content": "a"}}]}, {"error": {"message": "late"}}]],
    [{"object": "error", "message": "m", "type": "BadRequestError", "code": 400}],
    [{"error": "x"}],
    "plain",
    None,
    [],
]
BODIES = [
    b'{"id":"j-u1","status":"IN_QUEUE"}',
    b'{"id":"j-u1","status":"IN_PROGRESS","delayTime":61372,"workerId":"z3jr"}',
    b'{"id":"j-u1","status":"CANCELLED"}',
    b'{"id":"j-u1","status":"FAILED","delayTime":101050,"executionTime":42078,"retries":1,"error":"job timed out"}',
    b'{"jobs":{"completed":31,"failed":1,"inProgress":0,"inQueue":2,"retried":1},"workers":{"idle":1,"ready":1}}',
    b'{"error":{"message":"Not Found","code":404}}',
    b'{"detail":[{"type":"missing","loc":["body"],"msg":"m","input":null}]}',
    b"<html><head><title>502 Bad gateway</title></head><body>cloudflare</body></html>",
    b"\xef\xbb\xbf{}",
    b'\xff\xfe{\x00"\x00',
    *(orjson.dumps({"id": "j", "status": "COMPLETED", "executionTime": 7, "output": output}) for output in OUTPUTS),
    *(orjson.dumps({"id": "j", "status": "FAILED", "error": error}) for error in ERRORS),
]
LINES = [
    b'{"id": "a", "prompt": "x", "temperature": 1, "metadata": {"k": [1]}}',
    b'"a string"',
    b'{"custom_id": 7, "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": [{"text": "x"}]}]}',
    b'{"input": {"prompt": "x", "sampling_params": {"n": 1}}, "id": 1.5}',
    b'{"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [{"role": "user"}]}}',
    b'{"id": "e", "status": "FAILED", "error": {"kind": "x"}, "request": {"prompt": "again"}}',
]
NASTY = [
    b"1e400",
    b"-1e400",
    b"1" + b"0" * 5000,
    b"18446744073709551616",
    b"9223372036854775808",
    b"1e19",
    b"-1",
    b"NaN",
    b"Infinity",
    b"\\ud800",
    b"\xed\xa0\x80",
    b"\\u0000",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b'"id":null,',
    b"null",
    b"[]",
    b"{}",
    b"true",
    b'"',
    b"\\",
    b"[" * 300,
    b'{"error":' * 300,
    b"\r\n",
    b"0x" + b"f" * 5000,
]
OPTIONS = [
    RequestOptions(),
    RequestOptions(override={"a": 1}, default={"temperature": 0}, chat=True, system="S"),
    RequestOptions(default={"n": 2}),
]


@st.composite
def mutated(draw, seeds: list[bytes]) -> bytes:
    """A known text with a few pieces overwritten, cut out, doubled, or replaced by something nasty."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 5))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 12)))
        piece = draw(st.one_of(st.sampled_from(NASTY), st.binary(max_size=4), st.just(data[start:end] * 2)))
        data = data[:start] + piece + data[end:]
    return data


def mutated_text(seeds: list[str]):
    return mutated([seed.encode() for seed in seeds]).map(lambda data: data.decode("utf-8", "replace"))


KEYS = ["id", "status", "output", "error", "errors", "message", "type", "object", "code", "choices", "index", "text"]
KEYS += [
    "tokens",
    "delta",
    "content",
    "usage",
    "prompt_tokens",
    "output_tokens",
    "finish_reason",
    "detail",
    "job",
    "data",
]

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    | st.sampled_from([*ERRORS, EVENTS, "error", "length"]),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(
            st.sampled_from(KEYS) | st.text(max_size=3),
            children,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def caught(kind: type[Exception], work, *args):
    """What it returns, or the error of ours that it raises; any other goes through."""
    try:
        return work(*args)
    except kind as error:
        return error


def assert_sound(answer: JobAnswer) -> None:
    """An answer whose fields are what they say, and which can be written down and read back."""
    assert isinstance(answer.id, str)
    assert isinstance(answer.status, JobStatus)
    for time_ms in (answer.delay_ms, answer.execution_ms):
        assert time_ms is None or (isinstance(time_ms, float) and 0 <= time_ms < 2**53)
    assert isinstance(answer.retries, int)
    assert 0 <= answer.retries < 2**63
    assert answer.worker_id is None or isinstance(answer.worker_id, str)
    assert_decoded(decode_error(answer.error))
    assert_decoded(decode_error(find_hidden_error(answer.output)))
    assert_written_and_read(answer.output, answer)


def assert_decoded(error: WorkerError) -> None:
    assert 0 < len(error.message) <= MAX_MESSAGE_CHARS
    assert "\n" not in error.message
    orjson.dumps([error.message, error.raw, error.error_type])
    assert error.code is None or 400 <= error.code <= 599


def assert_written_and_read(output: object, answer: JobAnswer) -> None:
    text = extract(output)
    assert isinstance(text, Text)
    assert all(choice is None or isinstance(choice, str) for choice in text.texts)
    job = JobInfo("j", "e", 1, answer.delay_ms, answer.execution_ms, answer.worker_id, 1.0, 2.0, answer.retries)
    line = result_line(row_id="r", text=text, output=output, carried={"id": output}, file="f", line=1, job=job)
    assert line.count(b"\n") == 1
    record = read_record(line)
    assert (record.id, record.finish_reason, record.output_tokens) == ("r", text.finish_reason, text.output_tokens)
    for count in (record.input_tokens, record.output_tokens):
        assert count is None or 0 <= count < 2**43


@given(
    st.sampled_from([200, 400, 401, 404, 408, 429, 500, 524, 302, 600]),
    st.dictionaries(st.just("Retry-After"), st.text(max_size=6)),
    st.binary(max_size=60) | mutated(BODIES),
)
@settings(max_examples=250, suppress_health_check=[HealthCheck.too_slow])
def test_any_answer_is_a_job_or_a_call_error(status, headers, body):
    job = caught(CallError, parse_job, status, headers, body)
    if isinstance(job, CallError):
        assert (bool(job.message), job.http_status) == (True, status)
    else:
        assert_sound(job)
    health = caught(CallError, parse_health, status, headers, body)
    assert isinstance(health, CallError) or 0 <= health.workers < 2**60
    error = call_error(status, headers, body)
    orjson.dumps(error.message)
    assert error.retry_after_s is None or 0 <= error.retry_after_s <= MAX_RETRY_AFTER_S
    assert 0 < len(body_message(body)) <= 300


@given(json_values)
@settings(max_examples=200)
def test_any_output_of_a_completed_job_is_read_written_and_read_back(output):
    body = orjson.dumps({"id": "j", "status": "COMPLETED", "output": output, "error": output})
    answer = parse_job(200, {}, body)
    assert_sound(answer)
    assert is_empty_output(output, has_output=answer.has_output) == (output is None or output == [])
    read_record(orjson.dumps(output))


@given(st.one_of(mutated_text(ERRORS), mutated_text([EVENTS, json.dumps(OUTPUTS)]), st.text()))
@settings(max_examples=250)
@example("[0x" + "f" * 5000 + "]")
@example("{1: 0x" + "f" * 5000 + "}")
@example("{1: {'\\ud800'}}")
@example("[b'x', ..., 1j, {1, 2}]")
def test_any_error_text_is_decoded(text):
    error = decode_error(text)
    assert 0 < len(error.message) <= MAX_MESSAGE_CHARS
    assert error.raw == text
    error.message.encode()
    find_hidden_error([text])
    extract([text, text])


@given(st.one_of(st.text(), st.floats().map(str), st.integers().map(str), st.just("9" * 5000)))
def test_any_retry_after_is_a_time_within_bounds_or_none(value):
    seconds = parse_retry_after(value)
    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER_S


@given(st.one_of(mutated(LINES), json_values.map(orjson.dumps), st.binary(max_size=40)))
@settings(max_examples=250)
@example(b'{"url": "/v1/x", "body": {"messages": []}}')
@example(b'{"input": {"prompt": "x", "sampling_params": null}}')
@example(b'{"input": {"messages": 7, "sampling_params": [1]}}')
@example(b'{"id": "a", "id": "b", "prompt": "x", "prompt": "y"}')
@example(b'{"id": 1' + b"0" * 5000 + b', "prompt": "x"}')
@example(b'{"id": 1e400, "prompt": "x"}')
def test_any_line_is_a_prompt_that_can_be_sent_or_a_line_error(raw):
    prompt = caught(LineError, parse_line, raw)
    if isinstance(prompt, LineError):
        orjson.dumps(prompt.message)
        return
    assert isinstance(prompt, Prompt)
    assert isinstance(prompt.shape, Shape)
    assert prompt.id is None or (prompt.id and prompt.id.isprintable())
    for options in OPTIONS:
        orjson.loads(run_body(build_request(prompt, options), JobPolicy()))
    assert len(derived_id(prompt)) == 16
    assert prompt_chars(prompt.request) >= 0


@given(st.lists(st.one_of(st.binary(max_size=12), mutated(LINES), st.sampled_from([b"", b" \t", b"\xef\xbb\xbf"]))))
def test_every_line_of_any_file_is_found_again_by_its_position(lines):
    data = b"\n".join(lines)
    found = list(iter_lines(io.BytesIO(data)))
    assert [data[line.offset : line.offset + len(line.raw)] for line in found] == [line.raw for line in found]
    assert all(line.raw and b"\n" not in line.raw for line in found)
    numbers = [line.number for line in found]
    assert numbers == sorted(set(numbers))
    assert len(found) == sum(bool(line.removeprefix(b"\xef\xbb\xbf").strip()) for line in data.split(b"\n"))


@given(data=mutated([b"\n".join(LINES), b"\r\n".join(LINES)]), edits=st.lists(st.tuples(st.integers(0), st.binary())))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz"])
def test_any_file_is_read_or_refused_by_name(tmp_path: Path, name, data, edits):
    path = tmp_path / name
    stored = bytearray(gzip.compress(data) if name.endswith("gz") else data)
    for at, piece in edits:
        start = at % (len(stored) + 1)
        stored[start : start + len(piece)] = piece
    path.write_bytes(stored)
    (source,) = find_sources([str(path)])
    lines = caught(InputError, lambda: list(iter_source(source, io.BytesIO())))
    if isinstance(lines, InputError):
        assert (lines.message.startswith(str(path)), bool(lines.hint)) == (True, True)
        return
    if source.kind == "file":
        with LineReader({0: path}) as reader:
            for line in lines:
                assert line_digest(reader.read(0, line.offset, len(line.raw))) == line_digest(line.raw)


@pytest.mark.parametrize("cut", range(0, 200, 3))
def test_a_gzip_file_that_was_cut_off_is_refused_and_never_taken_for_a_shorter_one(tmp_path: Path, cut: int):
    whole = gzip.compress(b"\n".join(LINES))
    path = tmp_path / "in.jsonl.gz"
    path.write_bytes(whole[:cut])
    (source,) = find_sources([str(path)])
    if cut == 0:
        assert list(iter_source(source, io.BytesIO())) == []
        return
    with pytest.raises(InputError, match="not a complete gzip file"):
        list(iter_source(source, io.BytesIO()))


DEEP = 100_000


@pytest.mark.parametrize(
    "deep",
    [
        "[" * DEEP,
        "[" * DEEP + "]" * DEEP,
        '{"a":' * DEEP,
        '{"a":' * DEEP + "1" + "}" * DEEP,
        "{'a':" * 19_000,
        "[" + "-" * 99_000 + "1]",
        "[" + "not " * 24_000 + "1]",
        "[a" + "()" * 49_000 + "]",
        '{"error":' * 1000 + "1" + "}" * 1000,
        "[" * 1000 + "]" * 1000,
        '{"error":' * 300 + "1" + "}" * 300,
        '{"error":[' * 300 + "]}" * 300,
    ],
    ids=lambda text: f"{text[:9]}-{len(text)}",
)
def test_nesting_of_any_depth_is_no_recursion_error(deep: str):
    raw = deep.encode()
    assert decode_error(deep).message
    find_hidden_error([f'data: {deep}"error"'])
    extract([f"data: {deep}"])
    assert read_record(raw) is None
    assert body_message(raw)
    for line in (raw, b'{"prompt": "x", "a": ' + raw + b"}", b'{"input": {"a": ' + raw + b"}}"):
        try:
            prompt = parse_line(line)
        except LineError:
            continue
        run_body(prompt.request, JobPolicy())
    for body in (raw, *(b'{"id":"j","status":"COMPLETED","%s":%s}' % (key, raw) for key in (b"output", b"error"))):
        answer = caught(CallError, parse_job, 200, {}, body)
        if not isinstance(answer, CallError):
            assert_sound(answer)
        with pytest.raises(CallError):
            parse_job(500, {}, body)


HOSTILE = {
    "quotes": "'",
    "double-quotes": '"',
    "backslashes": "\\",
    "escaped-quotes": "\\'",
    "brackets": "[",
    "closed": "[]",
    "braces": "{",
    "objects": '{"a":',
    "tracebacks": "Traceback (most recent call last):\n",
    "handler": "\ntraceback:",
    "blank-lines": "\n \t",
    "spaces": " ",
    "types": "AError",
    "dotted": "a.A",
    "codes": "HTTP status ",
    "titles": "<title>",
    "open-titles": "<title",
    "class": "<class 'a.",
    "events": 'data: "error"\n',
    "digits": "9",
}


def seconds_for(work, text: str) -> float:
    began = time.process_time()
    work(text)
    return time.process_time() - began


def everything(text: str) -> None:
    raw = text.encode()
    for prefix in ("", "{'a': '", "handler: x\ntraceback: "):
        decode_error(prefix + text)
    decode_error({"type": text, "error": text})
    find_hidden_error([f'data: "error" {text}'])
    find_hidden_error([f'data: {text}"error"', 1])
    extract([f"data: {text}"])
    body_message(raw)
    read_record(raw)
    parse_retry_after(text)
    for attempt in (lambda: parse_job(200, {}, raw), lambda: parse_line(raw)):
        with pytest.raises((CallError, LineError)):
            attempt()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_text_of_megabytes_takes_no_more_than_its_share_of_time(name: str):
    piece = HOSTILE[name]
    small, large = (piece * (size // len(piece)) for size in (150_000, 1_200_000))
    # Quadratic time would grow by 64. Half a second for parsers that give up early on the small one.
    assert seconds_for(everything, large) < 24 * seconds_for(everything, small) + 0.5


def test_an_error_that_says_nothing_at_the_bottom_is_looked_at_once():
    looked = []

    class Blank(str):
        __slots__ = ()

        def strip(self, *_):
            looked.append(self)
            return ""

    value: dict = {"message": Blank(" ")}
    for _ in range(11):
        value = {"error": value}
    decode_error(value)
    assert len(looked) == 1


@pytest.mark.parametrize("number", ["1e400", "-1e400", "1" + "0" * 5000, "NaN", "-Infinity"])
def test_a_number_that_no_double_holds_is_null_and_does_not_hide_the_end_of_the_job(number: str):
    body = '{"id": "j", "status": "COMPLETED", "delayTime": X, "output": {"loss": X, "n": 7}}'.replace("X", number)
    answer = parse_job(200, {}, body.encode())
    assert (answer.status, answer.delay_ms, answer.output) == (JobStatus.COMPLETED, None, {"loss": None, "n": 7})


def test_integers_beside_a_nan_stay_exact():
    answer = parse_job(
        200, {}, b'{"id": "j", "status": "COMPLETED", "output": [NaN, 9007199254740993, 1e2, 99999999999999999999]}'
    )
    assert answer.output == [None, 9007199254740993, 100.0, 99999999999999999999]


BOAST = [{"choices": [{"text": "x", "index": 2**63}], "usage": {"input": 2**63, "output": 2**64 - 1}}]
"""An answer with numbers that no worker can have."""


@pytest.mark.parametrize("times", ['"delayTime": 1e300, "executionTime": 1e300', '"delayTime": -1e18, "retries": -5'])
async def test_numbers_that_no_job_can_have_end_neither_the_run_nor_a_later_one(tmp_path: Path, times: str):
    async def fault(request, operation):
        if operation != "status":
            return None
        job_id = request.path.rpartition("/")[2]
        output = orjson.dumps(BOAST).decode()
        return web.Response(text=f'{{"id": "{job_id}", "status": "COMPLETED", {times}, "output": {output}}}')

    write_lines(tmp_path, [{"id": "a", "prompt": "x"}, {"id": "b", "prompt": "y"}])
    async with serving(fault) as server:
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url)
        assert (sorted(rehearsal.ids()), rehearsal.summary.exit_code) == (["a", "b"], 0)
        assert rehearsal.summary.input_tokens is None
        assert (await rehearse(tmp_path, server.endpoint.base_url)).summary.exit_code == 0


async def test_control_characters_and_boasts_of_a_worker_are_written_down_as_they_are(tmp_path: Path):
    write_lines(tmp_path, [{"id": "a", "prompt": "x"}, {"id": "b", "prompt": "fail"}])
    failed = WorkerFailure("\0\x1b[31m no \\ud800")
    worker = Answering(lambda request: failed if request["prompt"] == "fail" else BOAST)
    async with serving(worker=worker) as server:
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url)
    assert rehearsal.results[0]["text"] == "x"
    assert rehearsal.errors[0]["error"]["raw"].startswith("\0\x1b[31m no")
    assert len(read_lines(tmp_path / "out.jsonl")) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"usage": {"input_tokens": "9", "output_tokens": 1}},
        {"usage": {"input_tokens": 2**63, "output_tokens": 1}},
        {"job": {"delay_ms": "soon"}},
        {"job": {"delay_ms": 1e300}},
        {"finish_reason": {"a": 1}},
    ],
)
def test_a_record_that_no_result_line_wrote_is_none(change):
    record = {"id": "a", "status": "COMPLETED", "usage": {}, "job": {}}
    assert isinstance(read_record(orjson.dumps(record)), Record)
    assert read_record(orjson.dumps({**record, **change})) is None
