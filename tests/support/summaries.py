"""A run that has ended as it should."""

from __future__ import annotations

from pathlib import Path

from batchrun.display.summary import Percentiles, Summary

DONE = Summary(
    outcome="finished",
    reason="",
    hint="",
    total=10_000,
    succeeded=10_000,
    failed=0,
    held=0,
    not_run=0,
    in_flight=0,
    wall_s=8_040.0,
    session_s=8_040.0,
    rows_per_s=1.24,
    state=Path("r.jsonl.state"),
    delay_ms=Percentiles(31, 250, 1_400),
    execution_ms=Percentiles(700, 900, 8_000),
    results=[Path("r.jsonl")],
)
