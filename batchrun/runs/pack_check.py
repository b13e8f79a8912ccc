"""Checks before a run with jobs of several rows that rows get the same answers together as one by one."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple

from batchrun.config import RunOptions
from batchrun.endpoint.client import EndpointClient
from batchrun.endpoint.packing import JOBS_AT_ONCE, Packing
from batchrun.endpoint.protocol import JobAnswer
from batchrun.endpoint.worker_errors import NO_ROUTE
from batchrun.engine.cached import CachedAnswers
from batchrun.engine.judging import judge
from batchrun.engine.rows import RowLines
from batchrun.errors import CallError, StoppedError, shown
from batchrun.results.text import Text, extract
from batchrun.runs.opening import OpenRun
from batchrun.scheduler.failures import Failure
from batchrun.scheduler.submitter import ASSUMED_WORKERS
from batchrun.state.reader import StateReader
from batchrun.state.records import RowRecord

_CHECKED = "pack_check"
"""The setting that says that rows of the run get the same answers together and alone."""
_AUTO_MOST = 16
ROWS = 4
"""How many rows are sent both together and one by one."""
_MOST_TOKENS = 64
"""An answer of the check is no longer: it shows as much, and costs less."""
_POLL_S = 0.1
_POLL_MOST_S = 5.0
_SLOWER = 1.5
_POLL_FAILURES = 5
_PATIENCE_S = 900.0
"""How long the check waits for its answers: workers may have to start first."""
_NO_ANSWER = "--pack: the check got no answers in time; its jobs are cancelled, and nothing was compared"
_LOOKED_AT = 200
_LIKE_LENGTHS = 2.0
NONE_SHARES = (
    "none of the checked rows can share a job; do they set max_tokens (--default max_tokens=512), and the same"
    " parameters and seed? see `batchrun help packing`"
)
"""The message if there is no row to compare, or no rows have shared a job."""
_HINT = "run without --pack, or with --pack-check off if you accept the difference"


class Candidate(NamedTuple):
    """A row that the check sends."""

    id: str
    request: Mapping[str, Any]


class Verdict(NamedTuple):
    """What the check found."""

    can_pack: bool
    """Whether jobs can carry several rows."""
    is_settled: bool
    """Whether the check need not be repeated."""
    message: str
    """What to tell the user."""


def rows_per_job(options: RunOptions, count_rows: Callable[[], int]) -> int:
    """The most rows of one job.

    With `--pack auto`, there are at least twice as many jobs as the workers take at once, and at most 16 rows in each:
    then the API is no limit any more, and the workers are full.

    Args:
        options: The run's options.
        count_rows: Counts the rows of the run.
    """
    if options.scheduler.pack is not None:
        return options.scheduler.pack
    return max(min(_AUTO_MOST, count_rows() // (2 * JOBS_AT_ONCE * ASSUMED_WORKERS)), 1)


async def can_share_jobs(
    run: OpenRun,
    packing: Packing,
    endpoints: Sequence[str],
    client_of: Callable[[str], EndpointClient],
    find: Callable[[], Awaitable[list[Candidate]]],
) -> bool:
    """Whether jobs can carry several rows: compare the answers to some rows, unless an earlier session has.

    Several endpoints are tried at once, and the first answer counts: another endpoint may never answer, or lack the
    route. That endpoint then gets single rows.

    Args:
        run: The run.
        packing: Makes the jobs.
        endpoints: The endpoints to try.
        client_of: Makes the client of an endpoint.
        find: Calls `candidates`.

    Raises:
        StoppedError: rows get other answers together than alone.
    """
    options, store, tell = run.options, run.store, run.observer.message
    if options.scheduler.pack_check == "off" or packing.rows_per_job == 1 or store.get_setting(_CHECKED):
        return True
    rows = await find()
    if len(rows) <= 1:
        if len(store.pending(0, 2)) > 1:
            tell(f"--pack: {NONE_SHARES}")
        return True
    tell(f"--pack: comparing the answers to {len(rows)} rows, together and alone")
    deadline_s = options.guards.deadline_s
    until = run.clock() + min(_PATIENCE_S, math.inf if deadline_s is None else deadline_s)

    async def check(endpoint: str) -> Verdict:
        async with client_of(endpoint) as client:
            return await check_packing(client, packing, rows, lambda: run.clock() >= until)

    verdict = await _first([check(endpoint) for endpoint in endpoints])
    if verdict is None:
        return True  # the run gets the same error, and handles it
    tell(verdict.message)
    if verdict.is_settled:
        store.set_setting(_CHECKED, value=True)
    return verdict.can_pack


async def _first(checks: Sequence[Coroutine[Any, Any, Verdict]]) -> Verdict | None:
    """The verdict of the first check that succeeds; None if none does."""
    verdict, tasks = None, [asyncio.create_task(check) for check in checks]
    try:
        for done in asyncio.as_completed(tasks):
            with suppress(CallError):
                verdict = await done
            if verdict is not None and verdict.can_pack:
                break
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return verdict


def candidates(store: StateReader, lines: RowLines, packing: Packing, cached: CachedAnswers | None) -> list[Candidate]:
    """Up to four pending rows of one kind; empty if the first rows that need a job cannot share one."""
    kinds: dict[int, list[Candidate]] = {}
    for row, request in islice(_to_be_sent(store, lines, cached), _LOOKED_AT):
        if request is None:
            continue
        kind = packing.kind(request)
        if kind.number:
            same = kinds.setdefault(kind.number, [])
            same.append(Candidate(row.id, request))
            if len(same) == min(ROWS, kind.most):
                return same
    return max(kinds.values(), key=len, default=[])


def _to_be_sent(
    store: StateReader, lines: RowLines, cached: CachedAnswers | None
) -> Iterator[tuple[RowRecord, dict[str, Any] | None]]:
    """The pending rows that the cache has no answer for, and their requests; None if a request has files."""
    last = 0
    while rows := store.pending(last, _LOOKED_AT):
        last = rows[-1].row
        for row in rows:
            request = None if lines.has_files(row) else lines.read_request(row)
            if cached is None or request is None or cached.find(row, request) is None:
                yield row, request


async def check_packing(
    client: EndpointClient, packing: Packing, rows: Sequence[Candidate], is_over: Callable[[], bool]
) -> Verdict:
    """Send rows together and one by one, at temperature 0, and compare their answers.

    Args:
        client: The endpoint.
        packing: Makes the jobs.
        rows: At least two rows of one kind.
        is_over: Whether there is no more time to wait for the answers.

    Raises:
        StoppedError: the answers differ.
        CallError: the endpoint cannot be reached, or refuses the jobs.
    """
    requests = [_sober(row.request) for row in rows]
    jobs: dict[str, None] = {}
    bodies = [packing.body(requests, 0), *(packing.body([request], 0) for request in requests)]
    tasks = [asyncio.create_task(_answer(client, body, jobs, is_over)) for body in bodies]
    try:
        together, *alone = await asyncio.gather(*tasks)
    except BaseException as error:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for job_id in jobs:
            with suppress(CallError):
                await client.cancel(job_id)
        if isinstance(error, TimeoutError):
            return Verdict(can_pack=True, is_settled=False, message=_NO_ANSWER)
        raise
    parts = packing.split(together, len(rows), 0)
    if isinstance(parts, str):
        failure = judge(together, inspect_output=True, hide=client.hide)
        if failure is not None and failure.message.startswith(NO_ROUTE):
            why = "the endpoint takes no list of chats (vLLM 0.19 and worker-vllm 2.24 do)"
            return Verdict(can_pack=False, is_settled=False, message=f"--pack: {why}; each row gets a job of its own")
        failures = [judge(answer, inspect_output=True, hide=client.hide) for answer in alone]
        if all(failures):
            return _inconclusive(failures[0])
        said = parts if failure is None else failure.message
        raise StoppedError(f"--pack: rows that have an answer alone have none together: {said}", _HINT)
    return _compared(rows, parts, alone, client)


def _inconclusive(failure: Failure | None) -> Verdict:
    said = "" if failure is None else f": {failure.message}"
    message = f"--pack: the first rows fail, together and alone, so their answers were not compared{said}"
    return Verdict(can_pack=True, is_settled=False, message=message)


def _compared(
    rows: Sequence[Candidate], parts: Sequence[JobAnswer], alone: Sequence[JobAnswer], client: EndpointClient
) -> Verdict:
    differing = 0
    for row, part, single in zip(rows, parts, alone, strict=True):
        failures = [judge(each, inspect_output=True, hide=client.hide) for each in (part, single)]
        if failures[1] is not None:
            return _inconclusive(failures[1])
        if failures[0] is not None:
            raise StoppedError(f"--pack: row {row.id} has an answer only alone: {failures[0].message}", _HINT)
        one, other = extract(part.output), extract(single.output)
        differing += one.texts != other.texts
        if difference := _difference(one, other):
            raise StoppedError(f"--pack: the answer to row {row.id} differs: {difference}", _HINT)
    message = f"--pack: {len(rows)} rows have the same answers together and alone ({len(rows) + 1} jobs)"
    if differing:
        message = (
            f"--pack: {differing} of {len(rows)} rows have other words together than alone, but end alike: the model"
            f" is not deterministic ({len(rows) + 1} jobs)"
        )
    return Verdict(can_pack=True, is_settled=True, message=message)


def _difference(one: Text, other: Text) -> str:
    """What differs between the answer of a row that shared a job and the one it had alone; empty if they are alike."""
    if one.texts == other.texts and one.finish_reasons == other.finish_reasons:
        return ""
    if one.finish_reasons != other.finish_reasons:
        return f"finish_reason {one.finish_reason} together, {other.finish_reason} alone"
    lengths = sorted((sum(map(_length, one.texts)), sum(map(_length, other.texts))))
    if lengths[1] > _LIKE_LENGTHS * lengths[0]:
        return f"{shown(one.text or '')} together, {shown(other.text or '')} alone"
    return ""


def _length(text: str | None) -> int:
    return len(text or "")


def _sober(request: Mapping[str, Any]) -> dict[str, Any]:
    """A request whose answer is short, and at temperature 0, for which vLLM gives one sample only."""
    place = "openai_input" if "openai_input" in request else "sampling_params"
    fields = dict(request.get(place) or {})
    for name in ("max_tokens", "max_completion_tokens"):
        if isinstance(limit := fields.get(name), int):
            fields[name] = min(limit, _MOST_TOKENS)
    if "n" in fields:
        fields["n"] = 1
    return {**request, place: {**fields, "temperature": 0}}


async def _answer(client: EndpointClient, body: bytes, jobs: dict[str, None], is_over: Callable[[], bool]) -> JobAnswer:
    """The final answer of a new job; its ID is in `jobs` as long as it is not known to have ended.

    Raises:
        TimeoutError: the time is over.
    """
    answer = await client.run(body)
    jobs[answer.id] = None
    wait_s, failures = _POLL_S, 0
    while not answer.status.is_final:
        if is_over():
            raise TimeoutError
        await asyncio.sleep(wait_s)
        wait_s = min(wait_s * _SLOWER, _POLL_MOST_S)
        try:
            answer = await client.status(answer.id)
        except CallError:
            failures += 1
            if failures == _POLL_FAILURES:
                raise
            continue
        client.release(answer)
    del jobs[answer.id]
    return answer
