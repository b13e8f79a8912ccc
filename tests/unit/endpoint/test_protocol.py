from __future__ import annotations

import contextlib
import json
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.config import JobPolicy
from batchrun.endpoint.call_errors import body_message, call_error, parse_retry_after
from batchrun.endpoint.protocol import (
    Health,
    JobAnswer,
    JobStatus,
    Operation,
    health_body,
    job_body,
    operation_url,
    parse_health,
    parse_job,
    run_body,
)
from batchrun.errors import (
    AmbiguousError,
    CallError,
    DeniedError,
    NotFoundError,
    RejectedError,
    ThrottledError,
)

RECORDED = [orjson.loads(line) for line in (Path(__file__).parent / "recorded_answers.jsonl").read_bytes().splitlines()]
"""What users of Runpod and its own notes have recorded, with other ids."""


@pytest.mark.parametrize("answer", RECORDED, ids=lambda answer: orjson.dumps(answer["body"]).decode()[:60])
def test_every_recorded_answer_is_the_job_or_the_error_that_it_is(answer):
    http_status, body = answer["http_status"], answer["body"]
    if http_status == 200:
        job = parse_job(200, {}, orjson.dumps(body))
        assert (job.id, job.status.value, job.retries) == (body["id"], body["status"], body.get("retries", 0))
        return
    error = {401: DeniedError, 404: NotFoundError, 502: AmbiguousError}.get(http_status, RejectedError)
    if "not allowed for QB API" in str(body):
        error = DeniedError
    with pytest.raises(error) as raised:
        parse_job(http_status, {}, orjson.dumps(body))
    assert type(raised.value) is error


def test_an_accepted_job_with_a_number_as_its_status_is_not_submitted_again():
    answer = parse_job(200, {}, b'{"id": "00000000-0000-4000-8000-000000000002-e2", "status": 202}')
    assert (answer.id, answer.status) == ("00000000-0000-4000-8000-000000000002-e2", JobStatus.IN_QUEUE)


def test_paths_are_those_of_the_documentation():
    base = "https://api.runpod.ai/v2/"
    assert operation_url(base, "abc", Operation.RUN) == "https://api.runpod.ai/v2/abc/run"
    assert operation_url(base, "abc", Operation.STATUS, "j-u1") == "https://api.runpod.ai/v2/abc/status/j-u1"
    assert operation_url(base, "abc", Operation.PURGE_QUEUE) == "https://api.runpod.ai/v2/abc/purge-queue"


def test_the_policy_is_sent_in_milliseconds_and_only_what_was_asked_for():
    assert orjson.loads(run_body({"a": 1}, JobPolicy())) == {"input": {"a": 1}}
    body = orjson.loads(run_body({"a": 1}, JobPolicy(execution_timeout_s=7.5, ttl_s=60, low_priority=True)))
    assert body["policy"] == {"executionTimeout": 7500, "ttl": 60_000, "lowPriority": True}


@pytest.mark.parametrize(
    ("body", "status", "final"),
    [
        ({"id": "j-u1", "status": "IN_QUEUE"}, JobStatus.IN_QUEUE, False),
        ({"id": "j-u1", "status": "IN_PROGRESS", "delayTime": 61372, "workerId": "z"}, JobStatus.IN_PROGRESS, False),
        ({"id": "j-u1", "status": "IN_PROGRESS", "output": "half"}, JobStatus.IN_PROGRESS, False),
        ({"id": "j-u1", "status": "RUNNING"}, JobStatus.IN_PROGRESS, False),
        ({"id": "j-u1", "status": "COMPLETED", "output": None}, JobStatus.COMPLETED, True),
        ({"id": "j-u1", "status": "FAILED", "error": "x", "retries": 1}, JobStatus.FAILED, True),
        ({"id": "j-u1", "status": "CANCELLED"}, JobStatus.CANCELLED, True),
        ({"id": "j-u1", "status": "TIMED_OUT"}, JobStatus.TIMED_OUT, True),
    ],
)
def test_every_documented_state_is_read(body, status, final):
    answer = parse_job(200, {}, orjson.dumps(body))
    assert (answer.status, answer.status.is_final) == (status, final)


def test_the_end_of_a_job_is_known_from_its_own_times():
    body = {"id": "j", "status": "COMPLETED", "delayTime": 31618, "executionTime": 1437, "output": 1}
    assert parse_job(200, {}, orjson.dumps(body)).time_in_system_s == pytest.approx(33.055)
    assert parse_job(200, {}, b'{"id": "j", "status": "COMPLETED"}').time_in_system_s is None


def test_a_400_with_a_job_in_it_is_that_jobs_answer():
    answer = parse_job(400, {}, b'{"id": "j", "status": "FAILED", "error": "bad prompt"}')
    assert (answer.status, answer.error) == (JobStatus.FAILED, "bad prompt")


@pytest.mark.parametrize(
    ("http_status", "error"),
    [
        (400, RejectedError),
        (401, DeniedError),
        (402, DeniedError),
        (403, DeniedError),
        (404, NotFoundError),
        (407, DeniedError),
        (410, NotFoundError),
        (408, ThrottledError),
        (413, RejectedError),
        (422, RejectedError),
        (429, ThrottledError),
        (302, DeniedError),
        (500, AmbiguousError),
        (502, AmbiguousError),
        (520, AmbiguousError),
        (524, AmbiguousError),
    ],
)
@pytest.mark.parametrize("body", [b"", b"<html><title>x</title></html>", b'{"error": "x"}', b'{"id": 1}', b"[]"])
def test_every_http_status_has_its_class_whatever_the_body(http_status, error, body):
    with pytest.raises(error):
        parse_job(http_status, {}, body)


