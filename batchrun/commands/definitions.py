"""How an option is defined: a field of a dataclass with its default, its values, its help and its place in the help."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import NoneType
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin

from batchrun.config import Bounds

T = TypeVar("T")

WHERE = "What and where"
ASKED = "What is asked"
AT_ONCE = "How much at once"
FAILURES = "Failures"
GUARDS = "Guards"
MONEY = "Money"
LOCAL = "Local endpoint"
EMULATED = "What it emulates"
DISPLAY = "Display"
GROUPS = (WHERE, ASKED, AT_ONCE, FAILURES, GUARDS, MONEY, LOCAL, EMULATED, DISPLAY)
"""The headings of `--help`, in their order."""

Syntax = Literal["plain", "number", "number or auto", "time", "size", "halt", "pairs", "sweep", "name", "run file"]


@dataclass(frozen=True, slots=True)
class Values:
    """Which values an option takes, where its type alone does not say."""

    syntax: Syntax = "plain"
    """How a text becomes a value: `8h`, `256MB`, `10%`, KEY=VALUE, a path as it is given."""
    metavar: str | None = None
    """What the help calls a value; None: by its type."""
    bounds: Bounds | None = None
    """Which numbers are taken: times in seconds, sizes in bytes, prices in dollars. None: it is not a number."""


@dataclass(frozen=True, slots=True)
class Option:
    """How a field is said."""

    group: str
    """Its heading in the help."""
    rank: int
    """Its place under the heading: what is used most comes first. Equals are in the order of their definition."""
    help: str
    values: Values = Values()
    flags: str | None = None
    """`-o --output`, or `--limits/--no-limits`; empty: an argument by its position. None: its name behind dashes."""
    variables: tuple[str, ...] = ()
    """Environment variables beside BATCHRUN_<NAME>, which each option has."""


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
    return field(default=default, metadata=said(place, text, values, flags=flags, variables=variables))


def said(
    place: tuple[str, int],
    text: str,
    values: Values = Values(),
    *,
    flags: str | None = None,
    variables: tuple[str, ...] = (),
) -> Mapping[str, Option]:
    """The metadata of a field that is an option."""
    return {"option": Option(*place, text, values, flags, variables)}


def words(metavar: str) -> Values:
    """Any text."""
    return Values(metavar=metavar)


def numbers(
    least: float, most: float, *, whole: bool = False, above: bool = False, metavar: str = "N", or_auto: bool = False
) -> Values:
    """Numbers within bounds, see `Bounds`; with `auto` for None."""
    bounds = Bounds(least, most, whole=whole, above=above)
    return Values("number or auto", "N|auto", bounds) if or_auto else Values("number", metavar, bounds)


class Argument(NamedTuple):
    """A field that is an option."""

    name: str
    kind: Any
    """Its type."""
    default: Any
    """`dataclasses.MISSING` where it must be given."""
    option: Option

    @property
    def flags(self) -> str:
        """As they are written on the command line; empty: it is known by its position."""
        flags = self.option.flags
        return f"--{self.name.replace('_', '-')}" if flags is None else flags

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that it takes; empty: they are not a few words."""
        literals = (kind for kind in (self.kind, *get_args(self.kind)) if get_origin(kind) is Literal)
        return next((get_args(kind) for kind in literals), ())

    def takes(self, kind: type) -> bool:
        """Whether its type is this one, or has it as an alternative."""
        return self.kind is kind or kind in get_args(self.kind)

    @property
    def takes_many(self) -> bool:
        """Whether it may be given several times."""
        return get_origin(self.kind) is tuple or self.option.values.syntax in ("pairs", "sweep")

    @property
    def takes_none(self) -> bool:
        """Whether None is a value."""
        return self.takes(NoneType)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What a command is given."""

    from_environment: frozenset[str] = frozenset()
    """The names that an environment variable has said: it speaks to every command, so what one is told itself wins."""


def arguments_of(kind: type[Arguments]) -> list[Argument]:
    """What a command may be given, in the order of its help."""
    found = [
        Argument(each.name, each.type, each.default, each.metadata["option"]) for each in fields(kind) if each.metadata
    ]
    return sorted(found, key=lambda each: (GROUPS.index(each.option.group), each.option.rank))
