"""Check that an answer belongs to the job that was asked for, by the IDs that an endpoint has given out.

A cache, a proxy, or a stray response on a reused connection can give a row the answer of another. In every recorded
answer of `/status` and `/cancel` the ID is exactly the one that was asked for, with its suffix (-u1, -e1, -e2).
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import chain
from typing import Any

from batchrun.endpoint.protocol import MAX_ID_CHARS, JobAnswer
from batchrun.errors import MismatchedError
from batchrun.files.exactjson import load

_REMEMBERED = 4096
"""The number of ended jobs whose IDs are still remembered: a stray response arrives within seconds."""


class JobIds:
    """The IDs of a run's jobs at one endpoint: those in flight, and the last that ended."""

    def __init__(self) -> None:
        self._in_flight: dict[str, str | None] = {}
        """ID -> the request ID that its answer should repeat; None if its request has none."""
        self._over: OrderedDict[str, str | None] = OrderedDict()
        """Not a plain dict: finding its oldest entry takes longer with each entry that was removed before it."""

    def add(self, job_id: str, echo: str | None = None) -> None:
        """Record that a job is in flight.

        Args:
            job_id: Its ID.
            echo: The request ID in its request, see `echo_asked`; None if it has none.
        """
        self._in_flight[job_id] = echo

    def check_new(self, job_id: str) -> None:
        """Check the ID that `/run` returned.

        Raises:
            MismatchedError: it belongs to another job, or is not a possible ID. The recorded IDs have about 40
                printable characters.
        """
        if job_id in self._in_flight or job_id in self._over:
            raise MismatchedError(f"/run returned the ID of another job, {job_id}")
        if not job_id or len(job_id) > MAX_ID_CHARS or not job_id.isprintable():
            raise MismatchedError(f"/run returned an invalid ID: {job_id[:MAX_ID_CHARS]!a}")

    def check(self, job_id: str, answer: JobAnswer) -> None:
        """Check the answer that was received for a job.

        A request ID can only prove that an answer belongs to another job: some workers send an ID of their own instead.

        Raises:
            MismatchedError: the answer belongs to another job.
        """
        if answer.id != job_id:
            raise MismatchedError(f"the answer belongs to another job, {answer.id[:MAX_ID_CHARS]!a}")
        echo = self._in_flight.get(job_id)
        if echo is None or not answer.has_output:
            return
        given = echo_given(answer.output)
        if given not in (None, echo) and given in chain(self._in_flight.values(), self._over.values()):
            raise MismatchedError(f"the answer belongs to another request, {given[:MAX_ID_CHARS]!a}")

    def end(self, job_id: str) -> None:
        """Record that a job has ended, or is gone."""
        if job_id not in self._in_flight:
            return
        self._over[job_id] = self._in_flight.pop(job_id)
        if len(self._over) > _REMEMBERED:
            self._over.popitem(last=False)


def echo_asked(body: bytes) -> str | None:
    """The `request_id` in a body of `/run`, which vLLM repeats in the `id` of its answer; None if there is none.

    Observed with vLLM 0.32: `/v1/completions` puts `cmpl-` before it, the chat routes `chatcmpl-`.
    """
    if body.find(b'"request_id"') < 0:
        return None
    request = load(body).get("input")
    places = (request.get("openai_input"), request.get("sampling_params"), request) if isinstance(request, dict) else ()
    echoes = (place.get("request_id") for place in places if isinstance(place, dict))
    return next((echo for echo in echoes if isinstance(echo, str) and echo), None)


def echo_given(output: Any) -> str | None:
    """The request ID that a worker's output repeats; None if there is none."""
    part = output[0] if isinstance(output, list) and output else output
    said = part.get("id") if isinstance(part, dict) else None
    return said.removeprefix("chatcmpl-").removeprefix("cmpl-") if isinstance(said, str) else None
