"""A worker that passes jobs on to an OpenAI-compatible server: vLLM, llama.cpp, Ollama."""

from __future__ import annotations

from typing import Any

import aiohttp
import orjson

from batchrun.endpoint.protocol import body_message
from batchrun.errors import UsageError
from batchrun.local.workers import model_call, model_failure, worker_failure


class UpstreamWorker:
    """Answers with what another server says, in worker-vllm's current shape.

    Args:
        url: The server, with or without `/v1` at the end.

    Raises:
        UsageError: it is no http(s) URL.
    """

    parallel = 16

    def __init__(self, url: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"--upstream {url!r} is no http(s) URL", "for example http://localhost:11434/v1")
        self._base = url.rstrip("/").removesuffix("/v1")
        self.name = self._base
        self._model: str | None = None
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Connect, and ask for the model's name.

        Raises:
            UsageError: nothing answers there.
        """
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=10))
        try:
            async with self._session.get(f"{self._base}/v1/models") as response:
                models = orjson.loads(await response.read())
        except (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError) as error:
            await self.close()
            raise UsageError(
                f"--upstream {self._base}: no OpenAI-compatible server answers there ({error})", "start it first"
            ) from error
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
            WorkerFailure: the input is no prompt, or the server refuses it or cannot be reached.
        """
        call = model_call(request)
        if call is None:
            raise worker_failure("the input has no prompt, messages or openai_input")
        if self._session is None:
            raise worker_failure("Request to vLLM failed: not connected")
        body = {"model": self._model, **call.body, "stream": False}
        try:
            async with self._session.post(self._base + call.route, json=body) as response:
                raw = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise worker_failure(f"Request to vLLM failed: {error}") from error
        if response.status != 200:  # noqa: PLR2004 - OK
            raise model_failure(response.status, body_message(raw))
        try:
            return [orjson.loads(raw)]
        except orjson.JSONDecodeError as error:
            raise worker_failure("Request to vLLM failed: the answer is not JSON") from error
