"""Chooses the worker of the local endpoint."""

from __future__ import annotations

from pathlib import Path

from batchrun.errors import UsageError
from batchrun.local.echo import EchoWorker
from batchrun.local.smollm2 import SmolLM2Worker, missing, packaged_model
from batchrun.local.upstream import UpstreamWorker
from batchrun.local.workers import Worker


def choose_worker(name: str, *, model_file: Path | None, upstream: str | None) -> tuple[Worker, str | None]:
    """The worker for a name, and a message for the user if the worker may surprise them.

    Args:
        name: `auto`, `smollm2` or `echo`; `auto` is the real model if it is installed, else the echo.
        model_file: GGUF file to use instead of the packaged one; implies the real model. None: the packaged one.
        upstream: URL of an OpenAI-compatible server to use as the worker; None: no such server.

    Raises:
        UsageError: the worker is not installed, or the options contradict each other.
    """
    if upstream is not None:
        if name != "auto" or model_file is not None:
            raise UsageError("--upstream cannot be combined with --worker or --model-file", "give only one of them")
        return UpstreamWorker(upstream), None
    if name == "echo":
        return EchoWorker(), None
    problem, path = missing(model_file), model_file or packaged_model()
    if problem is None and path is not None:
        return SmolLM2Worker(path), None
    problem = problem or ("the real model is not installed", "")
    if name == "smollm2" or model_file is not None:
        raise UsageError(*problem)
    return EchoWorker(), f"the local endpoint only echoes: {problem[0]} -> {problem[1]}"
