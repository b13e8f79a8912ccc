"""The rows that one scheduler of a pool may submit: those of all, and those that only its endpoint may submit."""

from __future__ import annotations

from collections.abc import Callable

from batchrun.scheduler.backlog import Backlog
from batchrun.scheduler.events import RowsLoaded, Ticket
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
        self._unwritten: dict[int, tuple[tuple[Row, ...], float]] = {}
        """The first row of those that stay together -> all of them, and when they are due."""

    def keep_ready(self, window: int) -> None:
        """Keep enough rows ready for about as many jobs as may be in flight, at all endpoints."""
        self._common.keep_ready(window)

    def __len__(self) -> int:
        return super().__len__() + sum(len(rows) for rows, *_ in self._unwritten.values()) + len(self._common)

    def __repr__(self) -> str:
        return f"<PooledBacklog own={super().__len__()} unwritten={len(self._unwritten)} common={self._common!r}>"

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

    def keep(self, tickets: tuple[Ticket, ...], *, exhausted: bool) -> None:
        """Rows have arrived; these are those that only it may submit."""
        super().loaded(RowsLoaded(tickets, exhausted))

    def put_back(self, rows: tuple[Row, ...], at: float) -> None:
        """Submit rows again, at `at` or later, as one job. See `Backlog.put_back`."""
        if any(row.is_unconfirmed for row in rows):
            super().put_back(rows, at)
        else:
            self._unwritten[rows[0].row] = (rows, at)

    def written(self, rows: tuple[int, ...]) -> None:
        """The ends of these rows are on disk."""
        for number in rows:
            if (entry := self._unwritten.pop(number, None)) is not None:
                self._common.put_back(*entry)

    def take(self, now: float, most: int, *, fresh: int) -> tuple[Row, ...]:
        """The rows of the next job; empty if there are none. See `Backlog.take`."""
        return super().take(now, most, fresh=fresh) or self._common.take(now, most, fresh=fresh)

    def next_at(self, *, fresh: bool) -> float | None:
        """When the next row is due for submission, -inf if a loaded row is ready; None if there is none."""
        times = [super().next_at(fresh=fresh), self._common.next_at(fresh=fresh)]
        return min((at for at in times if at is not None), default=None)
