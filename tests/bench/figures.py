"""What a figure is: values that were measured, in words, with the goal where there is one."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Asked:
    """How much is to be measured."""

    rounds: int = 5
    """Runs of each side, where sides take turns."""

    @property
    def repeats(self) -> int:
        """Runs that are compared with what is possible, not with another run: the machine's drift decides less."""
        return max(1, self.rounds // 4)


@dataclass(frozen=True)
class Figure:
    """One line of the report."""

    values: list[float]
    goal: str = ""

    def to_json(self) -> dict[str, Any]:
        """Median and range."""
        found: dict[str, Any] = {
            "median": statistics.median(self.values),
            "low": min(self.values),
            "high": max(self.values),
            "runs": len(self.values),
        }
        return {**found, "goal": self.goal} if self.goal else found

    def __str__(self) -> str:
        median, low, high = (_text(x) for x in (statistics.median(self.values), min(self.values), max(self.values)))
        return median if len(self.values) == 1 else f"{median} ({low} to {high})"


def one(value: float, goal: str = "") -> Figure:
    """A figure of one value."""
    return Figure([value], goal)


Figures = dict[str, Figure]


def _text(value: float) -> str:
    if value == int(value):
        return f"{value:,.0f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.1f}" if abs(value) >= 20 else f"{value:,.3f}"
