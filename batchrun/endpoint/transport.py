"""How rows become jobs: the body of a job for its rows, and the part of its answer for each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from batchrun.config import JobPolicy
from batchrun.endpoint.protocol import JobAnswer, run_body


class Transport(Protocol):
    """A way to make jobs of rows."""

    @property
    def rows_per_job(self) -> int:
        """The most rows of one job, at least 1."""

    def body(self, requests: Sequence[Mapping[str, Any]]) -> bytes:
        """The body of `/run` for a job.

        Args:
            requests: The requests of its rows, in order; 1 to `rows_per_job` of them.
        """

    def split(self, answer: JobAnswer, rows: int) -> Sequence[JobAnswer]:
        """Split the final answer of a job into one answer for each of its rows, in order.

        Each has its own output or error; what applies to the job as a whole is the same in all of them. The memory that
        is counted for the answer, `held_bytes`, is divided among them.

        Args:
            answer: The job's answer.
            rows: The number of rows that the job was submitted with.
        """


class OneRowPerJob:
    """A job's input is the request of one row, and its output is that row's answer.

    Args:
        policy: The policy of each job.
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
