"""`batchrun cache`: shows the contents of an answer cache, and prunes it."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from batchrun.display.text import clipped, visible
from batchrun.display.units import counted
from batchrun.results.record import iso_time
from batchrun.state.cache_upkeep import CacheUpkeep

_SHOWN = 20
_MOST_COLUMNS = 50


@dataclass(frozen=True, slots=True)
class EndpointAnswers:
    """The answers of one endpoint and model."""

    endpoint: str
    model: str | None
    """None if its answers name no model."""
    answers: int


@dataclass(frozen=True, slots=True)
class CacheReport:
    """The contents of a cache, after it was pruned."""

    path: str
    answers: int
    size_bytes: int
    """Size of the file."""
    oldest_at: str | None
    """When the oldest answer was stored; None without answers. The same applies to the newest."""
    newest_at: str | None
    removed: int
    """Answers that this command has pruned."""
    endpoints: list[EndpointAnswers]
    """Those with the most answers first."""


def inspect_cache(
    path: Path, *, older_than_s: float | None = None, max_size_bytes: int | None = None, now: float | None = None
) -> CacheReport:
    """Inspect a cache; prune it first if a limit is given. Runs may use it at the same time.

    Args:
        path: The file.
        older_than_s: Remove answers that are older, in seconds; None: no limit.
        max_size_bytes: Remove the oldest answers until the file has at most this size; None: no limit.
        now: UTC epoch seconds; None: the current time.

    Raises:
        StateError: there is no such file, or it cannot be used.
    """
    now, removed = time.time() if now is None else now, 0
    with CacheUpkeep(path) as cache:
        if older_than_s is not None:
            removed += cache.remove_before(round((now - older_than_s) * 1000))
        if max_size_bytes is not None:
            removed += cache.shrink_to(max_size_bytes)
        if removed:
            cache.give_back()
        found = cache.figures()
    return CacheReport(
        path=str(path),
        answers=found.answers,
        size_bytes=found.size_bytes,
        oldest_at=None if found.oldest_ms is None else iso_time(found.oldest_ms / 1000),
        newest_at=None if found.newest_ms is None else iso_time(found.newest_ms / 1000),
        removed=removed,
        endpoints=[EndpointAnswers(endpoint, model or None, count) for endpoint, model, count in found.by_endpoint],
    )


def render(report: CacheReport) -> str:
    """The report for a terminal."""
    lines = [f"{report.path}: {counted(report.answers, 'answer')}, {report.size_bytes / 1e6:,.1f} MB"]
    if report.oldest_at is not None and report.newest_at is not None:
        lines[0] += f", stored from {_minute(report.oldest_at)} to {_minute(report.newest_at)} UTC"
    if report.removed:
        lines.append(f"removed: {report.removed:,}")
    if report.endpoints:
        lines.append("")
    for each in report.endpoints[:_SHOWN]:
        model = "" if each.model is None else f"  model {clipped(visible(each.model), _MOST_COLUMNS)}"
        lines.append(f"  {each.answers:>11,}  {visible(each.endpoint)}{model}")
    if len(report.endpoints) > _SHOWN:
        lines.append(f"  and {len(report.endpoints) - _SHOWN:,} more endpoints or models; --json lists all")
    return "\n".join(lines) + "\n"


def _minute(time: str) -> str:
    return time[:16].replace("T", " ")


def to_json(report: CacheReport) -> bytes:
    """One JSON object and a newline."""
    return orjson.dumps(asdict(report), option=orjson.OPT_APPEND_NEWLINE)
