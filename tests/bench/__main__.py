"""Speed and memory, measured: `python -m tests.bench [--only NAME] [--json]`.

Each figure of speed is the median of ratios of runs that take turns, so that a machine whose speed drifts cannot
decide. Nothing here is asserted; the goals are printed beside the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

BATCHRUN = [sys.executable, "-m", "batchrun"]
CONNECTIONS = 64


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", choices=sorted(FIGURES), action="append", help="only this figure; repeatable")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each side (default 5)")
    given = parser.parse_args()
    found = {name: FIGURES[name](given.rounds) for name in given.only or FIGURES}
    if given.json:
        print(json.dumps(found))
        return
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} cores, event loop {event_loop()}")
    for name, figures in found.items():
        print(f"\n{name}")
        for key, value in figures.items():
            print(f"  {key:<44} {value}")


def event_loop() -> str:
    """The event loop that both sides use."""
    return "uvloop" if find_spec("uvloop") else "asyncio"


def speed(rounds: int) -> dict[str, Any]:
    """Jobs per second against an instantly completing server, durable state on, over the bare loop's."""
    rows, ratios, ours, bare, calls = 20_000, [], [], [], []
    with tempfile.TemporaryDirectory() as name, stub() as base_url:
        folder = Path(name)
        write_rows(folder / "in.jsonl", rows)
        for number in range(rounds + 1):
            run_batchrun(folder, base_url, f"out{number}.jsonl", "--connections", str(CONNECTIONS))
            seen = report(base_url)
            ours.append(rows / seen["span_s"])
            calls.append(seen["requests"]["status"] / rows)
            subprocess.run(
                [sys.executable, "-m", "tests.bench.bare", str(folder / "in.jsonl"), base_url, str(CONNECTIONS)],
                check=True,
            )
            bare.append(rows / report(base_url)["span_s"])
            ratios.append(ours[-1] / bare[-1])
    return {
        "batchrun, jobs/s": spread(ours[1:]),
        "bare aiohttp loop, jobs/s": spread(bare[1:]),
        "ratio (goal 0.6)": spread(ratios[1:], 2),
        "status requests a job": spread(calls[1:], 2),
    }


def memory(_: int) -> dict[str, Any]:
    """Peak memory of whole runs."""
    peaks = {}
    with tempfile.TemporaryDirectory() as name, stub() as base_url:
        for rows in (2000, 200_000):
            folder = Path(name) / str(rows)
            folder.mkdir()
            write_rows(folder / "in.jsonl", rows)
            peaks[rows] = run_batchrun(folder, base_url, "out.jsonl")
            state = (folder / "out.jsonl.state").stat().st_size
    return {
        "2,000 rows, MiB": round(peaks[2000] / 1024, 1),
        "200,000 rows, MiB": round(peaks[200_000] / 1024, 1),
        "difference, MiB (goal 30)": round((peaks[200_000] - peaks[2000]) / 1024, 1),
        "state file, bytes a row": round(state / 200_000),
    }


def start_up(rounds: int) -> dict[str, Any]:
    """`batchrun --help` over `import click`."""
    ours, bare = [], []
    script = Path(sys.executable).with_name("batchrun")
    for _ in range(rounds * 2):
        ours.append(timed([str(script), "--help"]))
        bare.append(timed([sys.executable, "-c", "import click"]))
    more = [a - b for a, b in zip(ours, bare, strict=True)]
    return {
        "batchrun --help, ms": spread([s * 1000 for s in ours]),
        "import click, ms": spread([s * 1000 for s in bare]),
        "difference, ms (goal 150)": spread([s * 1000 for s in more]),
    }


FIGURES = {"speed": speed, "memory": memory, "start-up": start_up}


@contextmanager
def stub() -> Any:
    """The instantly completing endpoint in a process of its own; gives its base URL."""
    with subprocess.Popen([sys.executable, "-m", "tests.bench.stub"], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v2"
        finally:
            process.kill()


def report(base_url: str) -> dict[str, Any]:
    """What the stub has seen since the last report."""
    with urllib.request.urlopen(base_url.removesuffix("/v2") + "/report") as answer:
        return json.loads(answer.read())


def write_rows(path: Path, rows: int) -> None:
    """Rows of some 250 bytes."""
    with path.open("w") as file:
        for n in range(rows):
            words = "Tell me in one sentence what the sea is like on a day without wind. " * 2
            file.write(json.dumps({"id": f"row-{n}", "prompt": f"{words}{n}", "max_tokens": 64, "metadata": {"n": n}}))
            file.write("\n")


def run_batchrun(folder: Path, base_url: str, output: str, *options: str) -> int:
    """A whole run as a process; returns its peak memory in KiB."""
    command = [
        *BATCHRUN,
        *("run", str(folder / "in.jsonl"), "-o", str(folder / output), "-e", "x", "--base-url", base_url, "-q"),
        *("--run-limit", "0", "--status-limit", "0", *options),
    ]
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"batchrun ended with {process.returncode}")
    return usage.ru_maxrss


def timed(command: list[str]) -> float:
    """Seconds that a process takes."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def spread(values: list[float], digits: int = 0) -> str:
    """Median, and the range in brackets."""
    median, low, high = statistics.median(values), min(values), max(values)
    return f"{median:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


if __name__ == "__main__":
    main()
