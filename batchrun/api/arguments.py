"""The keyword arguments of the Python API, named like the command line's options, and their validation."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypedDict, TypeVar, cast, get_args

from batchrun.commands.arguments import RunArguments
from batchrun.commands.definitions import OFF, Argument, Arguments, arguments_of
from batchrun.commands.request_arguments import RequestArguments, several
from batchrun.config import (
    FORMER_NAMES,
    CanaryAllows,
    FormatChoice,
    HaltOptions,
    Switch,
    UnconfirmedPolicy,
    WorkerChoice,
)
from batchrun.errors import UsageError, shown
from batchrun.files.exactjson import dump, load

F = TypeVar("F", bound=Callable[..., Any])
A = TypeVar("A", bound=RequestArguments)


class RequestKeywords(TypedDict, total=False):
    """How requests are made. The defaults are those of the command line.

    Args:
        set: Sampling parameters for every request, overriding its own.
        default: Sampling parameters for requests that do not have them.
        system: System message for requests that have none; implies `chat`. None: no message is added.
        prompt: Template of the user's message, over the fields of each request; None: requests are sent as they are.
        raw: Whether to send what `prompt` makes as a plain prompt.
        messages_file: File with a template of a list of messages, instead of `prompt`.
        id_column: Field with the id of a request; None: `id` or `custom_id`.
        columns: Fields that `prompt` carries to the records; None: all.
        image_column: Field with a picture for the user's message; implies `inline_files`.
        inline_files: Whether to send the content of pictures, sounds and videos whose paths are in a request, relative
            to the folder of the file; for a list or a stream to that of the state file.
        chat: Whether to send prompts as chat messages.
        schema: JSON schema that answers must fit: a dict, a model of pydantic, a file, or in short `name, age int`; the
            value of each answer is then `parsed` in its record. None: answers are not checked.
    """

    set: Mapping[str, Any] | None
    default: Mapping[str, Any] | None
    system: str | None
    prompt: str | None
    raw: bool
    messages_file: Path | None
    id_column: str | None
    columns: Sequence[str] | None
    image_column: str | None
    inline_files: bool
    chat: bool
    schema: str | os.PathLike[str] | Mapping[str, Any] | type[Any] | None


class StreamKeywords(RequestKeywords, total=False):
    """Further keyword arguments that `run` and `stream` have in common.

    Args:
        base_url: Jobs are submitted to `<base_url>/<endpoint>/run`.
        insecure_http: Whether the API key and the requests may be sent by plain http to another machine.
        concurrency: Jobs in flight at once; None: just enough to keep every worker busy.
        pack: The most rows of one job, 1 to 64, see the guide to packing; None: up to 16, by the number of rows.
        pack_check: Whether a few rows are first sent both together and one by one, to compare their answers: `on` or
            `off`.
        max_retries: Retries of a row after a failure that another try may fix; 0: none.
        reask: How often to ask again when an answer is not valid, each time paid for; None: 2 with `schema`, else 0.
        require_text: Whether an answer that is empty or cut off is not valid.
        check: `MODULE:FUNCTION` or `FILE.py:FUNCTION`, called with each record in a process of its own; it returns or
            raises why the answer is not valid. None: as in earlier calls.
        check_timeout: Seconds that a call of `check` may take; None: 10.
        cache: File of answers that runs share: answers to the same requests of earlier runs at the same endpoint are
            reused, and new answers are stored. None: no cache.
        cache_sampled: Whether to reuse sampled answers, too: those that another try might not give again.
        execution_timeout: Longest execution time of a job in seconds, 5 to 604,800; None: Runpod's default, 600.
        ttl: Longest life of a job in seconds, queue time included, 10 to 604,800; None: Runpod's default, 86,400.
        job_timeout: Seconds after which a job that has not finished is cancelled and retried; None: after its ttl.
        deadline: Seconds from now by which the run must end; None: that of earlier calls, or none; `math.inf`: none.
        price_per_hour: Hourly price of one worker in dollars, or a dict with that of each endpoint; None: the cost is
            not estimated.
        max_cost: Budget in dollars; nothing more is submitted once it is reached. None: that of earlier calls, or none;
            `math.inf`: none.
        retry_failed: Whether to run the failed rows of earlier calls again.
        only: With `retry_failed`, only rows that failed with one of these kinds of error; empty: all.
        halt: Failed rows that stop the run, see `HaltOptions`; None: as in earlier calls, or when the first 20 rows or
            any 200 in a row have failed.
        canary: Rows that are run first, and must succeed before the others are; None: as in earlier calls, or 0.
        canary_allow: `length`: the answers of the canary may be cut off. None: they must not.
        format: Format of the results: `batchrun`, `openai`, or `auto`, which is `openai` if all lines are OpenAI's.
        with_request: Whether each record has its `request`.
        split_think: Whether `<think>` blocks of a text are its reasoning.
        connections: HTTP connections; None: 64 to 256, by the distance.
        low_priority: Whether jobs do not make the endpoint scale up.
        run_limit: Submissions in any 10 s, 0: unlimited; None: 1000, or unlimited for the endpoint `local`.
        status_limit: Status requests in any 10 s, 0: unlimited; None: 2000, or unlimited for the endpoint `local`.
        memory: Bytes for all answers that are held at once.
        inspect_output: Whether to look for errors in the output of completed jobs.
        request_timeout: Seconds of silence after which a request is given up.
        notify: URL that gets a JSON object when the run ends; None: no notification.
        worker: Worker of the endpoint `local`: `smollm2`, `echo`, or `auto`, which is that of earlier calls, or the
            model if it is installed.
        model_file: GGUF file of the local model; None: the installed one.
        upstream: URL of an OpenAI-compatible server that is the worker of the endpoint `local`; None: no server.
    """

    base_url: str
    insecure_http: bool
    concurrency: int | None
    pack: int | None
    pack_check: Switch
    max_retries: int
    reask: int | None
    require_text: bool
    check: str | None
    check_timeout: float | None
    cache: Path | None
    cache_sampled: bool
    execution_timeout: float | None
    ttl: float | None
    job_timeout: float | None
    deadline: float | None
    price_per_hour: float | dict[str, float] | None
    max_cost: float | None
    retry_failed: bool
    only: tuple[str, ...]
    halt: HaltOptions | None
    canary: int | None
    canary_allow: CanaryAllows | None
    format: FormatChoice
    with_request: bool
    split_think: bool
    connections: int | None
    low_priority: bool
    run_limit: int | None
    status_limit: int | None
    memory: int
    inspect_output: bool
    request_timeout: float
    notify: str | None
    worker: WorkerChoice
    model_file: Path | None
    upstream: str | None


class RunKeywords(StreamKeywords, total=False):
    """Keyword arguments of `run` only.

    Args:
        sweep: Key -> values: every request is run with each combination of values. Not for a list of requests.
        repeat: Number of samples of every request, or of each combination. Not for a list of requests.
        limit: Run only the first `limit` rows; None: all rows. Not for a list of requests.
        unconfirmed: What to do with a row if the answer to its submission never arrived: `resubmit` or `hold`.
        mixed: Whether the endpoints of a pool may answer with different models.
        abandon: With fewer endpoints than in earlier calls, whether to give up the jobs in flight at the others.
        repair: Whether to recover lost or damaged results, and to rebuild a lost state file.
        ordered: Whether to put the results into input order when the run has finished.
        shard: `I/N`: run only part I of N of the lines; None: all lines. Not for a list of requests.
        dedupe: Whether to pay for equal requests once. Not for a list of requests.
        skip_invalid: Whether to run the valid lines if others are invalid. Not for a list of requests.
        strict: Whether to treat warnings about the fields of a line as errors. Not for a list of requests.
    """

    sweep: Mapping[str, Sequence[Any]] | None
    repeat: int
    limit: int | None
    unconfirmed: UnconfirmedPolicy
    mixed: bool
    abandon: bool
    repair: bool
    ordered: bool
    shard: str | None
    dedupe: bool
    skip_invalid: bool
    strict: bool


def spelled_out(*keywords: type) -> Callable[[F], F]:
    """Give a function with `**options` a signature and a docstring that name every keyword, for `help` and notebooks.

    Args:
        keywords: The TypedDicts, in the order of the docstring; the last one inherits from the others.
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
            spelled.bind(*args, **given)  # raises a TypeError for an unknown keyword
            return function(*args, **given)

        checking.__signature__ = spelled  # type: ignore[attr-defined]
        if function.__doc__ is not None:  # it is None under `python -OO`
            head, returns, rest = function.__doc__.partition("\n\n    Returns:")
            described = [str(each.__doc__).partition("Args:\n")[2].rstrip() for each in keywords]
            checking.__doc__ = "\n".join([head, *described]) + returns + rest
        return cast("F", checking)

    return decorate


