"""The options that say how a line becomes its requests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from batchrun.commands.definitions import REQUESTS, Arguments, Values, numbers, option, text_value

PAIRS = Values("pairs", "KEY=VALUE")
_SWEEP = Values("sweep", "KEY=V1,V2,...")


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class RequestArguments(Arguments):
    """How a line becomes its requests."""

    set: Mapping[str, Any] | None = option(
        None,
        (REQUESTS, 1),
        "Set a sampling parameter for every line, overriding the line's own value; repeatable.",
        PAIRS,
        variables=("BATCHRUN_OVERRIDE",),
    )
    default: Mapping[str, Any] | None = option(
        None, (REQUESTS, 1), "Set a sampling parameter for lines that do not have it; repeatable.", PAIRS
    )
    system: str | None = option(
        None, (REQUESTS, 2), "Add a system message to lines that have none; implies --chat.", text_value("TEXT")
    )
    chat: bool = option(False, (REQUESTS, 2), "Send `prompt` lines as chat messages.")
    sweep: Mapping[str, Sequence[Any]] | None = option(
        None,
        (REQUESTS, 3),
        "Run every line with each of these values; with several --sweep options, with every combination. KEY is a"
        " sampling parameter, endpoint, body.FIELD of an OpenAI line, or input.FIELD of an `input` object.",
        _SWEEP,
    )
    repeat: int = option(
        1,
        (REQUESTS, 3),
        "Run every line, or every combination of a sweep, N times, each time with another seed.",
        numbers(1, 10_000_000, whole=True),
    )
    strict: bool = option(
        False, (REQUESTS, 4), "Treat warnings about the fields of a line as errors, and send nothing."
    )
