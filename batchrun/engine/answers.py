"""Keep the answers of jobs for their rows until the scheduler has decided about the rows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from batchrun.endpoint.client import EndpointClient
from batchrun.endpoint.protocol import JobAnswer, JobStatus
from batchrun.endpoint.transport import Transport
from batchrun.endpoint.worker_errors import NO_ROUTE, decode_error
from batchrun.engine.judging import find_flaw, find_kind, judge, partial_output
from batchrun.engine.rules import Draft, Rules
from batchrun.engine.streamed import Streamed
from batchrun.scheduler.events import RowAnswer, Whole
from batchrun.scheduler.failures import Failure, FailureKind
from batchrun.state.records import OpenJob

_JUDGED_ASIDE_BYTES = 1 << 17
"""An answer that takes more memory is judged in a thread: an error of 16 kB may take 10 ms to decode."""


class Look(NamedTuple):
    """What the scheduler wants to know of results."""

    flaws: bool = False
    kind: bool = False


class Answers:
    """The answers of rows that are about to end.

    Args:
        client: Counts the memory of the answers.
        transport: Splits an answer into those of the job's rows.
        streamed: Reads the output of jobs that was only streamed.
        inspect_output: Whether to look for errors inside the output of completed jobs.
        rules: What an answer must keep to be a result; None for no rules.
        draft: Makes the record of an answer, for the rules.
        asked: Says what a row asked for, so that answers can be compared.
    """

    def __init__(
        self,
        client: EndpointClient,
        transport: Transport,
        streamed: Streamed,
        *,
        inspect_output: bool = True,
        rules: Rules | None = None,
        draft: Draft | None = None,
        asked: Callable[[int], Awaitable[str]] | None = None,
    ) -> None:
        self._asked = asked
        self._client = client
        self._transport = transport
        self.streamed = streamed
        self._refuse = None if rules is None or draft is None else partial(rules.refuse, draft=draft, hide=client.hide)
        self._judge = partial(judge, inspect_output=inspect_output, hide=client.hide)
        self._by_row: dict[int, JobAnswer] = {}
        self._sent: dict[int, tuple[int, ...]] = {}
        """Job -> all of its rows in order, for adopted jobs with rows that have ended already."""

    def adopt(self, job: OpenJob) -> None:
        """Record a job of an earlier session that is in flight."""
        if len(job.all_rows) > len(job.rows):
            self._sent[job.job] = job.all_rows

    async def take(
        self, job: int, rows: tuple[int, ...], answer: JobAnswer, look: Look
    ) -> tuple[str, tuple[RowAnswer, ...], Whole | None]:
        """Keep the final answer of a job for each of its rows.

        Args:
            job: The job's number.
            rows: Its rows that have not ended, in order.
            answer: The answer.
            look: What else the scheduler wants to know.

        Returns:
            The job's status, COMPLETED only if a row has a result or an invalid answer; what the answer means for each
            row; and what happened to the job as a whole, if it has no answer for each of its several rows.
        """
        sent = self._sent.pop(job, rows)
        parts = self._transport.split(answer, len(sent), job)
        if isinstance(parts, str):
            return await self._as_one(rows, answer, parts)
        said = []
        for row, part in zip(sent, parts, strict=True):
            if sent is rows or row in rows:
                failure = await self._judged(part)
                if failure is not None:
                    failure = await self._failed(part, failure, is_alone=len(sent) == 1)
                if failure is None and self._refuse is not None:
                    failure = await self._refuse(row, part, aside=_is_large(part))
                is_good = failure is None
                flaw = find_flaw(part.output) if is_good and look.flaws else None
                kind = await self._kind(row, part) if is_good and look.kind else None
                said.append(RowAnswer(failure, flaw, kind))
                self._by_row[row] = part
            else:
                self._client.release(part)
        is_served = any(_is_answered(each.failure) for each in said)
        status = "FAILED" if answer.status is JobStatus.COMPLETED and not is_served else answer.status.value
        return status, tuple(said), None

    async def _as_one(
        self, rows: tuple[int, ...], answer: JobAnswer, wrong: str
    ) -> tuple[str, tuple[RowAnswer, ...], Whole]:
        """The answer of a job of several rows that has no answer for each of them."""
        failure, whole = await self._judged(answer), Whole.FAILED
        if failure is None:
            failure, whole = (
                Failure(FailureKind.WORKER_ERROR, wrong, self._client.hide(decode_error(answer.output).raw)),
                Whole.GARBLED,
            )
        elif failure.message.startswith(NO_ROUTE):
            whole = Whole.UNKNOWN
        self._client.release(answer)
        alike = replace(answer, output=None, has_output=False, error=None, held_bytes=0)
        self._by_row.update(dict.fromkeys(rows, alike))
        status = "FAILED" if answer.status is JobStatus.COMPLETED else answer.status.value
        return status, (RowAnswer(failure),) * len(rows), whole

    async def _kind(self, row: int, part: JobAnswer) -> tuple[str, str] | None:
        answer = find_kind(part.output)
        return None if answer is None or self._asked is None else (await self._asked(row), answer)

    async def _judged(self, answer: JobAnswer) -> Failure | None:
        return await asyncio.to_thread(self._judge, answer) if _is_large(answer) else self._judge(answer)

    async def is_result(self, row: int, answer: JobAnswer, *, aside: bool) -> bool:
        """Whether an answer from another run is accepted as the result of a row in this run."""
        failure = await asyncio.to_thread(self._judge, answer) if aside else self._judge(answer)
        if failure is None and self._refuse is not None:
            failure = await self._refuse(row, answer, aside=aside)
        return failure is None

    def pop(self, row: int) -> JobAnswer | None:
        """Remove and return the answer for a row; None if there is none."""
        return self._by_row.pop(row, None)

    async def _failed(self, answer: JobAnswer, failure: Failure, *, is_alone: bool) -> Failure | None:
        """What is left of a failure once the job's stream was read; None if that has a result.

        The answer of a failed row keeps any partial output.
        """
        found = await self.streamed.complete(answer, failure, self._judge) if is_alone else failure
        if found is not None:
            answer.output, answer.error = partial_output(answer), None
            if answer.output is None:
                self._client.release(answer)
        return found


def _is_large(answer: JobAnswer) -> bool:
    return answer.held_bytes > _JUDGED_ASIDE_BYTES


def _is_answered(failure: Failure | None) -> bool:
    return failure is None or failure.kind is FailureKind.INVALID_OUTPUT