def checked(given: A) -> A:
    """Validate the arguments of a calling program. Parameters are converted to what the state file will contain.

    Raises:
        UsageError: an argument is invalid.
    """
    refuse_out_of_bounds(given)
    changed: dict[str, Any] = {name: as_json(name, getattr(given, name)) for name in ("set", "default", "sweep")}
    for key, values in changed["sweep"].items():
        _refuse_unless(f"sweep[{key!r}]", values, "a list of values", true=isinstance(values, list))
    if isinstance(given, RunArguments):
        changed["only"] = tuple(several(given.only))
        changed |= {name: Path(path) for name in ("model_file", "cache") if (path := getattr(given, name)) is not None}
    return replace(given, **changed)


def refuse_out_of_bounds(given: Arguments) -> None:
    """Refuse values of another type, numbers outside their bounds, and words that are not choices.

    Raises:
        UsageError: there is one.
    """
    for argument in arguments_of(type(given)):
        value, bounds = getattr(given, argument.name), argument.option.values.bounds
        if (value is None and argument.takes_none) or (argument.option.values.may_be_off and value == OFF):
            continue
        _refuse_other_type(argument, value)
        if bounds is not None and value == "auto" in argument.choices:
            continue
        if bounds is not None and argument.option.values.syntax != "halt":
            for each in value.values() if isinstance(value, dict) else (value,):
                _refuse_unless(argument.name, each, str(bounds), true=bounds.hold(each))
        elif choices := argument.choices:
            _refuse_unless(
                argument.name, value, f"{', '.join(choices[:-1])} or {choices[-1]}", true=_is_choice(value, choices)
            )


