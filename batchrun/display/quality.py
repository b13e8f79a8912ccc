"""The quality of variants for people: tables, a sentence, JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from batchrun.display.cost import money
from batchrun.display.text import clipped
from batchrun.evaluation.quality import Comparison, Group, Quality, VariantQuality
from batchrun.evaluation.statistics import Interval

_SHOWN = 40
"""The most variants, or groups, in a table."""
_Column = tuple[str, Callable[[VariantQuality], str]]
"""The heading, and the cell of a variant."""
_NAME_COLUMNS = 30
_LABEL_COLUMNS = 40


def quality_json(quality: Quality) -> dict[str, Any]:
    """A quality as JSON values, with the sentence about it."""
    return {**asdict(quality), "finding": finding(quality.whole)}


def finding(group: Group) -> str:
    """The finding in one sentence: which variant is better, or the score of the only one, with the interval."""
    if group.comparisons:
        closest = min(group.comparisons, key=lambda each: each.difference.mean)
        return _verdict(closest, others=len(group.comparisons) - 1)
    best = next((variant for variant in group.variants if variant.score is not None), None)
    if best is None or best.score is None:
        return "no row has a score"
    name = "" if best.label == "all" else f" of {best.label}"
    return f"the mean score{name} is {_percent(best.score.mean)} ({_interval_and_questions(best.score)})"


def _verdict(pair: Comparison, *, others: int) -> str:
    difference = pair.difference
    points = f"{difference.mean * 100:.1f} points"
    counts = f"{pair.won:,} won, {pair.lost:,} lost, {pair.tied:,} tied"
    facts = f"({_interval_and_questions(difference, signed=True)}: {counts})"
    beaten = f"{pair.other}, the next best of {others + 1:,} others," if others else pair.other
    if difference.low is not None and difference.low > 0:
        return f"{pair.better} is better than {beaten} by {points} {facts}"
    if not difference.mean:
        return f"{pair.better} and {pair.other} score the same {facts}"
    return f"{pair.better} scores {points} more than {beaten} but that may be due to chance {facts}"


def _interval_and_questions(estimate: Interval, *, signed: bool = False) -> str:
    questions = f"{estimate.questions:,} question{'s' * (estimate.questions > 1)}"
    return f"95% interval {_interval(estimate, signed=signed)}, {questions}" if estimate.low is not None else questions


def quality_tables(qualities: Sequence[Quality]) -> list[list[list[str]]]:
    """Tables of cells, each with a header row: for each scorer its variants, their differences, and the groups."""
    found = []
    for quality in qualities:
        columns = _columns([quality.whole, *quality.groups])
        heads = [head for head, _ in columns]
        variants = quality.whole.variants
        largest = sorted(sorted(range(len(variants)), key=lambda number: -variants[number].scored)[:_SHOWN])
        found.append([[_name(quality.scorer), *heads], *(_row(variants[number], columns) for number in largest)])
        if quality.whole.comparisons:
            head = [_name(f"{quality.scorer}: difference"), "points", "95% interval", "won", "lost", "tied"]
            found.append([head, *map(_difference, quality.whole.comparisons[:_SHOWN])])
        if quality.groups:
            found.append(_groups(quality, columns))
    return found


def _columns(groups: Sequence[Group]) -> list[_Column]:
    """The columns of a scorer's tables: those with a value for any variant."""
    variants = [variant for group in groups for variant in group.variants]
    pass_at = max((variant.pass_at for variant in variants), key=len, default=())
    shares = next((variant.majority for variant in variants if variant.majority), None)
    columns: list[_Column] = [
        ("questions", lambda v: "-" if v.score is None else f"{v.score.questions:,}"),
        ("rows", lambda v: f"{v.scored:,}"),
        ("right", lambda v: f"{v.right:,}"),
        ("score", lambda v: _mean(v.score)),
        ("95% interval", lambda v: "-" if v.score is None else _interval(v.score)),
        *((f"pass@{at.k}", partial(_pass_at, k=at.k)) for at in pass_at if at.k > 1),
    ]
    if any(variant.unscored for variant in variants):
        columns.insert(2, ("not scored", lambda v: f"{v.unscored:,}"))
    if shares is not None:
        columns.append((f"majority@{shares.k}", lambda v: _mean(v.majority.estimate if v.majority else None)))
    if any(variant.cost_per_right is not None for variant in groups[0].variants):
        columns.append(("cost/right", lambda v: "-" if v.cost_per_right is None else money(v.cost_per_right)))
    return columns


def _row(variant: VariantQuality, columns: Sequence[_Column]) -> list[str]:
    return [clipped(variant.label, _LABEL_COLUMNS, "..."), *(cell(variant) for _, cell in columns)]


def _difference(pair: Comparison) -> list[str]:
    names = f"{clipped(pair.better, _NAME_COLUMNS, '...')} - {clipped(pair.other, _NAME_COLUMNS, '...')}"
    interval = _interval(pair.difference, signed=True)
    return [names, f"{pair.difference.mean * 100:.1f}", interval, *(f"{n:,}" for n in (pair.won, pair.lost, pair.tied))]


def _groups(quality: Quality, columns: Sequence[_Column]) -> list[list[str]]:
    largest = sorted(quality.groups, key=lambda group: -sum(each.scored for each in group.variants))[:_SHOWN]
    rows = [
        [_name("(none)" if group.value is None else str(group.value)), *_row(variant, columns)]
        for group in sorted(largest, key=lambda group: (group.value is None, str(group.value)))
        for variant in group.variants
    ]
    return [[_name(f"{quality.scorer} by {quality.by}"), "variant", *(head for head, _ in columns)], *rows]


def _name(text: str) -> str:
    return clipped(text, _NAME_COLUMNS, "...")


def _mean(estimate: Interval | None) -> str:
    return "-" if estimate is None else _percent(estimate.mean)


def _pass_at(variant: VariantQuality, k: int) -> str:
    return next((_mean(at.estimate) for at in variant.pass_at if at.k == k), "-")


def _percent(share: float) -> str:
    return f"{share * 100:.1f}%"


def _interval(estimate: Interval, *, signed: bool = False) -> str:
    if estimate.low is None or estimate.high is None:
        return "-"
    if signed:
        return f"{estimate.low * 100:+.1f} to {estimate.high * 100:+.1f}"
    return f"{_percent(estimate.low)} to {_percent(estimate.high)}"
