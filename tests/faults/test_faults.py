"""Whole runs against a server that breaks every promise: what it sends, and how the row must end."""

from __future__ import annotations

import asyncio
import gzip
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from batchrun.config import GuardOptions
from tests.support.fault_server import (
    CLOSE,
    DONE,
    HEALTHY,
    HTML,
    JSON,
    KEY,
    QUEUED,
    RESET,
    STALL,
    Answer,
    FaultServer,
    Script,
    body,
    broken_in_half,
    job,
    page,
)
from tests.support.rehearsal import Rehearsal, rehearse, write_lines

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PATIENCE_S = 15.0
"""Real seconds, thirty times as many on the run's clock: a row that has not ended by then never will."""
AT_ONCE = 20
NOT_FOUND = body({"error": "job not found"}, 404)
USED = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}


@dataclass(frozen=True)
class Case:
    """What the server sends for one row, and how the row must end; None: whatever."""

    claim: str
    script: Script
    status: str = "COMPLETED"
    text: Any = "fine"
    texts: list | None = None
    usage: tuple[int | None, int | None] | None = None
    finish_reason: str | None = None
    output: Any = ...
    job: dict = field(default_factory=dict)
    kind: str = ""
    message: str = ""
    whole: bool = False
    """Whether that is all of the message."""
    raw: str | None = None
    attempts: int = 1
    refused: int = 0
    """Submissions that the server saw beside the attempts; below zero where it did not see one."""
    unconfirmed: int = 0
    exit_code: int = 0
    health: tuple[Answer, ...] = (HEALTHY,)
    reset_at: frozenset[int] = frozenset()
    options: dict = field(default_factory=dict)
    patience_s: float = PATIENCE_S


def ends(claim: str, *status: Answer, run: Sequence[Answer] = (QUEUED,), job_id: str = "3f0c-{n}-u1", **fields: Any):
    """The row has a result."""
    script = Script(tuple(run), status or (DONE,), job_id=job_id)
    return Case(claim, script, **fields)


def fails(claim: str, *status: Answer, kind: str, run: Sequence[Answer] = (QUEUED,), **fields: Any):
    """The row ends in the error file."""
    script = Script(tuple(run), status or (DONE,))
    return Case(claim, script, kind=kind, **{"status": "FAILED", "exit_code": 3, **fields})


def failed(error: Any, **fields: Any) -> Answer:
    return job("FAILED", delayTime=101, executionTime=42, workerId="w", error=error, **fields)


def completed(output: Any, **fields: Any) -> Answer:
    return job("COMPLETED", delayTime=31, executionTime=14, workerId="w", output=output, **fields)


