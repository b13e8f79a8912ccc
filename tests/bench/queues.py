"""How near batchrun comes to what workers, limits and distance allow, and what others lose on the way."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench import runs
from tests.bench.bounds import ideal_s
from tests.bench.figures import Asked, Figure, Figures, one
from tests.bench.stub import Setting, Stub

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROWS = 5000
_FEW = 2000
_LATENCY_S = 0.025
_HUNDRED = ((0.0, 100),)
_LOGNORMAL = Setting(((0.0, 300),), "lognormal:2:1", _LATENCY_S, limits=True)
_WIDTH = 200
CLIENTS = {
    "obvious": "the obvious script",
    "sdk_async": "the SDK, AsyncioEndpoint",
    "sdk_threads": "the SDK, 200 threads",
}


def constant(asked: Asked) -> Figures:
    """100 workers, each job 0.2 s, no limits; the others with fewer rows, and with the ideal of these."""
    setting = Setting(_HUNDRED, "constant:0.2")
    found = _against_ideal(setting, asked, runs.UNLIMITED, ideal=">= 0.97", calls="<= 1.3")
    for client in ("obvious", "sdk_async"):
        report = _other(client, setting, _FEW)[1]
        found[f"{CLIENTS[client]}: ideal over actual time"] = one(ideal_s(setting, _FEW) / report["makespan_s"])
        found[f"{CLIENTS[client]}: status requests a job"] = one(report["requests"]["status"] / report["jobs"])
    return found


def exponential(asked: Asked) -> Figures:
    """100 workers, jobs of 0.2 s on average, exponentially distributed; the last jobs' tail is part of the bound."""
    setting = Setting(_HUNDRED, "exponential:0.2")
    return _against_ideal(setting, asked, runs.UNLIMITED, ideal=">= 0.95")


def lognormal(asked: Asked) -> Figures:
    """300 workers, median 2 s, sigma 1, 50 ms of network, the documented limits, no option given.

    The bound has submissions arrive as fast as the limit allows: 1,000 at once, 1,000 after 10 s, and so on. The end
    of a run hangs on a few long jobs, so the time to nine tenths of the results is told as well.
    """
    return _against_ideal(_LOGNORMAL, asked, (), ideal=">= 0.95")


def lognormal_wide(asked: Asked) -> Figures:
    """The same with 1,000 jobs in flight: what the default window costs there."""
    return _against_ideal(_LOGNORMAL, asked, ("-j", "1000"), ideal=">= 0.95")


def limits(asked: Asked) -> Figures:
    """The documented limits, enforced; 50 ms of network, 200 workers, each job 0.2 s; and what others lose there.

    The workers take 1,000 jobs a second, ten times what the limits let through. The others may have 200 jobs in
    flight, and look once a second. The SDK's threads do better here than they would in production: it repeats
    requests over http:// alone.
    """
    setting = Setting(((0.0, 200),), "constant:0.2", _LATENCY_S, limits=True)
    found = _against_ideal(setting, asked, (), ideal=">= 0.97", calls="<= 1.5", lost=True)
    for client, words in CLIENTS.items():
        ran, report = _other(client, setting, _ROWS)
        found[f"{words}: rows lost"] = one(_ROWS - ran.results)
        found[f"{words}: rows submitted twice"] = one(report["twice"])
        found[f"{words}: share of 429"] = one(_refused(report))
        found[f"{words}: seconds"] = one(ran.wall_s)
    return found


def cold(asked: Asked) -> Figures:
    """No worker for a minute, then 5, then 50; 2 s a job on average. In real time: three and a half minutes a run."""
    setting = Setting(((0.0, 0), (60.0, 5), (120.0, 50)), "exponential:2", _LATENCY_S, limits=True)
    found: Figures = {}
    ideals, queues = [], []
    for report in _reports(setting, asked, (), rows=_FEW):
        ideals.append(report["near"])
        queues.append(report["max_queue"] / (50 / 2 * 10))
    found["ideal over actual time"] = Figure(ideals, ">= 0.95")
    found["longest queue over what 50 workers take in 10 s"] = Figure(queues, "<= 3")
    return found


def _against_ideal(
    setting: Setting, asked: Asked, options: tuple[str, ...], *, ideal: str, calls: str = "", lost: bool = False
) -> Figures:
    reports = list(_reports(setting, asked, options))
    found = {
        "ideal over actual time": Figure([report["near"] for report in reports], ideal),
        "the same, to nine tenths of the results": Figure([report["near_most"] for report in reports]),
        "status requests a job": Figure([report["requests"]["status"] / report["jobs"] for report in reports], calls),
        "seconds from a job's end to its result": Figure([report["detection_s"]["mean"] for report in reports]),
        "the same, 99th percentile": Figure([report["detection_s"]["p99"] for report in reports]),
        "utilisation of the workers": Figure([report["utilisation"] for report in reports]),
    }
    if setting.limits:
        found["share of 429"] = Figure([_refused(report) for report in reports], "<= 0.001")
    if lost:
        found["rows lost"] = Figure([report["lost"] for report in reports], "0")
        found["rows submitted twice"] = Figure([report["twice"] for report in reports], "0")
    return found


def _reports(setting: Setting, asked: Asked, options: tuple[str, ...], rows: int = _ROWS) -> Iterator[dict[str, Any]]:
    """What the stub saw in each run, and how near that is to the ideal; every run has its own draws."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs.write_rows(folder / "in.jsonl", rows)
        for number in range(asked.repeats):
            seeded = replace(setting, seed=number + 1)
            with Stub(seeded) as stub:
                ran = runs.batchrun(folder, stub.base_url, f"{number}.jsonl", *options)
                report = stub.report()
            near = ideal_s(seeded, rows) / report["makespan_s"]
            near_most = ideal_s(seeded, rows, 0.9) / report["nine_tenths_s"]
            yield {**report, "lost": rows - ran.results, "near": near, "near_most": near_most}


def _other(client: str, setting: Setting, rows: int) -> tuple[runs.Ran, dict[str, Any]]:
    """A run of another client, and what the stub saw."""
    with tempfile.TemporaryDirectory() as name, Stub(setting) as stub:
        path = Path(name) / "in.jsonl"
        runs.write_rows(path, rows)
        return runs.client(client, path, stub.base_url, _WIDTH), stub.report()


def _refused(report: dict[str, Any]) -> float:
    return sum(report["refused"].values()) / sum(report["requests"].values())
