"""The endpoints of a run from session to session: one may be added to a pool, or taken away."""

from __future__ import annotations

from collections.abc import Callable

from batchrun.config import RunOptions
from batchrun.display.units import counted
from batchrun.errors import StateError
from batchrun.state.endpoints import known_endpoints
from batchrun.state.reader import StateReader
from batchrun.state.store import Store
from batchrun.state.stored_options import find_options


def new_endpoints(options: RunOptions) -> tuple[str, ...]:
    """The endpoints of a session, of several, that its run does not know yet.

    Raises:
        StateError: the state file cannot be read.
    """
    if len(options.endpoints) == 1:
        return ()
    known: list[str] = []
    if options.state.exists():
        with StateReader(options.state) as store:
            was = find_options(store)
            known = [] if was is None else known_endpoints(store, was)
    return tuple(endpoint for endpoint in options.endpoints if endpoint not in known)


def is_same_pool(was: RunOptions, options: RunOptions) -> bool:
    """Whether the endpoints of a session may follow those of the one before: some are the same."""
    are_swept = was.sweep.endpoints or options.sweep.endpoints
    return not are_swept and not set(was.endpoints).isdisjoint(options.endpoints)


def refuse_lost_jobs(store: StateReader, known: list[str], options: RunOptions) -> None:
    """Refuse to remove an endpoint that has, or may have, jobs of pending rows, unless they are given up.

    Args:
        store: The run's state.
        known: All endpoints that the run has had, by number.
        options: The options of this session.

    Raises:
        StateError: it has.
    """
    if options.abandon:
        return
    for endpoint, number in _gone(known, options):
        in_flight, unconfirmed = _count_at(store, number, options)
        if in_flight or unconfirmed:
            has = [f"{counted(in_flight, 'row')} in flight, which only it can answer"] if in_flight else []
            if unconfirmed:
                has.append(f"{counted(unconfirmed, 'row')} whose submission is unconfirmed, which only it can confirm")
            raise StateError(
                f"endpoint {endpoint} has {', and '.join(has)}",
                f"keep it: --endpoint {','.join((*options.endpoints, endpoint))}; or add --abandon to run these rows"
                " elsewhere, which may pay for them twice",
            )


def _count_at(store: StateReader, number: int, options: RunOptions) -> tuple[int, int]:
    """The number of rows in flight at an endpoint, and of those to submit again because it may not have them."""
    is_held = options.scheduler.unconfirmed == "resubmit"
    return store.count_jobs_at(number), store.count_unconfirmed_at(number, is_held=is_held)


def abandon_lost_jobs(store: Store, options: RunOptions, tell: Callable[[str], None]) -> list[str]:
    """Give up the jobs at endpoints that were taken away, if the user wants that.

    Args:
        store: The run's state.
        options: The options of this session.
        tell: Called with a message.

    Returns:
        All endpoints that the run has had, by number.

    Raises:
        StateError: see `refuse_lost_jobs`.
    """
    known = known_endpoints(store, options)
    refuse_lost_jobs(store, known, options)  # --repair may have found results to fetch there
    for endpoint, number in _gone(known, options) if options.abandon else ():
        in_flight, unconfirmed = _count_at(store, number, options)
        if in_flight or unconfirmed:
            store.abandon_jobs_at(number)
            what = " or ".join(["in flight"] * bool(in_flight) + ["unconfirmed"] * bool(unconfirmed))
            rows = counted(in_flight + unconfirmed, "row")
            tell(f"endpoint {endpoint}: {rows} {what} there will run again; its jobs are given up")
    return known


def _gone(known: list[str], options: RunOptions) -> list[tuple[str, int]]:
    """The endpoints that are not used any more, with their numbers."""
    return [(endpoint, number) for number, endpoint in enumerate(known) if endpoint not in options.endpoints]
