"""Jobs of several rows through Runpod's own worker, as its SDK makes it, in a process of its own."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from batchrun.config import RequestOptions
from tests.support.packs import BATCH_ROUTE
from tests.support.rehearsal import Rehearsal, rehearse, serving, write_lines
from tests.support.sdk import ModelServer, Platform, sdk_python

if TYPE_CHECKING:
    from pathlib import Path

PYTHON = sdk_python()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="Runpod's SDK is not installed: `python -m tests.bench` installs it"),
]
ROUTES = {False: "/v1/completions", True: BATCH_ROUTE}


@asynccontextmanager
async def endpoint(folder: Path, model: ModelServer):
    """The local endpoint, whose only worker is one of the SDK with this model server; gives its URL and the worker."""
    assert PYTHON is not None
    async with model.serving() as model_url:
        platform = Platform(PYTHON, model_url, folder)
        async with serving(worker=platform, workers=1, jobs_per_worker=30) as server:
            yield server.endpoint.base_url, platform


async def run(folder: Path, model: ModelServer, *, is_chat: bool, rows: int = 100) -> tuple[Rehearsal, Platform]:
    write_lines(folder, [{"id": f"r{n}", "prompt": "poison" if n == 70 else f"p {n}"} for n in range(rows)])
    async with endpoint(folder, model) as (base_url, platform):
        done = await rehearse(
            folder,
            base_url,
            request=RequestOptions(default={"max_tokens": 64, "temperature": 0}, chat=is_chat),
            scheduler={"pack": 8, "concurrency": 30},
        )
    return done, platform


@pytest.mark.parametrize("is_chat", [False, True], ids=["prompts", "chats"])
async def test_packed_rows_pass_through_the_sdk_and_a_bad_prompt_fails_alone(tmp_path, is_chat):
    model = ModelServer()
    done, platform = await run(tmp_path, model, is_chat=is_chat)
    assert {record["id"]: record["text"] for record in done.results} == {
        f"r{n}": f"to p {n}" for n in range(100) if n != 70
    }
    (failed,) = done.errors
    assert failed["id"] == "r70"
    assert failed["error"]["kind"] == "bad_request"
    assert "the prompt is too long" in failed["error"]["message"]
    assert (done.summary.retries, done.summary.unconfirmed) == (0, 0)
    assert max(platform.taken) > 1, "it took several jobs at once"
    shared = [body for route, body in model.asked if route == ROUTES[is_chat] and "request_id" in body]
    assert len(shared) >= 100 / 8
    assert len({body["request_id"] for body in shared}) == len(shared)
    assert any(message.startswith("--pack: 4 rows have the same answers") for message in done.listener.messages)


async def test_a_model_server_without_the_route_for_several_chats_gets_each_row_alone(tmp_path):
    model = ModelServer(has_batches=False)
    done, _ = await run(tmp_path, model, is_chat=True, rows=20)
    assert len(done.results) == 20
    assert sum(route == BATCH_ROUTE for route, _ in model.asked) == 1
    assert any("takes no list of chats" in message for message in done.listener.messages)
