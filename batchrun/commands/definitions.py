"""How an option is defined: a dataclass field with its default, its values, its help text and its place in the help."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import NoneType
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin

from batchrun.config import Bounds

T = TypeVar("T")

ROWS = "Rows to run again"
WHERE = "Inputs, outputs and endpoint"
REQUESTS = "Requests"
CONCURRENCY = "Concurrency and limits"
FAILURES = "Failures"
GUARDS = "Guards"
MONEY = "Money"
LOCAL = "Local endpoint"
EMULATED = "Emulation"
DISPLAY = "Display"
GROUPS = (ROWS, WHERE, REQUESTS, CONCURRENCY, FAILURES, GUARDS, MONEY, LOCAL, EMULATED, DISPLAY)
"""The headings of `--help`, in their order."""

OFF = math.inf
"""Takes off a limit that the run has had in earlier sessions."""

Syntax = Literal[
    "plain",
    "number",
    "number or auto",
    "time",
    "size",
    "halt",
    "price",
    "pairs",
    "sweep",
    "names",
    "name",
    "run file",
    "or all",
]


@dataclass(frozen=True, slots=True)
class Values:
    """The values that an option accepts, as far as its type does not say."""

    syntax: Syntax = "plain"
    """How text is parsed: `8h`, `256MB`, `10%`, KEY=VALUE, or a path kept as given."""
    metavar: str | None = None
    """What the help calls a value; None: the name of its type."""
    bounds: Bounds | None = None
    """The numbers that are accepted: times in seconds, sizes in bytes, prices in dollars. None: not a number."""
    may_be_off: bool = False
    """Whether `off` is accepted, too, which means `OFF`."""


@dataclass(frozen=True, slots=True)
class Option:
    """How a field is given on the command line, and its help."""

    group: str
    """Its heading in the help."""
    rank: int
    """Its place under the heading: the most used options first. Equal ranks keep the order of definition."""
    help: str
    values: Values = Values()
    flags: str | None = None
    """`-o --output`, or `--limits/--no-limits`. Empty: a positional argument. None: the field's name with dashes."""
    variables: tuple[str, ...] = ()
    """Further environment variables; BATCHRUN_<NAME> works for every option."""


def option(
    default: T,
    place: tuple[str, int],
    text: str,
    values: Values = Values(),
    *,
    flags: str | None = None,
    variables: tuple[str, ...] = (),
) -> T:
    """A field that is an option with a default; see `Option`."""
    return field(default=default, metadata=option_metadata(place, text, values, flags=flags, variables=variables))


def option_metadata(
    place: tuple[str, int],
    text: str,
    values: Values = Values(),
    *,
    flags: str | None = None,
    variables: tuple[str, ...] = (),
) -> Mapping[str, Option]:
    """The `metadata` of a dataclass field that is an option."""
    return {"option": Option(*place, text, values, flags, variables)}


def text_value(metavar: str) -> Values:
    """Any text."""
    return Values(metavar=metavar)


def numbers(
    least: float,
    most: float,
    *,
    whole: bool = False,
    above: bool = False,
    metavar: str = "N",
    or_auto: bool = False,
    or_off: bool = False,
) -> Values:
    """Numbers within bounds, see `Bounds`; with `or_auto`, also `auto`, which means None; with `or_off`, also `off`."""
    bounds = Bounds(least, most, whole=whole, above=above)
    if or_auto:
        return Values("number or auto", "N|auto", bounds)
    return Values("number", f"{metavar}|off" if or_off else metavar, bounds, may_be_off=or_off)


TIME = Values("time", "TIME", Bounds(0, 10 * 365 * 86400.0, above=True))
"""A time of at most 10 years: more must be a typing error."""
TIME_OR_OFF = replace(TIME, metavar="TIME|off", may_be_off=True)
BASE_URL_VARIABLES = ("BATCHRUN_BASE_URL", "RUNPOD_ENDPOINT_BASE_URL")


class Argument(NamedTuple):
    """A field that is an option."""

    name: str
    kind: Any
    """Its type."""
    default: Any
    """`dataclasses.MISSING` if the option is required."""
    option: Option

    @property
    def flags(self) -> str:
        """As they are written on the command line; empty: a positional argument."""
        flags = self.option.flags
        return f"--{self.name.replace('_', '-')}" if flags is None else flags

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that it accepts; empty if it is not a choice of words."""
        literals = (kind for kind in (self.kind, *get_args(self.kind)) if get_origin(kind) is Literal)
        return next((get_args(kind) for kind in literals), ())

    def takes(self, kind: type) -> bool:
        """Whether its type is `kind`, or a union with it."""
        return self.kind is kind or kind in get_args(self.kind)

    @property
    def takes_many(self) -> bool:
        """Whether it may be given more than once."""
        return get_origin(self.kind) is tuple or self.option.values.syntax in ("pairs", "sweep", "names")

    @property
    def takes_none(self) -> bool:
        """Whether None is a value."""
        return self.takes(NoneType)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The arguments of a command.

    A subclass that is only a part of others has no `__init__`, and none is compared or printed: generating these
    methods takes about a millisecond of each start.
    """

    from_environment: frozenset[str] = frozenset()
    """Names of options that come from the environment, which is set for every command: explicit options win over it."""


def arguments_of(kind: type[Arguments]) -> list[Argument]:
    """The options of a command, in the order of its help."""
    found = [
        Argument(each.name, each.type, each.default, each.metadata["option"]) for each in fields(kind) if each.metadata
    ]
    return sorted(found, key=lambda each: (GROUPS.index(each.option.group), each.option.rank))
