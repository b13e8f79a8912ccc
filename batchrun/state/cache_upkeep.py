"""Inspects an answer cache, and prunes it, while runs use it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Self

from batchrun.errors import StateError
from batchrun.state.cache_file import WRITE_WAIT_S, connect, refuse_unusable_cache, refused
from batchrun.state.opening import retry_while_locked


class CacheFigures(NamedTuple):
    """The contents of a cache."""

    answers: int
    size_bytes: int
    """The size of the file, without space that is free again."""
    oldest_ms: int | None
    """When the oldest answer was stored, UTC epoch milliseconds; None without answers. The same applies to
    `newest_ms`."""
    newest_ms: int | None
    by_endpoint: list[tuple[str, str, int]]
    """Endpoint, the model that its answers name, and their number."""


_AT_ONCE = 200
"""How many answers one transaction removes, so that no run waits for long."""
_PAGES_AT_ONCE = 1000


class CacheUpkeep:
    """A cache that is open for inspection and pruning; other processes may use it at the same time.

    Args:
        path: The file.

    Raises:
        StateError: there is no such file, or see `AnswerCache`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.exists():
            raise StateError(f"{path}: there is no such cache", "runs create one: batchrun run ... --cache FILE")
        with refused(path):
            refuse_unusable_cache(path)
            self._db = connect(path, WRITE_WAIT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def figures(self) -> CacheFigures:
        """Its contents.

        Raises:
            StateError: it cannot be read.
        """
        with refused(self._path):
            groups = self._db.execute(
                "SELECT endpoint, model, count(*) FROM answers GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2"
            )
            by_endpoint = groups.fetchall()
            ages = self._db.execute("SELECT min(stored_ms), max(stored_ms) FROM answers").fetchone()
            return CacheFigures(
                sum(count for *_, count in by_endpoint), self._size_bytes(), ages[0], ages[1], by_endpoint
            )

    def remove_before(self, limit_ms: int) -> int:
        """Remove the answers that were stored before a time, UTC epoch milliseconds; returns how many.

        Raises:
            StateError: the file cannot be written.
        """
        removed = 0
        with refused(self._path):
            while count := self._remove("WHERE stored_ms < ? ORDER BY stored_ms LIMIT ?", (limit_ms, _AT_ONCE)):
                removed += count
        return removed

    def shrink_to(self, size_bytes: int) -> int:
        """Remove the oldest answers until the file has at most this size; returns how many.

        Raises:
            StateError: the file cannot be written.
        """
        removed = 0
        with refused(self._path):
            (left,) = self._db.execute("SELECT count(*) FROM answers").fetchone()
            while left > removed and (too_much := self._size_bytes() - size_bytes) > 0:
                share = too_much * (left - removed) // self._size_bytes()
                gone = self._remove("ORDER BY stored_ms LIMIT ?", (min(max(share, 1), _AT_ONCE),))
                if not gone:
                    break
                removed += gone
        return removed

    def give_back(self) -> None:
        """Give the free space of the file back to the disk, a few megabytes at a time.

        Raises:
            StateError: the file cannot be written.
        """
        with refused(self._path):
            free = None
            while (left := self._pragma("freelist_count")) and left != free:
                free = left
                self._db.execute(f"PRAGMA incremental_vacuum({_PAGES_AT_ONCE})").fetchall()
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _remove(self, which: str, values: tuple[int, ...]) -> int:
        which = f"DELETE FROM answers WHERE digest IN (SELECT digest FROM answers {which})"
        return retry_while_locked(lambda: self._db.execute(which, values).rowcount, self._path, None)

    def _size_bytes(self) -> int:
        return (self._pragma("page_count") - self._pragma("freelist_count")) * self._pragma("page_size")

    def _pragma(self, name: str) -> int:
        return int(self._db.execute(f"PRAGMA {name}").fetchone()[0])
