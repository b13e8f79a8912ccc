"""The command, in a process of its own or in this one."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import orjson
from click.testing import CliRunner

from batchrun.cli.app import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PYTHON = os.environ.get("BATCHRUN_PYTHON", sys.executable)
"""The Python whose batchrun is tested as a process; that of the built wheel, for example."""
BATCHRUN = [PYTHON, "-P", "-m", "batchrun"]
"""The command; what is installed, not what lies in the current folder."""
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("RUNPOD_", "BATCHRUN_"))}
"""The environment without any setting of batchrun."""
KEYED = {**ENVIRONMENT, "RUNPOD_API_KEY": "rpa_SECRET"}
"""The same with an API key."""
TIMEOUT_S = 100


def batchrun(
    *arguments: object,
    cwd: Path | None = None,
    text: bool = True,
    before: Callable[[], object] | None = None,
    stdin: object = subprocess.DEVNULL,
    stdout: object = subprocess.PIPE,
    stderr: object = subprocess.PIPE,
    **environ: str,
) -> subprocess.CompletedProcess:
    """Run the command to its end, in a process of its own.

    Args:
        arguments: What stands behind `batchrun`.
        cwd: The folder that it runs in; None for this process's.
        text: Whether its output is text; else bytes.
        before: What the new process calls first.
        stdin: Its input.
        stdout: Where its output goes.
        stderr: Where its messages go.
        environ: Variables beyond those of this process.
    """
    return subprocess.run(
        [*BATCHRUN, *map(str, arguments)],
        cwd=cwd,
        text=text,
        errors="replace" if text and "PYTHONIOENCODING" in environ else None,
        preexec_fn=before,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, **environ},
        timeout=TIMEOUT_S,
        check=False,
    )


def invoke(*arguments: object, **environ: str) -> tuple[int, str]:
    """Run the command in this process; its exit code and all that it said."""
    done = CliRunner().invoke(main, list(map(str, arguments)), env=environ, catch_exceptions=False)
    return done.exit_code, done.output


def assert_one_clear_line(done: subprocess.CompletedProcess[str], code: int, words: str) -> None:
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def start(folder: Path, base_url: str, *options: str) -> subprocess.Popen[str]:
    """Start a run of `folder/in.jsonl` into `folder/out.jsonl`: 100 jobs at once, no limits, no progress."""
    command = [
        *BATCHRUN,
        *("run", str(folder / "in.jsonl"), "-o", str(folder / "out.jsonl"), "--base-url", base_url),
        *([] if any("endpoint=" in option for option in options) else ["-e", "abc"]),
        *([] if "-j" in options else ["-j", "100"]),
        *("--run-limit", "0", "--status-limit", "0", "--progress", "none", *options),
    ]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=KEYED)


def status(folder: Path) -> dict:
    """What `batchrun status --json` says of the run of `start`."""
    said = batchrun("status", "--json", folder / "out.jsonl.state")
    assert said.returncode == 0, said.stderr
    return orjson.loads(said.stdout)
