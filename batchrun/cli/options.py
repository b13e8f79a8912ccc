"""Makes click options from the definitions in `batchrun.commands`, and the typed arguments of each command."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import MISSING
from pathlib import Path
from typing import Any, Concatenate, TypeVar

import click
from click.core import ParameterSource

from batchrun.cli import values
from batchrun.commands.definitions import Argument, Arguments, arguments_of

A = TypeVar("A", bound=Arguments)


class GroupedOption(click.Option):
    """An option that the help shows under a heading."""

    group = ""


def takes(kind: type[A]) -> Callable[[Callable[Concatenate[A, ...], None]], Callable[..., None]]:
    """Give a command the options of a dataclass; an instance of it becomes the command's first argument."""
    arguments = arguments_of(kind)
    names = frozenset(argument.name for argument in arguments)

    def decorate(function: Callable[Concatenate[A, ...], None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(**given: Any) -> None:
            own = {name: given.pop(name) for name in names}
            function(kind(**own, from_environment=_from_environment(names)), **given)

        known = getattr(command, "__click_params__", [])
        command.__click_params__ = [*known, *map(_parameter, reversed(arguments))]  # type: ignore[attr-defined]
        return command

    return decorate


def _from_environment(names: frozenset[str]) -> frozenset[str]:
    source_of = click.get_current_context().get_parameter_source
    return frozenset(name for name in names if source_of(name) is ParameterSource.ENVIRONMENT)


def _parameter(argument: Argument) -> click.Parameter:
    option, flags = argument.option, argument.flags
    is_many = argument.takes_many
    if not flags:
        return click.Argument(
            [argument.name],
            nargs=-1 if is_many else 1,
            required=argument.default is MISSING,
            type=_type(argument),
            metavar=option.values.metavar,
        )
    is_unset = argument.default is None or argument.default is MISSING or is_many
    has_default = "/" in flags or not (is_unset or argument.kind is bool)
    made = GroupedOption(
        [*flags.split(), argument.name],
        help=option.help,
        type=_type(argument),
        is_flag=True if argument.kind is bool else False if option.values.syntax == "or all" else None,
        multiple=is_many,
        required=argument.default is MISSING,
        **_default(argument),
        show_default=has_default or option.values.syntax == "number or auto",
        metavar=option.values.metavar,
        callback=_callback(argument),
        is_eager=option.values.syntax == "run file",
        envvar=list(option.variables) or None,
    )
    made.group = option.group
    return made


def _type(argument: Argument) -> Any:
    expected = argument.option.values
    if argument.kind is bool:
        return bool
    if argument.choices and expected.syntax not in ("or all", "number or auto"):
        return values.Choice(argument.choices)
    if expected.bounds is not None and expected.syntax in ("number", "number or auto"):
        auto = () if expected.syntax == "number" else argument.choices or (None,)
        return values.Number(expected.bounds, auto=auto, may_be_off=expected.may_be_off)
    if argument.takes(Path):
        return values.PATH
    if expected.syntax == "or all":
        return values.OR_ALL
    return values.NAME if expected.syntax == "name" else str


def _default(argument: Argument) -> dict[str, Any]:
    """The `default` for click, as a user would write it; empty if there is none."""
    default, syntax = argument.default, argument.option.values.syntax
    if syntax == "number or auto" and default is None and not argument.choices:
        return {"default": "auto"}
    if default is MISSING or default is None or argument.takes_many:
        return {}
    written = {"size": f"{default // 1_000_000}MB", "time": f"{default:g}s"} if argument.option.values.bounds else {}
    return {"default": written.get(syntax, default)}


def _callback(argument: Argument) -> Callable[..., Any] | None:
    expected = argument.option.values
    match expected.syntax:
        case "time":
            assert expected.bounds is not None  # noqa: S101 - their definitions have them
            return functools.partial(values.duration, expected.bounds, may_be_off=expected.may_be_off)
        case "size" | "halt" | "price":
            assert expected.bounds is not None  # noqa: S101 - their definitions have them
            parse: dict[str, Callable[..., Any]] = {"size": values.size, "halt": values.halt, "price": values.price}
            return functools.partial(parse[expected.syntax], expected.bounds)
    plain: dict[str, Callable[..., Any]] = {
        "pairs": values.key_values,
        "sweep": values.sweeps,
        "names": values.names,
        "run file": _use_run_file,
    }
    return plain.get(expected.syntax)


def _use_run_file(ctx: click.Context, _param: click.Parameter, path: Path | None) -> Path | None:
    """Make the options in a file the defaults of the other options."""
    if path is not None:
        from batchrun.cli.run_file import use_run_file

        use_run_file(path, ctx)
    return path
