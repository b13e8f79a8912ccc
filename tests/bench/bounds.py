"""The best that any client could reach: the stub's draws again, and the queue worked out for given arrivals."""

from __future__ import annotations

import heapq
import math
from typing import TYPE_CHECKING

from batchrun.config import WINDOW_S, Limits

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.bench.stub import Setting

_WORD = (1 << 64) - 1


def draws(setting: Setting, count: int) -> Iterator[float]:
    """The times of the first `count` jobs, as the stub draws them."""
    name, *numbers = setting.service.split(":")
    first, second = (*(float(number) for number in numbers), 0.0)[:2]
    for n in range(count):
        match name:
            case "exponential":
                yield -math.log(_uniform(setting.seed, 2 * n)) * first
            case "lognormal":
                radius = math.sqrt(-2 * math.log(_uniform(setting.seed, 2 * n)))
                normal = radius * math.cos(2 * math.pi * _uniform(setting.seed, 2 * n + 1))
                yield first * math.exp(second * normal)
            case _:
                yield first


def ideal_s(setting: Setting, rows: int, share: float = 1.0) -> float:
    """From the first submission leaving to this share of the results, when only workers, limits and distance delay.

    Without limits all jobs are there at once; with them as early as the limit on submissions allows, in bursts. The
    queue is first in, first out, as the endpoint's own.
    """
    if setting.limits:
        burst = Limits().run.per_window
        arrivals = [n // burst * WINDOW_S for n in range(rows)]
    else:
        arrivals = [0.0] * rows
    ends = sorted(fifo(setting.workers_at, arrivals, draws(setting, rows)))
    return ends[math.ceil(rows * share) - 1] + 2 * setting.latency_s


def fifo(
    workers_at: tuple[tuple[float, int], ...], arrivals: Iterable[float], services: Iterable[float]
) -> Iterator[float]:
    """When each job ends. The workers may only become more."""
    free: list[float] = []
    for at, count in workers_at:
        free += [at] * (count - len(free))
    heapq.heapify(free)
    for arrival, service in zip(arrivals, services, strict=False):
        end = max(arrival, free[0]) + service
        heapq.heapreplace(free, end)
        yield end


def _uniform(seed: int, n: int) -> float:
    x = (seed * 0x9E3779B97F4A7C15 + (n + 1) * 0xD1342543DE82EF95) & _WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _WORD
    x ^= x >> 31
    return ((x >> 11) + 0.5) / 2**53
