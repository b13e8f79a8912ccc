"""A run that is half done, as the process that drives it reports it."""

from __future__ import annotations

from batchrun.display.brief_status import BriefStatus, Failures, KindOfFailure, LastFailure
from batchrun.display.cost import WorkCost, cost_of
from batchrun.display.pace import Pace
from batchrun.display.summary import Snapshot, Workers

NOW = 1_800_000_000.0
COST = cost_of(WorkCost(3600.0, 7200.0), price_per_hour=2.0, done=600, total=1000)
ONE = Snapshot(
    total=1000, succeeded=590, failed=10, held=0, pending=347, waiting=3, queued=30, running=20, retries=4,
    unconfirmed=0, ended_in_session=600, elapsed_s=100.0, rows_per_s=5.5, tokens_per_s=1234.0, input_tokens=1,
    output_tokens=2, window=60, jobs=50, note="slowed down: 429 Too many requests", cost=COST,
    workers=Workers(12, 1, 2, 3, 4, 35, 21),
)  # fmt: skip
STATUS = BriefStatus(
    "out.jsonl.state", "abc", "process 4242", began_at=NOW - 100, seen_at=NOW, total=1000, succeeded=590, failed=10,
    in_flight=50, cost=COST, pace=Pace(6.0, 100.0, 66.0, 60.0, 75.0), ended=[0, 4, 8, 6, 3], every_s=2,
    parts={"abc": ONE}, whole=ONE, obstacles=[ONE.note],
    failures=Failures([KindOfFailure("timed_out", 10)], [LastFailure("r7", "timed_out", "too slow", NOW - 5)]),
)  # fmt: skip
