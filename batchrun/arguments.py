"""The arguments of the Python API: each looked at, and made the options of a run.

The command line has its own checks, by click; the names and the bounds are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from batchrun import config
from batchrun.errors import UsageError
from batchrun.parameters import run_options

_WHOLE: dict[str, tuple[int, float]] = {
    "concurrency": (1, 1_000_000),
    "max_retries": (0, 1000),
    "repeat": (1, float("inf")),
    "limit": (1, float("inf")),
}
_SECONDS: dict[str, tuple[float, float]] = {"execution_timeout": (5, 604_800), "ttl": (10, 604_800)}
_ABOVE_ZERO = ("job_timeout", "deadline", "price_per_hour", "max_cost")
_NEVER_NONE = frozenset({"max_retries", "repeat"})
_CHOICES = {
    "unconfirmed": ("resubmit", "hold"),
    "on_interrupt": ("drain", "detach", "cancel"),
    "progress": ("auto", "bar", "plain", "json", "none"),
    "worker": ("auto", "smollm2", "echo"),
}
_UNSAID: dict[str, Any] = {
    **dict.fromkeys(("connections", "run_limit", "status_limit", "halt", "canary", "limit", "sweep")),
    "low_priority": False,
    "shard": None,
    "dedupe": False,
    "ordered": False,
    "format": "auto",
    "inspect_output": True,
    "request_timeout": config.DEFAULT_SILENCE_S,
    "memory": config.DEFAULT_MEMORY_BYTES,
    "unconfirmed": "resubmit",
    "repeat": 1,
}
"""What only the command line, or only `run`, has an option for."""


def options_of(inputs: tuple[str, ...], **given: Any) -> config.RunOptions:
    """The options of a run.

    Raises:
        UsageError: an argument is wrong, or they do not go together.
    """
    given = {**_UNSAID, **given}
    for name, (least, most) in _WHOLE.items():
        if given[name] is not None or name in _NEVER_NONE:
            fits = _is_number(given[name]) and isinstance(given[name], int) and least <= given[name] <= most
            up_to = f" and at most {most:,}" if most < float("inf") else ""
            _refuse_unless(name, given[name], f"a whole number of at least {least}{up_to}", true=fits)
    for name, (shortest, longest) in _SECONDS.items():
        if given[name] is not None:
            fits = _is_number(given[name]) and shortest <= given[name] <= longest
            _refuse_unless(name, given[name], f"seconds from {shortest:.0f} to {longest:,.0f}", true=fits)
    for name in _ABOVE_ZERO:
        if given[name] is not None:
            fits = _is_number(given[name]) and 0 < given[name] < float("inf")
            _refuse_unless(name, given[name], "a number above 0", true=fits)
    for name in ("unconfirmed", "on_interrupt"):
        checked(name, given[name])
    for name, shown in (("override", "set"), ("default", "default"), ("sweep", "sweep")):
        value = given[name]
        _refuse_unless(shown, value, "a dict", true=value is None or isinstance(value, Mapping))
        given[name] = _as_json(shown, dict(value or {}))
    for key, values in given["sweep"].items():
        _refuse_unless(f"sweep[{key!r}]", values, "a list of values", true=isinstance(values, list))
    given["sweep"] = tuple((key, tuple(values)) for key, values in given["sweep"].items())
    return run_options({**given, "inputs": inputs})


def checked(name: str, value: Any) -> Any:
    """The value of an argument that has a few.

    Raises:
        UsageError: it is none of them.
    """
    choices = _CHOICES[name]
    _refuse_unless(name, value, f"{', '.join(choices[:-1])} or {choices[-1]}", true=value in choices)
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _as_json(name: str, value: dict[Any, Any]) -> dict[str, Any]:
    """A value as the state file will have it."""
    try:
        read: dict[str, Any] = orjson.loads(orjson.dumps(value))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} cannot be written as JSON: {error}", "give numbers, texts and lists") from error
    return read


def _refuse_unless(name: str, value: Any, expected: str, *, true: bool) -> None:
    if not true:
        raise UsageError(f"{name}={value!r} does not do", f"give {expected}")
