"""Estimates the cost of a run from the time of its workers: two bounds, per 1,000 rows, projected, and wasted.

The lower bound counts running workers, the upper one also starting and idle ones. Runpod bills a worker from its start
until it has stopped, but also counts sleeping workers, which cost nothing, as idle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PROJECTED_FROM = 0.02
"""Share of the rows that must have ended before the whole run's cost is projected."""
_CENTS_FROM = 0.1


@dataclass(frozen=True, slots=True)
class WorkCost:
    """The measured quantities. Times are seconds, over all sessions."""

    running_s: float
    """Time of running workers."""
    most_s: float
    """Time of running, starting and idle workers."""
    unwatched_s: float = 0.0
    """Execution time of jobs that ran between sessions."""
    jobs: int = 0
    """Jobs that have ended."""
    execution_s: float = 0.0
    """Their total execution time."""
    failed_s: float = 0.0
    """Total execution time of jobs without a result."""
    duplicates: int = 0
    """Submissions whose answer was lost: each may have become a job."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a run, in dollars, or in the currency of the price."""

    price_per_hour: float
    """Price of one worker."""
    least: float
    most: float
    unwatched: float
    """Upper bound of the further cost of jobs that ran between sessions: as if each had a worker of its own."""
    failed: float
    """The part of `most` that went to jobs without a result."""
    duplicates: float
    """Upper bound of the part of `most` that went to possible duplicates."""
    least_per_1000: float | None
    most_per_1000: float | None
    """Cost per 1,000 rows that have ended; None if none has."""
    least_projected: float | None
    most_projected: float | None
    """Projected cost of the whole run; None before 2% of the rows have ended."""


def cost_of(work: WorkCost, *, price_per_hour: float, done: int, total: int) -> Cost:
    """The cost of a run.

    Args:
        work: The measured quantities.
        price_per_hour: Price of one worker.
        done: Rows that have ended.
        total: Rows of the run.
    """
    per_s = price_per_hour / 3600
    most = work.most_s * per_s
    return _rated(
        price_per_hour,
        least=work.running_s * per_s,
        most=most,
        unwatched=work.unwatched_s * per_s,
        failed=most * work.failed_s / work.execution_s if work.execution_s else 0.0,
        duplicates=most * min(work.duplicates / work.jobs, 1.0) if work.jobs else 0.0,
        done=done,
        total=total,
    )


def added(costs: Sequence[Cost], *, done: int, total: int) -> Cost:
    """The cost of a run on several endpoints; `done` and `total` count the rows of all of them.

    Its price is the mean of theirs, weighted by what was spent.
    """
    most = sum(cost.most for cost in costs)
    mean = sum(cost.most * cost.price_per_hour for cost in costs) / most if most else costs[0].price_per_hour
    return _rated(
        mean,
        least=sum(cost.least for cost in costs),
        most=most,
        unwatched=sum(cost.unwatched for cost in costs),
        failed=sum(cost.failed for cost in costs),
        duplicates=sum(cost.duplicates for cost in costs),
        done=done,
        total=total,
    )


def _rated(
    price_per_hour: float,
    *,
    least: float,
    most: float,
    unwatched: float,
    failed: float,
    duplicates: float,
    done: int,
    total: int,
) -> Cost:
    projected = total / done if done and done >= PROJECTED_FROM * total else None
    return Cost(
        price_per_hour=price_per_hour,
        least=least,
        most=most,
        unwatched=unwatched,
        failed=failed,
        duplicates=duplicates,
        least_per_1000=least / done * 1000 if done else None,
        most_per_1000=most / done * 1000 if done else None,
        least_projected=None if projected is None else least * projected,
        most_projected=None if projected is None else most * projected,
    )


def money(amount: float) -> str:
    """`$1,234.50`; below ten cents with four decimals."""
    return f"${amount:,.2f}" if amount >= _CENTS_FROM or amount == 0 else f"${amount:.4f}"


def span(least: float, most: float) -> str:
    """`$1.20 to $1.45`, or a single amount if both look the same."""
    low, high = money(least), money(most)
    return low if low == high else f"{low} to {high}"


def cost_lines(cost: Cost, *, is_over: bool) -> list[str]:
    """The cost for a terminal: the amount, then lines of detail.

    Args:
        cost: The cost.
        is_over: Whether the run has finished, so there is nothing to project.
    """
    lines = [span(cost.least, cost.most)]
    if cost.least_per_1000 is not None and cost.most_per_1000 is not None:
        lines[0] += f", {span(cost.least_per_1000, cost.most_per_1000)} per 1,000 rows"
    if cost.least_projected is not None and cost.most_projected is not None and not is_over:
        lines.append(f"{span(cost.least_projected, cost.most_projected)} for the whole run")
    if cost.failed:
        lines.append(f"{money(cost.failed)} of it for jobs without a result")
    if cost.duplicates:
        lines.append(f"up to {money(cost.duplicates)} of it for possible duplicates")
    if cost.unwatched:
        lines.append(f"up to {money(cost.unwatched)} more for jobs that ran between sessions")
    return lines
