"""Nothing that looks at foreign text takes more time than its length explains."""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING

import pytest

from batchrun.endpoint.call_errors import MAX_ERROR_BYTES, call_error
from batchrun.endpoint.protocol import parse_health, parse_job
from batchrun.endpoint.worker_errors import decode_error, find_hidden_error
from batchrun.errors import BatchrunError
from batchrun.prompts.shapes import parse_line
from batchrun.results.chunks import chunks_of, merge
from batchrun.results.text import extract
from batchrun.results.writer import recover

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 1_000_000
MOST_S = 1.0
"""Of CPU time, ten times what a quiet machine needs: time that grows as the square of the length takes minutes."""
UNITS = {
    "quotes": '"',
    "backslashes": "\\",
    "escaped quotes": '\\"',
    "braces": "{",
    "brackets": "[",
    "brackets in pairs": "[]",
    "objects": '{"a":',
    "spaces": " ",
    "line ends": "\n",
    "blank lines": "\n \t",
    "NULs": "\0",
    "NULs in between": "a\0",
    "digits": "9",
    "numbers": "1,",
    "numbers that are none": "NaN,",
    "strings": '"a",',
    "titles": "<title>",
    "tags that are not closed": "<title",
    "escapes": "\x1b",
    "colours": "\x1b[",
    "commands": "\x1b]",
    "codes": "HTTP/1.",
    "status codes": "status code ",
    "types": "A.",
    "letters": "A",
    "tracebacks": "\ntraceback:",
    "Python's tracebacks": "Traceback (most recent call last)\n",
    "Python's strings": "'a' ",
    "Python's escapes": "\\d",
    "signs": "-",
    "events": 'data: {"choices":[{"delta":{"content":"a"}}]}\n\n',
    "events that are none": 'data: "error" x\n',
}
BEGINNINGS = [
    "",
    '"',
    "[",
    "{'a': '",
    "[" * 600,
    '{"id": "j", "status": "COMPLETED", "output": "',
    "<class '",
    "\x1b[0",
]


def looks(text: str):
    body = text.encode()
    yield lambda: parse_job(200, {}, body)
    yield lambda: parse_health(200, {}, body)
    yield lambda: call_error(502, {}, body[:MAX_ERROR_BYTES])
    yield lambda: decode_error(text)
    yield lambda: decode_error({"error_type": text, "message": f"handler: {text}\ntraceback: {text}"})
    yield lambda: decode_error(text[:100_000])
    yield lambda: find_hidden_error([text])
    yield lambda: extract([text])
    yield lambda: merge(chunks_of([text]))
    yield lambda: parse_line(body)


SLOW = ("events", "events that are none")


@pytest.mark.parametrize(
    "unit", [pytest.param(unit, marks=pytest.mark.slow) if unit in SLOW else unit for unit in UNITS]
)
def test_a_megabyte_of_any_text_is_looked_at_in_a_moment(unit: str):
    for beginning in BEGINNINGS:
        text = beginning + UNITS[unit] * (SIZE // len(UNITS[unit]))
        for number, look in enumerate(looks(text)):
            began = time.process_time()
            with contextlib.suppress(BatchrunError):
                look()
            assert time.process_time() - began < MOST_S, (number, beginning)


def test_the_pieces_of_a_long_stream_are_put_together_in_a_moment():
    delta = {"content": "a", "tool_calls": [{"index": 0, "function": {"arguments": "b"}}]}
    chunk = {"choices": [{"index": 0, "delta": delta, "logprobs": {"content": [{"token": "a"}]}}]}
    calls = [{"index": n, "id": f"c{n}", "function": {"name": "f", "arguments": ""}} for n in range(20_000)]
    first = {"choices": [{"index": 0, "delta": {"role": "assistant", "tool_calls": calls}}]}
    began = time.process_time()
    (choice,) = merge([first, *[chunk] * 100_000])["choices"]
    assert time.process_time() - began < 10 * MOST_S
    assert choice["message"]["content"] == "a" * 100_000
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": "b" * 100_000}
    assert len(choice["message"]["tool_calls"]) == 20_000
    assert len(choice["logprobs"]["content"]) == 100_000
    assert len(chunk["choices"][0]["logprobs"]["content"]) == 1, "what came is as it came"


@pytest.mark.parametrize("unit", ["NULs", "NULs in between"])
def test_a_hole_in_a_results_file_is_found_in_a_moment(tmp_path: Path, unit: str):
    path = tmp_path / "r.jsonl"
    path.write_bytes((UNITS[unit] * SIZE).encode() + b"\n")
    began = time.process_time()
    recover(path, 0)
    assert time.process_time() - began < MOST_S


def test_of_a_long_error_the_beginning_is_kept_with_a_mark():
    error = decode_error(json.dumps({"error_message": "no", "error_traceback": "x" * SIZE}))
    assert error.message == "no"
    assert len(error.raw) < 100_050
    assert error.raw.endswith(
        f"… (cut: {len(json.dumps({'error_message': 'no', 'error_traceback': ''})) + SIZE:,} characters)"
    )
