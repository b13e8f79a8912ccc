"""The breaker and the canary: a run that only makes failures stops before the money is gone.

Both count the rows that end in this session, so that a run that was halted can go on.
"""

from __future__ import annotations

from collections import Counter

from batchrun.config import CanaryAllows, HaltOptions
from batchrun.errors import StoppedError
from batchrun.scheduler.events import Flaw

FIRST_ROWS = 20
"""When the first so many rows all failed, nothing is right with the request or the deployment."""
LAST_ROWS = 200
"""When so many in a row failed, something has broken since."""
SHARE_FROM_ROWS = 50
"""A share of failed rows means something from so many finished rows on."""

_FLAW_HINT = "look at the results, and start a new run with another -o when the answers are as they should be"
_ALLOW_HINT = f"{_FLAW_HINT} (a higher max_tokens?); --canary-allow length goes on with answers that are cut off"
_HINT = "when what made the rows fail is mended, go on, and take them up again with --retry-failed"


class Breaker:
    """Stops a run when too many of its rows fail.

    Args:
        options: How many failures are too many.
    """

    def __init__(self, options: HaltOptions) -> None:
        self._options = options
        self._finished = 0
        self._failed = 0
        self._failed_in_a_row = 0

    def ended(self, *, failed: bool) -> StoppedError | None:
        """A row has ended; the reason to stop when that was one failure too many."""
        self._finished += 1
        self._failed += failed
        self._failed_in_a_row = self._failed_in_a_row + 1 if failed else 0
        if not self._failed:
            return None
        reason = self._reason()
        return StoppedError(reason, _HINT) if reason else None

    def _reason(self) -> str:
        options, finished, failed = self._options, self._finished, self._failed
        if options.rows is not None and failed >= options.rows:
            return f"{failed:,} rows failed (--halt {options.rows})"
        if options.share is not None and finished >= SHARE_FROM_ROWS and failed >= options.share * finished:
            return f"{failed:,} of {finished:,} rows failed (--halt {options.share * 100:.4g}%)"
        if options.automatic and finished == failed == FIRST_ROWS:
            return f"the first {FIRST_ROWS} rows that ended all failed"
        if options.automatic and self._failed_in_a_row >= LAST_ROWS:
            return f"the last {LAST_ROWS} rows that ended all failed"
        return ""


class Canary:
    """Lets a few rows go first, and the others only when all of those have succeeded, and one of them with an answer.

    Args:
        rows: How many go first; 0: no canary.
        allow: `length`: an answer that was cut off is one; None: it is not.
    """

    def __init__(self, rows: int, *, allow: CanaryAllows | None = None) -> None:
        self._rows = rows
        self._left = rows
        self._allow = allow
        self._flying: set[int] = set()
        self._flaws: Counter[Flaw | None] = Counter()

    @property
    def is_out(self) -> bool:
        """Whether not all of the rows that go first have ended."""
        return self._left > 0 or bool(self._flying)

    @property
    def lets_in(self) -> bool:
        """Whether a row that was not submitted before may be."""
        return self._left > 0 or not self._flying

    def submitted(self, row: int) -> None:
        """A row is submitted."""
        if self._left > 0 and row not in self._flying:
            self._left -= 1
            self._flying.add(row)

    def ended(self, row: int, *, failed: bool, flaw: Flaw | None = None) -> StoppedError | None:
        """A row has ended; the reason to stop when it was to go first and failed, or no answer of those is of use."""
        if row not in self._flying:
            return None
        if failed:
            return StoppedError(
                f"a row of the canary failed: none of the others was submitted (--canary {self._rows})", _HINT
            )
        self._flying.discard(row)
        self._flaws[None if flaw == "cut off" and self._allow == "length" else flaw] += 1
        if self.is_out or self._flaws[None]:
            return None
        told = ", ".join(f"{count:,} {name}" for name, count in self._flaws.items() if count)
        hint = _ALLOW_HINT if self._flaws["cut off"] else _FLAW_HINT
        return StoppedError(
            f"no answer of the canary is whole ({told}): none of the others was submitted (--canary {self._rows})",
            hint,
        )
