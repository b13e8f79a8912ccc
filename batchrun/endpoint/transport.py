"""How rows become jobs: the body of a job for its rows, and the part of its answer for each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from batchrun.endpoint.packing import Kind
from batchrun.endpoint.protocol import JobAnswer


class Transport(Protocol):
    """A way to make jobs of rows."""

    @property
    def rows_per_job(self) -> int:
        """The most rows of one job, at least 1."""

    def kind(self, request: Mapping[str, Any]) -> Kind:
        """Which rows may share a job with a row.

        Args:
            request: The row's request, the `input` object of a job of its own.
        """

    def body(self, requests: Sequence[Mapping[str, Any]], job: int) -> bytes:
        """The body of `/run` for a job.

        Args:
            requests: The requests of its rows, in order; 1 to `rows_per_job` of them, of one kind.
            job: The job's number.
        """

    def split(self, answer: JobAnswer, rows: int, job: int) -> Sequence[JobAnswer] | str:
        """Split the final answer of a job into one answer for each of its rows, in order.

        Each has its own output or error; what applies to the job as a whole is the same in all of them. The memory that
        is counted for the answer, `held_bytes`, is divided among them.

        Args:
            answer: The job's answer.
            rows: The number of rows that the job was submitted with.
            job: The job's number.

        Returns:
            The answers; or if it has none for each row, what is wrong with it, empty if it is a plain failure.
        """
