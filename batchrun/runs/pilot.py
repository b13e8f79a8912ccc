"""The measurements of a pilot, from its state file and results, and the estimate that follows from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from batchrun.config import WINDOW_S, RunOptions
from batchrun.display.estimate import Estimate, Limits, Pilot, PilotJob, PilotRow, Range, can_estimate, estimate
from batchrun.endpoint.packing import JOBS_AT_ONCE
from batchrun.errors import StoppedError
from batchrun.prompts.sweep import Sweep
from batchrun.results.reader import read_groups
from batchrun.results.record import read_job, read_record, result_digest
from batchrun.runs.pack_check import rows_per_job
from batchrun.runs.spending import cost_so_far
from batchrun.state.endpoints import known_endpoints
from batchrun.state.pilot import RowJob, count_free, count_left, pilot_rows, pilot_workers, row_jobs
from batchrun.state.reader import StateReader
from batchrun.state.records import Share
from batchrun.state.shared_ids import stored_ids
from batchrun.state.snapshot import StateSnapshot
from batchrun.state.stored_options import read_options

_NOTHING = Range(0.0, 0.0)


class _Answer(NamedTuple):
    """The figures of a row's result line."""

    worker: str | None
    input_tokens: int | None
    output_tokens: int | None
    is_shared: bool
    """Whether the tokens are those of all rows of the job."""


def read_estimate(state: Path, rng: Random) -> Estimate | None:
    """The estimate of the rest of a run from its pilot; None if no row of the pilot has a result.

    Args:
        state: The run's state file.
        rng: Source of the random samples from the pilot.

    Raises:
        StateError: it cannot be read.
        StoppedError: too few rows of the pilot have ended.
    """
    with StateSnapshot(state) as store:
        options = read_options(store)
        pilots = list(_pilots(store, options))
        if (ended := sum(len(pilot.rows) for pilot in pilots)) and ended == sum(pilot.failed for pilot in pilots):
            return None
        are_free = ended and not any(pilot.jobs for pilot in pilots)
        pilots = [pilot for pilot in pilots if can_estimate(pilot)]
        if not pilots and are_free:
            raise StoppedError(
                "there is no estimate: the cache had every row of the pilot", "give more rows: --pilot 300, or run it"
            )
        if not pilots:
            raise StoppedError(
                "there is no estimate: fewer than two jobs of the pilot have ended", "give more rows: --pilot 30"
            )
        limit = options.scheduler.limits.run.per_window
        limits = Limits(
            jobs_per_s=limit / WINDOW_S if limit else None,
            concurrency=options.scheduler.concurrency,
            at_once=JOBS_AT_ONCE,
            is_pool=bool(options.pool),
        )
        cost = cost_so_far(store, store.counts(), store.counters(), options)
        spent = None if cost is None else Range(cost.least, cost.most + cost.unwatched)
        return estimate(pilots, limits, rng, spent=spent)


def _pilots(store: StateSnapshot, options: RunOptions) -> Iterator[Pilot]:
    """The pilot at each endpoint."""
    rows = pilot_rows(store)
    jobs = row_jobs(store, rows)
    answers = _answers(store, set(rows))
    numbers = {endpoint: number for number, endpoint in enumerate(known_endpoints(store, options))}
    workers = pilot_workers(store)
    most = max(rows_per_job(options, store.count_rows), 1) if any(job.rows > 1 for job in jobs) else 1
    factors = _refused(store)
    by_row = defaultdict[int, list[RowJob]](list)
    for job in jobs:
        by_row[job.row].append(job)
    sweep = options.sweep.endpoints
    for index, endpoint in enumerate(options.endpoints):
        share = Share(index, len(options.endpoints), Sweep(options.sweep).endpoint_stride, is_pool=not sweep)
        free = count_free(store, rows, share)
        if share.is_pool and by_row:
            here_too = sum(own[-1].endpoint == numbers[endpoint] for own in by_row.values())
            free = round(free * here_too / len(by_row))  # no endpoint has answered them: each has its part
        here = [own for own in by_row.values() if own[-1].has_ended and own[-1].endpoint == numbers[endpoint]]
        yield Pilot(
            endpoint=endpoint,
            rows=[
                *(_row(own, answers.get(own[0].row), most, factors) for own in here),
                # Each is a sample of its own, which has taken nothing, so that the range knows their share.
                *(PilotRow(-number, _NOTHING, _NOTHING, 0.0, 0.0) for number in range(1, free + 1)),
            ],
            failed=sum(own[0].row not in answers for own in here),
            jobs=_jobs(here, answers),
            left=count_left(store, share),
            workers=int(workers.get(endpoint, 0)),
            price_per_hour=options.guards.price_of(endpoint),
        )


