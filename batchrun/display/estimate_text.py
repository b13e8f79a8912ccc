"""The estimate of a run, for a terminal and as JSON."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from typing import Any

import orjson

from batchrun.display.cost import span
from batchrun.display.estimate import Estimate, Range, Staffing
from batchrun.display.units import counted, duration

_WIDTH = 78


def render(found: Estimate) -> str:
    """The estimate for a terminal, at most 78 columns wide."""
    failed = f"; {found.pilot_failed:,} of them failed" if found.pilot_failed else ""
    drawn = f"{counted(found.pilot_rows, 'row')} drawn at random{failed}"
    now = set(found.workers.values())
    shown = [each for each in found.staffing if each.workers is None or {each.workers} != now]
    most_now = max(now, default=0)
    lines = [
        f"estimate for the {counted(found.left, 'row')} left, from {drawn}",
        "",
        f"  {'workers':<16}{'time':<32}{'' if found.max_cost is None else 'cost'}".rstrip(),
        *(_line(found, each) for each in sorted(shown, key=lambda each: each.workers or most_now)),
        "",
    ]
    for name, tokens in (("tokens in", found.input_tokens), ("tokens out", found.output_tokens)):
        lines.append(f"  {name:<16}{'not reported by the worker' if tokens is None else _numbers(tokens)}")
    if found.spent is not None:
        lines.append(f"  {'spent so far':<16}{span(*found.spent)}")
    if found.max_cost is not None:
        lines.append(f"  {'suggested':<16}--max-cost {found.max_cost:g}")
    lines.append("")
    for note in notes(found):
        lines += textwrap.wrap(note, _WIDTH, initial_indent="  - ", subsequent_indent="    ")
    return "\n".join(lines) + "\n"


def _line(found: Estimate, staffing: Staffing) -> str:
    if staffing.workers is not None:
        name = f"{staffing.workers} each" if len(found.workers) > 1 else str(staffing.workers)
    else:
        name = f"{'+'.join(str(count) for count in found.workers.values())} (as now)"
    cost = "" if staffing.cost is None else span(*staffing.cost)
    return f"  {name:<16}{_times(staffing.time_s):<32}{cost}".rstrip()


def _times(time_s: Range) -> str:
    low, high = duration(time_s.low), duration(time_s.high)
    return low if low == high else f"{low} to {high}"


def _numbers(found: Range) -> str:
    low, high = f"{found.low:,.0f}", f"{found.high:,.0f}"
    return low if low == high else f"{low} to {high}"


def notes(found: Estimate) -> list[str]:
    """The limits of the estimate, one clause each."""
    said = ["each range should contain the true value in 19 of 20 runs, if the rest of the input resembles the pilot"]
    if found.startup_s >= 1:
        said.append(
            f"a worker took its first job after {duration(found.startup_s)}; the longer times include this once"
        )
    if not found.is_full:
        said.append(
            "the pilot never filled a worker, so it does not show how many jobs a worker runs at once: a larger pilot"
            " (--pilot 200) gives narrower ranges"
        )
    if any(each.is_limited for each in found.staffing):
        said.append(
            "with that many workers, the rate limit of the API or --concurrency sets the pace: more workers would not"
            " help, and --pack may"
        )
    if found.max_cost is None:
        said.append("--price-per-hour adds the cost")
    return said


def to_json(found: Estimate) -> bytes:
    """One JSON object and a newline; each range is an object with `low` and `high`."""
    return orjson.dumps(_plain({**asdict(found), "notes": notes(found)}), option=orjson.OPT_APPEND_NEWLINE)


def _plain(value: Any) -> Any:
    if isinstance(value, Range):
        return {"low": round(value.low, 6), "high": round(value.high, 6)}
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value
