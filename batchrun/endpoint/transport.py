"""How rows travel: what is sent for the rows of one job, and what the job's answer means for each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from batchrun.config import JobPolicy
from batchrun.endpoint.protocol import JobAnswer, run_body


class Transport(Protocol):
    """One way of making jobs of rows."""

    @property
    def rows_per_job(self) -> int:
        """The most rows of one job, at least 1."""

    def body(self, requests: Sequence[Mapping[str, Any]]) -> bytes:
        """The body of `/run` for a job.

        Args:
            requests: What is asked for each of its rows, in order; 1 to `rows_per_job`.
        """

    def split(self, answer: JobAnswer, rows: int) -> Sequence[JobAnswer]:
        """The final answer of a job as one answer for each of its rows, in order.

        Each has an output or an error of its own; what is said of the job as a whole is the same in all of them. The
        memory that is counted for the answer, `held_bytes`, is divided among them.

        Args:
            answer: The job's answer.
            rows: How many rows the job was sent with.
        """


class OneRowPerJob:
    """The input of a job is the request of one row, and its output is that row's answer.

    Args:
        policy: What is asked of Runpod for each job.
    """

    rows_per_job = 1

    def __init__(self, policy: JobPolicy) -> None:
        self._policy = policy

    def body(self, requests: Sequence[Mapping[str, Any]]) -> bytes:
        """See `Transport.body`."""
        (request,) = requests
        return run_body(request, self._policy)

    def split(self, answer: JobAnswer, rows: int) -> Sequence[JobAnswer]:
        """See `Transport.split`."""
        assert rows == 1  # noqa: S101 - every job of this transport has one row
        return (answer,)
