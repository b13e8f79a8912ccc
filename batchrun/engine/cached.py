"""Answers rows from an answer cache, and stores the answers of jobs in it.

An answer is looked up when its row is loaded, and ends the row like the answer of a job: it is judged by the rules of
this run, and written by the journal. Answers are stored after the commit that ends their rows, in a separate thread. A
run never waits for the cache, and loses nothing without it: if it fails, the user is told once, and the run continues.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from batchrun.endpoint.protocol import JobAnswer, JobStatus
from batchrun.engine.answers import Answers
from batchrun.engine.row_queue import Loaded
from batchrun.engine.rows import RowLines
from batchrun.files.exactjson import dump, load
from batchrun.prompts.identity import whole_request
from batchrun.prompts.sampling import is_sampled
from batchrun.prompts.shapes import LineError
from batchrun.results.completion import target_of
from batchrun.results.record import JobInfo, job_fields
from batchrun.scheduler import commands as cmd
from batchrun.state.answer_cache import AnswerCache, CacheBrokenError, CacheKey, CacheLockedError, StoredAnswer
from batchrun.state.records import RowRecord

_ROWS_AT_ONCE = 100
"""How many rows are looked up together; their answers are in memory until they are written."""
_MOST_WAITING_BYTES = 32 << 20
"""How many bytes of answers may wait to be stored; more are dropped, so that a slow disk costs no memory."""
_END_WAIT_S = 10.0
_ASIDE_BYTES = 1 << 17


@dataclass(slots=True)
class CachedAnswer(JobAnswer):
    """An answer from the cache."""

    job: Mapping[str, Any] = field(default_factory=dict)
    """The job that it came from, as in a result line; not a job of this row."""
    size_bytes: int = 0


class CachedAnswers:
    """The cache of a run. All methods but `close` are called from the journal's thread.

    Args:
        cache: The file.
        lines: The lines of the rows.
        names: The names of the run's endpoints in the cache, by their IDs.
        is_swept: Whether each row has its own endpoint; otherwise, a row may get the answer of any endpoint.
        repeat: The number of samples of each combination.
        takes_sampled: Whether to reuse sampled answers, those that another try might not give again.
        tell: Shows the user a message; called from any thread.
    """

    def __init__(
        self,
        cache: AnswerCache,
        lines: RowLines,
        names: Mapping[str, str],
        *,
        is_swept: bool,
        repeat: int,
        takes_sampled: bool,
        tell: Callable[[str], object],
    ) -> None:
        self._cache = cache
        self._lines = lines
        self._names = names
        self._is_swept = is_swept
        self._repeat = repeat
        self._takes_sampled = takes_sampled
        self._tell = tell
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="cache")
        self._lock = Lock()
        self._waiting_bytes = 0
        self._is_broken = self._has_told = False
        self._new: list[StoredAnswer] = []
        self._sent: dict[int, bytes] = {}
        """Row -> what was sent for it, for rows whose requests contain files, which may change."""

    def find(self, row: RowRecord, request: Mapping[str, Any]) -> CachedAnswer | None:
        """The answer to the request of a row; None if the row needs a job.

        A row that was submitted before, or is run again, gets a new answer.
        """
        is_new = not (row.attempts or row.unconfirmed) and self._lines.amendment(row.row) is None
        if self._is_broken or not is_new or (not self._takes_sampled and is_sampled(request)):
            return None
        whole = whole_request(request)
        try:
            for endpoint in [self._lines.endpoint(row, 0)] if self._is_swept else self._names:
                found = self._cache.find(self._key(endpoint, row, whole))
                if found is not None:
                    job, size_bytes = {**load(found.job), "attempts": 0}, len(found.output)
                    done = JobStatus.COMPLETED
                    return CachedAnswer(
                        str(job["id"]), done, output=load(found.output), has_output=True, job=job, size_bytes=size_bytes
                    )
        except (CacheBrokenError, ValueError, TypeError, LookupError) as error:
            self._fail(f"can no longer be read ({error})")
        return None

    def note_sent(self, row: RowRecord, request: Mapping[str, Any]) -> None:
        """Note what is about to be sent for a row."""
        if self._lines.has_files(row):
            self._sent[row.row] = self._key("", row, whole_request(request)).digest

    def keep(self, row: RowRecord, endpoint: str, answer: JobAnswer, job: JobInfo) -> None:
        """Store the answer to what was sent for a row, when its result is committed; see `flush`."""
        sent = self._sent.pop(row.row, None)
        if self._is_broken:
            return
        try:
            request = self._lines.read_request(row)
            if request is None:
                return
            whole = whole_request(self._lines.inlined(row, request))
            if self._lines.has_files(row) and sent != self._key("", row, whole).digest:
                return
            key, model = self._key(endpoint, row, whole), _model(answer.output)
            asked = target_of(request).model or ""
            self._new.append(StoredAnswer(key, asked, model, dump(job_fields(job)), dump(answer.output)))
        except (LineError, TypeError, RecursionError):  # a file has changed since, or the output is nested too deeply
            return

    def flush(self, now_ms: int) -> None:
        """Begin to store the kept answers, whose results are committed."""
        new, self._new = self._new, []
        size_bytes = sum(len(each.output) + len(each.key.request) for each in new)
        if not new or self._is_broken:
            return
        with self._lock:
            is_too_much = self._waiting_bytes + size_bytes > _MOST_WAITING_BYTES
            self._waiting_bytes += 0 if is_too_much else size_bytes
        if is_too_much:
            self._say("is too slow, so some answers are not stored in it")
            return
        self._writer.submit(self._store, new, size_bytes, now_ms)

    async def close(self) -> None:
        """Wait until everything is stored, ten seconds at most."""
        last = self._writer.submit(lambda: None)
        try:
            await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(last)), _END_WAIT_S)
        except TimeoutError:
            self._is_broken = True
            self._say("is locked by another program, so some answers are not stored in it")
        self._writer.shutdown(wait=False)
        if last.done():
            self._cache.close()

    def _key(self, endpoint: str, row: RowRecord, whole: bytes) -> CacheKey:
        return CacheKey(self._names.get(endpoint, endpoint), row.variant % self._repeat, whole)

    def _store(self, new: list[StoredAnswer], size_bytes: int, now_ms: int) -> None:
        try:
            if self._is_broken:
                return
            for changed in self._cache.add(new, now_ms):
                self._tell(
                    f"{changed.key.endpoint} now answers as model {changed.model}: answers of other models are no"
                    f" longer taken from the cache; to run the rows again that got one: redo --where cached=true"
                )
        except CacheLockedError:
            self._say("is locked by another program, so some answers are not stored in it")
        except CacheBrokenError as error:
            self._fail(f"can no longer be written ({error})")
        finally:
            with self._lock:
                self._waiting_bytes -= size_bytes

    def _fail(self, why: str) -> None:
        self._is_broken = True
        self._say(f"{why}; the run continues without it")

    def _say(self, what: str) -> None:
        with self._lock:
            is_first, self._has_told = not self._has_told, True
        if is_first:
            with suppress(RuntimeError):  # the event loop has ended
                self._tell(f"--cache {self._cache.path} {what}")


class CachedLoads:
    """Loads rows, and separates those with an answer from the cache that the run accepts.

    Args:
        load: Loads rows, with the answers that were found for them.
        answers: Judges answers.
    """

    def __init__(self, load: Callable[[int], Awaitable[Loaded]], answers: Answers) -> None:
        self._load = load
        self._answers = answers

    async def __call__(self, count: int) -> Loaded:
        """Up to `count` rows to submit, and rows that have an answer."""
        loaded = await self._load(min(count, _ROWS_AT_ONCE))
        tickets, hits = [], []
        for ticket in loaded.tickets:
            answer = loaded.found.get(ticket.row)
            if answer is not None and await self._is_result(ticket.row, answer):
                done = cmd.Finish(None, ticket.row, JobStatus.COMPLETED.value, None, 0, 0, is_answered=True)
                hits.append((done, answer))
            else:
                tickets.append(ticket)
        return loaded._replace(tickets=tuple(tickets), found={}, hits=tuple(hits))

    async def _is_result(self, row: int, answer: JobAnswer) -> bool:
        aside = isinstance(answer, CachedAnswer) and answer.size_bytes > _ASIDE_BYTES
        return await self._answers.is_result(row, answer, aside=aside)


def _model(output: Any) -> str:
    """The model that an output names; empty if it names none."""
    first = output[0] if isinstance(output, list) and output else output
    model = first.get("model") if isinstance(first, dict) else None
    return model if isinstance(model, str) else ""
