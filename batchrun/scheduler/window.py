"""How many jobs may be in flight: enough that no worker is idle, and few enough that no job waits long.

A waiting job uses up its ttl and is expensive to cancel; an idle worker costs as much as a busy one. So the measure is
how long a job submitted now would wait for its start. The predictor knows this from the pace at which jobs start and
the last known start. Jobs are submitted until that wait reaches the horizon:

- one second plus a quarter of a job's time, because it takes this long to learn that a worker is free;
- that divided by our share of the jobs, if others use the endpoint: so each of several runs has the same number of jobs
  queued, and gets the same pace, whoever came first. If all had the same horizon, any division would be stable;
- ten seconds more if the rate limit of `/run` is the bottleneck: the queue must last from one burst of submissions to
  the next.

While no job waits, the pace is unknown, and the window doubles with each round. A round ends when one of the later jobs
that the last doubling admitted has ended without a wait, or when `/health` shows no queue. So the first answers of a
few workers do not open the window: no other jobs were ahead of theirs. The first size follows the workers that
`/health` reports. So the window grows through a cold start as workers come, and shrinks with the pace when they are
lost. It reacts to only one kind of 429: `/run` may refuse because its queue is full, so a refusal stops the growth.

If most of the queue is other people's, we cannot shorten the wait, and our share of the finished jobs is our share of
the queue. The window is then at least an eighth of the number of their jobs, and it begins with no more than they have.
"""

from __future__ import annotations

from batchrun.config import WINDOW_S, OperationLimit
from batchrun.scheduler.faulty_worker_limit import FaultyWorkerLimit
from batchrun.scheduler.health import EndpointHealth
from batchrun.scheduler.prediction import Predictor

FIRST = 48
"""The size before anything is known: for 5 workers and jobs of a second, ten seconds of work."""
LEAST = 16
MOST = 10_000
"""At 200 status requests a second, this many jobs are polled in 50 s, well within the 30 minutes that results are
kept."""
SHARED = 400
"""The limit of the least size that follows other people's jobs."""
_OTHERS = 8
"""For this many of their jobs there is at least one of ours, and our share counts as no less than one of this many.
More runs than this that follow each other would push each other up."""
_PER_WORKER = 2
_FIRST_MOST = 1000
_RESERVE_S = 1.0
_RESERVE_SHARE = 0.25
_RESERVE_MOST_S = 120.0
_FULL = 0.8
"""The window grows only if at least this share of it is used."""
_SHOWN = 0.4
"""A round ends with a job after this share of the jobs that the last doubling admitted."""
_BOUND_BY_RATE = 0.7
_IDLE_S = 4.0
"""How long workers that `/health` reported as idle, with an empty queue, override the pace."""
_HELD_S = 30.0
"""How long a refusal by `/run` stops the growth."""


