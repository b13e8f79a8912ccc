"""The breaker and the canary: they stop a run that produces only failures before it has spent all the money.

Both count only the rows that end in this session, so a run that they stopped can be resumed.
"""

from __future__ import annotations

from collections import Counter

from batchrun.config import MOST_ROWS, CanaryAllows, HaltOptions
from batchrun.errors import StoppedError
from batchrun.scheduler.events import Flaw

FIRST_ROWS = 20
"""If this many rows fail from the start, the request or the deployment is wrong."""
LAST_ROWS = 200
"""If this many rows in a row fail, something has broken during the run."""
SHARE_FROM_ROWS = 50
"""A share of failed rows is evaluated only from this many finished rows on."""

_FLAW_HINT = "check the results, fix the prompts or parameters, and start a new run with another -o"
_ALLOW_HINT = f"{_FLAW_HINT} (a higher max_tokens?); --canary-allow length accepts answers that are cut off"
_HINT = "fix what made the rows fail, then resume; add --retry-failed to run the failed rows again"


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
        """A row has ended; returns the reason to stop if too many rows have failed."""
        self._finished += 1
        self._failed += failed
        self._failed_in_a_row = self._failed_in_a_row + 1 if failed else 0
        reason = self._reason()
        return StoppedError(reason, _HINT) if reason else None

    def _reason(self) -> str:
        options, finished, failed = self._options, self._finished, self._failed
        if options.rows is not None and failed >= options.rows:
            return f"{failed:,} rows failed (--halt {options.rows})"
        if options.share is not None and finished >= SHARE_FROM_ROWS and failed >= options.share * finished:
            return f"{failed:,} of {finished:,} rows failed (--halt {options.share * 100:.4g}%)"
        if options.automatic and finished == failed == FIRST_ROWS:
            return f"the first {FIRST_ROWS} finished rows all failed"
        if options.automatic and self._failed_in_a_row >= LAST_ROWS:
            return f"the last {LAST_ROWS} finished rows all failed"
        return ""


class Canary:
    """Runs a few rows first. The others follow only if all of those succeed, and at least one has a whole answer.

    Args:
        rows: How many rows run first; 0 for no canary.
        allow: `length` to accept an answer that was cut off as whole; None not to.
    """

    def __init__(self, rows: int, *, allow: CanaryAllows | None = None) -> None:
        self._rows = rows
        self._left = rows
        self._allow = allow
        self._flying: set[int] = set()
        self._flaws: Counter[Flaw | None] = Counter()

    @property
    def is_out(self) -> bool:
        """Whether some of the first rows have not ended yet."""
        return self._left > 0 or bool(self._flying)

    @property
    def room(self) -> int:
        """How many rows may be submitted for the first time."""
        return self._left or (0 if self._flying else MOST_ROWS)

    def submitted(self, row: int) -> None:
        """A row is being submitted."""
        if self._left > 0 and row not in self._flying:
            self._left -= 1
            self._flying.add(row)

    def ended(self, row: int, *, failed: bool, flaw: Flaw | None = None) -> StoppedError | None:
        """A row has ended; returns the reason to stop if a first row failed, or if none of them has a whole answer."""
        if row not in self._flying:
            return None
        if failed:
            return StoppedError(f"a canary row failed; no other rows were submitted (--canary {self._rows})", _HINT)
        self._flying.discard(row)
        self._flaws[None if flaw == "cut off" and self._allow == "length" else flaw] += 1
        if self.is_out or self._flaws[None]:
            return None
        told = ", ".join(f"{count:,} {name}" for name, count in self._flaws.items() if count)
        hint = _ALLOW_HINT if self._flaws["cut off"] else _FLAW_HINT
        return StoppedError(
            f"no canary row has a complete answer ({told}); no other rows were submitted (--canary {self._rows})",
            hint,
        )
