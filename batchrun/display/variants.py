"""The figures of a run by variant: tables for a terminal, and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from textwrap import wrap
from typing import Any, NamedTuple

import orjson

from batchrun.display.cost import money
from batchrun.display.quality import finding, quality_json, quality_tables
from batchrun.display.summary import EndpointWork, Percentiles
from batchrun.display.text import clipped, columns_of, fitted
from batchrun.display.units import duration
from batchrun.evaluation.quality import Quality
from batchrun.files.exactjson import dump
from batchrun.results.record import CACHED
from batchrun.results.text import MARK_NAMES, MARKS

_COLUMNS = 100
_SHOWN = 40
_LABEL_COLUMNS = 40
_EXACT_BELOW = 1000
_OF_WORDS = ("variant", "failure")
"""Heads of columns that have no numbers."""


class Tokens(NamedTuple):
    """Tokens per result."""

    mean: float
    p95: int
    """95th percentile, nearest rank; from 1,000 on, exact to three digits."""


class Histogram:
    """Counts whole numbers by their first three digits, so that a million of them take little memory."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._total = 0
        self._number = 0

    def add(self, value: int, count: int = 1) -> None:
        """Count a number >= 0, `count` times."""
        bucket = value
        if value >= _EXACT_BELOW:
            unit = 10 ** (len(str(value)) - 3)
            bucket = value - value % unit
        self._counts[bucket] = self._counts.get(bucket, 0) + count
        self._total += value * count
        self._number += count

    def percentiles(self, shares: Sequence[float]) -> list[int] | None:
        """Nearest-rank percentiles for ascending `shares` (0 to 1); None if nothing was counted."""
        if not self._number:
            return None
        found: list[int] = []
        seen = 0
        for value in sorted(self._counts):
            seen += self._counts[value]
            while len(found) < len(shares) and seen > min(int(shares[len(found)] * self._number), self._number - 1):
                found.append(value)
        return found

    def times(self) -> Percentiles | None:
        """The percentiles of times; None if nothing was counted."""
        found = self.percentiles((0.5, 0.9, 0.99))
        return None if found is None else Percentiles(*found)

    def tokens(self) -> Tokens | None:
        """Mean and percentile of token counts; None if nothing was counted."""
        found = self.percentiles((0.95,))
        return None if found is None else Tokens(self._total / self._number, found[0])


@dataclass(slots=True)
class VariantReport:
    """One combination of a sweep's values, all samples together; or all rows of a run without a sweep."""

    label: str
    """`temperature=0.4 top_p=1`, or `all`."""
    values: dict[str, Any]
    """Key -> value; empty without a sweep."""
    rows: int = 0
    succeeded: int = 0
    failed: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    """Failure kind -> rows."""
    truncated: int = 0
    """This and the next four: rows that succeeded with such an answer, see `Summary`."""
    empty: int = 0
    filtered: int = 0
    reasoning_only: int = 0
    tool_calls: int = 0
    cached: int = 0
    """Rows that succeeded with an answer from the cache, without a job."""
    input_tokens: Tokens | None = None
    """None, here and in the next three: no result reports it."""
    output_tokens: Tokens | None = None
    delay_ms: Percentiles | None = None
    execution_ms: Percentiles | None = None
    cost: float | None = None
    """Its share, by execution time, of the upper bound of the run's cost; None without a price."""


@dataclass(frozen=True, slots=True)
class EndpointReport(EndpointWork):
    """What one endpoint of a pool has done, how long its jobs took, and what they cost."""

    execution_ms: Percentiles | None
    """None if no job there has completed."""
    cost: float | None
    """The upper bound; None without a price."""


@dataclass(frozen=True, slots=True)
class VariantTable:
    """The variants of a run, in the order of the sweep."""

    state: str
    variants: list[VariantReport]
    endpoints: list[EndpointReport] = field(default_factory=list)
    """The endpoints that the run has had; empty if it has had one, or compares them in a sweep."""
    quality: list[Quality] = field(default_factory=list)
    """The quality by each scorer, in the order of their last use; empty if the run was not scored."""
    scores_are_outdated: bool = False
    """Whether a result is newer than the scores."""


def to_json(report: VariantTable) -> bytes:
    """One JSON object with all variants, and a newline."""
    data: dict[str, Any] = {"state": report.state, "variants": [_variant_json(variant) for variant in report.variants]}
    if report.endpoints:
        data["endpoints"] = [_endpoint_json(each) for each in report.endpoints]
    if report.quality:
        data["quality"] = [quality_json(each) for each in report.quality]
        data["scores_are_outdated"] = report.scores_are_outdated
    return dump(data, orjson.OPT_APPEND_NEWLINE)


def _variant_json(variant: VariantReport) -> dict[str, Any]:
    data = asdict(variant)
    for name in ("input_tokens", "output_tokens", "delay_ms", "execution_ms"):
        numbers = getattr(variant, name)
        data[name] = None if numbers is None else numbers._asdict()
    data["shares"] = {mark: getattr(variant, mark) / variant.succeeded for mark in MARKS if variant.succeeded}
    return data


