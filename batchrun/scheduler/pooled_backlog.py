"""The rows that one scheduler of a pool may submit: those of all, and those that only its endpoint may submit."""

from __future__ import annotations

from collections.abc import Callable

from batchrun.scheduler.backlog import Backlog
from batchrun.scheduler.events import RowsLoaded
from batchrun.scheduler.flight import Row


class PooledBacklog(Backlog):
    """A backlog whose own rows are those with an unconfirmed submission at its endpoint, and that takes others' too.

    A row that is to be submitted again is offered to all only when its end is on disk: the engines of a pool write
    their commits independently, and the intent of another one must not come first.

    Args:
        common: The rows that any endpoint may submit.
        on_loaded: Distributes rows that have been loaded.
    """

    def __init__(self, common: Backlog, on_loaded: Callable[[RowsLoaded], None]) -> None:
        super().__init__(0)
        self._common = common
        self._on_loaded = on_loaded
        self.keep(RowsLoaded((), exhausted=True))
        self._unwritten: dict[int, tuple[Row, float, int]] = {}

    def __len__(self) -> int:
        return super().__len__() + len(self._unwritten) + len(self._common)

    def __repr__(self) -> str:
        return f"<PooledBacklog own={super().__len__()} unwritten={len(self._unwritten)} common={self._common!r}>"

    @property
    def waiting(self) -> int:
        """Rows of this scheduler that wait to be submitted again."""
        return super().waiting + len(self._unwritten)

    @property
    def is_empty(self) -> bool:
        """Whether no row is left that it could submit, here, with the others or in the state file."""
        return not self.has_own and not self.has_unwritten and self._common.is_empty

    @property
    def has_own(self) -> bool:
        """Whether there are rows that only it may submit."""
        return super().__len__() > 0

    @property
    def has_unwritten(self) -> bool:
        """Whether there are rows that will be offered to all."""
        return bool(self._unwritten)

    def wanted(self) -> int:
        """How many more rows of all to load, 0 if none; they count as requested from then on."""
        return self._common.wanted()

    def loaded(self, event: RowsLoaded) -> None:
        """The requested rows have arrived."""
        self._on_loaded(event)

    def keep(self, event: RowsLoaded) -> None:
        """Rows have arrived that only it may submit."""
        super().loaded(event)

    def put_back(self, row: Row, at: float, job: int) -> None:
        """Submit a row again, at `at` or later."""
        if row.is_unconfirmed:
            super().put_back(row, at, job)
        else:
            self._unwritten[row.row] = (row, at, job)

    def written(self, rows: tuple[int, ...]) -> None:
        """The ends of these rows are on disk."""
        for number in rows:
            if (entry := self._unwritten.pop(number, None)) is not None:
                self._common.put_back(*entry)

    def take(self, now: float, *, fresh: bool) -> Row | None:
        """The next row to submit, or None. Unless `fresh`, only rows that were submitted before are considered."""
        return super().take(now, fresh=fresh) or self._common.take(now, fresh=fresh)

    def next_at(self, *, fresh: bool) -> float | None:
        """When the next row is due for submission, -inf if a loaded row is ready; None if there is none."""
        times = [super().next_at(fresh=fresh), self._common.next_at(fresh=fresh)]
        return min((at for at in times if at is not None), default=None)
