"""Read output that jobs have only sent to `/stream`: of generators whose pieces are not aggregated, or that broke off.

Such a generator ends COMPLETED with `[]` (runpod-python without `return_aggregate_stream`). Each answer of `/stream`
has only the new pieces, and the server then forgets them (recorded live), so they are kept until all have been read.
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
"""The stream of a job that failed sooner is not read: bad requests fail that fast, and there may be thousands."""
_TRIES = 6
"""A stream is given up after this many consecutive failed requests: half a minute."""
_BACKOFF_BASE_S = 0.5
_BACKOFF_CAP_S = 15.0
_LOOK_S = 0.05
_EMPTY = 3
"""This many consecutive empty answers end a stream that does not say that it has ended."""
_SAME = 3
"""If this many first answers, of several pieces each, are equal, the server sends everything each time."""
_SAME_PIECE = 50
"""The same for answers of one piece: a model may well repeat a token a few times."""


class Streamed:
    """Reads streams of jobs that have ended.

    Args:
        client: Talks to the endpoint.
        limit: The rate limit of the requests.
        rng: The source of jitter.
        clock: Monotonic seconds.
    """

    def __init__(self, client: EndpointClient, limit: OperationLimit, rng: Random, clock: Callable[[], float]) -> None:
        self._client = client
        self._pacer = Pacer(limit, rng)
        self._rng = rng
        self._clock = clock
        self.calls: Counter[str] = Counter()
        """Counts requests by operation."""

    async def complete(
        self, answer: JobAnswer, failure: Failure, judge: Callable[[JobAnswer], Failure | None]
    ) -> Failure | None:
        """Judge a job again that seems to have failed, with the output on its stream.

        If there are any pieces, they become the answer's output, and their memory is counted for it.

        Args:
            answer: The job's final answer.
            failure: Why it seems to have failed.
            judge: Judges the answer once it has an output.
        """
        if not _may_have_streamed(answer, failure):
            return failure
        self._client.release(answer)  # otherwise streams that wait for memory could wait for each other
        pieces, size_bytes, error = await self._read(answer.id)
        if any(piece is not None for piece in pieces):
            answer.output, answer.has_output = pieces, True
            await self._client.hold(answer, size_bytes)
            if error is None:
                return judge(answer) if answer.status is JobStatus.COMPLETED else failure
        if error is None or failure.kind is not FailureKind.NO_OUTPUT:
            return failure
        if pieces:
            return Failure(failure.kind, f"only part of its stream could be read: {error.message}", error.raw)
        if not isinstance(error, _PASSING):
            return failure
        return Failure(failure.kind, f"{failure.message}, and its stream cannot be read: {error.message}", error.raw)

    async def _read(self, job_id: str) -> tuple[list[Any], int, CallError | None]:
        """The pieces of a stream, the bytes of the answers, and why there may be more; None if those are all."""
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
"""Errors that say nothing about the stream itself, and may pass."""


def _may_have_streamed(answer: JobAnswer, failure: Failure) -> bool:
    if answer.status is JobStatus.COMPLETED:
        return failure.kind is FailureKind.NO_OUTPUT
    return not answer.output and (answer.execution_ms or 0.0) >= _LEAST_WORK_MS
