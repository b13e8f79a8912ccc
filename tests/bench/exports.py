"""What a table of results costs: batchrun's Parquet against that of the obvious script."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.bench import runs
from tests.bench.figures import Asked, Figure, Figures, one
from tests.bench.stub import Stub

_ROWS = 200_000
_ALONE = """
import sys
import orjson, pyarrow as pa, pyarrow.parquet as pq
asked = {}
for line in open(sys.argv[1], "rb"):
    row = orjson.loads(line)
    asked[row["id"]] = row["prompt"]
rows = []
for line in open(sys.argv[2], "rb"):
    row = orjson.loads(line)
    usage = row["usage"]
    rows.append({"id": row["id"], **row["metadata"], "prompt": asked[row["id"]], "text": row["text"],
        "finish_reason": row["finish_reason"], "input_tokens": usage["input_tokens"],
        "output_tokens": usage["output_tokens"], "status": row["status"], "error": None})
pq.write_table(pa.Table.from_pylist(rows), sys.argv[3])
"""
"""All in memory, in the order of completion, and nothing is proven."""


def exports(asked: Asked) -> Figures:
    """A table of 200,000 results, from the start of the process to its end; both sides take turns."""
    ours, alone, csv, ratios, peaks = [], [], [], [], []
    with tempfile.TemporaryDirectory() as name, Stub() as stub:
        folder = Path(name)
        runs.write_rows(folder / "in.jsonl", _ROWS)
        runs.batchrun(folder, stub.base_url, "out.jsonl", *runs.UNLIMITED)
        results, state = folder / "out.jsonl", folder / "out.jsonl.state"
        with (folder / "words").open("wb") as words:
            for _ in range(asked.rounds):
                export = [*runs.BATCHRUN, "export", str(state), "-o"]
                table = runs.process([*export, str(folder / "t.parquet")], stderr=words)
                script = [sys.executable, "-c", _ALONE, str(folder / "in.jsonl"), str(results)]
                other = runs.process([*script, str(folder / "alone.parquet")])
                cells = runs.process([*export, str(folder / "t.csv")], stderr=words)
                ours.append(_ROWS / table.wall_s)
                alone.append(_ROWS / other.wall_s)
                csv.append(_ROWS / cells.wall_s)
                ratios.append(other.wall_s / table.wall_s)
                peaks.append(table.peak_kib / 1024)
        size_bytes = results.stat().st_size / _ROWS
    return {
        "Parquet, rows/s": Figure(ours, ">= 50,000, or half of the script's"),
        "the script, rows/s": Figure(alone),
        "Parquet over the script": Figure(ratios, ">= 0.5, or 50,000 rows/s"),
        "CSV, rows/s": Figure(csv),
        "Parquet, peak MiB": Figure(peaks),
        "a result, bytes": one(size_bytes),
    }
