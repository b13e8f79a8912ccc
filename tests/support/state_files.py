"""What a state file says, as another process reads it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

from batchrun.scheduler.states import RowState

if TYPE_CHECKING:
    from pathlib import Path


def told(state: Path) -> dict[str, str]:
    """What is committed of each row and each job, and how much of each results file the state counts on."""
    with closing(sqlite3.connect(f"file:{state}?mode=ro", uri=True)) as db:
        rows = db.execute(
            "SELECT r.id, r.state, r.job, r.retries, r.unconfirmed, f.kind, p.output"
            " FROM rows r LEFT JOIN failures f ON f.row = r.row LEFT JOIN parts p ON p.row = r.row ORDER BY r.row"
        ).fetchall()
        jobs = db.execute("SELECT job, status, remote_id FROM jobs ORDER BY job").fetchall()
        outputs = db.execute("SELECT path, committed_bytes FROM outputs").fetchall()
    said = {}
    for row_id, row_state, job, retries, unconfirmed, kind, part in rows:
        words = [RowState(row_state).name, "" if job is None else f"job {job}", kind, "" if part is None else "part"]
        words += [f"retries {retries}" if retries else "", f"unconfirmed {unconfirmed}" if unconfirmed else ""]
        said[row_id] = " ".join(word for word in words if word)
    for job, status, remote_id in jobs:
        said[f"job {job}"] = status or ("accepted" if remote_id else "sent")
    for path, committed_bytes in outputs:
        size = (state.parent / path).stat().st_size
        assert committed_bytes <= size, "the state counts on lines that are not there"
        said[path] = "whole" if committed_bytes == size else f"{size - committed_bytes} bytes behind"
    return said