class Window:
    """The number of jobs that may be in flight.

    Args:
        fixed: The number the user has chosen; None to follow the endpoint.
        predictor: Predicts when jobs start; shared with the scheduler.
        limit: The rate limit of `/run`.
    """

    def __init__(self, fixed: int | None, predictor: Predictor, limit: OperationLimit) -> None:
        self._fixed = fixed
        self._predictor = predictor
        self._limit = limit.per_window
        self._grown = FIRST
        self._most = _FIRST_MOST
        self._mark = int(_SHOWN * FIRST)
        self._held_until = float("-inf")
        self._idle_until = float("-inf")
        self._least = LEAST
        self._others = 0
        self.faulty_limit = FaultyWorkerLimit()
        """The bound while a worker is faulty; it also applies to a fixed size."""
        self.is_shared = False
        """Whether most jobs of the endpoint are other people's."""
        self.size = FIRST if fixed is None else fixed
        """The number of jobs that may be in flight now."""

    @property
    def follows(self) -> bool:
        """Whether it follows the endpoint."""
        return self._fixed is None

    def fix(self, size: int | None) -> None:
        """Set the number of jobs in flight from the next `update` on; None to follow the endpoint."""
        self._fixed = size

    def update(self, now: float, in_flight: int, sequence: int) -> None:
        """Adapt the size to the queue.

        Args:
            now: The current time.
            in_flight: The number of jobs in flight.
            sequence: The sequence number of the next job.
        """
        if self._fixed is None:
            self._follow(now, in_flight, sequence)
        if self.faulty_limit.is_on:
            self.size = min(self.size if self._fixed is None else self._fixed, self.faulty_limit.size(now))
            self._grown = min(self._grown, max(self.size, LEAST))
        elif self._fixed is not None:
            self.size = self._fixed

    def _follow(self, now: float, in_flight: int, sequence: int) -> None:
        predictor = self._predictor
        if not predictor.has_queue:
            self.size = self._grown
            return
        wait_s = max(predictor.expected_start(sequence, now) - now, predictor.least_wait_s(sequence))
        wanted = in_flight + int((self._horizon_s(in_flight) - wait_s) / predictor.pace_s)
        self.size = max(min(wanted, self._most), self._least)
        if now < self._idle_until:
            self.size = max(self.size, self._grown)
        self._grown = min(self.size, self._grown)

    def saw_start(self, sequence: int, delay_s: float, in_flight: int, next_sequence: int, now: float) -> None:
        """A job started after `delay_s` in the queue."""
        if sequence >= self._mark:
            waited = delay_s > self._predictor.waited_s
            self._grow(in_flight, next_sequence, now, to=0 if waited else 2 * self._grown)

    def saw_health(
        self, health: EndpointHealth, in_flight: int, next_sequence: int, now: float, *, arrived: int
    ) -> None:
        """`/health` answered; `arrived` of the jobs in flight were submitted before it was asked."""
        others = self._others = max(health.in_queue + health.in_progress - in_flight, 0)
        self.is_shared = others > in_flight
        self._least = max(LEAST, min(others // _OTHERS, SHARED)) if self.is_shared else LEAST
        if self._predictor.version == 0:
            self._grown = max(self._grown, min(_PER_WORKER * health.serving, _FIRST_MOST))
            if others > 0:
                self._grown = min(self._grown, max(others, LEAST))
        if health.serving and health.in_queue * 10 <= arrived:
            self._grow(arrived, next_sequence, now, to=max(2 * self._grown, in_flight + _PER_WORKER * health.idle))
            self._idle_until = now + _IDLE_S if health.idle else float("-inf")

    def refused(self, in_flight: int, now: float) -> None:
        """`/run` refused a submission: it came too fast, or the queue is full."""
        self._held_until = now + _HELD_S
        self._most = self._grown = max(min(self._grown, in_flight), LEAST)

    def _grow(self, in_flight: int, next_sequence: int, now: float, *, to: int) -> None:
        """A round has ended: grow to `to`, if the window was in use."""
        self._mark = next_sequence + int(_SHOWN * max(self._grown - in_flight, 0))
        if now < self._held_until:
            return
        self._most = min(max(2 * self.size, FIRST), MOST)
        if in_flight >= _FULL * self._grown:
            self._grown = min(max(to, self._grown), MOST)
            self._most = max(self._most, self._grown)
            self._mark = next_sequence + int(_SHOWN * (self._grown - in_flight))

    def _horizon_s(self, in_flight: int) -> float:
        predictor = self._predictor
        horizon_s = _RESERVE_S + min(_RESERVE_SHARE * predictor.execution_s, _RESERVE_MOST_S)
        horizon_s *= min(1 + self._others / max(in_flight, 1), _OTHERS)
        if self._is_bound_by_rate:
            horizon_s += WINDOW_S
        return horizon_s

    @property
    def _is_bound_by_rate(self) -> bool:
        return bool(self._limit) and WINDOW_S / self._predictor.pace_s >= _BOUND_BY_RATE * self._limit

    @property
    def has_idle_workers(self) -> bool:
        """Whether workers are known to wait for jobs: then more jobs would only take longer to submit."""
        predictor = self._predictor
        return predictor.version > 0 and not (predictor.has_queue and not self._is_bound_by_rate)
