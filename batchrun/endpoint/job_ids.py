"""Whose answer an answer is: the IDs that an endpoint has given out, and what an answer must say to be a job's own.

A cache, a proxy, or a response too many on a kept connection can give a row the answer of another. No recorded answer
of `/status` or `/cancel` has another ID than the one that was asked for, its suffix (-u1, -e1, -e2) included.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import chain
from typing import Any

from batchrun.endpoint.protocol import MAX_ID_CHARS, JobAnswer
from batchrun.errors import MismatchedError
from batchrun.files.exactjson import load

_REMEMBERED = 4096
"""Jobs that are over whose IDs are still known: a response too many comes within seconds."""


class JobIds:
    """The IDs of a run's jobs at one endpoint, those in flight and the last that were over."""

    def __init__(self) -> None:
        self._in_flight: dict[str, str | None] = {}
        """ID -> the request ID that its answer gives back; None: it was not asked to give one."""
        self._over: OrderedDict[str, str | None] = OrderedDict()
        """Of a plain dict the oldest is found only behind the places of all that were taken out."""

    def add(self, job_id: str, echo: str | None = None) -> None:
        """A job is in flight.

        Args:
            job_id: Its ID.
            echo: The request ID that its request has, see `echo_asked`.
        """
        self._in_flight[job_id] = echo

    def check_new(self, job_id: str) -> None:
        """Look at the ID that `/run` gave.

        Raises:
            MismatchedError: it is that of another job, or cannot be an ID. Those that were recorded have some 40
                printable characters.
        """
        if job_id in self._in_flight or job_id in self._over:
            raise MismatchedError(f"/run gave the ID of another job, {job_id}")
        if not job_id or len(job_id) > MAX_ID_CHARS or not job_id.isprintable():
            raise MismatchedError(f"/run gave an ID that is not one: {job_id[:MAX_ID_CHARS]!a}")

    def check(self, job_id: str, answer: JobAnswer) -> None:
        """Look at an answer that came for a job.

        A request ID proves only that an answer is another's: workers that do not give it back put one of their own.

        Raises:
            MismatchedError: it is the answer of another job.
        """
        if answer.id != job_id:
            raise MismatchedError(f"the answer is that of another job, {answer.id[:MAX_ID_CHARS]!a}")
        echo = self._in_flight.get(job_id)
        if echo is None or not answer.has_output:
            return
        given = echo_given(answer.output)
        if given not in (None, echo) and given in chain(self._in_flight.values(), self._over.values()):
            raise MismatchedError(f"the answer is that of another request, {given[:MAX_ID_CHARS]!a}")

    def end(self, job_id: str) -> None:
        """A job is over, or gone."""
        if job_id not in self._in_flight:
            return
        self._over[job_id] = self._in_flight.pop(job_id)
        if len(self._over) > _REMEMBERED:
            self._over.popitem(last=False)


def echo_asked(body: bytes) -> str | None:
    """The `request_id` in a body of `/run`, which vLLM gives back in the `id` of its answer; None without one.

    Observed with vLLM 0.32: `/v1/completions` answers with `cmpl-` before it, the chat routes with `chatcmpl-`.
    """
    if body.find(b'"request_id"') < 0:
        return None
    request = load(body).get("input")
    places = (request.get("openai_input"), request.get("sampling_params"), request) if isinstance(request, dict) else ()
    echoes = (place.get("request_id") for place in places if isinstance(place, dict))
    return next((echo for echo in echoes if isinstance(echo, str) and echo), None)


def echo_given(output: Any) -> str | None:
    """The request ID that a worker's output is the answer to, as far as it says; None when it says none."""
    part = output[0] if isinstance(output, list) and output else output
    said = part.get("id") if isinstance(part, dict) else None
    return said.removeprefix("chatcmpl-").removeprefix("cmpl-") if isinstance(said, str) else None
