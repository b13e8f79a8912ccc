"""`batchrun report --html`: the report of a run as a web page, made from its state file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from sys import stdout

from batchrun.commands.export import refuse_own_files
from batchrun.commands.view import view_path
from batchrun.config import DEFAULT_BASE_URL, VERSION, RunOptions
from batchrun.display import charts, distributions, page, quality_page
from batchrun.display.cost import money, span
from batchrun.display.quality import finding
from batchrun.display.time_axis import TimeAxis, unit_of_rate
from batchrun.display.timeline import Point, Timeline
from batchrun.display.units import counted, duration
from batchrun.display.variants import Tokens, VariantReport, VariantTable, largest, tables
from batchrun.files.exactjson import dump
from batchrun.prompts.ownership import first_line
from batchrun.results.completion import model_of
from batchrun.results.reader import read_groups
from batchrun.results.record import read_record
from batchrun.results.text import MARK_NAMES
from batchrun.results.writer import write_whole
from batchrun.runs.spending import cost_so_far
from batchrun.state import figures
from batchrun.state.endpoints import known_endpoints
from batchrun.state.lock import holder
from batchrun.state.snapshot import StateSnapshot
from batchrun.state.stored_options import read_options

_LONGEST = 10
_LISTED = 50
_ID_CHARS = 200
_MESSAGE_CHARS = 500
_NAMED = 5
"""How many inputs, models and values are listed; of the rest, only the number is given."""
_VALUE_CHARS = 120


def write(report: VariantTable, target: Path) -> None:
    """Write the page to a file, which is replaced by a rename.

    Raises:
        UsageError: the target is a folder, or a file of the run.
        StateError: the state file cannot be read.
        OutputError: the target cannot be written.
    """
    with StateSnapshot(Path(report.state)) as store:
        refuse_own_files(store, target, stdout.buffer, lambda path: page.is_page(first_line(path)))
        write_whole(target, [_page(report, store, target)])


def _page(report: VariantTable, store: StateSnapshot, target: Path) -> bytes:
    options = read_options(store)
    shown = _shown(report)
    title, detail, more = _finding(report, store)
    sections = [page.section("What ran", page.facts(_facts(report, store, options)))]
    for quality in reversed(report.quality):
        sections += quality_page.sections(quality, shown)
    points = [Point(*point) for point in Timeline(store.get_setting("timeline")).to_json()]
    time = TimeAxis([(start, end) for start, end, _ in figures.sessions(store)], points)
    sections += [_variants(report, shown), *_over_time(store, time), *_details(report, shown)]
    sections += _failures(report, shown, store, time)
    if longest := [job for job in figures.longest_jobs(store, _LONGEST) if job.execution_ms]:
        cells = [
            (job.row_id[:_ID_CHARS], duration(job.execution_ms / 1000), duration(job.delay_ms / 1000))
            for job in longest
        ]
        longest_rows = page.table(("row", "execution", "delay"), cells, numbers=True)
        sections.append(page.section("Rows with the longest execution", longest_rows))
    return page.page(
        over=f"Report on {_name(store)}",
        title=title,
        detail=detail,
        more=more,
        figures=_figures(report, store, options),
        link=_link(store, target),
        sections=sections,
        end=f"Made by batchrun {VERSION} on {_moment(datetime.now(UTC).timestamp())} from {Path(report.state).name}.",
    )


def _shown(report: VariantTable) -> list[VariantReport]:
    """The variants that the page shows: if there are too many, the best ones; without scores, the largest ones."""
    most = largest(report)
    if len(most) == len(report.variants) or not report.quality:
        return most
    scores = {each.label: each.score.mean for each in report.quality[-1].whole.variants if each.score is not None}
    best = sorted(report.variants, key=lambda variant: -scores.get(variant.label, -1.0))[: len(most)]
    return [variant for variant in report.variants if variant in best]


def _finding(report: VariantTable, store: StateSnapshot) -> tuple[str, str, str]:
    """The finding: a sentence, its end with the interval, and its basis."""
    outcome = _outcome(report, store)
    scored = [each for each in report.quality if any(variant.score for variant in each.whole.variants)]
    if not scored:
        return outcome, "", ""
    said = finding(scored[-1].whole)
    more = [*quality_page.basis(scored[-1]), f"{outcome}."]
    more += ["Some results are newer than the scores."] * report.scores_are_outdated
    said = f"T{said[1:]}" if said.startswith("the ") else said
    sentence, bracket, rest = said.partition(" (95% interval")
    return sentence, f"{bracket}{rest}".strip(), " ".join(more)


def _outcome(report: VariantTable, store: StateSnapshot) -> str:
    rows, succeeded, failed = _counts(report)
    if not rows:
        return "The run has no rows yet"
    if left := rows - succeeded - failed:
        running = "The run is in progress: " if holder(store.path) else ""
        return f"{running}{left:,} of {counted(rows, 'row')} not finished" + (f", {failed:,} failed" * bool(failed))
    return f"{failed:,} of {counted(rows, 'row')} failed" if failed else f"All {counted(rows, 'row')} succeeded"


def _counts(report: VariantTable) -> tuple[int, int, int]:
    rows, succeeded, failed = (
        sum(getattr(variant, name) for variant in report.variants) for name in ("rows", "succeeded", "failed")
    )
    return rows, succeeded, failed


def _name(store: StateSnapshot) -> str:
    return store.path.name.removesuffix(".state")


def _link(store: StateSnapshot, target: Path) -> str:
    """A link to the page with all answers, if it is there."""
    view = view_path(store.path)
    if not view.is_file() or view.absolute() == target.absolute():
        return ""
    return page.link_to(os.path.relpath(view, target.parent), "View the answers")


def _figures(report: VariantTable, store: StateSnapshot, options: RunOptions) -> list[tuple[str, str]]:
    rows, succeeded, failed = _counts(report)
    seconds = figures.sessions_ms(store) / 1000
    found = [("rows", f"{rows:,}"), ("succeeded", f"{succeeded:,}"), ("failed", f"{failed:,}")]
    found += [("not finished", f"{rows - succeeded - failed:,}")] if rows > succeeded + failed else []
    found.append(("running time", duration(seconds)))
    if seconds and succeeded:
        factor, unit = unit_of_rate((succeeded + failed) / seconds)
        found.append((f"rows per {unit}", f"{(succeeded + failed) / seconds * factor:,.3g}"))
    cost = cost_so_far(store, store.counts(), store.counters(), options)
    return found + ([] if cost is None else [("cost", span(cost.least, cost.most))])


def _facts(report: VariantTable, store: StateSnapshot, options: RunOptions) -> list[tuple[str, str]]:
    endpoints = known_endpoints(store, options)
    found = [("endpoint" if len(endpoints) == 1 else "endpoints", _listed(endpoints))]
    if not options.is_local and options.base_url != DEFAULT_BASE_URL:
        found.append(("server", options.base_url))
    models = list(_models(store))
    found += [("model" if len(models) == 1 else "models", _listed(models))] if models else []
    inputs = [_file_name(source.path) for source in store.sources()]
    found += [("input", _listed(inputs))] if inputs else []
    for key, values in options.sweep.keys:
        found.append((f"sweep of {key}", _listed([_value(value) for value in values])))
    if options.sweep.repeat > 1:
        found.append(("samples of each", f"{options.sweep.repeat:,}"))
    request = options.request
    for name, given in (("set", request.override), ("default", request.default)):
        if given:
            found.append((name, _listed([f"{key}={_value(value)}" for key, value in given.items()])))
    found += [("system message", _short(request.system))] if request.system else []
    if request.template is not None and request.template.prompt:
        found.append(("prompt", _short(request.template.prompt)))
    if report.quality:
        found.append(("scored with", _listed([quality.scorer for quality in report.quality])))
    return found + _dates(store)


def _dates(store: StateSnapshot) -> list[tuple[str, str]]:
    sessions = figures.sessions(store)
    if not sessions:
        return []
    started, seen, outcome = min(sessions)[0] / 1000, max(session[1] for session in sessions) / 1000, sessions[-1][2]
    state = outcome or ("in progress" if holder(store.path) else "cut off")
    many = f", after {len(sessions):,} sessions" if len(sessions) > 1 else ""
    return [("began", _moment(started)), ("last active", f"{_moment(seen)} ({state}{many})")]


def _moment(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"


def _models(store: StateSnapshot) -> Iterator[str]:
    """The models that the first answers of each results file name, the most frequent first."""
    seen: Counter[str] = Counter()
    for output in islice(store.outputs(), _NAMED):
        for line in next(read_groups(store.lines_path(output), end=output.committed_bytes), []):
            record = read_record(line.raw)
            model = None if record is None else model_of(record.output)
            seen.update([model] if model else [])
    yield from (model for model, _ in seen.most_common())


def _file_name(name: str) -> str:
    """An input without its folder, and without the query of a URL, which may have a signature."""
    return "stdin" if name == "-" else name.partition("?")[0].rstrip("/").rpartition("/")[2] or name


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(_short(name) for name in names[:_NAMED]) + more


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _VALUE_CHARS else f"{text[: _VALUE_CHARS - 1]}…"


def _value(value: object) -> str:
    return value if isinstance(value, str) else dump(value).decode()


def _variants(report: VariantTable, shown: list[VariantReport]) -> str:
    scored = {each.label: each for each in report.quality[-1].whole.variants} if report.quality else {}
    columns = {
        "variant": [variant.label for variant in shown],
        **quality_page.columns([scored.get(variant.label) for variant in shown]),
        "rows": [f"{variant.rows:,}" for variant in shown],
        "failed": [f"{variant.failed:,}" for variant in shown],
        "tokens in": [_mean(variant.input_tokens) for variant in shown],
        "tokens out": [_mean(variant.output_tokens) for variant in shown],
        "execution": [
            "-" if variant.execution_ms is None else duration(variant.execution_ms.p50 / 1000) for variant in shown
        ],
    }
    note = "Tokens are means per answer, execution is the median time of a job."
    if any(variant.cost is not None for variant in shown):
        columns["cost"] = ["-" if variant.cost is None else money(variant.cost) for variant in shown]
        note += " Cost is the upper bound, divided by execution time."
    which = f"The {len(shown)} {'best' if scored else 'largest'} of {len(report.variants):,} variants;"
    more = f"{which} `report --json` lists all." if len(report.variants) > len(shown) else ""
    title = "Variants" if len(report.variants) > 1 else "Figures"
    cells = list(zip(*columns.values(), strict=True))
    return page.section(title, page.table(list(columns), cells, numbers=True), note, more)


def _mean(tokens: Tokens | None) -> str:
    return "-" if tokens is None else f"{tokens.mean:,.0f}"


def _over_time(store: StateSnapshot, time: TimeAxis) -> list[str]:
    plots = []
    if time.is_known:
        jobs = [time.values(name.replace("_", " "), name) for name in ("window", "in_flight", "running")]
        plots = [_pace("Rows", time, "succeeded", "failed"), _line("Jobs in flight", time, jobs)]
        if any(y for part in time.values("", "output_tokens").parts for _, y in part):
            plots.insert(1, _pace("Output tokens", time, "output_tokens"))
    columns: tuple[figures.TimeColumn, ...] = ("delay_ms", "execution_ms")
    for column in columns:
        title = "Time in the queue" if column == "delay_ms" else "Execution time"
        plots += distributions.times(title, figures.job_times(store, column))
    return [page.pair(plots)]


def _pace(what: str, time: TimeAxis, *names: str) -> str:
    unit, series = time.pace(what, *names)
    return _line(f"{what} per {unit}", time, [series])


def _line(title: str, time: TimeAxis, series: list[charts.Series]) -> str:
    most = max((y for each in series for part in each.parts for _, y in part), default=0)
    up = charts.axis(0, most, ticks=4, whole=len(series) > 1)
    drawn = charts.lines(title, time.axis, up, series, filled=len(series) == 1)
    return page.section(title, (charts.key([each.label for each in series]) if len(series) > 1 else "") + drawn)


def _details(report: VariantTable, shown: list[VariantReport]) -> list[str]:
    """The endpoints of a pool, and the answers to check."""
    names = {"jobs": "Endpoints", **dict.fromkeys(MARK_NAMES.values(), "Answers to check")}
    return [
        page.section(names[head[1]], page.table(head, rest, numbers=True))
        for head, *rest in tables(replace(report, variants=shown))
        if head[1] in names
    ]


def _failures(report: VariantTable, shown: list[VariantReport], store: StateSnapshot, time: TimeAxis) -> list[str]:
    kinds: Counter[str] = Counter()
    for variant in report.variants:
        kinds.update(variant.failures)
    if not kinds:
        return []
    rows, _, failed = _counts(report)
    most = max(kinds.values())
    bars = [
        ("", kind, f"{count:,}", f"{count / rows:.1%} of the rows", charts.bar(f"{kind}: {count:,}", count / most))
        for kind, count in kinds.most_common()
    ]
    found = [page.section("Failures by kind", page.strips(bars))]
    if timed := figures.failures_over_time(store):
        found.append(distributions.failures("Failures over time", time, timed))
    sections = [page.pair(found)]
    if len(report.variants) > 1:
        head = ["variant", *kinds]
        cells = [
            [variant.label, *(f"{variant.failures.get(kind, 0):,}" for kind in kinds)]
            for variant in shown
            if variant.failures
        ]
        sections.append(page.section("Failures by variant", page.table(head, cells, numbers=True)))
    first = figures.first_failures(store, _LISTED, _MESSAGE_CHARS)
    name = "Failed rows" if failed <= _LISTED else f"The first {_LISTED} of {failed:,} failed rows"
    listed = page.table(("row", "kind", "message"), [(row.row_id[:_ID_CHARS], row.kind, row.message) for row in first])
    return [*sections, page.section(name, listed)]
