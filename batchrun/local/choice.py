"""Which worker answers at the local endpoint."""

from __future__ import annotations

from pathlib import Path

from batchrun.errors import UsageError
from batchrun.local.echo import EchoWorker
from batchrun.local.smollm2 import SmolLM2Worker, missing, packaged_model
from batchrun.local.upstream import UpstreamWorker
from batchrun.local.workers import Worker


def choose_worker(name: str, *, model_file: Path | None, upstream: str | None) -> tuple[Worker, str | None]:
    """The worker for a name, and a line for people when it is not what they may expect.

    Args:
        name: `auto`, `smollm2` or `echo`; `auto` is the real model where it is installed, else the echo.
        model_file: A GGUF file instead of the packaged one; it asks for the real model.
        upstream: The URL of an OpenAI-compatible server to be the worker.

    Raises:
        UsageError: what was asked for is not installed, or does not go together.
    """
    if upstream is not None:
        if name != "auto" or model_file is not None:
            raise UsageError("--upstream does not go with --worker or --model-file", "give one of them")
        return UpstreamWorker(upstream), None
    if name == "echo":
        return EchoWorker(), None
    lack, path = missing(model_file), model_file or packaged_model()
    if lack is None and path is not None:
        return SmolLM2Worker(path), None
    lack = lack or ("the real model is not installed", "")
    if name == "smollm2" or model_file is not None:
        raise UsageError(*lack)
    return EchoWorker(), f"the local endpoint only echoes: {lack[0]} -> {lack[1]}"
