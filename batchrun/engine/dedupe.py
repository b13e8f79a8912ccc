"""Give rows with equal requests one answer: each gets a result line of its own, but only the leader gets a job.

The followers' lines are after the leader's. So a crash in between leaves a leader that succeeded and followers without
an answer, which the next session takes from the leader's line.
"""

from __future__ import annotations

from collections.abc import Iterable

from batchrun.engine.rows import RowLines
from batchrun.files.exactjson import load
from batchrun.results.openai import batchrun_record, is_openai
from batchrun.results.reader import read_groups
from batchrun.results.record import marks_of, read_record, result_digest
from batchrun.results.writer import ResultsFiles
from batchrun.state.dedupe import answered_leaders, count_followers, has_unanswered, promote_followers
from batchrun.state.records import Batch
from batchrun.state.shared_ids import stored_ids
from batchrun.state.store import Store

_ROWS_AT_ONCE = 500
_NOTED_AT_ONCE = 50_000
_BYTES_AT_ONCE = 4 << 20
"""The limit for memory: a leader may have any number of followers, and an answer of any length."""


class SharedAnswers:
    """Gives rows the answers of other rows with the same request.

    Args:
        store: The state file.
        lines: The lines of the rows.
        results: The results files.
    """

    def __init__(self, store: Store, lines: RowLines, results: ResultsFiles) -> None:
        self._store = store
        self._lines = lines
        self._results = results

    def answer(self, leader: int, line: bytes, batch: Batch, marks: Iterable[str] | None = None) -> int:
        """Append a leader's answer for each of its followers, without a sync; returns the number of followers.

        Args:
            leader: The leader's number.
            line: The leader's result line.
            batch: Receives what must be committed: the followers' endings, their lines' digests, the files' lengths.
            marks: The marks of the answer; None if they must be extracted.

        Raises:
            OutputError: the lines cannot be written.
        """
        at_once = max(1, min(_ROWS_AT_ONCE, _BYTES_AT_ONCE // len(line)))
        rows = self._store.followers(leader, 0, at_once)
        if not rows:
            return 0
        record, count = load(line), 0
        if is_openai(record):
            record = batchrun_record(record)
        while rows:
            count += len(rows)
            lines: dict[int, list[bytes]] = {}
            for row in rows:
                made = self._lines.shared(row, record)
                lines.setdefault(self._lines.output(row), []).append(made)
                batch.answered.append((row.row, result_digest(made)))
            for output, new in lines.items():
                self._results[output].append(new)
                batch.committed_bytes[output] = self._results[output].size_bytes
            if len(batch.answered) > _NOTED_AT_ONCE:
                self._store.note_results(batch.answered)
                batch.answered.clear()
            rows = self._store.followers(leader, rows[-1].row, at_once)
        batch.leaders.append((leader,))
        batch.count_answer(None, None, marks_of(record["output"], record["text"]) if marks is None else marks, count)
        return count

    def end_with(self, leader: int, batch: Batch) -> int:
        """Let the followers of a row that failed or is held end like it; returns the number of followers."""
        count = count_followers(self._store, leader)
        if count:
            batch.leaders.append((leader,))
        return count

    def settle(self, session: int, now_ms: int) -> int:
        """Answer the pending rows whose leader has already succeeded; returns the number of these rows.

        Such rows were added later, or failed before and are retried, or a crash came in between. If a leader has
        failed or has lost its line, the first of its followers becomes the leader of the others.

        Args:
            session: The session's number.
            now_ms: UTC epoch milliseconds.

        Raises:
            StateError: results cannot be read.
            OutputError: results or state cannot be written.
        """
        count = self._settle(session, now_ms) if has_unanswered(self._store) else 0
        promote_followers(self._store)
        return count

    def _settle(self, session: int, now_ms: int) -> int:
        count = 0
        for output in self._store.outputs():
            path = self._store.results_path(output)
            for group in read_groups(path, end=output.committed_bytes):
                named = [(record.id, line.raw) for line in group if (record := read_record(line.raw)) is not None]
                ids = stored_ids(self._store, output.output, named, result_digest)
                leaders = answered_leaders(self._store, ids)
                batch = Batch()
                for row_id, (_, raw) in zip(ids, named, strict=True):
                    if row_id in leaders:
                        count += self.answer(leaders[row_id], raw, batch)
                if batch.leaders:
                    self._results.sync(batch.committed_bytes)
                    self._store.commit(batch, session, now_ms)
        return count
