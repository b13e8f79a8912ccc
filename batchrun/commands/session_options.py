"""The options that may differ from one session of a run to the next: guards, window, checks of answers."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar, cast

from batchrun import config
from batchrun.commands.answer_options import answers
from batchrun.commands.definitions import OFF
from batchrun.commands.session_arguments import GuardArguments, ResumeArguments
from batchrun.errors import UsageError

T = TypeVar("T")


def session_options(given: ResumeArguments, known: config.RunOptions) -> config.RunOptions:
    """The options of the next session of a run: those given, otherwise the known ones.

    Raises:
        UsageError: they contradict each other.
    """
    chosen = guards(given, known.guards)
    scheduler = known.scheduler
    if given.concurrency is not None:
        scheduler = replace(scheduler, concurrency=None if given.concurrency == "auto" else given.concurrency)
    return replace(
        known,
        guards=chosen,
        answers=answers(given, known.answers),
        policy=job_policy(given, known.policy),
        scheduler=scheduler,
    )


def job_policy(given: GuardArguments, known: config.JobPolicy) -> config.JobPolicy:
    """The job policy: what is given, otherwise what is known."""
    return replace(
        known,
        execution_timeout_s=_chosen(given.execution_timeout, known.execution_timeout_s),
        ttl_s=_chosen(given.ttl, known.ttl_s),
    )


def guards(given: GuardArguments, known: config.GuardOptions) -> config.GuardOptions:
    """The guards of a session: those given, otherwise the known ones.

    Raises:
        UsageError: a budget is given without a price.
    """
    price, prices = known.price_per_hour, known.prices
    if isinstance(given.price_per_hour, dict):
        price, prices = None, given.price_per_hour
    elif given.price_per_hour is not None:
        price, prices = given.price_per_hour, None
    chosen = config.GuardOptions(
        on_interrupt=_chosen(_present_name(given.on_interrupt), known.on_interrupt),
        halt=_chosen(given.halt, known.halt),
        canary=_chosen(given.canary, known.canary),
        canary_allow=_chosen(given.canary_allow, known.canary_allow),
        price_per_hour=price,
        prices=prices,
        max_cost=_unless_off(_chosen(given.max_cost, known.max_cost)),
        deadline_s=_unless_off(_chosen(given.deadline, known.deadline_s)),
        job_timeout_s=_unless_off(_chosen(given.job_timeout, known.job_timeout_s)),
    )
    if chosen.max_cost is not None and not chosen.have_price:
        raise UsageError("--max-cost needs --price-per-hour", "give the hourly price of one worker, in dollars")
    return chosen


def refuse_wrong_prices(guards: config.GuardOptions, endpoints: tuple[str, ...]) -> None:
    """Refuse prices that do not match the run's endpoints.

    Raises:
        UsageError: an endpoint has no price, or is not one of the run.
    """
    prices = guards.prices or {}
    for endpoint in prices.keys() ^ set(endpoints) if prices else ():
        problem = "is not an endpoint of this run" if endpoint in prices else "has no price"
        raise UsageError(f"--price-per-hour: {endpoint} {problem}", f"the endpoints are {', '.join(endpoints)}")


def _present_name(word: config.InterruptPolicy | None) -> config.InterruptPolicy | None:
    return None if word is None else cast("config.InterruptPolicy", config.FORMER_NAMES.get(word, word))


def _chosen(given: T | None, known: T) -> T:
    return known if given is None else given


def _unless_off(limit: float | None) -> float | None:
    return None if limit == OFF else limit
