"""How many jobs may be in flight: enough that no worker waits for one, and few enough that none waits for long.

A job that waits in the queue burns its ttl, and is dear to cancel; a worker that waits costs as much as one that
works. So the measure is the time that a job submitted now would wait for its start, and the predictor knows it: the
pace at which jobs start, and the last known start. Jobs are submitted until that time reaches the horizon:

- a second, and a quarter of what a job takes: the news that a worker is free is as late as that;
- ten seconds more where the rate limit of `/run` is what bounds the workers: their queue must last from one burst of
  submissions to the next.

While no job waits nobody knows the pace, and the window doubles with each round: when one of the later jobs of those
that the last doubling let in has ended without having waited, or `/health` sees no queue. So the first answers of a
few workers open nothing: their jobs had none before them. It starts with what `/health` says of the workers. So it
grows through a cold start as the workers come, shrinks with the pace when they are lost, and knows nothing of 429s
but that one: `/run` may refuse because its queue is full, so a refusal holds the growth.

Where most of the queue is other people's, waiting is not of our making, and our share of what finishes is that of our
jobs in the queue: there the window keeps up with theirs, at a quarter of it.
"""

from __future__ import annotations

from batchrun.config import WINDOW_S, OperationLimit
from batchrun.scheduler.brake import Brake
from batchrun.scheduler.health import EndpointHealth
from batchrun.scheduler.prediction import Predictor

FIRST = 64
"""Before anything is known: what the smallest endpoint with short jobs works off in half a minute."""
LEAST = 16
MOST = 10_000
"""At 200 status requests a second so many jobs are asked after in 50 s: far within the 30 minutes of their results."""
SHARED = 400
"""Beside other people's jobs, at most."""
_OTHERS = 4
"""For so many of their jobs there is one of ours at least, a fifth of what finishes: two runs push each other down."""
_PER_WORKER = 2
_FIRST_MOST = 1000
_RESERVE_S = 1.0
_RESERVE_SHARE = 0.25
_RESERVE_MOST_S = 120.0
_FULL = 0.8
"""A window is in use when this share of it is: growth without use would mean nothing."""
_SHOWN = 0.4
"""When so large a share of the jobs that it let in have started at once, the window grows further."""
_BOUND_BY_RATE = 0.7
_IDLE_S = 4.0
"""Workers that `/health` saw idle, with nothing in the queue, are believed in for so long, whatever the pace says."""
_HELD_S = 30.0
"""A refusal by `/run` holds the growth for so long."""


class Window:
    """The number of jobs that may be in flight.

    Args:
        fixed: What the user has chosen; None: it follows the endpoint.
        predictor: What has been learnt of the queue; the scheduler's own.
        limit: That of `/run`.
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
        self.brake = Brake()
        """Holds beside a number that was chosen, too."""
        self.is_shared = False
        """Whether most jobs of the endpoint are other people's."""
        self.size = FIRST if fixed is None else fixed
        """Jobs that may be in flight now."""

    @property
    def follows(self) -> bool:
        """Whether it follows the endpoint."""
        return self._fixed is None

    def update(self, now: float, in_flight: int, place: int) -> None:
        """Look at the queue.

        Args:
            now: The present.
            in_flight: Jobs in flight.
            place: That of the next job in the order of submission.
        """
        if self._fixed is None:
            self._follow(now, in_flight, place)
        if self.brake.is_on:
            self.size = min(self.size if self._fixed is None else self._fixed, self.brake.size(now))
            self._grown = min(self._grown, max(self.size, LEAST))
        elif self._fixed is not None:
            self.size = self._fixed

    def _follow(self, now: float, in_flight: int, place: int) -> None:
        predictor = self._predictor
        if not predictor.has_queue:
            self.size = self._grown
            return
        wait_s = max(predictor.expected_start(place, now) - now, predictor.least_wait_s(place))
        wanted = in_flight + int((self._horizon_s() - wait_s) / predictor.pace_s)
        self.size = max(min(wanted, self._most), self._least)
        if now < self._idle_until:
            self.size = max(self.size, self._grown)
        self._grown = min(self.size, self._grown)

    def saw_start(self, place: int, delay_s: float, in_flight: int, next_place: int, now: float) -> None:
        """A job is known to have started after `delay_s` in the queue."""
        if place >= self._mark:
            waited = delay_s > self._predictor.waited_s
            self._grow(in_flight, next_place, now, to=0 if waited else 2 * self._grown)

    def saw_health(self, health: EndpointHealth, in_flight: int, next_place: int, now: float) -> None:
        """`/health` answered."""
        others = health.in_queue + health.in_progress - in_flight
        self.is_shared = others > in_flight
        self._least = max(LEAST, min(others // _OTHERS, SHARED)) if self.is_shared else LEAST
        if self._predictor.version == 0:
            self._grown = max(self._grown, min(_PER_WORKER * health.serving, _FIRST_MOST))
        if health.serving and health.in_queue * 10 <= in_flight:
            self._grow(in_flight, next_place, now, to=max(2 * self._grown, in_flight + _PER_WORKER * health.idle))
            self._idle_until = now + _IDLE_S if health.idle else float("-inf")

    def refused(self, in_flight: int, now: float) -> None:
        """`/run` refused a submission: too fast, or its queue is full."""
        self._held_until = now + _HELD_S
        self._most = self._grown = max(min(self._grown, in_flight), LEAST)

    def _grow(self, in_flight: int, next_place: int, now: float, *, to: int) -> None:
        """A round is over: the window may double, and does so when it was in use and no queue has shown."""
        self._mark = next_place + int(_SHOWN * max(self._grown - in_flight, 0))
        if now < self._held_until:
            return
        self._most = min(max(2 * self.size, FIRST), MOST)
        if in_flight >= _FULL * self._grown:
            self._grown = min(max(to, self._grown), MOST)
            self._most = max(self._most, self._grown)
            self._mark = next_place + int(_SHOWN * (self._grown - in_flight))

    def _horizon_s(self) -> float:
        predictor = self._predictor
        horizon_s = _RESERVE_S + min(_RESERVE_SHARE * predictor.execution_s, _RESERVE_MOST_S)
        if self._limit and WINDOW_S / predictor.pace_s >= _BOUND_BY_RATE * self._limit:
            horizon_s += WINDOW_S
        return horizon_s