def _refuse_other_type(argument: Argument, value: Any) -> None:
    kinds = get_args(argument.kind) if isinstance(argument.kind, UnionType) else (argument.kind,)
    kind, *others = (each for each in kinds if each is not NoneType)
    if others:
        return
    if kind in (tuple[str, ...], Sequence[str]):
        is_list = isinstance(value, Collection) and all(isinstance(each, str) for each in value)
        _refuse_unless(argument.name, value, "a list of strings", true=is_list)
    elif kind in _TYPES:
        types, expected = _TYPES[kind]
        _refuse_unless(argument.name, value, expected, true=isinstance(value, types))


_TYPES: dict[type, tuple[tuple[type, ...], str]] = {
    str: ((str,), "a string"),
    bool: ((bool,), "True or False"),
    Path: ((str, os.PathLike), "a path"),
    HaltOptions: ((HaltOptions,), "batchrun.config.HaltOptions(rows=5) or (share=0.05)"),
}
"""The type of an option -> what a program may give for it."""


def refuse_other_words(name: str, value: Any, choices: Any) -> None:
    """Refuse a value that is neither None nor one of the words of a Literal.

    Raises:
        UsageError: it is refused.
    """
    words = get_args(choices)
    _refuse_unless(name, value, " or ".join(words), true=value is None or value in words)


def _is_choice(value: Any, choices: tuple[str, ...]) -> bool:
    return value in choices or (isinstance(value, str) and FORMER_NAMES.get(value) in choices)


def as_json(name: str, value: Mapping[Any, Any] | None) -> dict[str, Any]:
    """The parameters as the state file will contain them.

    Raises:
        UsageError: they are not a dict, or cannot be written as JSON.
    """
    _refuse_unless(name, value, "a dict", true=value is None or isinstance(value, Mapping))
    try:
        read: dict[str, Any] = load(dump(dict(value or {})))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} cannot be written as JSON: {error}", "use numbers, strings and lists") from error
    return read


def _refuse_unless(name: str, value: Any, expected: str, *, true: bool) -> None:
    if not true:
        raise UsageError(f"{name}={shown(value)} is not valid", f"give {expected}")
