"""Statistics of scores: intervals, pass@k, majorities. Numbers in, numbers out; pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import comb, exp, inf, lgamma, log, log1p, sqrt

CONFIDENCE = 0.95
"""The share of intervals that cover the true value."""
_TINY = 1e-300
_MOST_STEPS = 10_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over questions, and its 95% interval."""

    mean: float
    low: float | None
    """The low end of the interval; None, like `high`, if there is only one question."""
    high: float | None
    questions: int
    """The number of questions, from 1; each has one number."""


class Moments:
    """The count, mean and variance of numbers (Welford's method).

    Args:
        least: No number can be smaller.
        most: No number can be larger.
    """

    __slots__ = ("_squares", "count", "least", "mean", "most")

    def __init__(self, least: float = 0.0, most: float = 1.0) -> None:
        self.least = least
        self.most = most
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0

    def add(self, number: float) -> None:
        """Add a number."""
        self.count += 1
        before = number - self.mean
        self.mean += before / self.count
        self._squares += before * (number - self.mean)

    @property
    def standard_error(self) -> float:
        """Of the mean; 0 for fewer than two numbers."""
        return sqrt(max(self._squares, 0.0) / (self.count - 1) / self.count) if self.count > 1 else 0.0

    def interval(self) -> Interval | None:
        """The mean and its 95% interval; None without numbers.

        It is Student's t interval, cut to the possible range. If all numbers are equal, their variance says nothing.
        Then it is the Clopper-Pearson interval, which allows for other numbers that so small a sample may miss.
        """
        if not self.count:
            return None
        if self.count == 1:
            return Interval(self.mean, None, None, 1)
        if self._squares <= 0:
            missed = 1 - ((1 - CONFIDENCE) / 2) ** (1 / self.count)
            low = self.mean - missed * (self.mean - self.least)
            return Interval(self.mean, low, self.mean + missed * (self.most - self.mean), self.count)
        half = t_quantile(CONFIDENCE, self.count - 1) * self.standard_error
        return Interval(self.mean, max(self.mean - half, self.least), min(self.mean + half, self.most), self.count)


def pass_at(k: int, samples: int, right: int) -> float:
    """The probability that at least one of k samples is right: 1 - C(n-c, k) / C(n, k), which is unbiased.

    Args:
        k: From 1 to `samples`.
        samples: How many samples a question has.
        right: How many of them are right.
    """
    return 1 - comb(samples - right, k) / comb(samples, k)


def majority(samples: Iterable[tuple[object, float]]) -> float:
    """The score of the answer that most samples share; for a tie, the mean of their scores.

    Args:
        samples: The answer and the score of each, at least one. If equal answers have different scores, their mean
            counts.
    """
    votes: dict[object, list[float]] = {}
    for answer, score in samples:
        votes.setdefault(answer, []).append(score)
    most = max(map(len, votes.values()))
    winners = [sum(scores) / most for scores in votes.values() if len(scores) == most]
    return sum(winners) / len(winners)


@lru_cache(4096)
def t_quantile(confidence: float, degrees: int) -> float:
    """How many standard errors an interval of Student's t distribution extends to both sides.

    Args:
        confidence: The share of the distribution that is inside, above 0 and below 1.
        degrees: Degrees of freedom, from 1.
    """
    outside = 1 - confidence
    low, high = 0.0, 1.0
    while _outside(high, degrees) > outside:
        low, high = high, high * 2
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return middle
        if _outside(middle, degrees) > outside:
            low = middle
        else:
            high = middle


def _outside(t: float, degrees: int) -> float:
    """The probability that a value of Student's t distribution is farther from 0 than t."""
    return _incomplete_beta(degrees / 2, 0.5, degrees, t * t)


def _incomplete_beta(a: float, b: float, part: float, rest: float) -> float:
    """The regularized incomplete beta function at part / (part + rest)."""
    x, y = part / (part + rest), rest / (part + rest)
    if y == 0:
        return 1.0
    log_x = log1p(-y) if y < x else log(x)
    front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log_x + b * log(y))
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(a, b, x) / a
    return 1 - front * _fraction(b, a, y) / b


def _fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function, by Lentz's method."""
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d if abs(d) > _TINY else _TINY)
    value, before = d, inf
    for m in range(1, _MOST_STEPS):
        for factor in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 + factor * d
            d = 1 / (d if abs(d) > _TINY else _TINY)
            c = 1 + factor / c
            c = c if abs(c) > _TINY else _TINY
            value *= c * d
        if value == before:
            break
        before = value
    return value
