"""Reads the options of a run from a TOML file: `batchrun run --config sweep.toml`.

The command line wins over the environment, which wins over the file. Paths in the file are relative to its folder, so
it works from any working directory.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from pathlib import Path
from typing import Any

import click

from batchrun.cli.values import NAME, OR_ALL, PATH, key_values, sweeps
from batchrun.errors import UsageError

ONLY_IN_RUN = {"confirm", "detach", "retry_failed", "only", "repair"}
"""Options of `run` that `estimate` has not, and ignores in a file: the same file is for both.

It does not ignore `dry_run`, because it would then send what is not to be sent.
"""


def use_run_file(path: Path, ctx: click.Context) -> None:
    """Make the options in a file the defaults of a command.

    Raises:
        UsageError: see `read_run_file`; or a value is not valid for its option.
    """
    ctx.default_map = read_run_file(path, ctx.command)
    for parameter in ctx.command.params:
        value = ctx.default_map.get(str(parameter.name))
        try:
            if value is not None:
                parameter.process_value(ctx, value)
        except click.MissingParameter:
            continue  # an empty list of inputs: the command line may name some
        except click.BadParameter as error:
            key = max(parameter.opts, key=len).removeprefix("--")
            hint = f"fix it, or see batchrun {ctx.command.name} --help"
            raise UsageError(f"--config {path}: {key}: {error.message}", hint) from error


def read_run_file(path: Path, command: click.Command) -> dict[str, Any]:
    """Read the options in a file: parameter name -> default, as click expects it.

    Args:
        path: The TOML file.
        command: The command that the options are for.

    Raises:
        UsageError: the file cannot be read, is not TOML, or has an unknown key or a value of the wrong type.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}", "give the TOML file with the run's options") from error
    except (ValueError, RecursionError) as error:  # also for a number with thousands of digits, or invalid UTF-8
        raise UsageError(f"--config {path}: not valid TOML: {error}", "fix the file") from error
    known = {name: parameter for parameter in command.params for name in _names(parameter)}
    options: dict[str, Any] = {}
    for key, value in data.items():
        parameter = known.get(called := key.replace("-", "_").lower())
        if parameter is None and command.name == "estimate" and called in ONLY_IN_RUN:
            continue
        if parameter is None:
            near = difflib.get_close_matches(key.replace("-", "_"), known, n=1)
            hint = f"did you mean {near[0].replace('_', '-')}?" if near else f"see batchrun {command.name} --help"
            raise UsageError(f"--config {path}: {key!r} is not an option of `batchrun {command.name}`", hint)
        name = str(parameter.name)
        if name in options:
            raise UsageError(f"--config {path}: {key!r} is given twice, in two spellings", "remove one of them")
        given = _value(f"--config {path}: {key}", parameter, value)
        options[name] = _from_folder(path.parent, given) if parameter.type in (PATH, NAME) else given
    return options


def _names(parameter: click.Parameter) -> list[str]:
    """The names of a parameter in a file: as on the command line, without the leading dashes."""
    if parameter.name in ("config", "help"):
        return []
    if isinstance(parameter, click.Argument):
        return [str(parameter.name)]
    return [opt.removeprefix("--").replace("-", "_") for opt in parameter.opts if opt.startswith("--")]


def _value(where: str, parameter: click.Parameter, value: Any) -> Any:
    """Convert a value to what click expects: text, a flag, or a list of texts."""
    if isinstance(parameter, click.Option) and parameter.is_flag:
        if not isinstance(value, bool):
            raise UsageError(f"{where} must be true or false, not {_shown(value)}", "write it without quotes")
        return value
    if parameter.type is OR_ALL and isinstance(value, bool):
        return str(value)
    if not (parameter.multiple or parameter.nargs == -1):
        if isinstance(value, (bool, list, dict)):
            raise UsageError(f"{where} must be a single value, not {_shown(value)}", "see batchrun run --help")
        return str(value)
    if isinstance(value, dict):
        if parameter.callback not in (key_values, sweeps):
            raise UsageError(f"{where} must not be a table", f"write it as a list: {parameter.name} = [...]")
        return [f"{key}={_json(where, item)}" for key, item in _flat(value, is_sweep=parameter.callback is sweeps)]
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in items):
        raise UsageError(f"{where} must be text or a list of texts, not {_shown(value)}", "put quotes around it")
    return items


def _flat(table: dict[str, Any], *, is_sweep: bool, above: str = "") -> list[tuple[str, Any]]:
    """The key-value pairs of a table. Nested tables of a sweep become dotted keys: `[sweep.input] steps = [1, 2]`."""
    pairs = []
    for key, value in table.items():
        if is_sweep and isinstance(value, dict):
            pairs += _flat(value, is_sweep=True, above=f"{above}{key}.")
        else:
            pairs.append((above + key, value if not is_sweep or isinstance(value, list) else [value]))
    return pairs


def _json(where: str, value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: {_shown(value)} cannot be sent as JSON", "use text or a number") from error


def _from_folder(folder: Path, value: Any) -> Any:
    """A path relative to the file's folder, or to home (`~/`). A trailing slash is kept, unlike in a Path."""
    if isinstance(value, list):
        return [_from_folder(folder, item) for item in value]
    return value if value == "-" else os.path.join(folder, os.path.expanduser(value))  # noqa: PTH111, PTH118 - see there


def _shown(value: Any) -> str:
    return repr(value) if not isinstance(value, (list, dict)) else "a list" if isinstance(value, list) else "a table"
