"""The keywords of the Python API, by the names of the command line's options, and a check of their values."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypedDict, TypeVar, cast

from batchrun.commands.arguments import RunArguments
from batchrun.commands.definitions import arguments_of
from batchrun.config import UnconfirmedPolicy, WorkerChoice
from batchrun.errors import UsageError, shown
from batchrun.files.exactjson import dump, load

F = TypeVar("F", bound=Callable[..., Any])


class StreamKeywords(TypedDict, total=False):
    """Keywords that `run` and `stream` have in common. Their defaults are those of the command line.

    Args:
        base_url: Jobs go to `<base_url>/<endpoint>/run`.
        insecure_http: Whether the key and the requests may go to an http URL of another machine.
        set: Sampling parameters for every request, winning over its own.
        default: Sampling parameters for requests that do not have them.
        system: A system message for requests that have none; implies `chat`. None: none.
        chat: Whether to send prompts as chat messages.
        concurrency: Jobs in flight at once; None: as many as keep every worker busy.
        max_retries: Further submissions of a row after a failure that another try may fix; 0: none.
        execution_timeout: Seconds that a job may run, 5 to 604,800; None: Runpod's default, 600.
        ttl: Seconds that a job may live, queue included, 10 to 604,800; None: Runpod's default, 86,400.
        job_timeout: Seconds after which a job that has not finished is cancelled and tried again; None: its ttl.
        deadline: Seconds from now by which the run is to end; None: no bound.
        price_per_hour: Of one worker, in dollars; None: the cost is not estimated.
        max_cost: In dollars; nothing more is submitted once it is reached. None: no bound.
        retry_failed: Whether to run the failed rows of earlier calls again.
        worker: What answers at the endpoint `local`: `smollm2`, `echo`, or `auto`, the model where it is installed.
    """

    base_url: str
    insecure_http: bool
    set: Mapping[str, Any] | None
    default: Mapping[str, Any] | None
    system: str | None
    chat: bool
    concurrency: int | None
    max_retries: int
    execution_timeout: float | None
    ttl: float | None
    job_timeout: float | None
    deadline: float | None
    price_per_hour: float | None
    max_cost: float | None
    retry_failed: bool
    worker: WorkerChoice


class RunKeywords(StreamKeywords, total=False):
    """Keywords of `run` alone.

    Args:
        sweep: Key -> values: every request is run with each combination of them. Not for requests in a list.
        repeat: Samples of every request, or of each combination. Not for requests in a list.
        limit: Only the first `limit` rows; None: all. Not for requests in a list.
        unconfirmed: What to do with a submission whose answer never arrived: `resubmit`, or `hold`.
        repair: Whether to get lost or damaged results again, and to rebuild a lost state file.
    """

    sweep: Mapping[str, Sequence[Any]] | None
    repeat: int
    limit: int | None
    unconfirmed: UnconfirmedPolicy
    repair: bool


def spelled_out(*keywords: type) -> Callable[[F], F]:
    """Give a function that takes `**options` the signature and the docstring that name each: for `help` and notebooks.

    Args:
        keywords: The TypedDicts, in the order of the docstring; a later one holds those before it.
    """
    defaults = {field.name: field.default for field in fields(RunArguments)}

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        more = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=kind.__forward_arg__
            )
            for name, kind in keywords[-1].__annotations__.items()
        ]
        spelled = signature.replace(parameters=[*own, *more])

        @functools.wraps(function)
        def checking(*args: Any, **given: Any) -> Any:
            spelled.bind(*args, **given)  # a TypeError for a keyword that there is not
            return function(*args, **given)

        checking.__signature__ = spelled  # type: ignore[attr-defined]
        if function.__doc__ is not None:  # as it is under `python -OO`
            head, returns, rest = function.__doc__.partition("\n\n    Returns:")
            told = [str(each.__doc__).partition("Args:\n")[2].rstrip() for each in keywords]
            checking.__doc__ = "\n".join([head, *told]) + returns + rest
        return cast("F", checking)

    return decorate


def checked(given: RunArguments) -> RunArguments:
    """The arguments of a program, each looked at; what is sent is as the state file will have it.

    Raises:
        UsageError: one is wrong.
    """
    for argument in arguments_of(type(given)):
        value, bounds = getattr(given, argument.name), argument.option.values.bounds
        if value is None and argument.takes_none:
            continue
        if bounds is not None and argument.option.values.syntax != "halt":
            _refuse_unless(argument.name, value, str(bounds), true=bounds.hold(value))
        if choices := argument.choices:
            _refuse_unless(argument.name, value, f"{', '.join(choices[:-1])} or {choices[-1]}", true=value in choices)
    sweep = _as_json("sweep", given.sweep)
    for key, values in sweep.items():
        _refuse_unless(f"sweep[{key!r}]", values, "a list of values", true=isinstance(values, list))
    return replace(given, set=_as_json("set", given.set), default=_as_json("default", given.default), sweep=sweep)


def _as_json(name: str, value: Mapping[Any, Any] | None) -> dict[str, Any]:
    """A value as the state file will have it."""
    _refuse_unless(name, value, "a dict", true=value is None or isinstance(value, Mapping))
    try:
        read: dict[str, Any] = load(dump(dict(value or {})))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} cannot be written as JSON: {error}", "give numbers, texts and lists") from error
    return read


def _refuse_unless(name: str, value: Any, expected: str, *, true: bool) -> None:
    if not true:
        raise UsageError(f"{name}={shown(value)} is not valid", f"give {expected}")
