"""A worker that passes jobs on to an OpenAI-compatible server: vLLM, llama.cpp, Ollama."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import orjson
from yarl import URL

from batchrun.endpoint.call_errors import body_message
from batchrun.errors import UsageError
from batchrun.files.exactjson import load
from batchrun.files.server_urls import checked_url
from batchrun.local.packs import joined, split
from batchrun.local.shapes import answer_id
from batchrun.local.workers import (
    BATCH_ROUTE,
    CHAT_ROUTE,
    COMPLETIONS_ROUTE,
    ModelCall,
    model_call,
    model_failure,
    worker_failure,
)

_REDIRECTS = range(300, 400)
_NOT_FOUND = 404
_WITH_REQUEST_ID = (CHAT_ROUTE, COMPLETIONS_ROUTE, BATCH_ROUTE)


class UpstreamWorker:
    """Returns the answers of another server, in worker-vllm's current shape.

    Where the server has no route for several chats in one request, their chats are asked singly, all at once.

    Args:
        url: The server, with or without `/v1` at the end. A user and a password in it are sent as Basic credentials,
            and never shown. Redirects are not followed.

    Raises:
        UsageError: it is not an http(s) URL.
    """

    parallel = 16

    def __init__(self, url: str) -> None:
        checked_url("--upstream", url, example="http://localhost:11434/v1", is_prefix=True)
        self._base = url.rstrip("/").removesuffix("/v1")
        self.name = self._base if "@" not in self._base else f"{URL(self._base).with_user(None)}".rstrip("/")
        self._model: str | None = None
        self._session: aiohttp.ClientSession | None = None
        self._lacks_batches = False

    async def start(self) -> None:
        """Connect, and get the model's name.

        Raises:
            UsageError: the server does not answer, or redirects.
        """
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=10))
        try:
            async with self._session.get(f"{self._base}/v1/models", allow_redirects=False) as response:
                raw = await response.read()
            models = None if response.status in _REDIRECTS else orjson.loads(raw)
        except (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError) as error:
            await self.close()
            raise UsageError(
                f"--upstream {self.name}: no OpenAI-compatible server answers there ({error})", "start the server first"
            ) from error
        if response.status in _REDIRECTS:
            await self.close()
            raise UsageError(f"--upstream {self.name} redirects to another URL", "give that URL")
        listed = models.get("data") if isinstance(models, dict) else None
        if isinstance(listed, list) and listed and isinstance(listed[0], dict):
            self._model = listed[0].get("id")

    async def close(self) -> None:
        """Disconnect."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def run(self, request: dict[str, Any]) -> Any:
        """The output for a job's input.

        Raises:
            WorkerFailure: the input is not a prompt, or the server refuses it or cannot be reached.
        """
        call = model_call(request)
        if call is None:
            raise worker_failure("the input has no prompt, messages or openai_input")
        if call.route != BATCH_ROUTE:
            return [_answer(call, *await self._post(call))]
        if not self._lacks_batches:
            status, raw = await self._post(call)
            if status != _NOT_FOUND:
                return [_answer(call, status, raw)]
        answers = await self._ask_singly(call)
        self._lacks_batches = True
        return [joined(call, answers)]

    async def _ask_singly(self, call: ModelCall) -> list[dict[str, Any]]:
        """The answers to the parts of a request with several chats; the first one that fails stops the others."""
        asked = [asyncio.create_task(self._ask(single)) for single in split(call)]
        try:
            return await asyncio.gather(*asked)
        finally:
            for task in asked:
                task.cancel()

    async def _ask(self, call: ModelCall) -> dict[str, Any]:
        answer = _answer(call, *await self._post(call))
        if not isinstance(answer, dict) or not isinstance(answer.get("choices"), list) or len(answer["choices"]) != 1:
            raise worker_failure("Request to vLLM failed: the answer has no choice")
        return answer

    async def _post(self, call: ModelCall) -> tuple[int, bytes]:
        """The server's HTTP status and answer to a request.

        Raises:
            WorkerFailure: it cannot be reached.
        """
        if self._session is None:
            raise worker_failure("Request to vLLM failed: not connected")
        body = {"model": self._model, **call.body, "stream": False}
        try:
            async with self._session.post(self._base + call.route, json=body, allow_redirects=False) as response:
                return response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise worker_failure(f"Request to vLLM failed: {error}") from error


def _answer(call: ModelCall, status: int, raw: bytes) -> Any:
    """The answer, with the `id` that vLLM would give it: other servers ignore `request_id`.

    Raises:
        WorkerFailure: the server has refused the request, or the answer is not JSON.
    """
    if status != 200:  # noqa: PLR2004 - OK
        raise model_failure(status, body_message(raw))
    try:
        answer = load(raw)
    except orjson.JSONDecodeError as error:
        raise worker_failure("Request to vLLM failed: the answer is not JSON") from error
    if isinstance(answer, dict) and call.body.get("request_id") is not None and call.route in _WITH_REQUEST_ID:
        answer["id"] = answer_id(call, "")
    return answer
