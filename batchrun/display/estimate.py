"""Estimates the rest of a run from a pilot: random rows of the run that have been run first. Pure.

A quantity of the rest, such as its execution time, is predicted by bootstrap: the pilot's jobs are drawn again and
again with replacement, each time the sum for the rows that are left is predicted from them, and the middle 95% of these
predictions are the range. The hours follow from it with the jobs that a worker was seen to run at once, the limits of
the API and of the options, and the time that workers took to start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import NamedTuple

from batchrun.config import WINDOW_S

_SHARE = 0.95
"""The intended probability of a range."""
_RESAMPLES, _DRAWN_MOST = 1000, 300_000
_FEWEST_RESAMPLES = 200
_MARGIN = 1.1
"""The suggested `--max-cost` is above the upper end of the range by this factor."""
_KNOWN_WITHIN_S = 1.0
"""The longest usual time from the end of a job until another one takes its place in the window."""
_HELD_FOR = 0.1
"""A number of jobs at once counts if a worker ran that many for this share of its time."""
_PAUSE_S, _PAUSE_TIMES = 10.0, 3.0
"""A worker without a job for this long, and for this many times the longest job, was not waiting for its next job."""
_WAITED_SHARE, _WAITED_LEAST = 0.1, 2


class Range(NamedTuple):
    """The lowest and the highest expected value of a quantity."""

    low: float
    high: float


class PilotRow(NamedTuple):
    """The measurements of a row of the pilot."""

    job: int
    """Its last job, which may contain other rows of the pilot."""
    execution_s: Range
    """Its share of the execution time of all its jobs; the low end is its share in a full job."""
    jobs: Range
    """The same for the number of its jobs."""
    input_tokens: float | None
    output_tokens: float | None
    """None if it has no result, or the worker reported none."""


class PilotJob(NamedTuple):
    """When a job of the pilot was submitted and run. Times are UTC epoch seconds."""

    worker: str
    """Empty if unknown."""
    submitted_at: float
    started_at: float
    ended_at: float


@dataclass(frozen=True, slots=True)
class Pilot:
    """The measurements of the pilot's rows at one endpoint, and the number of its remaining rows."""

    endpoint: str
    rows: Sequence[PilotRow]
    """The rows of the pilot that have ended."""
    failed: int
    """The number of these rows that have no result."""
    jobs: Sequence[PilotJob]
    left: int
    """Rows that are still to be paid for; of a pool, all of them at each endpoint."""
    workers: int
    """The workers that the endpoint had when the pilot ended; 0 if unknown."""
    price_per_hour: float | None
    """None if no price is known."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits on the pace of a run besides the workers."""

    jobs_per_s: float | None
    """Submissions to one endpoint; None for no limit."""
    concurrency: int | None
    """Jobs in flight at one endpoint; None if the endpoint decides."""
    at_once: int
    """The most jobs that a worker is assumed to run at once if the pilot never filled a worker."""
    is_pool: bool
    """Whether the endpoints share the rows; otherwise, each has its own."""


class Capacity(NamedTuple):
    """How many jobs one worker runs at once."""

    low: float
    high: float
    is_full: bool
    """Whether the pilot shows this, because jobs waited for other jobs to end."""


