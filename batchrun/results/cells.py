"""Finds the cells of a table in the results: the values of each column in a group of rows. Pure.

Groups may be searched in any process: what is found in one is only numbers, texts, lists and the like.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple, Self

from batchrun.results.chats import messages_of, prompt_of
from batchrun.results.kinds import NONE, Kind, from_plain, kind_of, plain
from batchrun.results.paths import values_at

MOST_COLUMNS = 1000
"""More are not a table: the keys of the lines' metadata are then something other than names."""
_MOST_SHAPES = 1000
_MISSING: Any = object()


class Row(NamedTuple):
    """What the columns of a row are made of."""

    record: dict[str, Any]
    """The record of its result or of its failure, in batchrun's own format."""
    line: Any = None
    """Its input line as parsed; None if it is unknown, or not needed."""
    request: Mapping[str, Any] | None = None
    """What was sent for it; None if it is unknown, or not needed."""


class _Objects:
    """An object for each of some rows; what is absent or something else counts as one without fields."""

    def __init__(self, values: list[Any]) -> None:
        types = set(map(type, values))
        self.has_others = not types <= {dict, object, type(None)}
        """Whether a value is neither an object nor null nor absent."""
        self._all = values if types == {dict} else [each if type(each) is dict else {} for each in values]
        self.shapes = set(map(tuple, self._all))
        """The names of their fields; most groups have few such combinations."""
        self.fields: set[str] = set().union(*self.shapes)
        """The names of all fields."""
        self._in_all = self.fields.intersection(*self.shapes)

    def values(self, name: str) -> list[Any]:
        """The values of a field; `_MISSING` where it is absent."""
        if name not in self.fields:
            return [_MISSING] * len(self._all)
        if name in self._in_all:
            return list(map(itemgetter(name), self._all))
        return [each.get(name, _MISSING) for each in self._all]


class _Group:
    """Some rows, and the objects in their records."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.records = _Objects([row.record for row in rows])
        self._inner: dict[str, _Objects] = {}

    def inner(self, name: str) -> _Objects:
        """The objects that the records have in a field."""
        if name not in self._inner:
            self._inner[name] = _Objects(self.records.values(name))
        return self._inner[name]


Find = Callable[[_Group], list[Any]]
"""Finds a value in each of some rows; `_MISSING` where its field is absent."""


def _each(find: Callable[[Row], Any]) -> Find:
    return lambda group: list(map(find, group.rows))


def _at(path: tuple[str, ...]) -> Find:
    name = path[-1]
    if len(path) == 1:
        return lambda group: group.records.values(name)
    return lambda group: group.inner(path[0]).values(name)


def _errors(group: _Group) -> list[Any]:
    every = group.records.values("error")
    return [f"{each['kind']}: {each['message']}" if isinstance(each, dict) else _MISSING for each in every]


def _request(row: Row) -> Any:
    return row.record.get("request", _MISSING if row.line is None else row.line)


_MADE: dict[str, Find] = {
    "prompt": _each(lambda row: None if row.request is None else prompt_of(row.request)),
    "messages": _each(lambda row: None if row.request is None else messages_of(row.request)),
    "request": _each(_request),
    "error": _errors,
    **{name: _at(("usage", name)) for name in ("input_tokens", "output_tokens", "reasoning_tokens", "cached_tokens")},
}
"""Columns that are made of a row; all others are fields of its record."""
_OF_THE_REQUEST = frozenset({"prompt", "messages", "request"})
BEFORE = ("id",)
"""The columns before those of the rows' own fields."""
AFTER = (
    *("prompt", "text", "parsed", "reasoning", "tool_calls", "finish_reason"),
    *("input_tokens", "output_tokens", "reasoning_tokens", "cached_tokens", "status", "error"),
)
"""The columns after them; those of the sweep follow."""
IF_ANY = frozenset({"parsed", "reasoning", "tool_calls", "reasoning_tokens", "cached_tokens"})
"""Columns that a table has only if some row has the field."""
OWN_COLUMNS = (*BEFORE, *(name for name in AFTER if name not in IF_ANY))
"""The columns that every table has by itself."""
OURS = frozenset(
    {*_MADE, *BEFORE, *AFTER}
    | {"texts", "finish_reasons", "usage", "output", "metadata", "carried", "variant", "source", "job"}
)
"""Names that are ours: a row's own field of such a name is found, and named, by its whole path."""
SPREAD = ("metadata", "carried", "variant")
"""Fields whose own fields become columns."""
PARTS = {
    "usage": ("input_tokens", "output_tokens", "reasoning_tokens", "cached_tokens"),
    "error": ("kind", "message", "raw"),
    "source": ("file", "line"),
    "job": (
        *("id", "endpoint", "attempts", "delay_ms", "execution_ms", "worker_id", "submitted_at", "completed_at"),
        *("platform_retries", "possible_duplicate", "same_as"),
    ),
}
KNOWN = (OURS - {*SPREAD}) | {f"{name}.{part}" for name, parts in PARTS.items() for part in parts}
"""Columns that may be empty in every row; the name of any other column that no row has must be a mistake."""


