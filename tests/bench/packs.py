"""Jobs of several rows: how much faster they are, and what a row costs."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.bench import runs
from tests.bench.figures import Asked, Figure, Figures
from tests.bench.stub import Stub

_ROWS = 100_000
_PACK = ("--pack", "16", "--pack-check", "off")


def packs(asked: Asked) -> Figures:
    """100,000 rows over real HTTP, every job over at once, no limits: 16 rows a job against one; both take turns."""
    together, alone, ratios, cpu, peaks = [], [], [], [], []
    with tempfile.TemporaryDirectory() as name, Stub() as stub:
        folder = Path(name)
        runs.write_rows(folder / "in.jsonl", _ROWS)
        for number in range(asked.repeats + 1):
            found = {}
            for rows in (16, 1):
                stub.reset()
                output = f"{number}-{rows}.jsonl"
                ran = runs.batchrun(folder, stub.base_url, output, *runs.UNLIMITED, *(_PACK if rows > 1 else ()))
                assert ran.results == _ROWS
                found[rows] = ran, stub.report()["span_s"]
            together.append(_ROWS / found[16][1])
            alone.append(_ROWS / found[1][1])
            ratios.append(found[1][1] / found[16][1])
            cpu.append(found[16][0].cpu_s / _ROWS * 1e6)
            peaks.append(found[16][0].peak_kib / 1024)
    return {
        "16 rows a job, rows/s": Figure(together),
        "one row a job, rows/s": Figure(alone),
        "the first over the second": Figure(ratios, ">= 8"),
        "CPU time of a packed row, microseconds": Figure(cpu, "<= 150"),
        "peak MiB": Figure(peaks),
    }
