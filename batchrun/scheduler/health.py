"""The part of a `/health` answer that decisions and messages use."""

from __future__ import annotations

from typing import Protocol


class EndpointHealth(Protocol):
    """An answer of `/health`: all workers and jobs of the endpoint, including other people's jobs."""

    @property
    def in_queue(self) -> int:
        """Jobs that wait for a worker."""

    @property
    def in_progress(self) -> int:
        """Jobs that are running."""

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
    """Why no worker takes the endpoint's jobs, as a clause; empty if workers do."""
    if health.serving:
        return ""
    if health.initializing:
        return f"its {_workers(health.initializing)} still starting"
    parts = [
        f"{count} {word}" for word, count in (("throttled", health.throttled), ("unhealthy", health.unhealthy)) if count
    ]
    if not parts:
        return "it has no workers: scaled to zero, or its maximum is 0"
    why = "no GPU is free for them" if health.throttled >= health.unhealthy else "check their logs"
    return f"none of its workers takes jobs: {' and '.join(parts)}, {why}"


def _workers(count: int) -> str:
    return "worker is" if count == 1 else f"{count} workers are"