def sse(*chunks: Any) -> str:
    return "".join(f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


def delta(text: str, **fields: Any) -> dict:
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": text}, **fields}]}


def cut(text: str, *places: int) -> list[str]:
    return [text[a:b] for a, b in zip((0, *places), (*places, len(text)), strict=True)]


STATES = [
    ends("a job that waits and works ends as it ends", QUEUED, job("IN_PROGRESS", delayTime=61372, workerId="z"), DONE),
    ends("the RUNNING of the documentation is no end", job("RUNNING"), DONE),
    ends("an unknown state is no end", job("PAUSED", output="x"), job("completed?"), job(""), DONE),
    ends(
        "the output of a progress update is no result",
        job("IN_PROGRESS", output={"progress": 50}),
        job("IN_PROGRESS"),
        job("IN_PROGRESS", output=[{"choices": [{"tokens": ["half"]}]}]),
        DONE,
    ),
    ends("a job may go back into the queue", job("IN_PROGRESS", delayTime=5), QUEUED, job("IN_PROGRESS"), DONE),
    ends(
        "a job that the platform ran twice says so in its result",
        job("IN_PROGRESS", delayTime=60000),
        job("COMPLETED", delayTime=12, executionTime=3, retries=1, output="fine"),
        job={"delay_ms": 12, "execution_ms": 3, "platform_retries": 1},
    ),
    ends(
        "id, status and output are enough",
        job("COMPLETED", output="fine"),
        job={"delay_ms": None, "execution_ms": None, "worker_id": None},
    ),
    ends(
        "optional fields of other types are as good as missing",
        job("COMPLETED", delayTime="soon", executionTime=None, retries="1", workerId=7, output="fine", error=None),
        job={"delay_ms": None, "execution_ms": None, "worker_id": None},
    ),
    ends(
        "times beyond all measure are as good as missing",
        job("COMPLETED", delayTime=10**40, executionTime=2**63, output="fine"),
        job={"delay_ms": None, "execution_ms": None},
    ),
    ends(
        "a time before the job began is as good as missing",
        job("COMPLETED", delayTime=-5000, executionTime=20, output="fine"),
        job={"delay_ms": None, "execution_ms": 20},
    ),
    ends(
        "an answer that names another job is not used",
        Answer(b'{"id": "other-u1", "status": "COMPLETED", "output": "not mine"}'),
        Answer(b'{"id": "3f0c-p-1-e1", "status": "FAILED", "error": "not mine"}'),
        DONE,
        job={"id": "3f0c-p-1-u1"},
    ),
    ends("an id of strange letters stays one step of the path", QUEUED, DONE, job_id="a/b c?ü%2F#{n}"),
    *(
        ends(f"an id of {what} stays one step of the path", QUEUED, DONE, job_id=job_id)
        for what, job_id in (("dots", ".."), ("256 letters", "x" * 256))
    ),
    *(
        fails(
            f"an id of {what} is not one",
            run=(Answer(json.dumps({"id": job_id, "status": "IN_QUEUE"}).encode()),),
            kind="unconfirmed",
            status="UNCONFIRMED",
            attempts=2,
            unconfirmed=2,
            message="returned an invalid ID",
        )
        for what, job_id in (("controls", "a\x00b\r\nX: y"), ("257 letters", "x" * 257))
    ),
    fails("a job that answers 410 is gone", body({"error": "gone"}, 410), kind="expired", status="EXPIRED", attempts=2),
    fails(
        "a job that is at work beyond its ttl is given up",
        job("IN_PROGRESS"),
        kind="timed_out",
        status="TIMED_OUT",
        attempts=2,
        message="10 s after its submission",
        options={"guards": GuardOptions(job_timeout_s=10.0)},
    ),
    fails(
        "a poll that is refused for good beyond the job's ttl is given up",
        body({"error": "bad request"}, 400),
        kind="timed_out",
        status="TIMED_OUT",
        attempts=2,
        message="10 s after its submission",
        options={"guards": GuardOptions(job_timeout_s=10.0)},
    ),
    ends("a job that is gone and found again is not paid for twice", NOT_FOUND, job("IN_PROGRESS"), NOT_FOUND, DONE),
    ends("a job that is gone is submitted again", NOT_FOUND, NOT_FOUND, DONE, attempts=2),
    fails(
        "a job that is always gone is expired",
        body({"message": "Not Found"}, 404),
        kind="expired",
        status="EXPIRED",
        message="Not Found",
        attempts=2,
    ),
    fails(
        "a job that ended with 404 and no body is expired", body(b"", 404), kind="expired", status="EXPIRED", attempts=2
    ),
    fails("somebody else's cancel is final", job("CANCELLED"), kind="cancelled", status="CANCELLED"),
    fails(
        "somebody else's cancel is final whatever it says",
        job("CANCELLED", error="job timed out after 1 retries"),
        kind="cancelled",
        status="CANCELLED",
        raw="job timed out after 1 retries",
    ),
    fails("a timeout is tried again", job("TIMED_OUT"), kind="timed_out", status="TIMED_OUT", attempts=2),
    fails(
        "an execution timeout is not tried again",
        job("TIMED_OUT", error="job exceeded its execution timeout"),
        kind="timed_out",
        status="TIMED_OUT",
        raw="job exceeded its execution timeout",
    ),
    fails(
        "an overrun as it is recorded is not tried again, and the option is named",
        job("FAILED", delayTime=4100, executionTime=3459396, error="executionTimeout exceeded"),
        kind="timed_out",
        raw="executionTimeout exceeded",
        message="raise --execution-timeout",
    ),
    ends("a job that timed out may succeed at the second try", job("TIMED_OUT"), DONE, attempts=2),
]

TRACE = 'Traceback (most recent call last):\n  File "/src/handler.py", line 3, in handler\nValueError: boom\n'
RAISED = json.dumps(
    {
        "error_type": "<class 'ValueError'>",
        "error_message": "na\u00efve input",
        "error_traceback": TRACE,
        "hostname": "h",
        "worker_id": "w",
        "runpod_version": "1.12.0",
    }
)
REFUSED = "{'error': {'message': 'temperature must be >= 0', 'type': 'BadRequestError', 'param': None, 'code': 400}}"
PROXIED = str(
    {
        "message": 'vLLM returned HTTP 400: {"error": {"message": "max_tokens must be at least 1", "code": 400}}',
        "type": "worker_error",
        "code": None,
    }
)


DEAD = "vLLM server process is not running; worker is unhealthy"


def worker_said(status: int) -> str:
    return PROXIED.replace("HTTP 400", f"HTTP {status}").replace('"code": 400', f'"code": {status}')


FAILURES = [
    fails(
        "plain text is the message",
        failed("no such file"),
        kind="handler_error",
        message="no such file",
        raw="no such file",
    ),
    fails("JSON in a string is opened", failed(RAISED), kind="handler_error", message="naïve input", raw=RAISED),
    fails("a Python repr is opened", failed("{'message': 'boom', 'code': None}"), kind="handler_error", message="boom"),
    fails(
        "an error that is wrapped twice is opened twice",
        failed(REFUSED),
        kind="bad_request",
        message="temperature must be >= 0",
        raw=REFUSED,
    ),
    fails(
        "a traceback is not the message",
        failed(f"handler: boom \ntraceback: {TRACE}"),
        kind="handler_error",
        message="boom",
        raw=f"handler: boom \ntraceback: {TRACE}",
    ),
    fails(
        "a bare message without a code is the handler's",
        failed("Unexpected keyword argument 'no_such'"),
        kind="handler_error",
    ),
    fails("an error object is read", failed({"message": "boom", "code": 422}), kind="bad_request", message="boom"),
    fails(
        "an error object of unknown fields is shown",
        failed({"m": 1}),
        kind="handler_error",
        message='{"m":1}',
        raw='{"m":1}',
    ),
    fails("an error list is read", failed(["one", {"message": "two"}]), kind="handler_error", message="one; two"),
    fails("a number is an error too", failed(17), kind="handler_error", message="17"),
    fails(
        "an output beside the error is no result",
        failed("bad", output={"p": 1}),
        kind="handler_error",
        message="bad",
        raw="bad",
    ),
    fails("FAILED without a word is the platform's", job("FAILED"), kind="platform", attempts=2),
    fails("FAILED with an empty word is the platform's", failed(""), kind="platform", attempts=2),
    fails("FAILED with null is the platform's", failed(None), kind="platform", attempts=2),
    fails(
        "a 400 inside the worker is not tried again",
        failed(PROXIED),
        kind="bad_request",
        message="max_tokens must be at least 1",
        raw=PROXIED,
    ),
    fails("a 404 inside the worker is not tried again", failed(worker_said(404)), kind="bad_request"),
    fails("a 429 inside the worker is tried again", failed(worker_said(429)), kind="worker_error", attempts=2),
    fails("a 503 inside the worker is tried again", failed(worker_said(503)), kind="worker_error", attempts=2),
    fails(
        "a model server that does not answer is tried again",
        failed("{'message': 'Request to vLLM failed: timed out', 'type': 'worker_error', 'code': None}"),
        kind="worker_error",
        attempts=2,
        message="Request to vLLM failed",
    ),
    fails(
        "a model server that is down is tried again",
        failed(str({"message": DEAD, "type": "worker_error", "code": None})),
        kind="worker_error",
        attempts=2,
    ),
    fails(
        "a full GPU is tried again",
        failed(json.dumps({"error_type": "<class 'torch.OutOfMemoryError'>", "error_message": "CUDA out of memory."})),
        kind="out_of_memory",
        attempts=2,
    ),
    fails(
        "a lost worker is tried again",
        failed("job timed out after 1 retries", retries=1),
        kind="platform",
        message="job timed out after 1 retries",
        attempts=2,
    ),
    ends(
        "a lost worker may be made up for", failed("job timed out after 1 retries", retries=1), QUEUED, DONE, attempts=2
    ),
    fails(
        "no more retries than asked for",
        failed("job timed out after 2 retries"),
        kind="platform",
        options={"max_retries": 0},
    ),
    fails(
        "a message is one short line, its origin is kept whole",
        failed("x\n" * 40_000),
        kind="handler_error",
        raw="x\n" * 40_000,
    ),
    fails(
        "an endless nesting of quotes is an error like any", failed("[" * 5000), kind="handler_error", raw="[" * 5000
    ),
    fails(
        "the colours of a logger are no part of the message",
        failed("\x1b[1;31mbo\x00om\x1b[0m\x07 \x1b]0;x\x07\x9b"),
        kind="handler_error",
        message="boom",
        whole=True,
    ),
    fails(
        "zero bytes and control characters are kept", failed("a\x00b\x1b[2J"), kind="handler_error", raw="a\x00b\x1b[2J"
    ),
    fails(
        "a reason that is only in the output is found",
        job("FAILED", output=[{"error": "bad prompt"}]),
        kind="handler_error",
        message="bad prompt",
    ),
]

HIDDEN = [
    fails("an error object as the output", completed({"error": "boom"}), kind="handler_error", message="boom"),
    fails(
        "an error inside a list", completed([{"text": "a"}, {"error": "boom"}]), kind="handler_error", message="boom"
    ),
    fails(
        "an error by its object",
        completed([{"object": "error", "message": "boom", "type": "BadRequestError", "code": 400}]),
        kind="bad_request",
        message="boom",
    ),
    fails(
        "an error by its type", completed({"type": "error", "message": "boom"}), kind="handler_error", message="boom"
    ),
    fails(
        "an error by its type with its own object",
        completed({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}),
        kind="handler_error",
        message="busy",
    ),
    fails(
        "an error among the events of a stream",
        completed([sse(delta("a"), {"error": {"message": "boom", "code": 400}})]),
        kind="bad_request",
        message="boom",
    ),
    fails(
        "an error among the events of a stream in pieces",
        completed(cut(sse(delta("a"), {"error": {"message": "boom", "code": 400}}), 11, 120)),
        kind="bad_request",
        message="boom",
    ),
    fails(
        "an error event behind a line separator",
        completed([sse(delta("a\u2028b"), {"error": {"message": "bo\u2028om \u0085x", "code": 400}})]),
        kind="bad_request",
        message="bo om x",
    ),
    fails(
        "an error event as a bare string",
        completed(sse({"object": "error", "message": "boom", "code": 400})),
        kind="bad_request",
        message="boom",
    ),
    fails(
        "an error among chunk objects",
        completed([[delta("a")], [{"error": {"message": "boom"}}]]),
        kind="handler_error",
        message="boom",
    ),
    fails(
        "a 5xx that is hidden is tried again",
        completed([{"object": "error", "message": "engine is dead", "code": 500}]),
        kind="worker_error",
        attempts=2,
    ),
    fails(
        "an error beside an output of a completed job",
        completed("half", error="upload failed"),
        kind="handler_error",
        message="upload failed",
    ),
    fails("an error in the place of the output", job("COMPLETED", error={"m": 1}), kind="handler_error", raw='{"m":1}'),
    fails("no output at all", job("COMPLETED", executionTime=5), kind="no_output"),
    fails("an output of null", completed(None), kind="no_output"),
    fails("an output of an empty list", completed([]), kind="no_output"),
    ends("an empty object is a result", completed({}), text=None, output={}),
    ends("an empty string is a result", completed(""), text="", output=""),
    ends("zero is a result", completed(0), text=None, output=0),
    ends("false is a result", completed(False), text=None, output=False),
    ends("an error that is not set is data", completed({"error": None, "text": "fine"})),
    ends(
        "an error field is data to who says so",
        completed({"error": 0.03, "text": "fine"}),
        options={"inspect_output": False},
    ),
    ends(
        "no output is a result to who says so",
        job("COMPLETED"),
        text=None,
        output=None,
        options={"inspect_output": False},
    ),
]

COMPLETION = {"id": "cmpl-1", "object": "text_completion", "model": "m", "usage": USED}
CHAT = {"id": "chatcmpl-1", "object": "chat.completion", "usage": USED}
HI = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}

