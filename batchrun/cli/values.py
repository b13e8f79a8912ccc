"""Parses the values of options: numbers, times, paths, KEY=VALUE."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from batchrun.commands.definitions import OFF
from batchrun.config import FORMER_NAMES, Bounds, HaltOptions
from batchrun.errors import shown
from batchrun.files.paths import look_at
from batchrun.files.urls import is_url
from batchrun.runs.state_path import state_file

_NUMBER = r"(\d+(?:\.\d+)?)"
_DURATION = re.compile(f"(?:{_NUMBER}d)?(?:{_NUMBER}h)?(?:{_NUMBER}m)?(?:{_NUMBER}s)?")
_UNITS_S = (86400, 3600, 60, 1)
_SIZES = {"mb": 1e6, "gb": 1e9, "tb": 1e12, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_SIZE = re.compile(f"{_NUMBER}\\s*({'|'.join(_SIZES)})")
_MOST_DIGITS = 30


def key_values(_ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """Parse KEY=VALUE options; a value is JSON if it can be parsed as such, else text."""
    result: dict[str, Any] = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals or not key.strip():
            raise click.BadParameter(f"{shown(value)} is not KEY=VALUE, for example temperature=0.7", param=param)
        if key.strip() in result:
            raise click.BadParameter(f"{shown(key.strip())} is given twice", param=param)
        result[key.strip()] = _json_or(text)
    return result


def _json_or(text: str) -> Any:
    """Text parsed as JSON if possible, else unchanged."""
    from batchrun.files.exactjson import load

    try:
        return load(text.encode())
    except ValueError:
        return text


def sweeps(_ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, tuple[Any, ...]]:
    """Parse options KEY=V1,V2,... or KEY=[V1, V2, ...]; each value is JSON if it can be parsed as such, else text."""
    keys: dict[str, tuple[Any, ...]] = {}
    for value in values:
        key, equals, text = value.partition("=")
        key = key.strip()
        if not equals or not key:
            raise click.BadParameter(f"{shown(value)} is not KEY=V1,V2,..., for example temperature=0,0.7", param=param)
        if key in keys:
            raise click.BadParameter(f"{shown(key)} is given twice: put all its values into one option", param=param)
        whole = _json_or(text)
        if isinstance(whole, list):
            keys[key] = tuple(whole)
        elif isinstance(whole, dict):
            keys[key] = (whole,)
        else:
            parts = [part.strip() for part in text.split(",")] if text.strip() else []
            if "" in parts:
                raise click.BadParameter(f"{shown(value)}: a value between commas is empty", param=param)
            keys[key] = tuple(_json_or(part) for part in parts)
    return keys


def names(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...] | None:
    """Parse names with commas between them; None if there are none."""
    return tuple(name.strip() for value in values for name in value.split(",") if name.strip()) or None


def duration(
    bounds: Bounds, _ctx: click.Context, param: click.Parameter, value: str | None, *, may_be_off: bool = False
) -> float | None:
    """Parse `8h`, `90m`, `1h30m`, `45s`, `2d`, or `off` if it is accepted; returns seconds > 0."""
    if value is None:
        return None
    if may_be_off and value.strip().lower() == "off":
        return OFF
    if len(value) <= _MOST_DIGITS and value.strip().replace(".", "", 1).isdecimal():
        raise click.BadParameter(f"{value!r} has no unit: give {value}h, {value}m or {value}s", param=param)
    match = _DURATION.fullmatch(value.strip().lower())
    numbers = match.groups() if match else ()
    seconds = sum(float(number) * unit_s for number, unit_s in zip(numbers, _UNITS_S, strict=False) if number)
    if not bounds.hold(seconds):
        problem = "longer than 10 years" if seconds > 0 else "not a time above 0"
        raise click.BadParameter(f"{shown(value)} is {problem}; give for example 8h, 90m, 1h30m or 45s", param=param)
    return seconds


def size(bounds: Bounds, _ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Parse `256MB`, `1GiB` or `1.5GB`; returns bytes."""
    if value is None:
        return None
    match = _SIZE.fullmatch(value.strip().lower()) if len(value) <= _MOST_DIGITS else None
    size_bytes = round(float(match.group(1)) * _SIZES[match.group(2)]) if match else 0
    if not bounds.hold(size_bytes):
        raise click.BadParameter(
            f"{shown(value)} is not a size from 1MB to 1TB; give for example 256MB or 1GiB", param=param
        )
    return size_bytes


def halt(bounds: Bounds, _ctx: click.Context, param: click.Parameter, value: str | None) -> HaltOptions | None:
    """Parse `50` (failed rows), `10%` (of the finished rows) or `off`."""
    if value is None:
        return None
    text = value.strip().lower()
    if text == "off":
        return HaltOptions(automatic=False)
    if bounds.hold(_number(text, bounds)):
        return HaltOptions(rows=int(text))
    match = re.fullmatch(f"{_NUMBER}\\s*%", text)
    share = float(match.group(1)) / 100 if match else 0.0
    if not 0 < share <= 1:
        raise click.BadParameter(
            f"{shown(value)} is not a number of failed rows (50), a percentage (10%) or off", param=param
        )
    return HaltOptions(share=share)


