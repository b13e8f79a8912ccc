"""Jobs of several rows, and a worker that answers each of them with an output or an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from batchrun.config import JobPolicy
from batchrun.endpoint.packing import Kind
from batchrun.endpoint.protocol import JobAnswer, JobStatus, run_body
from batchrun.local.echo import EchoWorker
from batchrun.local.workers import WorkerFailure


class Packed:
    """A transport of several rows a job."""

    def __init__(self, policy: JobPolicy, rows_per_job: int) -> None:
        self._policy = policy
        self.rows_per_job = rows_per_job

    def kind(self, request: Mapping[str, Any], size_bytes: int) -> Kind:
        return Kind(1, self.rows_per_job)

    def body(self, requests: Sequence[Mapping[str, Any]], job: int) -> bytes:
        assert 1 <= len(requests) <= self.rows_per_job
        return run_body({"rows": list(requests)}, self._policy)

    def split(self, answer: JobAnswer, rows: int, job: int) -> list[JobAnswer]:
        held, rest = divmod(answer.held_bytes, rows)
        parts = [replace(answer, held_bytes=held + (rest if number == 0 else 0)) for number in range(rows)]
        if answer.status is JobStatus.COMPLETED:
            for part, said in zip(parts, answer.output, strict=True):
                part.output, part.error = said.get("output"), said.get("error")
        return parts


class PackedWorker(EchoWorker):
    """Every seventh job is lost with its worker, every fifth row fails in a way that may pass, some are refused."""

    def __init__(self) -> None:
        self.jobs = 0
        self.rows = 0

    async def run(self, request: dict) -> Any:
        return self.answer(request)

    def answer(self, request: dict) -> Any:
        self.jobs += 1
        if self.jobs % 7 == 0:
            raise WorkerFailure("job timed out after 1 retries")
        return [self._row(each) for each in request["rows"]]

    def _row(self, request: dict) -> dict[str, Any]:
        self.rows += 1
        if "refused" in request["prompt"]:
            return {"error": "vLLM returned HTTP 400: no"}
        if self.rows % 5 == 0:
            return {"error": "CUDA error: an illegal memory access"}
        return {"output": super().answer(request)}
