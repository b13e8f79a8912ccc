"""How fast rows have ended in the last minutes, and how long the others will take. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any, Self

MOST_COUNTS = 60
"""If there are more, two become one, until each has the longest interval; then the oldest is dropped."""
_LONGEST_S = 16
SPAN_S = 300.0
"""The present pace is the average over this time."""
_LEAST_SPAN_S = 5.0
"""Earlier, the pace is unknown."""
_BLOCKS = 10
_T = {4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
"""Student's t for a range of 95%, by the number of blocks."""


@dataclass(frozen=True, slots=True)
class Pace:
    """The present pace of a run, and how long its open rows take at this pace."""

    rows_per_s: float
    """An average over `span_s`."""
    span_s: float
    """The last five minutes, or less if the session is younger."""
    left_s: float | None
    """The time until all rows have ended; None if no rows are ending at present."""
    least_s: float | None
    """The low end of its 95% range, if the pace varies as before; None if unknown yet."""
    most_s: float | None
    """The high end; None also if the pace may be zero."""

    def without_end(self) -> Self:
        """The same for a paused run: the time left is unknown."""
        return replace(self, left_s=None, least_s=None, most_s=None)


class PaceCounts:
    """How many rows have ended in each interval of the last minutes: 1 s long at first, 16 s after a while.

    Args:
        every_s: Length of an interval, in seconds.
        ended: Rows that ended in each, oldest first; the last interval is not over.
        since_s: When the last interval began, in seconds since the session began.
        until_s: The time of the last count.
    """

    def __init__(
        self, every_s: int = 1, ended: Sequence[int] = (0,), since_s: float = 0.0, until_s: float = 0.0
    ) -> None:
        self.every_s = every_s
        self.ended = list(ended)
        self._since_s = since_s
        self._until_s = until_s
        self._counted = 0

    @classmethod
    def from_json(cls, value: Any) -> PaceCounts:
        """The counts from the JSON values of `to_json`.

        Raises:
            ValueError, TypeError, KeyError: the value is something else.
        """
        counts = cls(int(value["every_s"]), [int(n) for n in value["ended"]], value["since_s"], value["until_s"])
        if not counts.ended or counts.every_s < 1:
            raise ValueError("no intervals")
        return counts

    def to_json(self) -> dict[str, Any]:
        """The counts as JSON values."""
        return {"every_s": self.every_s, "ended": list(self.ended), "since_s": self._since_s, "until_s": self._until_s}

    def note(self, now_s: float, ended: int) -> None:
        """Note how many rows have ended by now.

        Args:
            now_s: Seconds since the session began.
            ended: Rows that have ended in the session.
        """
        if now_s - self._since_s > self.every_s * MOST_COUNTS:
            # The machine slept: earlier counts do not show the present pace.
            self.ended, self._since_s = [0], now_s
        while now_s - self._since_s >= self.every_s:
            self._since_s += self.every_s
            self.ended.append(0)
            if len(self.ended) > MOST_COUNTS:
                self._shorten()
        self.ended[-1] += max(ended - self._counted, 0)
        self._counted, self._until_s = ended, max(now_s, self._until_s)

    def _shorten(self) -> None:
        if self.every_s >= _LONGEST_S:
            del self.ended[0]
            return
        *whole, last = self.ended
        odd = len(whole) % 2
        # An oldest interval without a partner is dropped; the last one becomes the beginning of a longer one.
        self.ended = [a + b for a, b in zip(whole[odd::2], whole[odd + 1 :: 2], strict=True)] + [last]
        self.every_s *= 2

    def pace(self, open_rows: int) -> Pace | None:
        """The present pace; None before it can be known.

        Args:
            open_rows: Rows that have not ended.
        """
        last_s = min(max(self._until_s - self._since_s, 0.0), self.every_s)
        whole = min(int((SPAN_S - last_s) // self.every_s), len(self.ended) - 1)
        span_s = whole * self.every_s + last_s
        if span_s < _LEAST_SPAN_S:
            return None
        rate = sum(self.ended[-whole - 1 :]) / span_s
        if not rate:
            return Pace(0.0, span_s, None, None, None)
        error = self._error(self.ended[-whole - 1 : -1] if whole else [], rate, span_s)
        if error is None:
            return Pace(rate, span_s, open_rows / rate, None, None)
        slowest = rate - error
        return Pace(
            rate, span_s, open_rows / rate, open_rows / (rate + error), open_rows / slowest if slowest > 0 else None
        )

    def _error(self, whole: list[int], rate: float, span_s: float) -> float | None:
        """How far the mean pace may be from the true one, in rows per second; None if it is not known yet."""
        each = max(-(-len(whole) // _BLOCKS), 1)
        blocks = [sum(whole[i : i + each]) / (each * self.every_s) for i in range(len(whole) % each, len(whole), each)]
        count = len(blocks)
        if count < min(_T):
            return None
        mean = sum(blocks) / count
        spread = sum((block - mean) ** 2 for block in blocks) / (count - 1) / count
        # Even in the steadiest run, a row more or less may end by chance.
        return _T[count] * sqrt(max(spread, rate / span_s))