SHAPES = [
    ends(
        "generation A, plain",
        completed([{"choices": [{"tokens": ["full text"]}], "usage": {"input": 5, "output": 100}}]),
        text="full text",
        usage=(5, 100),
    ),
    ends(
        "generation A, batches of token pieces",
        completed(
            [
                {"choices": [{"tokens": ["a", "b"]}], "usage": {"input": 5, "output": 2}},
                {"choices": [{"tokens": ["c"]}], "usage": {"input": 5, "output": 3}},
            ]
        ),
        text="abc",
        usage=(5, 3),
    ),
    ends(
        "generation A, two choices",
        completed([{"choices": [{"tokens": ["a"]}, {"tokens": ["b"]}]}]),
        text="a",
        texts=["a", "b"],
        usage=(None, None),
    ),
    ends(
        "generation A, OpenAI route",
        completed([{"object": "chat.completion", "choices": [HI], "usage": {"prompt_tokens": 9}}]),
        text="hi",
        finish_reason="stop",
        usage=(9, None),
    ),
    ends(
        "a public endpoint, without the list",
        completed({**CHAT, "choices": [HI]}),
        text="hi",
        finish_reason="stop",
        usage=(9, 2),
    ),
    ends(
        "a public endpoint, token pieces without the list",
        completed({"choices": [{"tokens": ["a", "b"]}], "usage": {"input": 1, "output": 2}}),
        text="ab",
        usage=(1, 2),
    ),
    ends(
        "generation B, completion cut off at its length",
        completed([{**COMPLETION, "choices": [{"index": 0, "text": "x", "finish_reason": "length"}]}]),
        text="x",
        finish_reason="length",
        usage=(9, 2),
    ),
    ends("generation B, chat", completed([{**CHAT, "choices": [HI]}]), text="hi", finish_reason="stop", usage=(9, 2)),
    ends(
        "generation B, a list prompt, its choices in any order",
        completed(
            [{**COMPLETION, "choices": [{"index": n, "text": f"t{n}", "finish_reason": "stop"} for n in (2, 0, 1)]}]
        ),
        text="t0",
        texts=["t0", "t1", "t2"],
        finish_reason="stop",
        usage=(9, 2),
    ),
    ends(
        "a stream in one string",
        completed([sse(delta("a"), delta("b", finish_reason="stop"), {"choices": [], "usage": USED})]),
        text="ab",
        usage=(9, 2),
        finish_reason="stop",
    ),
    ends("a stream cut anywhere", completed(cut(sse(delta("größe"), delta("b")), 3, 40, 41, 90)), text="größeb"),
    ends(
        "a stream with line separators in its text",
        completed([sse(delta("a\u2028b\u0085c\x0cd"), delta("e"))]),
        text="a\u2028b\u0085c\x0cde",
    ),
    ends("a stream with carriage returns", completed([sse(delta("a"), delta("b")).replace("\n", "\r\n")]), text="ab"),
    ends(
        "a stream of chunk objects",
        completed([[delta("a")], [delta("b"), delta("c", finish_reason="length")]]),
        text="abc",
        finish_reason="length",
    ),
    ends(
        "a stream of completion chunks",
        completed([sse({"object": "text_completion", "choices": [{"index": 0, "text": "x"}]})]),
        text="x",
    ),
    ends(
        "a message of parts",
        completed(
            [
                {
                    **CHAT,
                    "choices": [
                        {"message": {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}}
                    ],
                }
            ]
        ),
        text="ab",
    ),
    ends(
        "a call of a tool has no text",
        completed(
            [
                {
                    **CHAT,
                    "choices": [
                        {
                            "index": 0,
                            "message": {"content": None, "tool_calls": [{"id": "c"}]},
                            "finish_reason": "tool_calls",
                        }
                    ],
                }
            ]
        ),
        text=None,
        finish_reason="tool_calls",
    ),
    ends(
        "token counts beyond all measure are not counted",
        completed([{**CHAT, "choices": [HI], "usage": {"prompt_tokens": 2**63, "completion_tokens": -1}}]),
        text="hi",
        finish_reason="stop",
        usage=(None, None),
    ),
    ends("any other handler's output has no text", completed({"image": "aGk="}), text=None, output={"image": "aGk="}),
    ends("a plain string is the text", completed("fine")),
]

