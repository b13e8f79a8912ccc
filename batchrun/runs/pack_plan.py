"""Which rows would share jobs, for `--dry-run`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from batchrun.config import MOST_ROWS_PER_JOB, RunOptions
from batchrun.display.units import counted
from batchrun.endpoint.packing import Packing, why_alone
from batchrun.runs.pack_check import rows_per_job
from batchrun.scheduler.backlog import JOB_BYTES

_REASONS_SHOWN = 5
_SIZES_SHOWN = 5


@dataclass(slots=True)
class _Alike:
    """The rows of one kind."""

    most: int
    """How many of them may share a job."""
    rows: int = 0
    size_bytes: int = 0

    def jobs(self, rows_per_job: int) -> list[tuple[int, int]]:
        """The sizes of jobs, and the number of jobs of each size."""
        by_bytes = JOB_BYTES * self.rows // max(self.size_bytes, 1)
        size = max(min(rows_per_job, self.most, by_bytes), 1)
        full, rest = divmod(self.rows, size)
        return [(size, full), *([(rest, 1)] if rest else [])]


class PackPlan:
    """Counts the jobs that rows would share.

    Args:
        options: The run's options.
    """

    def __init__(self, options: RunOptions) -> None:
        self._options = options
        self._packing = Packing(options.policy, MOST_ROWS_PER_JOB, "")
        self._alike: dict[int, _Alike] = {}
        self._alone: Counter[str] = Counter()
        """The number of rows that have jobs of their own, by reason."""

    def add(self, request: Mapping[str, Any]) -> None:
        """Count a row."""
        if self._options.request.inline_files is not None:
            self._alone["with the content of files"] += 1
            return
        kind = self._packing.kind(request)
        if not kind.number:
            self._alone[why_alone(request)] += 1
            return
        alike = self._alike.setdefault(kind.number, _Alike(kind.most))
        alike.rows += 1
        alike.size_bytes += kind.size_bytes

    def message(self) -> str:
        """The plan, as a message to the user."""
        total = self._alone.total() + sum(alike.rows for alike in self._alike.values())
        most = rows_per_job(self._options, lambda: total)
        if most == 1:
            return "--pack auto: each row has a job of its own, so that every worker has enough jobs"
        sizes, alone = Counter[int](), self._alone.copy()
        for alike in self._alike.values():
            for size, jobs in alike.jobs(most):
                if size > 1:
                    sizes[size] += jobs
                else:
                    alone["left over or like no other"] += jobs
        shared = [f"{counted(jobs, 'job')} of {size:,} rows" for size, jobs in sorted(sizes.items(), reverse=True)]
        parts = shared[:_SIZES_SHOWN]
        if more := sum(jobs for _, jobs in sorted(sizes.items(), reverse=True)[_SIZES_SHOWN:]):
            parts.append(f"{counted(more, 'job')} of fewer")
        if alone:
            reasons = alone.most_common(_REASONS_SHOWN)
            why = ", ".join(f"{rows:,} {reason}" for reason, rows in reasons)
            others = "" if len(alone) == len(reasons) else ", and others"
            parts.append(f"{counted(alone.total(), 'row')} alone ({why}{others})")
        name = f"--pack {most}" if self._options.scheduler.pack is not None else f"--pack auto ({most})"
        return f"{name}: {', '.join(parts) or 'no rows'}; jobs get smaller near the end of a run"
