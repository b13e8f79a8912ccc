"""What `/health` says of an endpoint, as far as decisions and people need it."""

from __future__ import annotations

from typing import Protocol


class EndpointHealth(Protocol):
    """An answer of `/health`: jobs and workers of the endpoint, whoever submitted the jobs."""

    @property
    def in_queue(self) -> int:
        """Jobs that wait for a worker."""

    @property
    def in_progress(self) -> int:
        """Jobs at work."""

    @property
    def idle(self) -> int:
        """Workers that wait for a job."""

    @property
    def running(self) -> int:
        """Workers with a job."""

    @property
    def initializing(self) -> int:
        """Workers that are starting."""

    @property
    def serving(self) -> int:
        """Workers that take jobs."""

    @property
    def workers(self) -> int:
        """Workers that take jobs or soon will."""

    @property
    def throttled(self) -> int:
        """Workers that wait for a free GPU."""

    @property
    def unhealthy(self) -> int:
        """Workers that crashed."""


def obstacle(health: EndpointHealth) -> str:
    """Why the endpoint has nobody to do its jobs, as a clause; empty when it has workers."""
    if health.serving:
        return ""
    if health.initializing:
        return f"its {_workers(health.initializing)} still starting"
    parts = [
        f"{count} {word}" for word, count in (("throttled", health.throttled), ("unhealthy", health.unhealthy)) if count
    ]
    if not parts:
        return "it has no workers: scaled to zero, or its maximum is 0"
    why = "no GPU is free for them" if health.throttled >= health.unhealthy else "look at their logs"
    return f"none of its workers takes jobs: {' and '.join(parts)}, {why}"


def _workers(count: int) -> str:
    return "worker is" if count == 1 else f"{count} workers are"
