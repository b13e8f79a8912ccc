"""Workers that answer as a test says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchrun.local.echo import EchoWorker
from batchrun.local.workers import WorkerFailure

if TYPE_CHECKING:
    from collections.abc import Callable

LOST = WorkerFailure("job timed out after 1 retries")
"""What the platform says of a job whose worker was lost."""


class Answering(EchoWorker):
    """Gives each request what a function makes of it; a failure that the function gives fails the job."""

    def __init__(self, answer: Callable[[dict[str, Any]], Any]) -> None:
        self._answer = answer

    def answer(self, request: dict[str, Any]) -> Any:
        given = self._answer(request)
        if isinstance(given, WorkerFailure):
            raise given
        return given


class Picky(EchoWorker):
    """An echo that refuses prompts that begin with `bad`."""

    def answer(self, request: dict[str, Any]) -> Any:
        if request["prompt"].startswith("bad"):
            raise WorkerFailure("vLLM returned HTTP 400: bad prompt")
        return super().answer(request)


class Flaky(EchoWorker):
    """Every seventh job is lost with its worker, every job with `refused` in its prompt is refused."""

    def __init__(self) -> None:
        self.count = 0

    def answer(self, request: dict[str, Any]) -> Any:
        self.count += 1
        if self.count % 7 == 0:
            raise LOST
        if "refused" in request["prompt"]:
            raise WorkerFailure("vLLM returned HTTP 400: no")
        return super().answer(request)


class Broken(EchoWorker):
    """A deployment that refuses everything after so many good answers."""

    parallel = 4

    def __init__(self, good: int = 0) -> None:
        self.good = good

    def answer(self, request: dict[str, Any]) -> Any:
        self.good -= 1
        if self.good < 0:
            raise WorkerFailure("vLLM returned HTTP 400: no such model")
        return [{"choices": [{"text": "fine"}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}]