@pytest.mark.parametrize(
    "body", [b"", b" ", b"null", b"[]", b'{"id": "j", "error": "x"}', b'{"id": "", "status": "X"}', b"{"]
)
def test_a_200_that_is_no_job_is_ambiguous(body):
    with pytest.raises(AmbiguousError):
        parse_job(200, {}, body)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (b"NaN", None),
        (b"[1, Infinity]", [1, None]),
        (rb'"a\ud800b"', "a?b"),
        (b"123456789012345678901234567890", 123456789012345678901234567890),
        (b"[1e999, 1.5]", [None, 1.5]),
        (b'"a\xffb"', "a\ufffdb"),
        (b'[NaN, "[[]{\\"]"]', [None, '[[]{"]']),
    ],
)
def test_what_python_takes_for_json_does_not_hide_a_finished_job(written, read):
    answer = parse_job(200, {}, b'{"id": "j", "status": "COMPLETED", "output": ' + written + b"}")
    assert (answer.status, answer.output) == (JobStatus.COMPLETED, read)


@pytest.mark.parametrize("opened", [b"[", b'{"a":', b'[1, {"b": '])
def test_what_is_nested_too_deeply_is_left_out_and_hides_no_finished_job(opened):
    closed = opened.translate(bytes.maketrans(b"[{", b"]}"), b'":ab1, ')[::-1]
    deep = b'[{"a": "kept"}, ' + opened * 9000 + b"7" + closed * 9000 + b', "kept"]'
    answer = parse_job(200, {}, b'{"id": "j", "status": "COMPLETED", "output": ' + deep + b', "workerId": "w"}')
    assert (answer.status, answer.output[0], answer.output[2]) == (JobStatus.COMPLETED, {"a": "kept"}, "kept")
    assert answer.worker_id == "w"


@pytest.mark.parametrize("http_status", [200, 201, 202])
def test_an_id_without_a_state_is_a_job_that_exists(http_status):
    assert parse_job(http_status, {}, b'{"id": "j"}').status is JobStatus.IN_QUEUE


@pytest.mark.parametrize("time_ms", [-1, 10**13, 10**40, "7", True, None])
def test_a_time_that_cannot_be_is_as_good_as_missing(time_ms):
    answer = parse_job(
        200,
        {},
        orjson.dumps({"id": "j", "status": "COMPLETED", "delayTime": 5}).replace(b"5", json.dumps(time_ms).encode()),
    )
    assert answer.delay_ms is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, None), ("3", 3.0), ("0.5", 0.5), ("-4", 0.0), ("9999", 120.0), ("nan", None), ("Wed, 21 Oct 2026", None)],
)
def test_retry_after_is_clamped_and_never_trusted(value, seconds):
    assert parse_retry_after(value) == seconds


def test_retry_after_reaches_the_error():
    assert call_error(429, {"Retry-After": "7"}, b"").retry_after_s == 7.0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": "no such key"}', "no such key"),
        (b'{"error": {"message": "deep"}}', "deep"),
        (b'{"message": "Not Found"}', "Not Found"),
        (b'{"detail": [{"msg": "x"}]}', '[{"msg":"x"}]'),
        (b"<html><head><title>502 Bad\nGateway</title></head></html>", "502 Bad Gateway"),
        (b"plain text", "plain text"),
        (b"", "empty answer"),
        (b"\xff\xfe broken", "\ufffd\ufffd broken"),
    ],
)
def test_an_error_body_becomes_one_line(body, message):
    assert body_message(body) == message
    assert len(body_message(b"x" * 10_000)) <= 300


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.integers(200, 599), st.binary() | json_values.map(orjson.dumps))
def test_no_answer_raises_anything_but_a_call_error(http_status, body):
    for parse in (parse_job, parse_health):
        with contextlib.suppress(CallError):
            parse(http_status, {}, body)


@given(
    st.builds(
        JobAnswer,
        id=st.text(min_size=1),
        status=st.sampled_from(JobStatus),
        delay_ms=st.none() | st.integers(0, 10**9).map(float),
        execution_ms=st.none() | st.integers(0, 10**9).map(float),
        worker_id=st.none() | st.text(),
        retries=st.integers(0, 9),
        output=json_values,
        has_output=st.just(True),
        error=st.none() | st.text(),
    )
)
def test_a_job_is_read_as_it_was_written(answer):
    assert parse_job(200, {}, orjson.dumps(job_body(answer))) == answer


@given(st.builds(Health, **dict.fromkeys(Health.__slots__, st.integers(0, 10**6))))
def test_health_is_read_as_it_was_written(health):
    assert parse_health(200, {}, orjson.dumps(health_body(health))) == health


def test_the_two_field_health_of_the_documentation_is_read_too():
    health = parse_health(200, {}, b'{"jobs": {"inQueue": 2}, "workers": {"idle": 1, "running": 3}}')
    assert (health.in_queue, health.workers) == (2, 4)


def test_a_refusal_that_lists_complaints_names_the_field():
    body = b'{"detail":[{"loc":["body","input","steps"],"msg":"Input should be a valid integer","type":"int_type"}]}'
    with pytest.raises(RejectedError, match=r"HTTP 422: input\.steps: Input should be a valid integer$"):
        parse_job(422, {}, body)
