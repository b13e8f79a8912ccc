"""The stub endpoint: a C program, because only that is clearly faster than every client that is measured against it.

It holds a queue that is exact to the event, the documented limits, a latency and a report of what it has seen;
`stub.c` says how. It is built once for a process of the bench, with the machine's C compiler, and needs Linux.
"""

from __future__ import annotations

import atexit
import json
import shutil
import subprocess
import tempfile
import urllib.request
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Setting:
    """What the endpoint is like."""

    workers_at: tuple[tuple[float, int], ...] = ((0.0, 1),)
    """How many workers there are, from so many seconds after the first submission on."""
    service: str = "constant:0"
    """A job's time: `constant:S`, `exponential:MEAN` or `lognormal:MEDIAN:SIGMA`; the n-th job has the n-th draw."""
    latency_s: float = 0.0
    """Of the network, in each direction."""
    limits: bool = False
    """Whether the documented limits are enforced."""
    retention_s: float = 1800.0
    seed: int = 1

    def arguments(self) -> list[str]:
        """For the program."""
        steps = ",".join(f"{at}:{count}" for at, count in self.workers_at)
        return [
            *("--workers-at", steps, "--service", self.service, "--latency", str(self.latency_s)),
            *("--retention", str(self.retention_s), "--seed", str(self.seed)),
            *(["--limits"] if self.limits else []),
        ]


INSTANT = Setting()
"""Every job is over as soon as it arrives."""


class Stub:
    """A running stub, as a context."""

    def __init__(self, setting: Setting = INSTANT) -> None:
        self.setting = setting
        self._process = subprocess.Popen([_program(), *setting.arguments()], stdout=subprocess.PIPE, text=True)
        self._root = f"http://127.0.0.1:{self._process.stdout.readline().strip()}"
        self.base_url = f"{self._root}/v2"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def report(self) -> dict[str, Any]:
        """What it has seen since it began, or since `reset`."""
        return self._ask("/report")

    def reset(self) -> None:
        """Forget all jobs, and begin again with the first draw."""
        self._ask("/reset")

    def _ask(self, path: str) -> dict[str, Any]:
        with urllib.request.urlopen(self._root + path) as answer:
            return json.loads(answer.read())


def compiler() -> str | None:
    """The machine's C compiler."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


@cache
def _program() -> str:
    found = compiler()
    if found is None:
        raise SystemExit("the stub endpoint is a C program: install a C compiler (Debian: apt install gcc libc6-dev)")
    folder = tempfile.mkdtemp(prefix="batchrun-bench-")
    atexit.register(shutil.rmtree, folder)
    target = f"{folder}/stub"
    subprocess.run([found, "-O2", "-o", target, str(_FOLDER / "stub.c"), "-lm"], check=True)
    return target
