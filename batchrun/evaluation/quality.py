"""The quality of a run's variants, from the scores of one scorer.

A *question* is a line of the input, a *sample* one of its rows in a variant; with `--repeat` a question has several.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from batchrun.evaluation.statistics import Interval, Moments, majority, pass_at

_EQUAL_WITHIN = 1e-12
"""Means of several samples that differ by no more than this are equal."""


@dataclass(frozen=True, slots=True)
class AtK:
    """An estimate for k samples of each question."""

    k: int
    estimate: Interval
    """Over the questions that have at least k scored samples."""


@dataclass(frozen=True, slots=True)
class VariantQuality:
    """How good the answers of one variant are."""

    label: str
    """As in the report: `temperature=0.4 top_p=1`, or `all`."""
    values: dict[str, Any]
    """Key of the sweep -> value; empty without a sweep."""
    scored: int
    """Rows with a score."""
    unscored: int
    """Rows that the scorer could not score; no estimate includes them."""
    right: int
    """Rows with a score of 1."""
    score: Interval | None
    """The mean score; None if no row has one."""
    pass_at: tuple[AtK, ...] = ()
    """The probability that at least one of k samples is right, for several k, ascending; empty without samples."""
    majority: AtK | None = None
    """The score of the answer that most of k samples share; None without samples, or if the scorer extracts nothing."""
    cost_per_right: float | None = None
    """Dollars; None without a price, or if no row is right."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two variants, compared on the questions for which both have scores."""

    better: str
    """The label of the variant with the higher mean score."""
    other: str
    difference: Interval
    """The score of `better` minus that of `other`, by question."""
    won: int
    """Number of questions on which `better` has the higher score; the next two are losses and ties."""
    lost: int
    tied: int


@dataclass(frozen=True, slots=True)
class Group:
    """The variants on some of the questions."""

    value: Any
    """The value at the path of `--by` that its questions share; None for all questions, or those without it."""
    variants: list[VariantQuality]
    """In the order of the sweep."""
    comparisons: list[Comparison]
    """The best variant compared with each of the others, in the order of the sweep; empty for one variant."""


@dataclass(frozen=True, slots=True)
class Quality:
    """What one scorer says about a run."""

    scorer: str
    whole: Group
    by: str | None = None
    """The path of `--by`; None: the questions are not split."""
    groups: list[Group] = field(default_factory=list)
    """One for each value at that path."""


class Sample(NamedTuple):
    """One row of a question in one variant, with its score."""

    value: float
    answer: Hashable
    """The extracted answer, in a form that is equal for equal answers."""


class Question(NamedTuple):
    """The rows of one line of the input."""

    group: Any
    """Its group: the value at the path of `--by`, hashable."""
    samples: Mapping[int, Sequence[Sample]]
    """Number of a variant -> its scored rows."""
    unscored: Mapping[int, int]
    """Number of a variant -> its rows that could not be scored."""


class VariantInfo(NamedTuple):
    """A variant to be measured."""

    label: str
    values: dict[str, Any]
    cost: float | None
    """Dollars, for all of its rows; None without a price."""


def measure(
    scorer: str,
    variants: Mapping[int, VariantInfo],
    questions: Callable[[], Iterable[Question]],
    *,
    repeat: int = 1,
    extracts: bool = True,
    by: str | None = None,
) -> Quality:
    """The quality of variants. Memory grows with variants and groups, not with questions.

    Args:
        scorer: The scorer's name.
        variants: Number -> variant, in the order of the sweep.
        questions: Gives all questions each time it is called.
        repeat: How many samples a question has in each variant.
        extracts: Whether the scorer extracts answers, so that majorities can be found.
        by: The path whose value is each question's `group`; None: they are not split.
    """
    whole = defaultdict[int, _Tally](lambda: _Tally(repeat))
    tallies = defaultdict[Any, defaultdict[int, _Tally]](lambda: defaultdict(lambda: _Tally(repeat)))
    for question in questions():
        for tally in (whole, tallies[question.group]) if by is not None else (whole,):
            for number, count in question.unscored.items():
                tally[number].unscored += count
            for number, samples in question.samples.items():
                tally[number].add(samples)
    compared = _compare(questions, {None: whole}, lambda _: None)
    split = _compare(questions, tallies, lambda question: question.group) if by is not None else {}
    groups = [_group(value, tallies[value], variants, split[value], extracts=extracts) for value in tallies]
    everything = _group(None, whole, variants, compared[None], extracts=extracts, with_cost=True)
    return Quality(scorer, everything, by, groups)


