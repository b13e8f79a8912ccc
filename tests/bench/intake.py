"""What it costs to read the inputs in, at the start and on a resume after the input has changed."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from batchrun.runs.opening import open_run
from tests.bench import runs
from tests.bench.figures import Asked, Figure, Figures, one
from tests.support.rehearsal import Listener, options_for

_ROWS = 300_000
_NEW = 10
_FOLDER = "read"


def intake(asked: Asked) -> Figures:
    """CPU time of opening a run, and of opening it again after its input has changed; nothing is submitted.

    A process for each. Each resume begins with the same state file, and the cases take turns.
    """
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ("fresh", *_CHANGES)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs.write_rows(folder / "all.jsonl", _ROWS + _NEW)
        lines = (folder / "all.jsonl").read_bytes().splitlines(keepends=True)
        for _ in range(asked.rounds):
            read, path = folder / _FOLDER, folder / "in.jsonl"
            shutil.rmtree(read, ignore_errors=True)
            path.write_bytes(b"".join(lines[:_ROWS]))
            found["fresh"].append(_measure(path, read))
            shutil.copytree(read, folder / "kept", dirs_exist_ok=True)
            for change, make in _CHANGES.items():
                shutil.rmtree(read)
                shutil.copytree(folder / "kept", read)
                path.write_bytes(b"".join(make(lines)))
                found[change].append(_measure(path, read))
        state_bytes = (read / "out.jsonl.state").stat().st_size
    fresh = found.pop("fresh")
    goals = {"unchanged": "", "grown by 10 lines": "<= 1.2"}
    return {
        "fresh, rows/s": Figure([_ROWS / run["wall_s"] for run in fresh], ">= 100,000"),
        "fresh, rows a second of CPU time": Figure([_ROWS / run["cpu_s"] for run in fresh]),
        **{
            f"{change}, over fresh": Figure(
                [a["cpu_s"] / b["cpu_s"] for a, b in zip(again, fresh, strict=True)], goals.get(change, "<= 1.2")
            )
            for change, again in found.items()
        },
        "fresh, peak MiB": Figure([run["peak_kib"] / 1024 for run in fresh], "<= 64"),
        "grown by 10 lines, peak MiB": Figure([run["peak_kib"] / 1024 for run in found["grown by 10 lines"]], "<= 64"),
        "state file, bytes a row": one(state_bytes / (_ROWS + _NEW), "<= 170"),
    }


_CHANGES = {
    "unchanged": lambda lines: lines[:_ROWS],
    "one line changed": lambda lines: [*lines[:1000], lines[1000].replace(b"sea", b"lake"), *lines[1001:_ROWS]],
    "10 lines inserted": lambda lines: [*lines[: _ROWS // 2], *lines[_ROWS:], *lines[_ROWS // 2 : _ROWS]],
    "grown by 10 lines": lambda lines: lines,
}


def _measure(path: Path, folder: Path) -> dict[str, float]:
    """Open the run in a process of its own."""
    told = path.with_name("told.json")
    ran = runs.process([sys.executable, "-m", "tests.bench.intake", str(path), str(folder), str(told)])
    return {**json.loads(told.read_text()), "peak_kib": ran.peak_kib}


def take_in(path: Path, folder: Path) -> dict[str, float]:
    """Open a run with an input; returns the time."""
    options = options_for(folder, inputs=(str(path),))
    wall, cpu = time.perf_counter(), time.process_time()
    with open_run(options, Listener(), clock=time.monotonic, wall=time.time):
        return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


if __name__ == "__main__":
    Path(sys.argv[3]).write_text(json.dumps(take_in(Path(sys.argv[1]), Path(sys.argv[2]))))