@dataclass(frozen=True, slots=True)
class Staffing:
    """The estimate of the rest for a number of workers at each endpoint."""

    workers: int | None
    """None: as many as the endpoint has, or had in the pilot."""
    time_s: Range
    cost: Range | None
    """In the currency of the price; None without one."""
    is_limited: bool
    """Whether the API or an option limits the pace, so that more workers would not help."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """The estimate of the rest of a run."""

    left: int
    """Rows that are still to be paid for."""
    pilot_rows: int
    """Rows of the pilot that have ended."""
    pilot_failed: int
    """The number of these rows that have no result."""
    workers: dict[str, int]
    """Endpoint -> the workers that it has, or had in the pilot."""
    staffing: list[Staffing]
    jobs: Range
    input_tokens: Range | None
    output_tokens: Range | None
    """None if the worker reports none."""
    startup_s: float
    """How long the first job of a worker waited, on average: included in the upper end of the times."""
    is_full: bool
    """Whether the pilot has shown how many jobs a worker runs at once."""
    spent: Range | None
    """The cost so far; None without a price."""
    max_cost: float | None
    """The suggested budget of the whole run, including its cost so far; None without a price."""


def totals(units: Sequence[tuple[float, int]], left: int, rng: Random) -> Range:
    """The range of the sum of a quantity over the rows that are left.

    Args:
        units: For each job of a random sample, the sum of the quantity over its rows, and their number; at least two.
        left: The number of rows to predict.
        rng: Source of the samples that are drawn.
    """
    size = len(units)
    mean, _ = _ratio(units)
    resamples = max(min(_RESAMPLES, _DRAWN_MOST // size), _FEWEST_RESAMPLES)
    found = []
    for _ in range(resamples):
        drawn_mean, spread = _ratio(rng.choices(units, k=size))
        found.append(left * drawn_mean + rng.gauss(0.0, 1.0) * spread * math.sqrt(left))
    found.sort()
    tail = (1 - _SHARE) / 2
    # A small sample shows less than the spread of its population.
    wider, middle = math.sqrt(size / (size - 1)) * (1 + 1 / size), left * mean
    low = middle + (found[int(tail * resamples)] - middle) * wider
    high = middle + (found[-1 - int(tail * resamples)] - middle) * wider
    return Range(max(low, 0.0), max(high, 0.0))


def _ratio(units: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """The mean of a quantity for each row, and the standard deviation that a row adds to a sum."""
    rows = sum(count for _, count in units)
    mean = sum(value for value, _ in units) / rows
    residual = sum((value - mean * count) ** 2 for value, count in units)
    return mean, math.sqrt(residual / rows)


def capacity(jobs: Sequence[PilotJob], at_once: int) -> Capacity:
    """How many jobs a worker of the pilot ran at once.

    Args:
        jobs: The jobs of the pilot at one endpoint; at least one.
        at_once: The most that is assumed if no worker was ever full.
    """
    area = time_s = 0.0
    highest, peak, waited = 0, 1, 0
    for own in _by_worker(jobs).values():
        levels = _levels(own)
        last_start = max(job.started_at for job in own)
        held: dict[int, float] = {}
        for start, end, level in levels:
            if start < last_start:
                held[level] = held.get(level, 0.0) + end - start
        span_s = sum(held.values())
        area += sum(level * seconds for level, seconds in held.items())
        time_s += span_s
        peak = max(peak, *(level for *_, level in levels))
        for level in held:
            if sum(seconds for other, seconds in held.items() if other >= level) >= _HELD_FOR * span_s:
                highest = max(highest, level)
        first_end = min(job.ended_at for job in own)
        waited += sum(job.submitted_at < first_end <= job.started_at for job in own)
    if waited >= max(_WAITED_LEAST, _WAITED_SHARE * len(jobs)) and area > 0:
        low = area / time_s
        return Capacity(low, max(float(highest), low), is_full=True)
    return Capacity(float(peak), float(max(peak, at_once)), is_full=False)


def _by_worker(jobs: Iterable[PilotJob]) -> dict[str, list[PilotJob]]:
    found: dict[str, list[PilotJob]] = {}
    for job in jobs:
        found.setdefault(job.worker, []).append(job)
    return found


def _levels(jobs: Sequence[PilotJob]) -> list[tuple[float, float, int]]:
    """From when to when a worker ran how many of the jobs at once, without the pauses between sessions."""
    changes = sorted([(job.started_at, 1) for job in jobs] + [(job.ended_at, -1) for job in jobs])
    pause_s = max(_PAUSE_S, _PAUSE_TIMES * max(job.ended_at - job.started_at for job in jobs))
    levels, level = [], 0
    for (at, change), (until, _) in pairwise(changes):
        level += change
        if level or until - at < pause_s:
            levels.append((at, until, max(level, 0)))  # a job of no time ends before it starts
    return levels


def startup_s(jobs: Sequence[PilotJob]) -> float:
    """How long the first job of a worker waited, on average over the workers."""
    firsts = [min(own, key=lambda job: job.started_at) for own in _by_worker(jobs).values()]
    return sum(max(job.started_at - job.submitted_at, 0.0) for job in firsts) / len(firsts)


class _Part:
    """What the rest takes at one endpoint."""

    def __init__(self, pilot: Pilot, limits: Limits, rng: Random) -> None:
        self.pilot = pilot
        self._limits = limits
        self.capacity = capacity(pilot.jobs, limits.at_once)
        self.startup_s = startup_s(pilot.jobs)
        self._longest_s = max(job.ended_at - job.started_at for job in pilot.jobs)
        self.execution_s = self._range(lambda row: row.execution_s, rng)
        self.jobs = self._range(lambda row: row.jobs, rng)
        seen = len({job.worker for job in pilot.jobs if job.worker})
        self.workers = max(seen, pilot.workers, 1)

    def _range(self, of: Callable[[PilotRow], Range], rng: Random) -> Range:
        rows, left = self.pilot.rows, self.pilot.left
        low = totals(_units(rows, lambda row: of(row).low), left, rng)
        if all(of(row).low == of(row).high for row in rows):
            return low
        return Range(low.low, totals(_units(rows, lambda row: of(row).high), left, rng).high)

    def work_s(self, workers: int) -> Range:
        """The time from when the workers have started until the last jobs begin."""
        return Range(
            self._bound(workers, self.execution_s.low, self.jobs.low, self.capacity.high, early=True),
            self._bound(workers, self.execution_s.high, self.jobs.high, self.capacity.low, early=False),
        )

    def _bound(self, workers: int, execution_s: float, jobs: float, at_once: float, *, early: bool) -> float:
        """The time that the tightest limit (workers, submissions or window) allows, at best or at worst."""
        bounds = [execution_s / (workers * at_once)]
        if self._limits.jobs_per_s is not None:
            # A limit of 1,000 in any 10 s lets the first 1,000 pass at once.
            bounds.append(jobs / self._limits.jobs_per_s - (WINDOW_S if early else 0.0))
        if self._limits.concurrency is not None:
            late_s = 0.0 if early else _KNOWN_WITHIN_S
            bounds.append((execution_s + jobs * late_s) / self._limits.concurrency)
        return max(bounds)

    def is_limited(self, workers: int) -> bool:
        """Whether the pace does not depend on the workers, even if they are as slow as the range allows."""
        return self.work_s(workers).high > self.execution_s.high / (workers * self.capacity.low)

    @property
    def edges_s(self) -> float:
        """The most time that the start of the workers and the end of the last jobs add."""
        return self.startup_s + self._longest_s + _KNOWN_WITHIN_S

    @property
    def least_cost(self) -> float:
        """The cost of workers that are always full."""
        return (self.pilot.price_per_hour or 0.0) / 3600 * self.execution_s.low / self.capacity.high


def _units(rows: Sequence[PilotRow], of: Callable[[PilotRow], float]) -> list[tuple[float, int]]:
    """The sums over the rows of each job: rows that shared a job are not independent samples."""
    found: dict[int, tuple[float, int]] = {}
    for row in rows:
        total, count = found.get(row.job, (0.0, 0))
        found[row.job] = (total + of(row), count + 1)
    return list(found.values())


def can_estimate(pilot: Pilot) -> bool:
    """Whether there are enough jobs for a range."""
    return len({row.job for row in pilot.rows}) > 1 and bool(pilot.jobs)


def estimate(
    pilots: Sequence[Pilot],
    limits: Limits,
    rng: Random,
    *,
    spent: Range | None = None,
    workers: Sequence[int] = (1, 3),
) -> Estimate:
    """The estimate of the rest of a run.

    Args:
        pilots: The pilot at each endpoint that had enough of its rows, see `can_estimate`; at least one.
        limits: The limits on the pace.
        rng: Source of the samples that are drawn.
        spent: The cost so far; None without a price.
        workers: Numbers of workers to estimate for, besides those that the endpoints have.
    """
    parts = [_Part(pilot, limits, rng) for pilot in pilots]
    left = parts[0].pilot.left if limits.is_pool else sum(part.pilot.left for part in parts)
    has_price = all(pilot.price_per_hour is not None for pilot in pilots)
    rows = [row for pilot in pilots for row in pilot.rows]
    staffing = [_staffed(parts, limits, count, has_price=has_price) for count in (*workers, None)]
    return Estimate(
        left=left,
        pilot_rows=len(rows),
        pilot_failed=sum(pilot.failed for pilot in pilots),
        workers={part.pilot.endpoint: part.workers for part in parts},
        staffing=staffing,
        jobs=_pooled([part.jobs for part in parts], is_pool=limits.is_pool),
        input_tokens=_tokens(rows, lambda row: row.input_tokens, left, rng),
        output_tokens=_tokens(rows, lambda row: row.output_tokens, left, rng),
        startup_s=max(part.startup_s for part in parts),
        is_full=all(part.capacity.is_full for part in parts),
        spent=spent,
        max_cost=_max_cost(parts, staffing, spent, is_pool=limits.is_pool) if has_price else None,
    )


def _staffed(parts: Sequence[_Part], limits: Limits, workers: int | None, *, has_price: bool) -> Staffing:
    counts = [part.workers if workers is None else workers for part in parts]
    times = [part.work_s(count) for part, count in zip(parts, counts, strict=True)]
    edges_s = max(part.edges_s for part in parts)
    if limits.is_pool:
        low, high = (1 / sum(1 / max(time[end], 1e-9) for time in times) for end in (0, 1))
        times = [Range(low, high)] * len(parts)
    time_s = Range(max(time.low for time in times), max(time.high for time in times) + edges_s)
    cost = None
    if has_price:
        prices = [(part.pilot.price_per_hour or 0.0) / 3600 for part in parts]
        least = [part.least_cost for part in parts]
        most = [price * count * (time.high + edges_s) for price, count, time in zip(prices, counts, times, strict=True)]
        cost = Range(min(least) if limits.is_pool else sum(least), sum(most))
    is_limited = any(part.is_limited(count) for part, count in zip(parts, counts, strict=True))
    return Staffing(workers, time_s, cost, is_limited)


def _pooled(ranges: Sequence[Range], *, is_pool: bool) -> Range:
    if is_pool:
        return Range(min(each.low for each in ranges), max(each.high for each in ranges))
    return Range(sum(each.low for each in ranges), sum(each.high for each in ranges))


def _tokens(rows: Sequence[PilotRow], of: Callable[[PilotRow], float | None], left: int, rng: Random) -> Range | None:
    known = [row for row in rows if of(row) is not None]
    units = _units(known, lambda row: of(row) or 0.0)
    # Rows without a result are assumed to need as many as the others, so that the range errs upward.
    return totals(units, left, rng) if len(units) > 1 else None


def _max_cost(parts: Sequence[_Part], staffing: Sequence[Staffing], spent: Range | None, *, is_pool: bool) -> float:
    """The suggested budget, rounded up to two digits. In a comparison of endpoints each may spend an equal part."""
    costs = [each.cost.high for each in staffing if each.cost is not None]
    if not is_pool and len(parts) > 1:
        most = [
            (part.pilot.price_per_hour or 0.0) / 3600 * count * (part.work_s(count).high + part.edges_s)
            for part in parts
            for count in (part.workers, *(each.workers for each in staffing if each.workers is not None))
        ]
        costs = [len(parts) * max(most)]
    budget = ((0.0 if spent is None else spent.high) + max(costs)) * _MARGIN
    step = 10.0 ** (math.floor(math.log10(budget)) - 1) if budget > 0 else 0.01
    return max(round(math.ceil(budget / step) * step, 6), 0.01)
