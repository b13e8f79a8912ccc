"""Rewrites click's usage errors in the style of all our errors: what happened, where, and what to do."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable

import click
from click.core import ParameterSource

from batchrun.cli.values import called
from batchrun.errors import UsageError, shown

_TYPES = {
    "integer range": "a whole number",
    "float range": "a number",
    "integer": "a whole number",
    "float": "a number",
}
"""A type, as click calls it -> what a value of it is."""


def as_usage_error(error: click.UsageError) -> UsageError:
    """Convert an error of click."""
    path = path_of(error.ctx)
    params = [] if error.ctx is None else error.ctx.command.params
    look = f"see {path} --help"
    match error:
        case click.MissingParameter(param=click.Parameter() as param):
            return UsageError(f"`{path}` needs {called(param)}", look)
        case click.BadParameter(param=click.Parameter() as param):
            return UsageError(f"{called(param)}{_variable(error.ctx, param)}: {_clause(error.message)}", look)
        case click.NoSuchOption():
            flags = [flag for param in params for flag in (*param.opts, *param.secondary_opts)]
            return UsageError(f"`{path}` has no option {error.option_name}", _meant(error.option_name, flags) + look)
        case click.BadOptionUsage():
            takes_none = any(error.option_name in param.opts and getattr(param, "is_flag", False) for param in params)
            return UsageError(f"{error.option_name} {'takes no value' if takes_none else 'needs a value'}", look)
    return UsageError(f"`{path}`: {_clause(error.format_message())}", look)


def path_of(context: click.Context | None) -> str:
    """The name of a command, however the program was started."""
    return "batchrun" if context is None or context.parent is None else f"batchrun {context.info_name}"


def no_such_command(name: str, known: Iterable[str]) -> UsageError:
    """The error for an unknown command."""
    return UsageError(f"there is no command {shown(name)}", f"{_meant(name, known)}see batchrun --help")


def _clause(message: str) -> str:
    """A sentence of click as a clause: in lower case, without the period and the names of its types."""
    for name, words in _TYPES.items():
        message = message.replace(f"is not a valid {name}", f"is not {words}")
    return message[:1].lower() + message[1:].removesuffix(".")


def _variable(context: click.Context | None, param: click.Parameter) -> str:
    """` from VARIABLE`, if a value comes from an environment variable, else empty."""
    if context is None or context.get_parameter_source(str(param.name)) is not ParameterSource.ENVIRONMENT:
        return ""
    own = f"{context.auto_envvar_prefix}_{str(param.name).upper()}"
    variables = [param.envvar] if isinstance(param.envvar, str) else list(param.envvar or ())
    return f" from {next(filter(os.environ.get, variables), own)}"


def _meant(name: str, known: Iterable[str]) -> str:
    # Compare without the leading dashes, which would make all options look alike.
    flags = {flag.lstrip("-"): flag for flag in known}
    near = difflib.get_close_matches(name.lstrip("-"), flags, n=1)
    return f"did you mean {flags[near[0]]}? Or " if near else ""
