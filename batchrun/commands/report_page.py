"""`batchrun report --html`: the report of a run as a web page, made from its state file."""

from __future__ import annotations

from dataclasses import replace
from math import nan
from pathlib import Path
from sys import stdout

from batchrun.commands.export import refuse_own_files
from batchrun.display.cost import span
from batchrun.display.page import is_page, page, plot, table
from batchrun.display.timeline import Point, Timeline
from batchrun.display.units import duration
from batchrun.display.variants import largest, tables
from batchrun.errors import UsageError
from batchrun.prompts.ownership import first_line
from batchrun.results.writer import write_whole
from batchrun.runs.spending import cost_so_far
from batchrun.state import figures
from batchrun.state.snapshot import StateSnapshot
from batchrun.state.stored_options import read_options

try:
    from batchrun.display import charts
except ImportError as error:
    raise UsageError("--html needs matplotlib", "pip install 'runpod-batchrun[report]'") from error
except OSError as error:  # matplotlib found no folder for its cache
    raise UsageError(
        f"--html needs matplotlib, which cannot start: {error}", "set MPLCONFIGDIR to a folder for its cache"
    ) from error

from batchrun.display.variants import VariantTable

_LONGEST = 15
_LISTED = 50
_MESSAGE_CHARS = 500
_UNITS_LEAST = 3
"""A time axis is at least this many of its units long."""
_BINS = 40


def write(report: VariantTable, target: Path) -> None:
    """Write the page to a file, which is replaced by a rename.

    Raises:
        UsageError: the target is a folder, or a file of the run.
        StateError: the state file cannot be read.
        OutputError: the target cannot be written.
    """
    with StateSnapshot(Path(report.state)) as store:
        refuse_own_files(store, target, stdout.buffer, lambda path: is_page(first_line(path)))
        write_whole(target, [_page(report, store)])


def _page(report: VariantTable, store: StateSnapshot) -> bytes:
    options = read_options(store)
    rows, succeeded, failed = (
        sum(getattr(variant, name) for variant in report.variants) for name in ("rows", "succeeded", "failed")
    )
    left = rows - succeeded - failed
    title = "Every row succeeded" if succeeded == rows else f"{failed:,} of {rows:,} rows failed"
    title = f"{left:,} of {rows:,} rows not finished" if left else title
    cost = cost_so_far(store, store.counts(), store.counters(), options)
    seconds = figures.sessions_ms(store) / 1000
    facts = [("rows", f"{rows:,}"), ("succeeded", f"{succeeded:,}"), ("failed", f"{failed:,}")]
    facts += [("running time", duration(seconds))]
    facts += [] if cost is None else [("cost", span(cost.least, cost.most))]
    sections = [*_over_time(store), *_latency(store)]
    shown = tables(replace(report, variants=largest(report)))
    more = len(report.variants) > len(largest(report))
    first = f"The largest of {len(report.variants):,} variants" if more else "Variants"
    names = {"rows": first, "delay p50": "Delay and execution", "jobs": "Endpoints", "failure": "Failures by kind"}
    sections += [table(names.get(head[1], "Answers to check"), head, rest, numbers=True) for head, *rest in shown]
    if longest := figures.longest_jobs(store, _LONGEST):
        cells = [
            (job.row_id[:200], duration(job.execution_ms / 1000), duration(job.delay_ms / 1000)) for job in longest
        ]
        sections.append(table("Rows with the longest execution", ("row", "execution", "delay"), cells, numbers=True))
    if failures := figures.first_failures(store, _LISTED, _MESSAGE_CHARS):
        name = "Failed rows" if failed <= _LISTED else f"The first {_LISTED} of {failed:,} failed rows"
        cells = [(row.row_id[:200], row.kind, row.message) for row in failures]
        sections.append(table(name, ("row", "kind", "message"), cells))
    return page(title, report.state, facts, sections)


def _over_time(store: StateSnapshot) -> list[str]:
    points = [Point(*point) for point in Timeline(store.get_setting("timeline")).to_json()]
    sections = []
    start_ms = min([session[0] for session in figures.sessions(store)], default=0)
    if len(points) > 1:
        unit, unit_ms = _unit(points[-1].at_ms - start_ms)
        x = [(point.at_ms - start_ms) / unit_ms for point in points]
        ended = [point.succeeded + point.failed for point in points]
        pairs = zip(range(len(points) - 1), range(1, len(points)), strict=True)
        rate = [nan] + [
            max(ended[b] - ended[a], 0) / max((points[b].at_ms - points[a].at_ms) / 1000, 0.001) for a, b in pairs
        ]
        sections.append(plot("Rows per second", charts.lines("rows per second", unit, {"rows/s": (x, rate)})))
        jobs = {
            name.replace("_", " "): (x, [getattr(p, name) for p in points])
            for name in ("window", "in_flight", "running")
        }
        sections.append(plot("Jobs in flight", charts.lines("jobs in flight", unit, jobs)))
    failed = figures.failures_over_time(store)
    if failed:
        unit, unit_ms = _unit(max(at_ms for _, at_ms, _ in failed) - start_ms)
        sections.append(
            plot(
                "Failures over time",
                _histogram(
                    "failures",
                    unit,
                    [(kind, max(at_ms - start_ms, 0) / unit_ms, count) for kind, at_ms, count in failed],
                ),
            )
        )
    return sections


def _unit(span_ms: int) -> tuple[str, int]:
    """The unit of a time axis of this length, and the unit's milliseconds."""
    units = (("days", 86_400_000), ("hours", 3_600_000), ("minutes", 60_000))
    return next((unit for unit in units if span_ms >= _UNITS_LEAST * unit[1]), ("seconds", 1000))


def _latency(store: StateSnapshot) -> list[str]:
    found = []
    columns: tuple[figures.TimeColumn, ...] = ("delay_ms", "execution_ms")
    for column in columns:
        name, values = column.removesuffix("_ms"), figures.job_times(store, column)
        if values:
            title = f"{name.capitalize()} times of the jobs"
            found.append(plot(title, _histogram(name, "seconds", [(name, value, count) for value, count in values])))
    return found


def _histogram(name: str, x_label: str, values: list[tuple[str, float, int]]) -> str:
    low, high = min(value for _, value, _ in values), max(value for _, value, _ in values)
    width = (high - low) / _BINS or 0.01
    x = [low + (index + 0.5) * width for index in range(_BINS)]
    series: dict[str, tuple[list[float], list[float]]] = {}
    for kind, value, count in values:
        series.setdefault(kind, (x, [0.0] * _BINS))[1][min(int((value - low) / width), _BINS - 1)] += count
    return charts.bars(name, x_label, series, width * 0.9)
