"""The columns of a table of results: which there are, and how the value of each is found. Pure.

Each row of a table has the same columns, and each column has one type. Both are learnt from all rows, in groups. A
column whose values have no one type is text: each value is written as JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from batchrun.errors import UsageError, shown
from batchrun.results.chats import messages_of, prompt_of
from batchrun.results.kinds import NONE, Kind, Schema, common, kind_of, settled
from batchrun.results.paths import values_at

_MOST_COLUMNS = 1000
"""More are no table: the keys of the lines' metadata are then something other than names."""
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


Find = Callable[[Sequence[Row]], list[Any]]
"""Finds a value in each of some rows; `_MISSING` where its field is absent."""


def _each(find: Callable[[Row], Any]) -> Find:
    return lambda rows: list(map(find, rows))


def _in_usage(name: str) -> Find:
    def find(rows: Sequence[Row]) -> list[Any]:
        every = [row.record.get("usage") for row in rows]
        return [usage.get(name, _MISSING) if isinstance(usage, dict) else _MISSING for usage in every]

    return find


def _errors(rows: Sequence[Row]) -> list[Any]:
    every = [row.record.get("error") for row in rows]
    return [f"{each['kind']}: {each['message']}" if isinstance(each, dict) else _MISSING for each in every]


def _request(row: Row) -> Any:
    return row.record.get("request", _MISSING if row.line is None else row.line)


_MADE: dict[str, Find] = {
    "prompt": lambda rows: [None if row.request is None else prompt_of(row.request) for row in rows],
    "messages": lambda rows: [None if row.request is None else messages_of(row.request) for row in rows],
    "request": _each(_request),
    "error": _errors,
    **{name: _in_usage(name) for name in ("input_tokens", "output_tokens", "reasoning_tokens", "cached_tokens")},
}
"""Columns that are made of a row; all others are fields of its record."""
_OF_THE_REQUEST = frozenset({"prompt", "messages", "request"})
_BEFORE = ("id",)
"""The columns before those of the rows' own fields."""
_AFTER = (
    *("prompt", "text", "parsed", "reasoning", "tool_calls", "finish_reason"),
    *("input_tokens", "output_tokens", "reasoning_tokens", "cached_tokens", "status", "error"),
)
"""The columns after them; those of the sweep follow."""
_IF_ANY = frozenset({"parsed", "reasoning", "tool_calls", "reasoning_tokens", "cached_tokens"})
"""Columns that a table has only if some row has the field."""
OWN_COLUMNS = (*_BEFORE, *(name for name in _AFTER if name not in _IF_ANY))
"""The columns that every table has by itself."""
_OURS = frozenset(
    {*_MADE, *_BEFORE, *_AFTER}
    | {"texts", "finish_reasons", "usage", "output", "metadata", "carried", "variant", "source", "job"}
)
"""Names that are ours: a row's own field of such a name is found, and named, by its whole path."""
_SPREAD = ("metadata", "carried", "variant")
"""Fields whose own fields become columns."""
_PARTS = {
    "usage": ("input_tokens", "output_tokens", "reasoning_tokens", "cached_tokens"),
    "error": ("kind", "message", "raw"),
    "source": ("file", "line"),
    "job": (
        *("id", "endpoint", "attempts", "delay_ms", "execution_ms", "worker_id", "submitted_at", "completed_at"),
        *("platform_retries", "possible_duplicate", "same_as"),
    ),
}
_KNOWN = (_OURS - {*_SPREAD}) | {f"{name}.{part}" for name, parts in _PARTS.items() for part in parts}
"""Columns that may be empty in every row; the name of any other column that no row has must be a mistake."""


class Column:
    """A column, and its type so far."""

    def __init__(self, name: str, find: Find) -> None:
        self.name = name
        self._find = find
        self._kind = NONE
        self.is_found = False
        """Whether any row has its field."""

    @property
    def kind(self) -> Kind:
        """Its type in a file."""
        return settled(self._kind)

    def values(self, rows: Sequence[Row]) -> list[Any]:
        """Its values in some rows, which its type then includes."""
        found = self._find(rows)
        types = set(map(type, found))
        if object in types:
            self.is_found = self.is_found or len(types) > 1
            found = [None if value is _MISSING else value for value in found]
        else:
            self.is_found = self.is_found or bool(types)
        self._kind = common(self._kind, kind_of(found))
        return found


