"""The sentences and the sections of the page about the scores of a run. Pure."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from batchrun.display.charts import Axis, Dot, axis, badge, scatter, strip, strip_scale
from batchrun.display.cost import money
from batchrun.display.page import pair, section, strips, table
from batchrun.display.text import clipped
from batchrun.display.units import counted
from batchrun.display.variants import VariantReport
from batchrun.evaluation.quality import Comparison, Group, Quality, VariantQuality
from batchrun.evaluation.statistics import Interval

_LABEL_COLUMNS = 60
_MOST_GROUPS = 40
_SIDE_BY_SIDE = 5
"""The most variants that have a column in a table of groups."""
_SEVERAL = 2
"""With at least this many other variants, the best one was selected among several."""


def basis(quality: Quality) -> list[str]:
    """The basis of a scorer's finding, in sentences."""
    comparisons = quality.whole.comparisons
    best = [each for each in quality.whole.variants if not comparisons or each.label == comparisons[0].better]
    found = [f"By the scorer '{quality.scorer}'."]
    if comparisons:
        found = [
            f"By the scorer '{quality.scorer}', the mean score of {_cut(each.label)} is {percent(each.score.mean)}."
            for each in best
            if each.score is not None
        ]
    if len(comparisons) >= _SEVERAL:
        clear, many = sum(map(_is_clear, comparisons)), len(comparisons)
        which = f"each of the {many}" if clear == many else f"{clear} of the {many}" if clear else "none of the"
        found.append(f"It is clearly better than {which} others.")
    return found


def _is_clear(comparison: Comparison) -> bool:
    return comparison.difference.low is not None and comparison.difference.low > 0


def sections(quality: Quality, reports: Sequence[VariantReport]) -> list[str]:
    """The sections about one scorer.

    Args:
        quality: The scorer's figures.
        reports: The variants that the page shows.
    """
    numbers = {report.label: number for number, report in enumerate(reports, 1)}
    shown = [each for each in quality.whole.variants if each.label in numbers and each.score is not None]
    if not shown:
        return []
    by_label = {report.label: report for report in reports}
    found = [_scores(quality, shown, numbers)]
    found += _against(shown, by_label, numbers)
    found += _comparisons(quality.whole, numbers)
    found += _samples(shown)
    found += _groups(quality, shown)
    return found


def _scores(quality: Quality, shown: Sequence[VariantQuality], numbers: Mapping[str, int]) -> str:
    scale = _scale([each.score for each in shown if each.score is not None])
    rows = []
    for each in shown:
        if each.score is not None:
            score, number = each.score, numbers[each.label]
            mark = badge(number) if len(numbers) > 1 else ""
            drawn = strip(scale, _dot(each.label, score, number))
            rows.append((mark, _cut(each.label), percent(score.mean), _range(score), drawn))
    unscored = sum(each.unscored for each in quality.whole.variants)
    note = f"{counted(unscored, 'row')} could not be scored, and no score includes {'it' if unscored == 1 else 'them'}."
    return section(
        f"Scores (scorer {quality.scorer})",
        strips(rows, strip_scale(scale)),
        "Dots are mean scores over the questions, lines their 95% intervals.",
        note * bool(unscored),
    )


def _dot(label: str, score: Interval, number: int, x: float = 0.0, of_x: str = "") -> Dot:
    title = f"{label}: {percent(score.mean)}{_interval(score)}{of_x}"
    return Dot(number, title, score.mean * 100, max(_low(score), 0) * 100, min(_high(score), 1) * 100, x)


def _scale(scores: Sequence[Interval]) -> Axis:
    low, high = min(map(_low, scores)) * 100, max(map(_high, scores)) * 100
    return axis(max(low, 0), min(high, 100), suffix="%")


def _against(
    shown: Sequence[VariantQuality], reports: Mapping[str, VariantReport], numbers: Mapping[str, int]
) -> list[str]:
    """Cost against score, if there is a price, and time against score."""
    costs = {
        label: report.cost * 1000 / (report.succeeded + report.failed)
        for label, report in reports.items()
        if report.cost and report.succeeded + report.failed
    }
    times = {label: report.execution_ms.p50 / 1000 for label, report in reports.items() if report.execution_ms}
    plots = []
    for title, x, what in (
        ("Cost against score", costs, "dollars per 1,000 rows"),
        ("Time against score", times, "median execution time in seconds"),
    ):
        dots = [
            _dot(each.label, score, numbers[each.label], x[each.label], f", {x[each.label]:.3g} {what}")
            for each in shown
            if each.label in x and (score := each.score) is not None
        ]
        if len(dots) > 1 and any(dot.x for dot in dots):
            up = _scale([each.score for each in shown if each.score is not None])
            across = axis(0, max(dot.x for dot in dots), what)
            note = "Up and to the left is better."
            plots.append(section(title, scatter(title, across, up, dots), note))
    return [pair(plots)]


