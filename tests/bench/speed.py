"""What a job costs the client: speed, CPU time, and the time to start."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from tests.bench import runs
from tests.bench.figures import Asked, Figure, Figures
from tests.bench.stub import Stub

_CONNECTIONS = 64
_WINDOW = 200
_ROWS = 16_000
_SDK_ROWS = 4000


def speed(asked: Asked) -> Figures:
    """Jobs per second when every job is over at once, durable state on, over clients that keep none.

    Runs take turns. The SDK is not made to wait either: its first look finds every job done, and it looks twice. That
    is the best case for it; with jobs that take time it looks once a second. A first round warms up and is left out.
    """
    rates: dict[str, list[float]] = {"batchrun": [], "bare": [], "sdk_async": []}
    calls, cpu = [], []
    with tempfile.TemporaryDirectory() as name, Stub() as stub:
        folder = Path(name)
        runs.write_rows(folder / "in.jsonl", _ROWS)
        runs.write_rows(folder / "few.jsonl", _SDK_ROWS)
        for number in range(asked.rounds + 1):
            for client, found in rates.items():
                stub.reset()
                if client == "batchrun":
                    options = (*runs.UNLIMITED, "-j", str(_WINDOW), "--connections", str(_CONNECTIONS))
                    ran = runs.batchrun(folder, stub.base_url, f"{number}.jsonl", *options)
                else:
                    path, width = ("in.jsonl", _CONNECTIONS) if client == "bare" else ("few.jsonl", _WINDOW)
                    ran = runs.client(client, folder / path, stub.base_url, width)
                report = stub.report()
                found.append(ran.results / report["span_s"])
                if client == "batchrun":
                    calls.append(report["requests"]["status"] / _ROWS)
                    cpu.append(report["cpu_s"] / ran.cpu_s)
    ours, bare, sdk = (found[1:] for found in rates.values())
    return {
        "batchrun, jobs/s": Figure(ours),
        "bare aiohttp loop, jobs/s": Figure(bare),
        "Runpod's SDK, AsyncioEndpoint, jobs/s": Figure(sdk),
        "batchrun over the bare loop": Figure([a / b for a, b in zip(ours, bare, strict=True)], ">= 0.85"),
        "batchrun over the SDK": Figure([a / b for a, b in zip(ours, sdk, strict=True)], ">= 1.3"),
        "status requests a job": Figure(calls[1:]),
        "the stub's CPU time over batchrun's": Figure(cpu[1:]),
    }


def cpu(asked: Asked) -> Figures:
    """The share of the CPU time that keeping state costs.

    A whole run in a process of its own, with the calls that read, write and sync the state file and that sync the
    results file timed by the CPU clock of the thread that makes them (`keeping.py`); over the CPU time of the
    process from the first of these calls on. So Python's share, SQLite's and the kernel's count, and waiting for the
    disk does not. Parsing lines and writing results is what any client does, and is not counted.
    """
    shares, kept, total = [], [], []
    with tempfile.TemporaryDirectory() as name, Stub() as stub:
        folder = Path(name)
        runs.write_rows(folder / "in.jsonl", _ROWS)
        for number in range(asked.rounds):
            stub.reset()
            told, state = folder / f"{number}.json", folder / f"{number}.jsonl"
            runs.process(
                [
                    *(sys.executable, "-m", "tests.bench.keeping", str(told), "run", str(folder / "in.jsonl")),
                    *("-o", str(state), "-e", "x", "--base-url", stub.base_url, "-q", *runs.UNLIMITED),
                ]
            )
            found = json.loads(told.read_text())
            shares.append(found["state_s"] / found["cpu_s"])
            kept.append(found["state_s"] / _ROWS * 1e6)
            total.append(found["cpu_s"] / _ROWS * 1e6)
    return {
        "CPU time a job, microseconds": Figure(total),
        "of it for the state, microseconds": Figure(kept),
        "share for the state": Figure(shares, "<= 0.08"),
    }


def start_up(asked: Asked) -> Figures:
    """`batchrun --help` over `import click`."""
    ours, bare = [], []
    script = Path(sys.executable).with_name("batchrun")
    for _ in range(asked.rounds * 2):
        ours.append(runs.process([str(script), "--help"]).wall_s * 1000)
        bare.append(runs.process([sys.executable, "-c", "import click"]).wall_s * 1000)
    return {
        "batchrun --help, ms": Figure(ours),
        "import click, ms": Figure(bare),
        "difference, ms": Figure([a - b for a, b in zip(ours, bare, strict=True)], "<= 150"),
    }
