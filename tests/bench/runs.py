"""Whole runs as processes: batchrun's own, and those of the clients that it is compared with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import BinaryIO

ROOT = Path(__file__).parent.parent.parent
CLIENTS = Path(__file__).parent / "clients"
BATCHRUN = [sys.executable, "-m", "batchrun"]
UNLIMITED = ("--run-limit", "0", "--status-limit", "0")
SDK = "runpod==1.12.0"
_ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("BATCHRUN_", "RUNPOD_"))}
"""No option that is set for real runs changes what is measured, and no key goes to the stub."""
_ROWS_FAILED = 3
_SENTENCE = "Tell me in one short sentence what the open sea is like on a day without any wind. "


@dataclass(frozen=True)
class Ran:
    """What a process took, and how many rows it has a result for."""

    wall_s: float
    cpu_s: float
    peak_kib: int
    results: int


def batchrun(folder: Path, base_url: str, output: str, *options: str, source: str = "in.jsonl") -> Ran:
    """`batchrun run` of a file in the folder."""
    target = folder / output
    ran = process(
        [
            *(*BATCHRUN, "run", str(folder / source), "-o", str(target), "-e", "x", "--base-url", base_url, "-q"),
            *options,
        ]
    )
    return Ran(ran.wall_s, ran.cpu_s, ran.peak_kib, count_lines(target))


def client(name: str, path: Path, base_url: str, width: int) -> Ran:
    """One of the reference clients, on the same rows."""
    if name.startswith("sdk"):
        command = [sdk_python(), str(CLIENTS / f"{name}.py"), str(path), str(width)]
    else:
        command = [sys.executable, "-m", f"tests.bench.clients.{name}", str(path), base_url, str(width)]
    log = path.with_name(f"{name}.out")
    # The SDK logs each connection that it gives up.
    with path.with_name(f"{name}.log").open("wb") as noise:
        ran = process(command, log, noise, RUNPOD_ENDPOINT_BASE_URL=base_url)
    return Ran(ran.wall_s, ran.cpu_s, ran.peak_kib, json.loads(log.read_text())["results"])


def process(command: list[str], stdout: Path | None = None, stderr: BinaryIO | None = None, **environment: str) -> Ran:
    """Run a command to its end; that it failed ends the bench, that rows failed does not."""
    began = time.perf_counter()
    with (stdout or Path(os.devnull)).open("wb") as out:
        child = subprocess.Popen(command, stdout=out, stderr=stderr, cwd=ROOT, env={**_ENVIRONMENT, **environment})
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode not in {0, _ROWS_FAILED}:
        raise SystemExit(f"{' '.join(command)}: exit code {child.returncode}")
    return Ran(time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss, 0)


def sdk_python() -> str:
    """The Python of a virtual environment with Runpod's SDK, made once for this user: it brings 100 packages."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = (
        cache / "batchrun-bench" / f"{SDK.replace('==', '-')}-python{sys.version_info.major}.{sys.version_info.minor}"
    )
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"installing {SDK} into {folder}", file=sys.stderr)
        venv.create(folder, clear=True, with_pip=True)
        done = subprocess.run(
            [str(python), "-m", "pip", "install", "-q", SDK, "uvloop"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        (folder / "complete").touch()
    return str(python)


def write_rows(path: Path, rows: int) -> None:
    """Rows of some 250 bytes, each with a prompt of its own."""
    with path.open("w") as file:
        for n in range(rows):
            prompt = f"{_SENTENCE * 2}{n}"
            file.write(json.dumps({"id": f"row-{n}", "prompt": prompt, "max_tokens": 64, "metadata": {"n": n}}))
            file.write("\n")


def count_lines(path: Path) -> int:
    """Lines in a file."""
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
