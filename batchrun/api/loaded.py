"""The results of a run, for a program: as records, or as a table."""

from __future__ import annotations

import html
import os
from collections.abc import Iterator, Sequence
from dataclasses import fields
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from batchrun.commands import export as exporting
from batchrun.commands.export import Wanted
from batchrun.commands.request_arguments import several
from batchrun.display import summary
from batchrun.display.cost import money
from batchrun.files.exactjson import load as parsed
from batchrun.files.extras import needs_extra
from batchrun.results.tables import parse_columns
from batchrun.runs.exported import RunResults
from batchrun.runs.state_path import state_file


class Results:
    """The results of a run in input order, read from its files whenever they are asked for, even during the run.

    Args:
        state: The run's state file.
    """

    __slots__ = ("state",)

    def __init__(self, state: Path) -> None:
        self.state = state

    def __repr__(self) -> str:
        return f"batchrun.load({str(self.state)!r})"

    def records(self, *, with_errors: bool = False) -> Iterator[dict[str, Any]]:
        """Each record, as in the results file, in batchrun's own format.

        Args:
            with_errors: Whether to give the error records of failed and held rows, too.

        Raises:
            StateError: the state file or a results file cannot be read.
        """
        with RunResults(self.state, "batchrun", with_errors=with_errors) as results:
            yield from map(parsed, results.lines())

    def to_arrow(self, columns: Sequence[str] | None = None, *, with_errors: bool = False) -> Any:
        """The results as a pyarrow Table, with the columns of `batchrun export`.

        Args:
            columns: Their names, dotted paths among them; None: those that a table has by itself.
            with_errors: Whether to have the failed and held rows, too.

        Raises:
            UsageError: no row has a column, or pyarrow is not installed.
            StateError: the state file or a results file cannot be read.
            OutputError: there is no room for a temporary file.
        """
        with needs_extra("the results are a pyarrow Table"):
            from pyarrow import parquet  # noqa: PLC0415 - an extra
        chosen = None if columns is None else parse_columns(",".join(several(columns)))
        with TemporaryDirectory(prefix="batchrun-") as folder:
            file = Path(folder) / "results.parquet"
            exporting.export(self.state, file, BytesIO(), Wanted(with_errors=with_errors, columns=chosen))
            return parquet.read_table(file)

    def to_pandas(self, columns: Sequence[str] | None = None, *, with_errors: bool = False) -> Any:
        """The results as a DataFrame of pandas; see `to_arrow`."""
        return self.to_arrow(columns, with_errors=with_errors).to_pandas()


class Summary(summary.Summary):
    """The outcome of a run, and its results."""

    __slots__ = ()

    @classmethod
    def of(cls, found: summary.Summary) -> Self:
        """The same outcome."""
        return cls(**{each.name: getattr(found, each.name) for each in fields(found)})

    def records(self, *, with_errors: bool = False) -> Iterator[dict[str, Any]]:
        """Each record in input order; see `Results.records`."""
        return Results(self.state).records(with_errors=with_errors)

    def to_arrow(self, columns: Sequence[str] | None = None, *, with_errors: bool = False) -> Any:
        """The results as a pyarrow Table; see `Results.to_arrow`."""
        return Results(self.state).to_arrow(columns, with_errors=with_errors)

    def to_pandas(self, columns: Sequence[str] | None = None, *, with_errors: bool = False) -> Any:
        """The results as a DataFrame of pandas; see `Results.to_arrow`."""
        return Results(self.state).to_pandas(columns, with_errors=with_errors)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        counts = [("succeeded", self.succeeded), *self.rest, *self.answers]
        rows = [(name, f"{count:,}") for name, count in counts]
        rows += [(f"failed: {each.kind}", f"{each.rows:,}, first: {each.example_message}") for each in self.failures]
        if self.input_tokens is not None:
            rows.append(("tokens", f"{self.input_tokens:,} in, {self.output_tokens or 0:,} out"))
        if self.cost is not None:
            rows.append(("cost", money(self.cost.most)))
        rows += [("results", str(path)) for path in self.results] + [("errors", str(path)) for path in self.errors]
        head = f"{self.outcome}: {self.succeeded:,} of {self.total:,} rows succeeded"
        cells = (f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in rows)
        reason = f"<p>{html.escape(self.reason)}</p>" if self.reason else ""
        return f"<table><caption>{html.escape(head)}</caption>{''.join(cells)}</table>{reason}"


def load(state: str | os.PathLike[str]) -> Results:
    """The results of a run that was made earlier, or is still under way.

    Args:
        state: Its state file, or its folder of results.

    Raises:
        StateError: it cannot be a state file. One that does not exist is noticed when it is read.
    """
    return Results(state_file(state))