class _Tally:
    """The figures of one variant."""

    def __init__(self, repeat: int) -> None:
        self.scored = self.unscored = self.right = 0
        self.score = Moments()
        self.pass_at = {k: Moments() for k in _sizes(repeat)}
        self.majority = Moments()
        self.repeat = repeat

    def add(self, samples: Sequence[Sample]) -> None:
        count = len(samples)
        right = sum(sample.value == 1 for sample in samples)
        self.scored += count
        self.right += right
        self.score.add(sum(sample.value for sample in samples) / count)
        for k, moments in self.pass_at.items():
            if k <= count:
                moments.add(pass_at(k, count, right))
        if count == self.repeat > 1:
            self.majority.add(majority((sample.answer, sample.value) for sample in samples))


def _sizes(repeat: int) -> list[int]:
    """The values of k for pass@k: the powers of two below `repeat`, and `repeat`; none without repeats."""
    powers = [1 << bit for bit in range(repeat.bit_length()) if 1 << bit < repeat]
    return [*powers, repeat] if repeat > 1 else []


def _compare(
    questions: Callable[[], Iterable[Question]],
    tallies: Mapping[Any, Mapping[int, _Tally]],
    group_of: Callable[[Question], Any],
) -> dict[Any, tuple[int, dict[int, _Pair]]]:
    """For each group, the best variant, compared with each of the others."""
    best = {value: _best(each) for value, each in tallies.items()}
    pairs: dict[Any, defaultdict[int, _Pair]] = {value: defaultdict(_Pair) for value in tallies}
    if any(len(each) > 1 for each in tallies.values()):
        for question in questions():
            value = group_of(question)
            better = question.samples.get(best[value])
            for number, samples in question.samples.items() if better else ():
                if number != best[value]:
                    pairs[value][number].add(_mean(better or ()), _mean(samples))
    return {value: (best[value], pairs[value]) for value in tallies}


def _best(tallies: Mapping[int, _Tally]) -> int:
    return max(
        sorted(tallies), key=lambda number: (tallies[number].score.count > 0, tallies[number].score.mean), default=0
    )


def _mean(samples: Sequence[Sample]) -> float:
    return sum(sample.value for sample in samples) / len(samples)


class _Pair:
    """The figures of the difference between two variants."""

    def __init__(self) -> None:
        self.difference = Moments(least=-1.0)
        self.won = self.lost = self.tied = 0

    def add(self, better: float, other: float) -> None:
        difference = better - other
        is_tied = abs(difference) < _EQUAL_WITHIN
        self.difference.add(0.0 if is_tied else difference)
        self.won += difference > 0 and not is_tied
        self.lost += difference < 0 and not is_tied
        self.tied += is_tied


def _group(
    value: Any,
    tallies: Mapping[int, _Tally],
    variants: Mapping[int, VariantInfo],
    compared: tuple[int, Mapping[int, _Pair]],
    *,
    extracts: bool,
    with_cost: bool = False,
) -> Group:
    measured = [
        _measured(variants[number], tallies[number], extracts=extracts, with_cost=with_cost)
        for number in variants
        if number in tallies
    ]
    best, pairs = compared
    comparisons = [
        Comparison(variants[best].label, variants[number].label, difference, pair.won, pair.lost, pair.tied)
        for number in variants
        if (pair := pairs.get(number)) and (difference := pair.difference.interval())
    ]
    return Group(value, measured, comparisons)


def _measured(variant: VariantInfo, tally: _Tally, *, extracts: bool, with_cost: bool) -> VariantQuality:
    majority_of_all = tally.majority.interval() if extracts else None
    return VariantQuality(
        label=variant.label,
        values=variant.values,
        scored=tally.scored,
        unscored=tally.unscored,
        right=tally.right,
        score=tally.score.interval(),
        pass_at=tuple(AtK(k, found) for k, moments in tally.pass_at.items() if (found := moments.interval())),
        majority=None if majority_of_all is None else AtK(tally.repeat, majority_of_all),
        cost_per_right=variant.cost / tally.right if with_cost and variant.cost is not None and tally.right else None,
    )