class Columns:
    """The columns of a table.

    Args:
        chosen: Their names, dotted paths among them. None: `id`, the fields of the rows' own, what was asked and
            answered, and the values of the sweep.
    """

    def __init__(self, chosen: Sequence[str] | None = None) -> None:
        self._chosen = None if chosen is None else [Column(name, _finder(name)) for name in chosen]
        self._ours = [Column(name, _finder(name)) for name in (*_BEFORE, *_AFTER) if chosen is None]
        self._own: dict[tuple[str, ...], Column] = {}
        self._has_rows = False
        self._seen: dict[str, set[str]] = {name: set() for name in ("", *_SPREAD)}
        self._shapes: set[tuple[str, ...]] = set()
        """The names in records of which the fields are known."""

    @property
    def needs_requests(self) -> bool:
        """Whether a column is made of what was asked."""
        return any(each.name.partition(".")[0] in _OF_THE_REQUEST for each in self._chosen or self._ours)

    def learn(self, rows: Sequence[Row]) -> dict[str, list[Any]]:
        """The values of some rows by column; names and types then include these rows.

        Raises:
            UsageError: there are too many columns.
        """
        if self._chosen is not None:
            if not self._has_rows:
                self._find_own(rows)  # for the advice of `refuse_unknown`
                self._has_rows = True
            return {column.name: column.values(rows) for column in self._chosen}
        self._find_own(rows)
        if len(self._own) > _MOST_COLUMNS:
            raise UsageError(
                f"the results have more than {_MOST_COLUMNS:,} fields of their own, too many for columns",
                "choose the columns, and all metadata as one of them: --columns id,prompt,text,metadata",
            )
        found = {id(column): column.values(rows) for column in (*self._ours, *self._own.values())}
        return {column.name: found[id(column)] for column in self.all()}

    def all(self) -> list[Column]:
        """The columns so far, in order."""
        if self._chosen is not None:
            return self._chosen
        taken = set(_OURS)
        for path in sorted(self._own, key=len):
            column, name = self._own[path], path[-1]
            if len(path) > 1 and (name in taken or path[0] == "carried"):
                name = ".".join(path)
                while name in taken:
                    name += "_"
            column.name = name
            taken.add(name)
        before, after = self._ours[: len(_BEFORE)], self._ours[len(_BEFORE) :]
        own = [column for path, column in self._own.items() if path[0] != "variant"]
        swept = [column for path, column in self._own.items() if path[0] == "variant"]
        after = [column for column in after if column.is_found or column.name not in _IF_ANY]
        return [*before, *own, *after, *swept]

    def schema(self) -> Schema:
        """The names and types of the columns so far."""
        return tuple((column.name, column.kind) for column in self.all())

    def refuse_unknown(self) -> None:
        """Refuse the name of a column that no row has had, if there was any row.

        Raises:
            UsageError: names it, and what there is.
        """
        for column in self._chosen or () if self._has_rows else ():
            if not column.is_found and column.name not in _KNOWN:
                near = get_close_matches(column.name, [*_KNOWN, *self._names()], 1)
                hint = f"did you mean {near[0]}? " if near else ""
                there = ", ".join(dict.fromkeys((*_BEFORE, *self._names(), *_AFTER)))
                raise UsageError(
                    f"--columns: no row has {shown(column.name)}", f"{hint}there are, for example: {there}"
                )

    def _names(self) -> list[str]:
        return [path[-1] if path[0] == "metadata" and path[-1] not in _OURS else ".".join(path) for path in self._own]

    def _find_own(self, rows: Sequence[Row]) -> None:
        """Make columns of the fields that are the rows' own, as far as they are new."""
        for row in rows:
            record = row.record
            if (names := tuple(record)) not in self._shapes:
                self._shapes = {*self._shapes, names} if len(self._shapes) < _MOST_SHAPES else {names}
                self._add("", [name for name in names if name not in _OURS])
            for name in _SPREAD:
                inner = record.get(name)
                if isinstance(inner, dict):
                    if not inner.keys() <= self._seen[name]:
                        self._add(name, list(inner))
                elif inner is not None and (name,) not in self._own:
                    self._own[name,] = Column(name, _unless_spread(name))
            if len(self._own) > _MOST_COLUMNS:
                return

    def _add(self, place: str, names: list[str]) -> None:
        for name in names:
            path = (place, name) if place else (name,)
            if path not in self._own:
                self._own[path] = Column(name, _at(path))
                self._seen[place].add(name)


def parse_columns(text: str) -> tuple[str, ...]:
    """The names in `id,prompt,metadata.topic`.

    Raises:
        UsageError: a name is empty, or given twice.
    """
    names = tuple(name.strip() for name in text.split(","))
    if "" in names:
        raise UsageError(f"--columns {shown(text)}: a name between commas is empty", "for example --columns id,text")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"--columns: {shown(twice)} is given twice", "name each column once")
    return names


def _finder(name: str) -> Find:
    """How a column is found by its name: by its path, or as a field of the metadata or of the variant."""
    if name in _MADE:
        return _MADE[name]
    path = tuple(name.split("."))
    if path[0] in _OF_THE_REQUEST:
        make, rest = _MADE[path[0]], path[1:]
        return lambda rows: [next(values_at(value, rest), _MISSING) for value in make(rows)]
    if path[0] in _OURS:
        return _at(path) if len(path) == 1 else _each(lambda row: next(values_at(row.record, path), _MISSING))

    def find(row: Row) -> Any:
        places = (row.record, *(row.record.get(key) for key in _SPREAD))
        return next((value for place in places for value in values_at(place, path)), _MISSING)

    return _each(find)


def _at(path: tuple[str, ...]) -> Find:
    name = path[-1]
    if len(path) == 1:
        return lambda rows: [row.record.get(name, _MISSING) for row in rows]

    def find(row: Row) -> Any:
        place = row.record.get(path[0])
        return place.get(name, _MISSING) if isinstance(place, dict) else _MISSING

    return _each(find)


def _unless_spread(name: str) -> Find:
    def find(row: Row) -> Any:
        value = row.record.get(name, _MISSING)
        return _MISSING if isinstance(value, dict) else value

    return _each(find)
