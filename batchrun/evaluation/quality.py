"""The quality of a run's variants, from the scores of one scorer.

A *question* is a line of the input, a *sample* one of its rows in a variant; with `--repeat` a question has several.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over questions, and its 95% interval."""

    mean: float
    low: float | None
    """Where the interval begins; None, like `high`: one question alone tells nothing of the others."""
    high: float | None
    questions: int
    """How many there are, from 1."""


@dataclass(frozen=True, slots=True)
class AtK:
    """An estimate of what k samples of each question are worth."""

    k: int
    estimate: Estimate
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
    """Rows that the scorer could not score; they are in none of the estimates."""
    right: int
    """Rows with the full score, 1."""
    score: Estimate | None
    """The mean score; None if no row has one."""
    pass_at: tuple[AtK, ...] = ()
    """The probability that at least one of k samples is right, for several k, ascending; empty without samples."""
    majority: AtK | None = None
    """The score of the answer that most of k samples share; None without samples, or if the scorer extracts nothing."""
    cost_per_right: float | None = None
    """Dollars; None without a price, or if no row is right."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two variants, compared on the questions that both have scores for."""

    better: str
    """The label of the variant with the higher mean score."""
    other: str
    difference: Estimate
    """The score of `better` minus that of `other`, by question."""
    won: int
    """Questions on which `better` has the higher score; here and in the next two."""
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
    """The best variant with each of the others, in the order of the sweep; empty for one variant."""


@dataclass(frozen=True, slots=True)
class Quality:
    """What one scorer says about a run."""

    scorer: str
    whole: Group
    by: str | None = None
    """The path of `--by`; None: the questions are not split."""
    groups: list[Group] = field(default_factory=list)
    """One for each value at that path."""
