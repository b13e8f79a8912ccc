"""A handler to be run with Runpod's SDK: it passes each job to a model server, as worker-vllm does since 2.24.

The model server's URL is its only argument. It imports nothing of batchrun, and runs in the SDK's own environment.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import aiohttp
import runpod

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SERVER = sys.argv.pop()


def asked(request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    if "openai_input" in request:
        return request.get("openai_route", "/v1/chat/completions"), dict(request["openai_input"])
    sampling = request.get("sampling_params", {})
    if "messages" in request:
        return "/v1/chat/completions", {"messages": request["messages"], **sampling}
    return "/v1/completions", {"prompt": request["prompt"], **sampling}


async def handler(job: dict[str, Any]) -> AsyncIterator[Any]:
    route, body = asked(job["input"])
    body.setdefault("model", "m")
    async with aiohttp.ClientSession() as session, session.post(SERVER + route, json=body) as response:
        text = await response.text()
        if response.status == 200:
            yield json.loads(text)
        else:
            message = f"vLLM returned HTTP {response.status}: {text}"
            yield {"error": {"message": message, "type": "worker_error", "code": None}}


runpod.serverless.start(
    {"handler": handler, "concurrency_modifier": lambda _: 30, "return_aggregate_stream": True},
)
