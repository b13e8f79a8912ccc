"""The arguments of the Python API: each looked at, and made the options of a run.

The names and the bounds are those of the command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchrun.commands.run_options import run_options
from batchrun.config import BOUNDS, DEFAULT_MEMORY_BYTES, DEFAULT_SILENCE_S, RunOptions
from batchrun.errors import UsageError, shown
from batchrun.files.exactjson import dump, load

_NUMBERS = (
    *("concurrency", "max_retries", "repeat", "limit", "execution_timeout", "ttl"),
    *("job_timeout", "deadline", "price_per_hour", "max_cost"),
)
_NEVER_NONE = frozenset({"max_retries", "repeat"})
_CHOICES = {
    "unconfirmed": ("resubmit", "hold"),
    "on_interrupt": ("drain", "detach", "cancel"),
    "progress": ("auto", "bar", "plain", "json", "none"),
    "worker": ("auto", "smollm2", "echo"),
}
_UNSAID: dict[str, Any] = {
    **dict.fromkeys(("connections", "run_limit", "status_limit", "halt", "canary", "canary_allow", "limit", "sweep")),
    "low_priority": False,
    "strict": False,
    "shard": None,
    "skip_invalid": False,
    "dedupe": False,
    "ordered": False,
    "format": "auto",
    "inspect_output": True,
    "request_timeout": DEFAULT_SILENCE_S,
    "memory": DEFAULT_MEMORY_BYTES,
    "unconfirmed": "resubmit",
    "repeat": 1,
}
"""What only the command line, or only `run`, has an option for."""


def options_of(inputs: tuple[str, ...], **given: Any) -> RunOptions:
    """The options of a run.

    Raises:
        UsageError: an argument is wrong, or they do not go together.
    """
    given = {**_UNSAID, **given}
    for name in _NUMBERS:
        if given[name] is not None or name in _NEVER_NONE:
            _refuse_unless(name, given[name], str(BOUNDS[name]), true=BOUNDS[name].hold(given[name]))
    for name in ("unconfirmed", "on_interrupt"):
        checked(name, given[name])
    for name, called in (("override", "set"), ("default", "default"), ("sweep", "sweep")):
        value = given[name]
        _refuse_unless(called, value, "a dict", true=value is None or isinstance(value, Mapping))
        given[name] = _as_json(called, dict(value or {}))
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


def _as_json(name: str, value: dict[Any, Any]) -> dict[str, Any]:
    """A value as the state file will have it."""
    try:
        read: dict[str, Any] = load(dump(value))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} cannot be written as JSON: {error}", "give numbers, texts and lists") from error
    return read


def _refuse_unless(name: str, value: Any, expected: str, *, true: bool) -> None:
    if not true:
        raise UsageError(f"{name}={shown(value)} does not do", f"give {expected}")
