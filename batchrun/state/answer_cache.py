"""Finds and stores answers in a file that runs share.

An answer is found by a digest, and used only if the whole request is equal and the row is unchanged. Several processes
may use a file at the same time: readers never wait, and a transaction has the answers of one group of writes. An answer
is no longer used once its endpoint has answered as another model.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, Self

from batchrun.state.cache_file import WRITE_WAIT_S, connect, create, is_busy, refused

_DIGEST_BYTES = 16
_SEAL_BYTES = 8
_READ_WAIT_S = 0.05
"""Readers wait for a lock only while another process recovers the file after a crash."""

_FIND = """
SELECT a.seal, a.endpoint, a.sample, a.asked, a.model, a.job, a.request, a.output
FROM answers a LEFT JOIN served s ON s.endpoint = a.endpoint AND s.asked = a.asked
WHERE a.digest = ? AND (a.model = '' OR a.model = s.model)
"""
_ADD = "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_SERVE = "INSERT OR REPLACE INTO served VALUES (?, ?, ?)"
_SERVED = "SELECT model FROM served WHERE endpoint = ? AND asked = ?"


class CacheKey(NamedTuple):
    """The request, and the endpoint that it was sent to."""

    endpoint: str
    """The endpoint, by a unique name."""
    sample: int
    """The sample of `--repeat`, from 0: each has an answer of its own."""
    request: bytes
    """The whole request, see `identity.whole_request`."""

    @property
    def digest(self) -> bytes:
        """16 bytes that identify it."""
        place = f"{self.sample} {self.endpoint}\n".encode()
        return blake2b(place + self.request, digest_size=_DIGEST_BYTES).digest()


class StoredAnswer(NamedTuple):
    """An answer, and what is known about it."""

    key: CacheKey
    asked: str
    """The model that the request names; empty for none."""
    model: str
    """The model that the answer names; empty for none."""
    job: bytes
    """The job that gave it, a JSON object as in a result line."""
    output: bytes
    """The output as received, as JSON."""

    @property
    def seal(self) -> bytes:
        """An 8-byte checksum of everything in it: SQLite itself does not notice changed bytes."""
        seal = blake2b(repr((*self.key[:2], self.asked, self.model)).encode(), digest_size=_SEAL_BYTES)
        for part in (self.job, self.key.request, self.output):
            seal.update(b"%d\n" % len(part))
            seal.update(part)
        return seal.digest()


class CacheLockedError(Exception):
    """Another program has the file locked."""


class CacheBrokenError(Exception):
    """The file can no longer be used; the text says why."""


class AnswerCache:
    """A cache that is open for a run: one thread finds answers, and another may add them.

    Args:
        path: The file; created if it does not exist, but its folder is not.

    Raises:
        StateError: it is damaged, not a cache, written by a newer batchrun, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with refused(path):
            create(path)
            self._reader = connect(path, _READ_WAIT_S)
            self._writer = connect(path, WRITE_WAIT_S)
            self._writer.execute("PRAGMA synchronous = NORMAL")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what was added is complete."""
        for connection in (self._reader, self._writer):
            with suppress(sqlite3.Error):
                connection.close()

    def find(self, key: CacheKey) -> StoredAnswer | None:
        """The answer to exactly this request; None if there is none.

        Raises:
            CacheBrokenError: the file cannot be read.
        """
        try:
            rows = self._reader.execute(_FIND, (key.digest,)).fetchall()
        except sqlite3.Error as error:
            if is_busy(error):
                return None
            raise CacheBrokenError(str(error)) from error
        for seal, endpoint, sample, asked, model, job, request, output in rows:
            if (endpoint, sample, request) != key:
                continue
            with suppress(TypeError, ValueError):  # another program has written values of other types
                found = StoredAnswer(CacheKey(*key), asked, model, job, output)
                if found.seal == seal:
                    return found
        return None

    def add(self, answers: Iterable[StoredAnswer], now_ms: int) -> list[StoredAnswer]:
        """Store answers in one transaction; they replace older answers to the same requests.

        Args:
            answers: The answers.
            now_ms: UTC epoch milliseconds.

        Returns:
            Those that show that an endpoint has another model than before.

        Raises:
            CacheLockedError: another program has had the file locked for five seconds; nothing was stored.
            CacheBrokenError: the file cannot be written; nothing was stored.
        """
        changed = []
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                for answer in answers:
                    (endpoint, sample, request), asked, model, job, output = answer
                    if model:
                        before = self._writer.execute(_SERVED, (endpoint, asked)).fetchone()
                        if before != (model,):
                            self._writer.execute(_SERVE, (endpoint, asked, model))
                            changed += [answer] if before else []
                    place = (endpoint, sample, asked, model, job, request, output)
                    self._writer.execute(_ADD, (answer.key.digest, now_ms, answer.seal, *place))
                self._writer.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self._writer.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise (CacheLockedError if is_busy(error) else CacheBrokenError)(str(error)) from error
        return changed
