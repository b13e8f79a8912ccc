"""What it costs to read a table instead of the same rows as JSON lines: time and memory."""

from __future__ import annotations

import csv
import json
import sys
import tempfile
import time
from pathlib import Path

from tests.bench import runs
from tests.bench.figures import Asked, Figure, Figures, one
from tests.bench.stub import Stub

_ROWS = 100_000
_MILLION = 1_000_000
_FEW = 2000
_GROUP = 20_000
_FILES = ("in.jsonl", "in.csv", "in.parquet")
_PART = ("--shard", "1/1000")
"""All rows are read in, and few of them run."""


def rates(asked: Asked) -> Figures:
    """Rows a second from the start of the command to its first submission, each form in turn."""
    found: dict[str, list[float]] = {name: [] for name in _FILES}
    with tempfile.TemporaryDirectory() as name, Stub() as stub:
        folder = Path(name)
        _write(folder, _ROWS)
        for number in range(asked.rounds + 1):
            for file, values in found.items():
                stub.reset()
                began = time.monotonic()
                runs.batchrun(folder, stub.base_url, f"{file}-{number}.out", *runs.UNLIMITED, *_PART, source=file)
                values.append(_ROWS / (stub.report()["first_at"] - began))
    lines, *tables = (values[1:] for values in found.values())
    ratios = [[a / b for a, b in zip(table, lines, strict=True)] for table in tables]
    return {
        "JSON lines, rows/s": Figure(lines),
        "CSV, rows/s": Figure(tables[0]),
        "Parquet, rows/s": Figure(tables[1]),
        "CSV over JSON lines": Figure(ratios[0], ">= 0.7"),
        "Parquet over JSON lines": Figure(ratios[1]),
    }


def memory(_: Asked) -> Figures:
    """Peak memory of a run of a million rows, and of one of few."""
    figures = {}
    with tempfile.TemporaryDirectory() as name, Stub() as stub:
        for rows in (_FEW, _MILLION):
            folder = Path(name) / str(rows)
            folder.mkdir()
            _write(folder, rows)
            for file in _FILES:
                peak = runs.batchrun(folder, stub.base_url, f"{file}.out", *runs.UNLIMITED, *_PART, source=file)
                goal = "" if file == "in.parquet" else "<= 64"
                figures[f"{file.removeprefix('in.')}, {rows:,} rows, MiB"] = one(peak.peak_kib / 1024, goal)
    return figures


def _write(folder: Path, rows: int) -> None:
    """The same rows in each form, by another process: what this one holds would count as a child's."""
    runs.process([sys.executable, "-m", "tests.bench.tables", str(folder), str(rows)])


def write(folder: Path, rows: int) -> None:
    """Write the files."""
    import pyarrow as pa  # noqa: PLC0415 - the size of this process would count as that of each run
    import pyarrow.parquet as pq  # noqa: PLC0415 - as above

    runs.write_rows(folder / "in.jsonl", rows)
    names = ["id", "prompt", "max_tokens", "n"]
    types = pa.schema([("id", pa.string()), ("prompt", pa.string()), ("max_tokens", pa.int64()), ("n", pa.int64())])
    group: dict[str, list] = {name: [] for name in names}
    with (
        (folder / "in.jsonl").open("rb") as lines,
        (folder / "in.csv").open("w", newline="") as file,
        pq.ParquetWriter(folder / "in.parquet", types) as parquet,
    ):
        writer = csv.writer(file)
        writer.writerow(names)
        for number, line in enumerate(lines, 1):
            row = json.loads(line)
            cells = [row["id"], row["prompt"], row["max_tokens"], row["metadata"]["n"]]
            writer.writerow(cells)
            for values, cell in zip(group.values(), cells, strict=True):
                values.append(cell)
            if number % _GROUP == 0 or number == rows:
                parquet.write_table(pa.table(group, schema=types))
                group = {name: [] for name in names}


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]))
