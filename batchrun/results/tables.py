"""The columns of a table of results: which there are, and what each is called. Pure.

Each row of a table has the same columns, and each column has one type. Both are learnt from all rows, in groups. A
column whose values have no one type is text: each value is written as JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from batchrun.errors import UsageError, shown
from batchrun.results.cells import AFTER, BEFORE, IF_ANY, KNOWN, MOST_COLUMNS, OURS, Cells, Found
from batchrun.results.kinds import NONE, Kind, Schema, common, settled


class Column:
    """A column, and its type so far."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._kind = NONE
        self.is_found = False
        """Whether any row has its field."""

    @property
    def kind(self) -> Kind:
        """Its type in a file."""
        return settled(self._kind)

    def add(self, cells: Cells) -> list[Any]:
        """Its values in some rows, which its type then includes."""
        self.is_found = self.is_found or cells.is_found
        self._kind = common(self._kind, cells.kind)
        return cells.values


class Columns:
    """The columns of a table.

    Args:
        chosen: Their names, dotted paths among them. None: `id`, the fields of the rows' own, what was asked and
            answered, and the values of the sweep.
    """

    def __init__(self, chosen: Sequence[str] | None = None) -> None:
        self._is_chosen = chosen is not None
        self._named = [Column(name) for name in ((*BEFORE, *AFTER) if chosen is None else chosen)]
        self._own: dict[tuple[str, ...], Column] = {}
        self._has_rows = False

    def learn(self, found: Found) -> dict[str, list[Any]]:
        """The values of some rows by column; names and types then include these rows.

        Args:
            found: The cells of these rows.

        Raises:
            UsageError: there are too many columns.
        """
        values = {id(column): column.add(cells) for column, cells in zip(self._named, found.named, strict=True)}
        for cells in () if self._is_chosen and self._has_rows else found.own:
            column = self._own.setdefault(cells.path, Column(cells.path[-1]))
            values[id(column)] = column.add(cells)
        self._has_rows = True
        if self._is_chosen:
            return {column.name: values[id(column)] for column in self._named}
        if len(self._own) > MOST_COLUMNS:
            raise UsageError(
                f"the results have more than {MOST_COLUMNS:,} fields of their own, too many for columns",
                "choose the columns, and all metadata as one of them: --columns id,prompt,text,metadata",
            )
        return {column.name: values.get(id(column)) or [None] * found.rows for column in self.all()}

    def all(self) -> list[Column]:
        """The columns so far, in order."""
        if self._is_chosen:
            return self._named
        taken = set(OURS)
        for path in sorted(self._own, key=len):
            column, name = self._own[path], path[-1]
            if len(path) > 1 and (name in taken or path[0] == "carried"):
                name = ".".join(path)
                while name in taken:
                    name += "_"
            column.name = name
            taken.add(name)
        before, after = self._named[: len(BEFORE)], self._named[len(BEFORE) :]
        own = [column for path, column in self._own.items() if path[0] != "variant"]
        swept = [column for path, column in self._own.items() if path[0] == "variant"]
        after = [column for column in after if column.is_found or column.name not in IF_ANY]
        return [*before, *own, *after, *swept]

    def schema(self) -> Schema:
        """The names and types of the columns so far."""
        return tuple((column.name, column.kind) for column in self.all())

    def refuse_unknown(self) -> None:
        """Refuse the name of a column that no row has had, if there was any row.

        Raises:
            UsageError: names it, and what there is.
        """
        for column in self._named if self._is_chosen and self._has_rows else ():
            if not column.is_found and column.name not in KNOWN:
                near = get_close_matches(column.name, [*KNOWN, *self._names()], 1)
                hint = f"did you mean {near[0]}? " if near else ""
                there = listed(dict.fromkeys((*BEFORE, *self._names(), *AFTER)))
                raise UsageError(
                    f"--columns: no row has {shown(column.name)}", f"{hint}there are, for example: {there}"
                )

    def _names(self) -> list[str]:
        return [path[-1] if path[0] == "metadata" and path[-1] not in OURS else ".".join(path) for path in self._own]


def listed(names: Iterable[str]) -> str:
    """The names of columns in a message, on one line."""
    return ", ".join(name if name and name.isprintable() else shown(name) for name in names)


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
