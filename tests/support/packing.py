"""A worker that answers lists of prompts, and goes wrong in the ways that concern jobs of several rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchrun.local.echo import EchoWorker
from batchrun.local.workers import WorkerFailure
from tests.support.workers import LOST

if TYPE_CHECKING:
    from collections.abc import Iterable


def prompts_in(request: dict) -> list[str]:
    """The prompts of a job, whichever of its forms it has."""
    fields = request.get("openai_input", request)
    prompts = fields.get("prompt", fields.get("messages"))
    if isinstance(prompts, str):
        return [prompts]
    chats = [prompts] if isinstance(prompts[0], dict) else prompts
    return [each if isinstance(each, str) else each[-1]["content"] for each in chats]


class PackedWorker(EchoWorker):
    """Every seventh job is lost with its worker, some fail in ways that may pass, some answers cannot be divided.

    A job with `refused` in one of its prompts is refused as a whole, as vLLM does.
    """

    def __init__(self) -> None:
        self.jobs = 0

    def answer(self, request: dict[str, Any]) -> Any:
        self.jobs += 1
        if self.jobs % 7 == 0:
            raise LOST
        if self.jobs % 11 == 0:
            raise WorkerFailure("CUDA error: an illegal memory access was encountered")
        if any("refused" in prompt for prompt in prompts_in(request)):
            raise WorkerFailure("vLLM returned HTTP 400: no")
        output = super().answer(request)
        if self.jobs % 13 == 0:
            output[0]["choices"] = list(damaged(output[0]["choices"], self.jobs))
        return output


def damaged(choices: list[dict], number: int) -> Iterable[dict]:
    """Choices of which one is missing, or is there twice, if there are several; in another order they are right."""
    if len(choices) == 1 or number % 2:
        return reversed(choices)
    return choices[1:] if number % 4 else [*choices[1:], choices[-1]]
