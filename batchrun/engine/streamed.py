"""What jobs have put out on `/stream` alone: generators whose pieces nobody puts together, and those that broke off.

Such a generator ends COMPLETED with `[]` (runpod-python without `return_aggregate_stream`). Each answer of `/stream`
gives what is new and forgets it (recorded live), so what was read is kept until all of it is there.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

from batchrun.config import OperationLimit
from batchrun.endpoint.client import EndpointClient
from batchrun.endpoint.protocol import JobAnswer, JobStatus
from batchrun.errors import AmbiguousError, CallError, ThrottledError, UnreachableError
from batchrun.scheduler.failures import Failure, FailureKind, backoff_s
from batchrun.scheduler.pacing import Pacer

_LEAST_WORK_MS = 1000.0
"""What a job that failed sooner had put out is not asked for: a bad request takes less, and there may be thousands."""
_TRIES = 6
"""Answers in a row that are of no use, until a stream is given up: half a minute."""
_BACKOFF_BASE_S = 0.5
_BACKOFF_CAP_S = 15.0
_LOOK_S = 0.05
_EMPTY = 3
"""So many empty answers end a stream that does not say that it is over."""
_SAME = 3
"""A server whose first answers with several pieces are equal gives everything each time."""
_SAME_PIECE = 50
"""The same for answers of one piece: a model may well say the same token a few times."""


class Streamed:
    """Reads streams of jobs that are over.

    Args:
        client: Talks to the endpoint.
        limit: How many requests the API allows.
        rng: Where jitter comes from.
        clock: Monotonic seconds.
    """

    def __init__(self, client: EndpointClient, limit: OperationLimit, rng: Random, clock: Callable[[], float]) -> None:
        self._client = client
        self._pacer = Pacer(limit, rng)
        self._rng = rng
        self._clock = clock
        self.calls: Counter[str] = Counter()
        """Where requests are counted, by operation."""

    async def complete(
        self, answer: JobAnswer, failure: Failure, judge: Callable[[JobAnswer], Failure | None]
    ) -> Failure | None:
        """What becomes of a job that seems to have failed, when its stream is looked at.

        The pieces become the output of the answer, if there are any, and what they take is counted for it.

        Args:
            answer: The job's final answer.
            failure: What it says by itself.
            judge: Judges it with an output.
        """
        if not _may_have_streamed(answer, failure):
            return failure
        self._client.release(answer)  # or streams that wait for room would wait for each other
        pieces, size_bytes, error = await self._read(answer.id)
        if any(piece is not None for piece in pieces):
            answer.output, answer.has_output = pieces, True
            await self._client.hold(answer, size_bytes)
            if error is None:
                return judge(answer) if answer.status is JobStatus.COMPLETED else failure
        if error is None or failure.kind is not FailureKind.NO_OUTPUT:
            return failure
        if pieces:
            return Failure(failure.kind, f"only a part of its stream could be read: {error.message}", error.raw)
        if not isinstance(error, _PASSING):
            return failure
        return Failure(failure.kind, f"{failure.message}, and its stream cannot be read: {error.message}", error.raw)

    async def _read(self, job_id: str) -> tuple[list[Any], int, CallError | None]:
        """The pieces of a stream, the bytes of the answers, and why the rest is unknown; None: those are all."""
        replies: list[list[Any]] = []
        size_bytes = failures = empty = 0
        ended: CallError | None = None
        while True:
            try:
                pieces, status, body_bytes = await self._ask(job_id)
            except _PASSING as error:
                failures += 1
                if failures == _TRIES:
                    ended = error
                    break
                wait_s = backoff_s(failures, self._rng, base_s=_BACKOFF_BASE_S, cap_s=_BACKOFF_CAP_S)
                await asyncio.sleep(max(wait_s, error.retry_after_s or 0.0))
                continue
            except CallError as error:
                ended = error
                break
            failures = 0
            if pieces:
                empty = 0
                replies.append(pieces)
                size_bytes += body_bytes
                same = _SAME if len(pieces) > 1 else _SAME_PIECE
                if len(replies) == same and all(reply == pieces for reply in replies):
                    replies = [pieces]
                    break
                continue
            empty += 1
            if status is None or status.is_final or empty == _EMPTY:
                break
        return [piece for reply in replies for piece in reply], size_bytes, ended

    async def _ask(self, job_id: str) -> tuple[list[Any], JobStatus | None, int]:
        while not self._pacer.ready(now := self._clock()):
            at = self._pacer.next_at(now)
            await asyncio.sleep(_LOOK_S if at is None else min(max(at - now, 0.001), _LOOK_S))
        sent_at = now
        self._pacer.start(now)
        self.calls["stream"] += 1
        try:
            reply = await self._client.stream(job_id)
        except ThrottledError as error:
            self._pacer.throttle(self._clock(), sent_at, error.retry_after_s)
            raise
        except _PASSING:
            self._pacer.fail(self._clock(), sent_at)
            raise
        except BaseException:
            self._pacer.succeed(self._clock())
            raise
        self._pacer.succeed(self._clock())
        return reply


_PASSING = (ThrottledError, UnreachableError, AmbiguousError)
"""What says nothing of the stream itself, and may be otherwise the next time."""


def _may_have_streamed(answer: JobAnswer, failure: Failure) -> bool:
    if answer.status is JobStatus.COMPLETED:
        return failure.kind is FailureKind.NO_OUTPUT
    return not answer.output and (answer.execution_ms or 0.0) >= _LEAST_WORK_MS