NEVER_MIND = {
    "not JSON": b"oops",
    "empty": b"",
    "an array": b"[]",
    "a number": b"7",
    "a string": b'"COMPLETED"',
    "null": b"null",
    "cut off": b'{"id": "$ID", "status": "COMPL',
    "no state": b'{"id": "$ID"}',
    "no id": b'{"status": "COMPLETED", "output": "x"}',
    "an error": b'{"error": "internal"}',
    "two answers": b'{"id":"$ID","status":"IN_QUEUE"}{"id":"$ID","status":"IN_QUEUE"}',
}

POLLS = [
    *(ends(f"a poll that answers {what} is asked again", Answer(said), DONE) for what, said in NEVER_MIND.items()),
    *(
        ends(f"a poll that answers {code} is asked again", page(code), DONE)
        for code in (500, 502, 503, 504, 520, 521, 522, 523, 524, 530)
    ),
    *(
        ends(f"a poll that answers {code} with JSON is asked again", body({"error": "internal"}, code), DONE)
        for code in (500, 503)
    ),
    ends("a poll that answers HTML with 200 is asked again", page(200), DONE),
    ends("a poll that answers 204 is asked again", Answer(status=204, headers=()), DONE),
    ends("a poll that answers 400 is asked again", body({"error": "bad request"}, 400), DONE),
    ends("a poll that is reset is asked again", RESET, RESET, DONE),
    ends("a poll that is closed is asked again", CLOSE, CLOSE, DONE),
    ends("half a body is asked again", broken_in_half(DONE), DONE),
    ends("a body that is shorter than announced is asked again", Answer(DONE.body, length=len(DONE.body) + 500), DONE),
    ends("a body that is longer than announced is asked again", Answer(DONE.body, length=20), DONE),
    ends("an answer that is no HTTP is asked again", Answer(raw=b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), DONE),
    ends(
        "broken chunks are asked again",
        Answer(b"zz\r\n{}\r\n0\r\n\r\n", headers=(JSON, ("Transfer-Encoding", "chunked"))),
        DONE,
    ),
    ends(
        "a header without end is asked again", Answer(raw=b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n"), DONE
    ),
    ends("two lengths of one body are asked again", Answer(DONE.body, headers=(JSON, ("Content-Length", "3"))), DONE),
    ends(
        "a compression that it is not in is asked again",
        Answer(DONE.body, headers=(JSON, ("Content-Encoding", "deflate"))),
        DONE,
    ),
    ends("a status that no document knows is asked again", body(b"", 999), DONE),
    ends(
        "an answer without a length ends with its connection",
        Answer(raw=b'HTTP/1.0 200 OK\r\n\r\n{"id": "x", "status": "COMPLETED", "output": "fine"}'),
        job_id="x",
    ),
    ends(
        "early hints come before the answer",
        Answer(raw=b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + DONE.bytes_for("x")),
        job_id="x",
    ),
    ends(
        "cookies and character sets are of no interest",
        Answer(DONE.body, headers=(("Content-Type", "application/json; charset=klingon"), ("Set-Cookie", "\x7f==;;"))),
    ),
    ends("broken gzip is asked again", Answer(b"no gzip", headers=(JSON, ("Content-Encoding", "gzip"))), DONE),
    ends(
        "gzip is opened",
        Answer(
            gzip.compress(b'{"id": "x", "status": "COMPLETED", "output": "fine"}'),
            headers=(JSON, ("Content-Encoding", "gzip")),
        ),
        job_id="x",
    ),
    ends(
        "chunks are put together",
        Answer(
            b'1e\r\n{"id":"x","status":"COMPLETED"\r\n10\r\n,"output":"fine"\r\n1\r\n}\r\n0\r\n\r\n',
            headers=(JSON, ("Transfer-Encoding", "chunked")),
        ),
        job_id="x",
    ),
    ends("JSON under another name is JSON", Answer(DONE.body, headers=(HTML,))),
    ends("JSON without a name is JSON", Answer(DONE.body, headers=())),
    ends("a byte order mark is no error", Answer(b"\xef\xbb\xbf" + DONE.body)),
    ends(
        "NaN is null",
        Answer(b'{"id": "$ID", "status": "COMPLETED", "output": {"text": "fine", "score": NaN, "loss": -Infinity}}'),
        output={"text": "fine", "score": None, "loss": None},
    ),
    ends(
        "a number beyond all measure does not hide a result",
        Answer(b'{"id": "$ID", "status": "COMPLETED", "output": {"text": "fine", "score": 1e999}}'),
        output={"text": "fine", "score": None},
    ),
    ends(
        "bytes that are no text do not hide a result",
        Answer(b'{"id": "$ID", "status": "COMPLETED", "output": {"text": "fi\xffne\xc3"}}'),
        text="fi\ufffdne\ufffd",
    ),
    ends(
        "half a surrogate pair does not hide a result",
        Answer(b'{"id": "$ID", "status": "COMPLETED", "output": {"text": "fi\\ud83dne"}}'),
        text="fi?ne",
    ),
    ends(
        "the last of two equal keys counts",
        Answer(b'{"id": "$ID", "status": "IN_QUEUE", "status": "COMPLETED", "output": "x", "output": "fine"}'),
    ),
    ends("a result of several megabytes is kept whole", completed({"text": "x" * 5_000_000}), text="x" * 5_000_000),
    ends(
        "a result nested without end is a result",
        Answer(
            b'{"id": "$ID", "status": "COMPLETED", "output": {"tree": '
            + b"[" * 9000
            + b"]" * 9000
            + b', "text": "fine"}}'
        ),
    ),
    ends(
        "a result nested five hundred deep is kept",
        Answer(
            b'{"id": "$ID", "status": "COMPLETED", "output": {"text": "fine", "tree": '
            + b"[" * 500
            + b"]" * 500
            + b"}}"
        ),
    ),
    ends("a poll that was refused with 408 is asked again", body(b"", 408), DONE),
]

RUNS = [
    *(
        ends(
            f"a submission that answers {what} is unconfirmed and made again",
            run=(Answer(said), QUEUED),
            attempts=2,
            unconfirmed=1,
        )
        for what, said in NEVER_MIND.items()
        if what != "no state"
    ),
    *(
        ends(
            f"a submission that answers {code} is unconfirmed and made again",
            run=(page(code), QUEUED),
            attempts=2,
            unconfirmed=1,
        )
        for code in (500, 502, 503, 504, 520, 521, 522, 523, 524)
    ),
    ends(
        "a submission that answers 204 is unconfirmed",
        run=(Answer(status=204, headers=()), QUEUED),
        attempts=2,
        unconfirmed=1,
    ),
    ends(
        "a submission that was read and reset is unconfirmed",
        run=(RESET, QUEUED),
        attempts=2,
        unconfirmed=1,
        job={"possible_duplicate": True},
    ),
    ends("a submission that was read and closed is unconfirmed", run=(CLOSE, QUEUED), attempts=2, unconfirmed=1),
    ends(
        "a submission that answers half a body is unconfirmed",
        run=(broken_in_half(QUEUED), QUEUED),
        attempts=2,
        unconfirmed=1,
    ),
    ends(
        "a submission that answers no HTTP is unconfirmed",
        run=(Answer(raw=b"\x15\x03\x01\x00\x02\x02\x46"), QUEUED),
        attempts=2,
        unconfirmed=1,
    ),
    fails(
        "a submission that is never answered ends as unconfirmed",
        run=(page(502),),
        kind="unconfirmed",
        status="UNCONFIRMED",
        message="HTTP 502: Bad gateway",
        attempts=2,
        unconfirmed=2,
    ),
    fails(
        "a submission without an answer is held on request",
        run=(RESET,),
        kind="",
        status="HELD",
        unconfirmed=1,
        options={"unconfirmed": "hold"},
    ),
    ends("an id without a state is a job", run=(body({"id": "$ID"}),)),
    ends("a job that is created with 201 is a job", run=(body({"id": "$ID", "status": "IN_QUEUE"}, 201),)),
    ends("a job that is accepted with 202 is a job", run=(body({"id": "$ID", "status": "IN_QUEUE"}, 202),)),
    ends("a job that begins at once is a job", run=(job("IN_PROGRESS"),)),
    ends("a job that is done at once is done", run=(completed("fine"),)),
    ends("a job that is done at once is not polled when it is gone already", NOT_FOUND, run=(completed("fine"),)),
    fails(
        "a job that fails at once has failed",
        failed("boom"),
        run=(failed("boom"),),
        kind="handler_error",
        message="boom",
    ),
    fails(
        "a job that fails at once has failed, also when it is gone already",
        NOT_FOUND,
        run=(failed("boom"),),
        kind="handler_error",
        message="boom",
    ),
    fails(
        "a 400 that is a failed job is that job's end",
        NOT_FOUND,
        run=(Answer(failed("prompt is too long").body, 400),),
        kind="handler_error",
        message="prompt is too long",
    ),
    fails(
        "a poll's 400 that is a failed job is that job's end",
        Answer(failed("prompt is too long").body, 400),
        kind="handler_error",
        message="prompt is too long",
    ),
    *(
        fails(
            f"a row that is refused with {code} is not sent again",
            run=(body({"error": "input is too large"}, code),),
            kind="rejected",
            status="REJECTED",
            message=f"HTTP {code}: input is too large",
        )
        for code in (400, 413, 422)
    ),
    fails(
        "a refusal is kept as it was sent",
        run=(body(b'{"error":\n"' + b"x" * 1000 + b'"}', 400),),
        kind="rejected",
        status="REJECTED",
        raw='{"error":\n"' + "x" * 1000 + '"}',
    ),
    fails(
        "a refusal by the validation says what is wrong",
        run=(body({"detail": [{"type": "missing", "msg": "Field required"}]}, 422),),
        kind="rejected",
        status="REJECTED",
        message="Field required",
    ),
    fails(
        "a refusal in HTML says its title",
        run=(page(413, "413 Request Entity Too Large"),),
        kind="rejected",
        status="REJECTED",
        message="HTTP 413: 413 Request Entity Too Large",
    ),
    fails(
        "a refusal without a word says its number",
        run=(body(b"", 400),),
        kind="rejected",
        status="REJECTED",
        message="HTTP 400: empty answer",
    ),
    fails(
        "a refusal that is no text says its number",
        run=(body(b"\xff\xfe", 400),),
        kind="rejected",
        status="REJECTED",
        message="HTTP 400",
    ),
    ends(
        "a connection that is reset before anything was read is unconfirmed",
        run=(QUEUED,),
        health=(body({}, Connection="close"),),
        reset_at=frozenset({2}),
        unconfirmed=1,
        refused=-1,
        attempts=2,
    ),
]

SLOW_DOWN = [
    *(
        ends(f"{code} with {what} slows down and counts for nothing", said, DONE, run=(said, said, QUEUED), refused=2)
        for code in (408, 429)
        for what, said in (
            ("no body", body(b"", code)),
            ("HTML", page(code)),
            ("JSON", body({"error": "Too Many Requests"}, code)),
        )
    ),
    *(
        ends(
            f"a Retry-After of {after!r} is survived",
            body(b"", 429, Retry_After=after),
            DONE,
            run=(body(b"", 429, Retry_After=after), QUEUED),
            refused=1,
        )
        for after in ("0", "-5", "Wed, 21 Oct 2015 07:28:00 GMT", "soon", "", "nan", "1.5")
    ),
    *(
        ends(
            f"a Retry-After of {after!r} is cut to minutes", run=(body(b"", 429, Retry_After=after), QUEUED), refused=1
        )
        for after in ("86400", "inf", "9" * 40)
    ),
    ends("a health that is throttled is asked again", health=(body(b"", 429), HEALTHY)),
    ends(
        "a health that is broken is asked again",
        health=(page(502), RESET, CLOSE, Answer(b""), Answer(b"[]"), page(200), HEALTHY),
    ),
    ends(
        "a health of idle and running alone is health",
        health=(body({"jobs": {}, "workers": {"idle": 0, "running": 1}}),),
    ),
    ends("a health that is refused for its form stops nothing", health=(body({"error": "no such operation"}, 405),)),
]

STALLS = [
    ends("a poll that is never answered is asked again", STALL, DONE, options={"timeout_s": 0.6}),
    ends(
        "a poll whose body never ends is asked again", Answer(DONE.body, fault="drip"), DONE, options={"timeout_s": 0.6}
    ),
    ends(
        "a submission that is never answered is unconfirmed",
        run=(STALL, QUEUED),
        attempts=2,
        unconfirmed=1,
        options={"timeout_s": 0.6},
    ),
    ends(
        "a submission whose answer never ends is unconfirmed",
        run=(Answer(QUEUED.body, fault="drip"), QUEUED),
        attempts=2,
        unconfirmed=1,
        options={"timeout_s": 0.6},
    ),
    ends("a health that is never answered is asked again", health=(STALL, HEALTHY), options={"timeout_s": 0.6}),
]

CASES = [*STATES, *FAILURES, *HIDDEN, *SHAPES, *POLLS, *RUNS, *SLOW_DOWN, *STALLS]
"""Each a Case, or a param of one."""


@dataclass
class Ended:
    """What a case came to."""

    rehearsal: Rehearsal
    server: FaultServer


def the_case(entry: Any) -> Case:
    return entry if isinstance(entry, Case) else entry.values[0]


def batches() -> list[list[Case]]:
    """Cases that run beside each other: waiting is what they mostly do. Those that measure time are apart."""
    plain = [the_case(entry) for entry in CASES if the_case(entry) not in STALLS]
    return [STALLS, *(plain[start : start + AT_ONCE] for start in range(0, len(plain), AT_ONCE))]


_ENDED: dict[str, Ended | BaseException] = {}


async def run_case(case: Case, folder: Path) -> Ended:
    write_lines(folder, [{"id": "x", "prompt": "p"}])
    server = FaultServer({"p": case.script}, case.health, case.reset_at)
    given = dict(case.options)
    scheduler = {key: given.pop(key) for key in ("max_retries", "unconfirmed") if key in given}
    async with server, asyncio.timeout(case.patience_s):
        rehearsal = await rehearse(folder, server.base_url, key=KEY, scheduler={"max_retries": 1, **scheduler}, **given)
    return Ended(rehearsal, server)


@pytest.fixture
def ended(case: Case, tmp_path: Path) -> Ended:
    """The end of the case; the first of a batch waits for all of the batch."""
    if case.claim not in _ENDED:
        batch = next(batch for batch in batches() if case in batch)
        folders = [tmp_path / str(number) for number in range(len(batch))]
        for folder in folders:
            folder.mkdir()

        async def run_batch() -> list[Ended | BaseException]:
            runs = map(run_case, batch, folders)
            return await asyncio.gather(*runs, return_exceptions=True)

        _ENDED.update(zip((case.claim for case in batch), asyncio.run(run_batch()), strict=True))
    end = _ENDED[case.claim]
    if isinstance(end, TimeoutError):
        pytest.fail("the row never ended")
    if isinstance(end, BaseException):
        raise end
    return end


def test_no_two_cases_claim_the_same():
    claims = [the_case(entry).claim for entry in CASES]
    assert len(claims) == len(set(claims))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.claim)