def _comparisons(group: Group, shown: Container[str]) -> list[str]:
    if not group.comparisons:
        return []
    cells = [
        (
            _cut(each.other),
            _points(each.difference.mean),
            _range(each.difference, points=True),
            f"{each.won:,}",
            f"{each.lost:,}",
            f"{each.tied:,}",
            "yes" if _is_clear(each) else "no",
        )
        for each in group.comparisons
        if each.other in shown
    ]
    best = _cut(group.comparisons[0].better)
    head = ("against", "difference", "95% interval", "won", "lost", "tied", "clear")
    notes = ["Differences are paired by question. A difference is clear if its interval does not contain 0."]
    if len(group.comparisons) >= _SEVERAL:
        notes.append(
            f"Each interval is for its comparison alone. The best of {len(group.comparisons) + 1} variants looks a"
            " little better than it is: confirm a close result on other questions."
        )
    return [section(f"{best} against each other variant", table(head, cells, numbers=True), *notes)]


def _samples(shown: Sequence[VariantQuality]) -> list[str]:
    ks = sorted({each.k for variant in shown for each in variant.pass_at})
    majorities = sorted({variant.majority.k for variant in shown if variant.majority})
    if not ks:
        return []
    cells = []
    for variant in shown:
        at = {each.k: each.estimate for each in variant.pass_at}
        cells.append(
            [
                _cut(variant.label),
                *(_with_range(at.get(k)) for k in ks),
                *(
                    _with_range(variant.majority.estimate if variant.majority and variant.majority.k == k else None)
                    for k in majorities
                ),
            ]
        )
    head = ["variant", *(f"pass@{k}" for k in ks), *(f"majority@{k}" for k in majorities)]
    note = (
        "pass@k: the probability that at least one of k samples is right."
        " majority@k: the score of the most common answer."
    )
    return [section("Several samples", table(head, cells, numbers=True), note)]


def _groups(quality: Quality, shown: Sequence[VariantQuality]) -> list[str]:
    if not quality.groups:
        return []
    best = sorted(shown, key=lambda each: -each.score.mean if each.score else 0)[:_SIDE_BY_SIDE]
    labels = [each.label for each in shown if each in best]
    cells = []
    groups = sorted(quality.groups, key=lambda group: (group.value is None, str(group.value)))
    for group in groups[:_MOST_GROUPS]:
        by_label = {each.label: each.score for each in group.variants}
        name = "(none)" if group.value is None else _cut(str(group.value))
        cells.append([name, *(_with_range(by_label.get(label)) for label in labels)])
    notes = []
    if len(quality.groups) > _MOST_GROUPS:
        notes.append(f"The first {_MOST_GROUPS} of {len(quality.groups):,} values; `report --json` lists all.")
    if len(labels) < len(shown):
        notes.append(f"The best {len(labels)} of {len(shown)} variants.")
    head = (quality.by or "group", *map(_cut, labels))
    return [section(f"Score by {quality.by}", table(head, cells, numbers=True), *notes)]


def columns(qualities: Sequence[VariantQuality | None]) -> dict[str, list[str]]:
    """The columns from scores in the page's table of variants, by name; none without scores."""
    scores = [each.score if each else None for each in qualities]
    if not any(scores):
        return {}
    found = {
        "score": ["-" if score is None else percent(score.mean) for score in scores],
        "95% interval": ["-" if score is None else _range(score) for score in scores],
    }
    costs = [each.cost_per_right if each else None for each in qualities]
    if any(cost is not None for cost in costs):
        found["cost per right answer"] = ["-" if cost is None else money(cost) for cost in costs]
    return found


def percent(share: float) -> str:
    """`82.4%`."""
    return f"{share * 100:.1f}%"


def _points(difference: float) -> str:
    return f"{difference * 100:.1f} points"


def _range(estimate: Interval, *, points: bool = False) -> str:
    if estimate.low is None or estimate.high is None:
        return "-"
    low, high = estimate.low * 100, estimate.high * 100
    return f"{low:+.1f} to {high:+.1f}".replace("-", "\N{MINUS SIGN}") if points else f"{low:.1f} to {high:.1f}%"


def _interval(estimate: Interval, *, points: bool = False) -> str:
    found = _range(estimate, points=points)
    return "; one question alone gives no interval" if found == "-" else f" (95% interval {found})"


def _with_range(estimate: Interval | None) -> str:
    if estimate is None:
        return "-"
    found = _range(estimate)
    return percent(estimate.mean) + ("" if found == "-" else f" ({found})")


def _low(estimate: Interval) -> float:
    return estimate.mean if estimate.low is None else estimate.low


def _high(estimate: Interval) -> float:
    return estimate.mean if estimate.high is None else estimate.high


def _cut(label: str) -> str:
    return clipped(label, _LABEL_COLUMNS)