def _row(jobs: Sequence[RowJob], answer: _Answer | None, most: int, factors: tuple[float, float]) -> PilotRow:
    """The measurements of a row. Its jobs had at most `most` rows: a fuller job takes at least as long."""
    execution_s = [(job.execution_ms or 0) / 1000 for job in jobs]
    used = made = None
    if answer is not None:
        rows = jobs[-1].rows if answer.is_shared else 1
        used = None if answer.input_tokens is None else answer.input_tokens / rows * factors[0]
        made = None if answer.output_tokens is None else answer.output_tokens / rows * factors[1]
    return PilotRow(
        job=jobs[-1].job,
        execution_s=Range(
            sum(time_s / max(most, job.rows) for time_s, job in zip(execution_s, jobs, strict=True)),
            sum(time_s / job.rows for time_s, job in zip(execution_s, jobs, strict=True)),
        ),
        jobs=Range(sum(1 / max(most, job.rows) for job in jobs), sum(1 / job.rows for job in jobs)),
        input_tokens=used,
        output_tokens=made,
    )


def _jobs(rows: Sequence[Sequence[RowJob]], answers: dict[int, _Answer]) -> list[PilotJob]:
    """The times of the last jobs of the rows, each job once."""
    found: dict[int, PilotJob] = {}
    for *_, job in rows:
        if job.execution_ms is None:
            continue
        answer = answers.get(job.row)
        submitted_at = job.submitted_ms / 1000
        started_at = submitted_at + (job.delay_ms or 0) / 1000
        known = found.get(job.job)
        worker = (answer.worker if answer else None) or (known.worker if known else "")
        found[job.job] = PilotJob(worker, submitted_at, started_at, started_at + job.execution_ms / 1000)
    jobs = list(found.values())
    # A failed row has no worker in the results. If other workers are known, its job would look like one more worker.
    return [job for job in jobs if job.worker] or jobs


def _refused(store: StateReader) -> tuple[float, float]:
    """The factors by which refused answers, which were paid for, raise the input and the output tokens."""
    counters = store.counters()
    used, made = counters.get("input_tokens", 0), counters.get("output_tokens", 0)
    return (
        1 + counters.get("refused_input_tokens", 0) / used if used else 1.0,
        1 + counters.get("refused_output_tokens", 0) / made if made else 1.0,
    )


def _answers(store: StateSnapshot, rows: Collection[int]) -> dict[int, _Answer]:
    """The answers to the rows of the pilot, which are mostly the first results."""
    found: dict[int, _Answer] = {}
    for output in store.outputs():
        for group in read_groups(store.lines_path(output), end=output.committed_bytes):
            named = [(record.id, line.raw) for line in group if (record := read_record(line.raw)) is not None]
            ids = stored_ids(store, output.output, named, result_digest)
            for row, (_, raw) in zip(store.find(ids), named, strict=True):
                if row is not None and row.row in rows:
                    found[row.row] = _answer(raw)
            if len(found) == len(rows):
                return found
    return found


def _answer(raw: bytes) -> _Answer:
    record, job = read_record(raw), read_job(raw)
    worker = None if job is None else job.worker_id
    if record is None:
        return _Answer(worker, None, None, is_shared=False)
    if record.shared is not None:
        return _Answer(worker, *record.shared[1:], is_shared=True)
    return _Answer(worker, record.input_tokens, record.output_tokens, is_shared=False)