def price(
    bounds: Bounds, _ctx: click.Context, param: click.Parameter, value: str | None
) -> float | dict[str, float] | None:
    """Parse `2.5`, or `ID=2.5,ID=1.9`."""
    if value is None:
        return None
    prices: dict[str, float] = {}
    for part in value.split(","):
        endpoint, _, text = part.rpartition("=")
        number = _number(text.strip(), bounds)
        if number is None or not bounds.hold(number) or endpoint.strip() in prices or ("," in value and not endpoint):
            problem = f"{shown(value)} is not {bounds}, or ID=PRICE,ID=PRICE with a price for each endpoint"
            raise click.BadParameter(problem, param=param)
        prices[endpoint.strip()] = number
    return prices.get("") or prices


class Choice(click.Choice[str]):
    """The click type of one of several words, or of a former name of one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The word.

        Raises:
            click.BadParameter: it is another one.
        """
        return super().convert(FORMER_NAMES.get(value, value), param, ctx)


class Number(click.FloatRange):
    """The click type of a number within bounds.

    Args:
        bounds: The numbers that are accepted.
        auto: What `auto` becomes; empty if it is not accepted.
        may_be_off: Whether `off` is accepted, too; it becomes `OFF`.
    """

    def __init__(self, bounds: Bounds, *, auto: tuple[str | None, ...] = (), may_be_off: bool = False) -> None:
        self._bounds = bounds
        self._auto = auto
        self._may_be_off = may_be_off
        self.name = "integer range" if bounds.whole else "float range"
        super().__init__(bounds.least, bounds.most, min_open=bounds.above)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse a number.

        Raises:
            click.BadParameter: it is not a number within the bounds.
        """
        if self._auto and str(value).strip().lower() == "auto":
            return self._auto[0]
        if self._may_be_off and str(value).strip().lower() == "off":
            return OFF
        number = _number(value, self._bounds) if isinstance(value, str) else value
        if not self._bounds.hold(number):
            kind = f"neither auto nor {self._bounds}" if self._auto else f"not {self._bounds}"
            self.fail(f"{shown(value)} is {kind}", param, ctx)
        return number


def _number(text: str, bounds: Bounds) -> float | None:
    """Text as a number; None if it is not one, or has thousands of digits."""
    try:
        return int(text) if bounds.whole else float(text)
    except ValueError:
        return None


class _Path(click.Path):
    """The click type of a path, whether it exists or not.

    Args:
        is_state: Whether it is the path of a state file, which must be printable because messages and JSON contain it.
    """

    def __init__(self, *, is_state: bool = False) -> None:
        super().__init__(path_type=Path)
        self._is_state = is_state

    def convert(self, value: Any, param: click.Parameter | None, _ctx: click.Context | None) -> Path:
        """Convert text to a path.

        Raises:
            UsageError: the path is not usable, see `look_at`.
        """
        name = "the path" if param is None else called(param)
        if self._is_state:
            return state_file(value, name)
        look_at(value, name)
        return Path(value)


def called(param: click.Parameter) -> str:
    """The name of a parameter for users: `--output`, or `STATE`."""
    return max(param.opts, key=len) if isinstance(param, click.Option) else (param.metavar or str(param.name).upper())


class _Name(click.types.StringParamType):
    """The click type of a path that is kept as given, including a trailing slash."""


class _Target(_Path):
    """The click type of a path, or of a URL, such as that of a file of the Hugging Face Hub, which stays text."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:  # type: ignore[override]
        """Convert text to a path, unless it is a URL."""
        return value if is_url(str(value)) else super().convert(value, param, ctx)


class _OrAll(click.types.StringParamType):
    """The click type of an option that is a flag, or has a number above 0 or `all` as its value."""

    name = "or all"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A number, `first`, `all`, or None if the flag is not set.

        Raises:
            click.BadParameter: it is another word.
        """
        word = str(value).strip().lower()
        if word in _NO:
            return None
        if HOW_MANY.fullmatch(word) and word != ALL:
            return int(word)
        if word not in (*_YES, FIRST, ALL):
            self.fail(f"{shown(value)} is neither a number of requests nor `{ALL}`", param, ctx)
        return ALL if word == ALL else FIRST


FIRST, ALL = "first", "all"
HOW_MANY = re.compile(f"[1-9][0-9]{{0,8}}|{ALL}")
"""What is taken as the value of such an option, if it follows one."""
_YES, _NO = ("true", "t", "yes", "y", "on"), ("", "0", "false", "f", "no", "n", "off")
PATH, STATE, NAME, TARGET, OR_ALL = _Path(), _Path(is_state=True), _Name(), _Target(), _OrAll()
