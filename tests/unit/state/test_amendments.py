"""Amendments of rows: what is written for a row is what is sent for it, and only for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchrun.config import RequestOptions
from batchrun.prompts.requests import build_request, with_turns
from batchrun.prompts.shapes import parse_line
from batchrun.state.amendments import Amendments
from batchrun.state.records import Amendment, Batch
from batchrun.state.store import Store

TURNS = ({"role": "assistant", "content": "four"}, {"role": "user", "content": "Answer in JSON."})
AMENDMENT = Amendment({"max_tokens": 2048, "seed": 10**400}, TURNS, 2)


def test_what_was_written_is_read_again_and_replaces_what_was_there(tmp_path: Path):
    with Store(tmp_path / "s.state") as store:
        session = store.begin_session(1, 0)
        amendments = Amendments(store)
        assert amendments.get(7) is None
        store.commit(Batch(amended=[(7, Amendment({"max_tokens": 1})), (8, Amendment({}, asks=1))]), session, 0)
        store.commit(Batch(amended=[(7, AMENDMENT)]), session, 0)
        amendments.note()
        assert (amendments.get(7), amendments.get(8), amendments.get(9)) == (AMENDMENT, Amendment({}, asks=1), None)
        assert Amendments(store).get(7) == AMENDMENT


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"messages":[{"role":"user","content":"2+2?"}]}', ("messages",)),
        (
            b'{"custom_id":"a","url":"/v1/chat/completions","body":{"messages":[{"role":"user","content":"2+2?"}]}}',
            ("openai_input", "messages"),
        ),
        (b'{"input":{"messages":[{"role":"user","content":"2+2?"}]}}', ("messages",)),
    ],
)
def test_turns_follow_the_messages_of_the_line(line: bytes, expected: tuple[str, ...]):
    request = build_request(parse_line(line), RequestOptions())
    longer = with_turns(request, TURNS)
    for key in expected:
        request, longer = request[key], longer[key]
    assert longer == [*request, *TURNS]
    assert len(request) == 1, "the line's own request is unchanged"


@pytest.mark.parametrize("line", [b'{"prompt":"2+2?"}', b'{"input":{"text":"any worker"}}'])
def test_a_request_without_messages_is_sent_as_it_is(line: bytes):
    request = build_request(parse_line(line), RequestOptions())
    assert with_turns(request, TURNS) is request