def test_a_row_ends_as_it_must(case: Case, ended: Ended):
    rehearsal, server = ended.rehearsal, ended.server
    summary = rehearsal.summary
    assert server.complaints == []
    assert (server.seen["run"], summary.unconfirmed, summary.exit_code) == (
        case.attempts + case.refused,
        case.unconfirmed,
        case.exit_code,
    )
    if case.status == "HELD":
        assert (rehearsal.results, summary.held) == ([], 1)
        assert [record["status"] for record in rehearsal.errors] == ["UNCONFIRMED"]
    elif case.kind:
        (record,) = rehearsal.errors
        error = record["error"]
        assert rehearsal.results == []
        assert (record["status"], error["kind"]) == (case.status, case.kind)
        assert case.message in error["message"]
        assert not case.whole or case.message == error["message"]
        assert error["message"]
        assert len(error["message"].splitlines()) == 1
        assert case.raw in (None, error["raw"])
        assert record["request"] == {"id": "x", "prompt": "p"}
        assert record["job"]["attempts"] == case.attempts
    else:
        (record,) = rehearsal.results
        assert rehearsal.errors == []
        assert (record["status"], record["text"], record.get("texts")) == ("COMPLETED", case.text, case.texts)
        assert case.finish_reason == record["finish_reason"]
        assert case.usage in (None, (record["usage"]["input_tokens"], record["usage"]["output_tokens"]))
        assert case.output in (..., record["output"])
        assert record["job"]["attempts"] == case.attempts
        assert {key: record["job"].get(key) for key in case.job} == case.job
