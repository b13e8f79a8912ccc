"""Memory and disk, and what a run of a million rows costs before and after its jobs."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from tests.bench import runs
from tests.bench.figures import Asked, Figures, one
from tests.bench.stub import Stub

_FEW = 2000
_MANY = 200_000
_MILLION = 1_000_000


def memory(_: Asked) -> Figures:
    """Peak memory of whole runs."""
    peaks = {}
    with tempfile.TemporaryDirectory() as name, Stub() as stub:
        for rows in (_FEW, _MANY):
            folder = Path(name) / str(rows)
            folder.mkdir()
            runs.write_rows(folder / "in.jsonl", rows)
            peaks[rows] = runs.batchrun(folder, stub.base_url, "out.jsonl", *runs.UNLIMITED).peak_kib / 1024
            state = (folder / "out.jsonl.state").stat().st_size
    return {
        f"{_FEW:,} rows, MiB": one(peaks[_FEW]),
        f"{_MANY:,} rows, MiB": one(peaks[_MANY], "<= 64"),
        f"{_MANY:,} rows over {_FEW:,}": one(peaks[_MANY] / peaks[_FEW], "<= 1.2"),
        "state file, bytes a row": one(state / _MANY),
    }


def million(_: Asked) -> Figures:
    """A run of a million rows: reading it in, its memory, and each command on it once it is over."""
    with tempfile.TemporaryDirectory() as name, Stub() as stub:
        folder = Path(name)
        runs.write_rows(folder / "in.jsonl", _FEW)
        few = runs.batchrun(folder, stub.base_url, "few.jsonl", *runs.UNLIMITED)
        runs.write_rows(folder / "in.jsonl", _MILLION)
        stub.reset()
        began = time.monotonic()
        run = runs.batchrun(folder, stub.base_url, "out.jsonl", *runs.UNLIMITED)
        report = stub.report()
        intake_s = report["first_at"] - began
        state = folder / "out.jsonl.state"
        resume = runs.batchrun(folder, stub.base_url, "out.jsonl", *runs.UNLIMITED)
        with (folder / "words").open("wb") as words:
            status = runs.process([*runs.BATCHRUN, "status", str(state)], stderr=words)
            verify = runs.process([*runs.BATCHRUN, "verify", str(state)], stderr=words)
            target = str(folder / "all.jsonl")
            export = runs.process([*runs.BATCHRUN, "export", str(state), "-o", target], stderr=words)
        return {
            "intake, rows/s": one(_MILLION / intake_s),
            "intake, seconds to the first submission": one(intake_s),
            "run, jobs/s": one(_MILLION / report["span_s"]),
            "run, peak MiB": one(run.peak_kib / 1024, "<= 64"),
            f"peak over that of {_FEW:,} rows": one(run.peak_kib / few.peak_kib, "<= 1.2"),
            "state file, bytes a row": one(state.stat().st_size / _MILLION),
            "the finished run again, seconds": one(resume.wall_s, "<= 3"),
            "batchrun status, seconds": one(status.wall_s, "<= 1"),
            "batchrun verify, seconds": one(verify.wall_s),
            "batchrun verify, peak MiB": one(verify.peak_kib / 1024),
            "batchrun export, seconds": one(export.wall_s),
            "batchrun export, peak MiB": one(export.peak_kib / 1024),
        }
