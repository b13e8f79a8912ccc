from __future__ import annotations

from random import Random

import pytest

from batchrun.scheduler.failures import Failure, FailureKind, backoff_s, classify_job


@pytest.mark.parametrize(
    ("status", "message", "code", "error_type", "kind", "retryable"),
    [
        ("FAILED", "job timed out after 1 retries", None, None, "platform", True),
        ("FAILED", "worker exited", None, None, "platform", True),
        ("FAILED", "vLLM returned HTTP 400: max_tokens must be at least 1", 400, "worker_error", "bad_request", False),
        ("FAILED", "vLLM returned HTTP 429: slow down", 429, None, "worker_error", True),
        ("FAILED", "vLLM returned HTTP 503: overloaded", 503, None, "worker_error", True),
        ("FAILED", "Request to vLLM failed: timeout", None, None, "worker_error", True),
        ("FAILED", "the context is too long", 400, "BadRequestError", "bad_request", False),
        ("FAILED", "Unexpected keyword argument 'no_such'", None, None, "handler_error", False),
        ("FAILED", "CUDA out of memory. Tried to allocate 2 GiB", None, "OutOfMemoryError", "out_of_memory", True),
        ("FAILED", "CUDA error: device-side assert triggered", None, "RuntimeError", "worker_error", True),
        ("FAILED", "prompt is required", None, "ValueError", "handler_error", False),
        ("COMPLETED", "bad prompt", 400, None, "bad_request", False),
        ("CANCELLED", "", None, None, "cancelled", False),
        ("TIMED_OUT", "executionTimeout exceeded", None, None, "timed_out", False),
        ("FAILED", "executionTimeout exceeded", None, None, "timed_out", False),
        (
            "FAILED",
            "vLLM server process is not running; worker is unhealthy",
            None,
            "worker_error",
            "worker_error",
            True,
        ),
        ("FAILED", "EngineCore encountered an issue. See stack trace above.", 500, None, "worker_error", True),
        ("FAILED", "EngineCore encountered an issue. See stack trace above.", None, None, "worker_error", True),
        ("FAILED", "Cannot connect to host 127.0.0.1:8000 ssl:default", None, None, "worker_error", True),
        ("FAILED", "Server disconnected", None, "ServerDisconnectedError", "worker_error", True),
        ("FAILED", "TimeoutError", None, "TimeoutError", "worker_error", True),
        ("FAILED", "", None, "ReadTimeout", "worker_error", True),
        ("FAILED", "[Errno 104] Connection reset by peer", None, "ConnectionResetError", "worker_error", True),
        ("FAILED", "Connection error.", None, "APIConnectionError", "worker_error", True),
        ("FAILED", "timeout must be a positive number", None, "ValueError", "handler_error", False),
        ("FAILED", "Request timed out", 400, None, "bad_request", False),
    ],
)
def test_the_kind_of_a_failure_decides_whether_it_is_paid_for_again(status, message, code, error_type, kind, retryable):
    found = classify_job(status, message, code, error_type)
    assert (found.value, found.is_retryable) == (kind, retryable)


def test_backoff_is_anywhere_within_a_span_that_doubles_up_to_its_cap():
    rng = Random(1)
    for failures, span_s in ((1, 1.0), (2, 2.0), (5, 16.0), (7, 60.0), (5000, 60.0)):
        waits = [backoff_s(failures, rng, base_s=1.0, cap_s=60.0) for _ in range(2000)]
        assert 0.0 <= min(waits) < 0.05 * span_s
        assert 0.95 * span_s < max(waits) <= span_s


def test_what_ran_out_of_another_time_than_its_own_may_pass():
    """The kind is the same for a job that was cancelled while it waited."""
    assert not Failure(FailureKind.TIMED_OUT, "executionTimeout exceeded", "").is_retryable
    assert Failure(FailureKind.TIMED_OUT, "the job had not finished", "", may_pass=True).is_retryable


def test_every_kind_is_one_lower_case_word():
    assert all(kind.value.replace("_", "").islower() for kind in FailureKind)