class Cells(NamedTuple):
    """A column in some rows."""

    path: tuple[str, ...]
    """Where its field is in a record, for a field of the rows' own; else its name."""
    is_found: bool
    """Whether any of the rows has its field."""
    kind: Kind
    """The type of its values."""
    values: list[Any]
    """One for each row; None where the field is absent."""


class Found(NamedTuple):
    """The columns in some rows."""

    rows: int
    """How many rows."""
    named: list[Cells]
    """The chosen columns, or those that each table has by itself, in order."""
    own: list[Cells]
    """The columns of the rows' own fields, in the order of their first occurrence. If columns are chosen, only those
    of the first rows, without values: their names are for advice."""

    def plain(self) -> tuple[Any, ...]:
        """The same as what `marshal` can write, for another process."""
        named, own = ([(*each[:2], plain(each.kind), each.values) for each in cells] for cells in self[1:])
        return self.rows, named, own

    @classmethod
    def from_plain(cls, data: tuple[Any, ...]) -> Self:
        """The inverse of `plain`."""
        rows, *both = data
        named, own = (
            [Cells(path, is_found, from_plain(kind), values) for path, is_found, kind, values in cells]
            for cells in both
        )
        return cls(rows, named, own)


class CellFinder:
    """Finds the cells of rows, group by group.

    Args:
        chosen: The names of the columns, see `tables.Columns`.
    """

    def __init__(self, chosen: Sequence[str] | None = None) -> None:
        names = (*BEFORE, *AFTER) if chosen is None else chosen
        self._is_chosen = chosen is not None
        self._named = {name: _finder(name) for name in names}
        self._own: dict[tuple[str, ...], Find] = {}
        self._has_rows = False
        self._seen: dict[str, set[str]] = {name: set() for name in ("", *SPREAD)}
        self._shapes: set[tuple[str, ...]] = set()
        """The names in records of which the fields are known."""

    @property
    def needs_requests(self) -> bool:
        """Whether a column is made of what was asked."""
        return any(name.partition(".")[0] in _OF_THE_REQUEST for name in self._named)

    def find(self, rows: Sequence[Row]) -> Found:
        """The cells of some rows; of too many columns, only the first are found."""
        group = _Group(rows)
        named = [_cells((name,), find(group)) for name, find in self._named.items()]
        if self._is_chosen and self._has_rows:
            return Found(len(rows), named, [])
        self._has_rows = True
        if not self._knows(group):
            self._find_own(rows)
        if self._is_chosen:
            return Found(len(rows), named, [_cells(path, []) for path in self._own])
        return Found(len(rows), named, [_cells(path, find(group)) for path, find in self._own.items()])

    def _knows(self, group: _Group) -> bool:
        """Whether all fields that are the rows' own are columns already."""
        inner = [(name, group.inner(name)) for name in SPREAD if name in group.records.fields]
        return group.records.shapes <= self._shapes and all(
            each.fields <= self._seen[name] and (not each.has_others or (name,) in self._own) for name, each in inner
        )

    def _find_own(self, rows: Sequence[Row]) -> None:
        """Make columns of the fields that are the rows' own, as far as they are new."""
        for row in rows:
            record = row.record
            if (names := tuple(record)) not in self._shapes:
                self._shapes = {*self._shapes, names} if len(self._shapes) < _MOST_SHAPES else {names}
                self._add("", [name for name in names if name not in OURS])
            for name in SPREAD:
                inner = record.get(name)
                if isinstance(inner, dict):
                    if not inner.keys() <= self._seen[name]:
                        self._add(name, list(inner))
                elif inner is not None and (name,) not in self._own:
                    self._own[name,] = _unless_spread(name)
            if len(self._own) > MOST_COLUMNS:
                return

    def _add(self, place: str, names: list[str]) -> None:
        for name in names:
            path = (place, name) if place else (name,)
            if path not in self._own:
                self._own[path] = _at(path)
                self._seen[place].add(name)


def _finder(name: str) -> Find:
    """How a column is found by its name: by its path, or as a field of the metadata or of the variant."""
    if name in _MADE:
        return _MADE[name]
    path = tuple(name.split("."))
    if path[0] in _OF_THE_REQUEST:
        make, rest = _MADE[path[0]], path[1:]
        return lambda rows: [next(values_at(value, rest), _MISSING) for value in make(rows)]
    if path[0] in OURS:
        return _at(path) if len(path) == 1 else _each(lambda row: next(values_at(row.record, path), _MISSING))

    def find(row: Row) -> Any:
        places = (row.record, *(row.record.get(key) for key in SPREAD))
        return next((value for place in places for value in values_at(place, path)), _MISSING)

    return _each(find)


def _unless_spread(name: str) -> Find:
    def find(row: Row) -> Any:
        value = row.record.get(name, _MISSING)
        return _MISSING if isinstance(value, dict) else value

    return _each(find)


def _cells(path: tuple[str, ...], values: list[Any]) -> Cells:
    if not values or (values[0] is _MISSING and values.count(_MISSING) == len(values)):
        return Cells(path, False, NONE, [None] * len(values))
    types = set(map(type, values))
    if object in types:
        values = [None if value is _MISSING else value for value in values]
        types = types - {object} | {type(None)}
    return Cells(path, True, kind_of(values, types), values)
