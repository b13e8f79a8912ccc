"""One screen with the status of a run, for a terminal of any size. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from datetime import datetime
from typing import Literal, NamedTuple

from batchrun.display.brief_status import BriefStatus
from batchrun.display.cost import money, span
from batchrun.display.pace import Pace
from batchrun.display.text import clipped, columns_of, fitted, visible
from batchrun.display.timeline import sparkline
from batchrun.display.units import counted, duration

Tone = Literal["", "title", "good", "bad", "wait"]
_LABEL_COLUMNS = 10
_LEAST_SPARKS = 8
_MOST_COLUMNS = 100
"""Wider lines are hard to read."""
_LEAST_COLUMNS = 20
_KINDS = 4
_SILENT_S = 45.0
"""A process that waits writes every 15 s."""
_FAR_S = 20 * 3600.0
"""Times further away are shown with the day of the week."""
_ASCII = str.maketrans("▁▂▃▄▅▆▇█░…", "_.,-:=+#-~")


class Line(NamedTuple):
    """A line of the screen."""

    text: str
    tone: Tone = ""


def screen(
    s: BriefStatus, now: float, columns: int, lines: int | None = None, *, ascii_only: bool = False
) -> list[Line]:
    """The lines of the screen, from the most important ones down.

    Args:
        s: The status of the run.
        now: UTC epoch seconds.
        columns: The width of the longest line.
        lines: The most lines; None for no limit.
        ascii_only: Whether the terminal lacks block characters.
    """
    columns = max(min(columns, _MOST_COLUMNS), _LEAST_COLUMNS)
    blocks = [
        _title(s, now, columns),
        _counts(s, columns),
        _obstacles(s, now, columns),
        _figures(s, now, columns),
        _endpoints(s, columns),
        _kinds(s, columns),
        _latest(s, now),
        _next_steps(s, now, columns),
    ]
    found = _joined(blocks, spaced=True)
    if lines is not None and len(found) > lines:
        found = _joined(blocks, spaced=False)[:lines]
    if ascii_only:
        found = [Line(line.text.translate(_ASCII), line.tone) for line in found]
    return [Line(clipped(line.text, columns, "~" if ascii_only else "…"), line.tone) for line in found]


def remaining(pace: Pace) -> str:
    """How long the open rows will take, with a range, as a phrase; empty if unknown."""
    if pace.left_s is None:
        return ""
    if pace.least_s is None:
        return f"about {duration(pace.left_s)}"
    most = "longer" if pace.most_s is None else duration(pace.most_s)
    return f"about {duration(pace.left_s)}, from {duration(pace.least_s)} to {most}"


def resume_by(s: BriefStatus, now: float) -> str:
    """The deadline to resume before a result of a job in flight is lost, as a phrase; empty if no job is in flight."""
    if s.resume_by is None:
        return ""
    if s.resume_by <= now:
        return f"results of {counted(s.in_flight, 'job')} in flight may have expired"
    return f"resume by {clock(s.resume_by, now)} (in {duration(s.resume_by - now)}), or results may expire"


def clock(at: float, now: float) -> str:
    """A time of day in the local time zone; with its day if it is far away."""
    return datetime.fromtimestamp(at).astimezone().strftime("%H:%M" if abs(at - now) < _FAR_S else "%a %H:%M")


def one_line(text: str) -> str:
    """Text from outside on one line, without control characters."""
    return visible(" ".join(text.split()))


def _joined(blocks: list[list[Line]], *, spaced: bool) -> list[Line]:
    found: list[Line] = []
    for block in filter(None, blocks):
        found += [Line("")] * (spaced and bool(found)) + block
    return found


def _title(s: BriefStatus, now: float, columns: int) -> list[Line]:
    tone: Tone = "title" if s.process else "good" if s.outcome == "finished" and s.done == s.total else "bad"
    state, ending = one_line(s.state), one_line(s.ending)
    parts = [f"endpoint {one_line(s.endpoint)}"] if s.endpoint else []
    if s.began_at is not None and s.process:
        parts.append(f"since {clock(s.began_at, now)} ({duration(max(now - s.began_at, 0.0))})")
    elif s.seen_at is not None:
        parts.append(f"last seen {clock(s.seen_at, now)} ({duration(max(now - s.seen_at, 0.0))} ago)")
    if columns_of(state) + columns_of(ending) + 2 <= columns:
        first = [Line(state + " " * (columns - columns_of(state) - columns_of(ending)) + ending, tone)]
    else:
        first = [Line(state, "title"), *(Line(text, tone) for text in _wrapped(ending.split(" "), columns, " "))]
    return [*first, *map(Line, _wrapped(parts, columns))]


def _counts(s: BriefStatus, columns: int) -> list[Line]:
    if not s.total:
        return [Line("the inputs are being read" if s.process else "no rows")]
    percent = int(s.share * 1000) / 10  # never 100% before all rows are done
    text = f"{s.done:,} of {s.total:,} rows  {percent:.1f}%  "
    room = min(columns - columns_of(text), 50)
    filled = int(s.share * room)
    bar = "█" * filled + "░" * (room - filled) if room >= 8 else ""  # noqa: PLR2004 - a shorter bar shows nothing
    pending = s.total - s.done - s.in_flight
    counts = [("succeeded", s.succeeded), ("failed", s.failed), ("held", s.held)]
    if s.whole is not None:
        counts += [("to retry", s.whole.waiting), ("not run", pending - s.whole.waiting), *_named(s.whole.answers)]
    else:
        counts += [("in flight", s.in_flight), ("not run", pending)]
    parts = [f"{count:,} {name}" for name, count in counts if count]
    return [Line((text + bar).rstrip(), "good" if s.process else ""), *map(Line, _wrapped(parts, columns))]


def _named(answers: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    return [(f"{name} in this session", count) for name, count in answers]


def _obstacles(s: BriefStatus, now: float, columns: int) -> list[Line]:
    found = [one_line(text) for text in s.obstacles]
    if s.silent_s > _SILENT_S and s.process:
        found.append(f"the process has written nothing since {clock(now - s.silent_s, now)}: is it suspended?")
    shown: list[Line] = []
    for text in found:
        shown += [Line(line, "wait") for line in _labelled("obstacle", text.split(" "), columns, " ")]
    return shown


def _figures(s: BriefStatus, now: float, columns: int) -> list[Line]:
    shown: list[str] = []
    pace, w = s.pace, s.whole
    if pace is not None and w is not None:
        parts = [f"{rate(pace.rows_per_s)} over {duration(pace.span_s)}", f"now {rate(w.rows_per_s)}"]
        if w.tokens_per_s is not None:
            parts.append(f"{w.tokens_per_s:,.0f} tokens/s")
        shown += _labelled("pace", parts, columns)
        room = columns - _LABEL_COLUMNS - len("   16 min 00 s")
        # The last interval is not over, so it would always look like a drop.
        whole = s.ended[:-1]
        if len(whole) > 1 and any(whole) and room >= _LEAST_SPARKS:
            line = sparkline(whole[-room:], room)
            shown.append(f"{'':{_LABEL_COLUMNS}}  {line}  {duration(len(line) * s.every_s)}")
    if pace is not None and pace.left_s is not None and s.done < s.total:
        parts = [*remaining(pace).split(", "), f"until {clock(now + pace.left_s, now)}"]
        shown += _labelled("left", parts, columns)
    if w is not None:
        rows = f" with {counted(w.in_flight, 'row')}" if w.jobs != w.in_flight else ""
        jobs = [f"{w.jobs:,} in flight{rows}", f"window {w.window:,}"]
        if w.workers is None and w.jobs:
            jobs.append(f"{w.running:,} running and {w.queued:,} queued when last polled")
        if w.retries:
            jobs.append(f"{w.retries:,} retried")
        shown += _labelled("jobs", jobs, columns)
        shown += _workers(s, columns)
    if s.cost is not None:
        cost = [span(s.cost.least, s.cost.most)]
        if s.cost.least_projected is not None and s.cost.most_projected is not None and s.done < s.total:
            cost.append(f"about {span(s.cost.least_projected, s.cost.most_projected)} for the whole run")
        shown += _labelled("cost", cost, columns)
    return list(map(Line, shown))


def _workers(s: BriefStatus, columns: int) -> list[str]:
    w = s.workers
    if w is None:
        return _labelled("workers", ["unknown: /health has not answered"], columns)
    kinds = [("running", w.running), ("idle", w.idle), ("starting", w.initializing), ("throttled", w.throttled)]
    kinds.append(("unhealthy", w.unhealthy))
    parts = [f"{count:,} {name}" for name, count in kinds if count] or ["none"]
    # Other people's jobs count, too.
    jobs = [f"{w.executing:,} jobs running", f"{w.queued:,} queued"]
    return _labelled("workers", parts, columns) + _labelled("endpoint", jobs, columns)


def _endpoints(s: BriefStatus, columns: int) -> list[Line]:
    if len(s.parts) < 2:  # noqa: PLR2004 - a single endpoint is the whole run
        return []
    width = min(max(columns_of(one_line(endpoint)) for endpoint in s.parts), 24)
    shown = ["endpoints"]
    for endpoint, part in s.parts.items():
        w = part.workers
        parts = [rate(part.rows_per_s), f"{part.running:,} running", f"{part.queued:,} queued"]
        if w is not None:
            parts.append(f"{w.running:,} of {w.running + w.idle + w.initializing:,} workers busy")
        if part.cost is not None:
            parts.append(money(part.cost.most))
        shown.append(f"  {fitted(one_line(endpoint), width)}  {', '.join(parts)}")
    return [Line(clipped(line, columns)) for line in shown]


def _kinds(s: BriefStatus, columns: int) -> list[Line]:
    kinds, among = s.failures.kinds, s.failures.among
    if not kinds:
        return []
    title = f"failures by kind (of {among:,} rows)" if among else "failures by kind"
    parts = [f"{each.rows:,} {one_line(each.kind)}" for each in kinds[:_KINDS]]
    if more := sum(each.rows for each in kinds[_KINDS:]):
        parts.append(f"{more:,} others")
    return [Line(title, "bad"), *(Line(f"  {line}") for line in _wrapped(parts, columns - 2))]


def _latest(s: BriefStatus, now: float) -> list[Line]:
    if not s.failures.latest:
        return []
    width = max(len(each.kind) for each in s.failures.latest)
    shown = [Line("latest failures", "bad")]
    for each in s.failures.latest:
        at = "" if each.at is None else clock(each.at, now)
        said = one_line(f"{each.id}: {each.message}")
        shown.append(Line(f"  {at:9} {fitted(one_line(each.kind), width)}  {said}"))
    return shown


def _next_steps(s: BriefStatus, now: float, columns: int) -> list[Line]:
    if s.process or s.problem or s.done == s.total:
        return []
    shown = _wrapped(by.split(" "), columns, " ") if (by := resume_by(s, now)) else []
    return [Line(text, "wait") for text in [*shown, f"batchrun resume {shlex.quote(s.state)}"]]


def rate(rows_per_s: float) -> str:
    """A pace in a readable unit: slow ones per minute or per hour."""
    for unit, seconds in (("s", 1), ("min", 60)):
        if rows_per_s * seconds >= 1 or not rows_per_s:
            return f"{rows_per_s * seconds:,.1f} rows/{unit}"
    return f"{rows_per_s * 3600:,.1f} rows/h"


def _labelled(label: str, parts: Iterable[str], columns: int, mark: str = ", ") -> list[str]:
    lines = _wrapped(filter(None, parts), columns - _LABEL_COLUMNS - 2, mark)
    return [f"{label if not index else '':{_LABEL_COLUMNS}}  {line}" for index, line in enumerate(lines)]


def _wrapped(parts: Iterable[str], columns: int, mark: str = ", ") -> list[str]:
    """The parts on as few lines as possible; no part is divided."""
    lines: list[str] = []
    for part in parts:
        longer = f"{lines[-1]}{mark}{part}" if lines else part
        if lines and columns_of(longer) <= columns:
            lines[-1] = longer
        else:
            lines.append(part)
    return lines