def _endpoint_json(report: EndpointReport) -> dict[str, Any]:
    return asdict(report) | {"execution_ms": report.execution_ms and report.execution_ms._asdict()}


def render(report: VariantTable) -> str:
    """The tables for a terminal of 100 columns; at most the 40 variants with the most rows."""
    shown = largest(report)
    cells = [*tables(replace(report, variants=shown)), *quality_tables(report.quality)]
    lines = "\n\n".join("\n".join(_table(rows)) for rows in cells).split("\n")
    for quality in report.quality:
        sentence = f"{quality.scorer}: {finding(quality.whole)}"
        lines += ["", *wrap(sentence, _COLUMNS, break_long_words=False, break_on_hyphens=False)]
        known = sum(each.scored + each.unscored for each in quality.whole.variants)
        if (missing := sum(each.succeeded for each in report.variants) - known) > 0:
            lines.append(f"results without a score: {missing:,}; score again")
    if report.scores_are_outdated:
        lines += ["", "some results are newer than the scores: score again"]
    if len(report.variants) > len(shown):
        lines += ["", f"smaller variants, not shown: {len(report.variants) - len(shown):,}; --json lists all"]
    return "\n".join(lines) + "\n"


def largest(report: VariantTable) -> list[VariantReport]:
    """The 40 variants with the most rows, in the order of the sweep."""
    numbers = sorted(range(len(report.variants)), key=lambda number: -report.variants[number].rows)[:_SHOWN]
    return [report.variants[number] for number in sorted(numbers)]


def tables(report: VariantTable) -> list[list[list[str]]]:
    """Tables of cells, each with a header row: rows and tokens, times, and, if any, endpoints, marks and failures."""
    shown = report.variants
    labels = [_cut(variant.label) for variant in shown]
    with_cost = any(variant.cost is not None for variant in shown)
    head = ["variant", "rows", "succeeded", "failed", "tokens in mean", "p95", "out mean", "p95"]
    rows = [
        [label, f"{v.rows:,}", f"{v.succeeded:,}", f"{v.failed:,}", *_tokens(v.input_tokens), *_tokens(v.output_tokens)]
        for label, v in zip(labels, shown, strict=True)
    ]
    if with_cost:
        head.append("cost")
        for row, variant in zip(rows, shown, strict=True):
            row.append("-" if variant.cost is None else money(variant.cost))
    times = [
        [label, *_times(variant.delay_ms), *_times(variant.execution_ms)]
        for label, variant in zip(labels, shown, strict=True)
    ]
    timed = [["variant", "delay p50", "p90", "p99", "execution p50", "p90", "p99"], *times]
    failures = [
        [label, kind, f"{count:,}"]
        for label, variant in zip(labels, shown, strict=True)
        for kind, count in variant.failures.items()
    ]
    found = [[head, *rows], timed]
    if report.endpoints:
        found.append(_endpoints(report.endpoints))
    marks = [mark for mark in (*MARKS, CACHED) if any(getattr(variant, mark) for variant in shown)]
    if marks:
        marked = [
            [label, *(_share(getattr(variant, mark), variant.succeeded) for mark in marks)]
            for label, variant in zip(labels, shown, strict=True)
        ]
        found.append([["variant", *(MARK_NAMES.get(mark, "from cache") for mark in marks)], *marked])
    if failures:
        found.append([["variant", "failure", "rows"], *failures])
    return found


def _endpoints(reports: list[EndpointReport]) -> list[list[str]]:
    head = ["endpoint", "jobs", "succeeded", "failed", "in flight", "rows/s", "execution p50", "p90", "p99", "cost"]
    rows = [
        [
            _cut(each.endpoint),
            *(f"{count:,}" for count in (each.jobs, each.succeeded, each.failed, each.in_flight)),
            f"{each.rows_per_s:,.1f}",
            *_times(each.execution_ms),
            "-" if each.cost is None else money(each.cost),
        ]
        for each in reports
    ]
    return [head, *rows]


def _share(count: int, of: int) -> str:
    return f"{count:,} ({count / of:.1%})" if count else "0"


def _tokens(tokens: Tokens | None) -> tuple[str, str]:
    return ("-", "-") if tokens is None else (f"{tokens.mean:,.0f}", f"{tokens.p95:,}")


def _times(times: Percentiles | None) -> list[str]:
    return ["-"] * len(Percentiles._fields) if times is None else [duration(ms / 1000) for ms in times]


def _cut(label: str) -> str:
    return clipped(label, _LABEL_COLUMNS, "...")


def _table(rows: list[list[str]]) -> list[str]:
    """Lines with columns of minimal width: the first and those of words aligned left, the others right."""
    widths = [max(map(columns_of, column)) for column in zip(*rows, strict=True)]
    of_words = [not at or head in _OF_WORDS for at, head in enumerate(rows[0])]
    return [
        "  ".join(
            fitted(cell, width) if is_word else cell.rjust(width)
            for cell, width, is_word in zip(row, widths, of_words, strict=True)
        )
        for row in rows
    ]
