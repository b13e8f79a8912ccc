"""What it costs to read the inputs in, at the start and on a resume after the input has changed."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from batchrun.runs.opening import open_run
from tests.bench import runs
from tests.bench.figures import Asked, Figure, Figures, one
from tests.support.rehearsal import Listener, options_for

_ROWS = 200_000
_NEW = 10
_MIDDLE = _ROWS // 2


def intake(asked: Asked) -> Figures:
    """Opening a run, and opening it again after its input has changed; nothing is submitted.

    A process for each. Each resume begins with the same state file, and the cases take turns. Ratios are of CPU time.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs.write_rows(folder / "all.jsonl", _ROWS + _NEW)
        figures = _of("lines with ids", folder, list(_CHANGES), asked.rounds)
        with (folder / "all.jsonl").open("rb") as lines, (folder / "bare.jsonl").open("wb") as bare:
            bare.writelines(b'{"prompt"' + line.partition(b'"prompt"')[2] for line in lines)
        (folder / "bare.jsonl").replace(folder / "all.jsonl")
        return figures | _of("lines without", folder, ["grown by 10 lines"], asked.rounds)


def _of(which: str, folder: Path, changes: list[str], rounds: int) -> Figures:
    path, read, kept = folder / "in.jsonl", folder / "read", folder / "kept"
    fresh: list[dict[str, float]] = []
    found: dict[str, list[dict[str, float]]] = {change: [] for change in changes}
    for _ in range(rounds):
        shutil.rmtree(read, ignore_errors=True)
        shutil.rmtree(kept, ignore_errors=True)
        _write(folder, "written again")
        fresh.append(_measure(path, read))
        read.rename(kept)
        for change, again in found.items():
            shutil.copytree(kept, read)
            _write(folder, change)
            again.append(_measure(path, read))
            state_bytes = (read / "out.jsonl.state").stat().st_size
            shutil.rmtree(read)
    return {
        f"{which}: fresh, rows/s": Figure([_ROWS / run["wall_s"] for run in fresh], ">= 100,000"),
        f"{which}: fresh, rows a second of CPU time": Figure([_ROWS / run["cpu_s"] for run in fresh]),
        f"{which}: fresh, peak MiB": Figure([run["peak_kib"] / 1024 for run in fresh], "<= 64"),
        **{
            f"{which}: {change}, over fresh": Figure(
                [a["cpu_s"] / b["cpu_s"] for a, b in zip(again, fresh, strict=True)], "<= 1.2"
            )
            for change, again in found.items()
        },
        f"{which}: a resume, peak MiB": Figure([run["peak_kib"] / 1024 for run in again], "<= 64"),
        f"{which}: state file, bytes a row": one(state_bytes / _ROWS, "<= 170"),
    }


_CHANGES = {
    "written again": (_ROWS, 0, _ROWS),
    "one line replaced": (_MIDDLE, 1, _MIDDLE + 1),
    "10 lines inserted": (_MIDDLE, _NEW, _MIDDLE),
    "grown by 10 lines": (_ROWS, _NEW, _ROWS),
}
"""How many of the first lines remain, how many new ones follow, and from which old line on the others remain."""


def _write(folder: Path, change: str) -> None:
    kept, new, again = _CHANGES[change]
    parts = ((0, kept), (_ROWS, _ROWS + new), (again, _ROWS))
    with (folder / "in.jsonl").open("wb") as file:
        file.writelines(chain.from_iterable(_lines(folder, *part) for part in parts))


def _lines(folder: Path, begin: int, end: int) -> Iterator[bytes]:
    with (folder / "all.jsonl").open("rb") as file:
        yield from islice(file, begin, end)


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
