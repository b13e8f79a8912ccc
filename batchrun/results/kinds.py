"""The types of the columns of a table, learnt from JSON values. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from batchrun.files.exactjson import dump
from batchrun.results.written import TOO_DEEP, deep_json

_MOST_FIELDS = 200
"""An object with more is a map, not a record: it is written as text."""
_MOST_LEVELS = 16
"""What is nested more deeply is written as text."""
_EXACT = 2**53
_LONG = 2**63


@dataclass(frozen=True, slots=True)
class Kind:
    """The type of a column, or of a part of it."""

    name: str
    """`bool`, `int` (exact as a float, too), `long` (any other integer of 64 bits), `float`, `text`, `list`, `object`;
    `json`: text, each value as JSON; `none`: there are only nulls."""
    item: Kind | None = None
    """The type of the items of a list."""
    fields: tuple[tuple[str, Kind], ...] = ()
    """The names and types of the fields of an object, in the order of their first occurrence."""


Schema = tuple[tuple[str, Kind], ...]
"""The names and types of the columns of a table."""

NONE, BOOL, INT, LONG, FLOAT, TEXT, JSON = map(Kind, ("none", "bool", "int", "long", "float", "text", "json"))
_NAMED = {kind.name: kind for kind in (NONE, BOOL, INT, LONG, FLOAT, TEXT, JSON)}
_SIMPLE = {type(None): NONE, bool: BOOL, float: FLOAT, str: TEXT}
_WIDER = {frozenset({INT, LONG}): LONG, frozenset({INT, FLOAT}): FLOAT}


def kind_of(values: Sequence[Any], types: Collection[type] | None = None, levels: int = _MOST_LEVELS) -> Kind:
    """The one type that has all of some JSON values; `json` if there is none, or they are nested more deeply.

    Args:
        values: The values.
        types: Their Python types; None: they are still to be found.
        levels: How deeply they may be nested.
    """
    kind = NONE
    types = set(map(type, values)) if types is None else types
    for each in types:
        if each in _SIMPLE:
            found = _SIMPLE[each]
        elif each is int:
            numbers = values if len(types) == 1 else [value for value in values if type(value) is int]
            low, high = min(numbers), max(numbers)
            is_long = low >= -_LONG and high < _LONG
            found = INT if low >= -_EXACT and high <= _EXACT else LONG if is_long else JSON
        elif not levels:
            found = JSON
        elif each is list:
            items = [item for value in values if type(value) is list for item in value]
            found = Kind("list", kind_of(items, levels=levels - 1))
        else:
            found = _kind_of_objects([value for value in values if type(value) is dict], levels)
        kind = common(kind, found)
    return kind


def _kind_of_objects(objects: list[dict[str, Any]], levels: int) -> Kind:
    names = dict.fromkeys(name for each in objects for name in each)
    if len(names) > _MOST_FIELDS:
        return JSON
    fields = ((name, kind_of([each.get(name) for each in objects], levels=levels - 1)) for name in names)
    return Kind("object", None, tuple(fields))


def common(one: Kind, other: Kind) -> Kind:
    """The narrowest type that has the values of both."""
    if one == other or other is NONE:
        return one
    if one is NONE:
        return other
    if one.item is not None and other.item is not None:
        return Kind("list", common(one.item, other.item))
    if one.name == other.name == "object":
        fields = dict(one.fields)
        for name, kind in other.fields:
            fields[name] = common(fields.get(name, NONE), kind)
        return Kind("object", None, tuple(fields.items())) if len(fields) <= _MOST_FIELDS else JSON
    return _WIDER.get(frozenset({one, other}), JSON)


def settled(kind: Kind) -> Kind:
    """The type as it can be written: nulls alone are text, and what has a part without one type is JSON as a whole."""
    if kind is NONE:
        return TEXT
    if kind.item is not None:
        item = settled(kind.item)
        return JSON if item is JSON else Kind("list", item)
    if kind.name == "object":
        fields = tuple((name, settled(each)) for name, each in kind.fields)
        return Kind("object", None, fields) if fields and all(each is not JSON for _, each in fields) else JSON
    return kind


def plain(kind: Kind) -> tuple[Any, ...]:
    """The type as tuples and texts, for another process; see `from_plain`."""
    return kind.name, kind.item and plain(kind.item), tuple((name, plain(each)) for name, each in kind.fields)


def from_plain(data: tuple[Any, ...]) -> Kind:
    """The inverse of `plain`."""
    name, item, fields = data
    if item is None and name in _NAMED:
        return _NAMED[name]
    return Kind(name, item and from_plain(item), tuple((name, from_plain(each)) for name, each in fields))


def json_text(value: Any) -> str:
    """A value as JSON text."""
    try:
        return dump(value).decode()
    except TypeError:
        try:
            return deep_json(value)
        except RecursionError:
            return f'"{TOO_DEEP}"'
