"""The options of `batchrun tune`: what can be changed during a run."""

from dataclasses import dataclass
from typing import Literal

from batchrun.commands.definitions import (
    CONCURRENCY,
    GUARDS,
    MONEY,
    TIME_OR_OFF,
    Arguments,
    numbers,
    option,
)


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class TuneArguments(Arguments):
    """Options of `batchrun tune`. None leaves a value as it is."""

    concurrency: int | Literal["auto"] | None = option(
        None,
        (CONCURRENCY, 1),
        "Jobs in flight at once. auto: just enough to keep every worker busy.",
        numbers(1, 1_000_000, whole=True, or_auto=True),
        flags="-j --concurrency",
    )
    max_cost: float | None = option(
        None,
        (MONEY, 2),
        "Budget of the run in dollars, over all of its sessions.",
        numbers(0, 1_000_000_000, above=True, metavar="$", or_off=True),
    )
    deadline: float | None = option(
        None, (GUARDS, 1), "Deadline, counted from the start of the session: 10h, 90m.", TIME_OR_OFF
    )
    pause: bool = option(False, (CONCURRENCY, 2), "Submit nothing more for now; collect the jobs in flight.")
    resume: bool = option(False, (CONCURRENCY, 2), "Submit again after a pause.")
