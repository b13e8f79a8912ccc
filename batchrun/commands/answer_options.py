"""Makes the options that say which answers are results, from the arguments of a command."""

from __future__ import annotations

from pathlib import Path

from batchrun.commands.arguments import JobArguments
from batchrun.commands.request_arguments import RequestArguments
from batchrun.commands.session_arguments import CacheArguments, CheckArguments
from batchrun.config import AnswerOptions
from batchrun.errors import UsageError
from batchrun.prompts.schemas import FORMAT_NAMES, read_schema
from batchrun.results.structured import AnswerSchema

_OFF = "off"
_REASKS_WITH_SCHEMA = 2
"""Of small models, most answers that do not fit are right the second or third time."""


def schema_option(given: RequestArguments) -> dict[str, object] | None:
    """The schema that answers must fit; None if there is none.

    Raises:
        UsageError: it is not a valid schema, or a parameter asks for another format.
    """
    if given.schema is None:
        return None
    for option, parameters in (("--set", given.set), ("--default", given.default)):
        if name := next((name for name in FORMAT_NAMES if name in (parameters or {})), None):
            raise UsageError(f"{option} {name} contradicts --schema", "remove one of them")
    schema = read_schema(given.schema)
    AnswerSchema(schema)
    return schema


def reasks(given: JobArguments) -> int:
    """How often a row is asked again because of an invalid answer.

    Raises:
        UsageError: nothing is checked.
    """
    is_checked = given.schema is not None or given.check is not None or given.require_text
    if given.reask and not is_checked:
        raise UsageError("--reask needs --schema, --check or --require-text", "add one of them, or remove --reask")
    if given.reask is None:
        return _REASKS_WITH_SCHEMA if given.schema is not None else 0
    return given.reask


def answers(given: CheckArguments, known: AnswerOptions) -> AnswerOptions:
    """What answers must be in a session: what is given, and else what is known.

    Raises:
        UsageError: a check is not written as MODULE:FUNCTION, or sampled answers are allowed without a cache.
    """
    check, timeout_s = given.check, given.check_timeout
    if check is not None:
        place, _, function = check.rpartition(":")
        if not place or not all(part.isidentifier() for part in function.split(".")):
            raise UsageError(f"--check {check!r} names no function", "give MODULE:FUNCTION, or FILE.py:FUNCTION")
        if place.endswith(".py"):
            check = f"{Path(place).absolute()}:{function}"
    cache, cache_sampled = known.cache, known.cache_sampled
    if isinstance(given, CacheArguments):
        cache_sampled = cache_sampled or given.cache_sampled
        if given.cache is not None:
            cache = None if str(given.cache) == _OFF else str(given.cache.absolute())
        if given.cache_sampled and cache is None:
            raise UsageError("--cache-sampled needs --cache", "add --cache FILE, or remove --cache-sampled")
    return AnswerOptions(
        require_text=known.require_text,
        check=known.check if check is None else check,
        check_timeout_s=known.check_timeout_s if timeout_s is None else timeout_s,
        cache=cache,
        cache_sampled=cache_sampled,
    )
