"""Workers that answer as a test says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchrun.local.echo import EchoWorker
from batchrun.local.workers import WorkerFailure
from tests.support.packs import BATCH_ROUTE, NO_ROUTE, POISONED, is_pack, prompts_of, request_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.support.packs import Spoil

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


class Spoiling(EchoWorker):
    """An echo whose answers to packs go wrong by script.

    Args:
        faults: What each pack meets in turn: a way to spoil its answer, a failure, or None for nothing. Later packs,
            and single rows, meet nothing.
        poison: Whatever job has this in a prompt is refused with vLLM's 400; empty: none is.
        has_batches: Whether the model server has the route for several chats.
    """

    def __init__(
        self, faults: Iterable[Spoil | WorkerFailure | None] = (), *, poison: str = "", has_batches: bool = True
    ) -> None:
        self._faults = iter(faults)
        self._poison = poison
        self._has_batches = has_batches
        self.asked: list[list[str]] = []
        """The prompts of each job."""

    def answer(self, request: dict[str, Any]) -> Any:
        prompts = prompts_of(request)
        self.asked.append(prompts)
        if request_of(request)[0] == BATCH_ROUTE and not self._has_batches:
            raise WorkerFailure(NO_ROUTE)
        if self._poison and any(self._poison in prompt for prompt in prompts):
            raise WorkerFailure(POISONED)
        fault = next(self._faults, None) if is_pack(request) else None
        if isinstance(fault, WorkerFailure):
            raise fault
        output = super().answer(request)
        return output if fault is None else fault(output)
