"""The command, in a process of its own or in this one."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import orjson
from click.testing import CliRunner

from batchrun.cli.app import main
from tests.support.forks import Forks
from tests.support.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

BATCHRUN = [sys.executable, "-P", "-m", "batchrun"]
"""The command; what is installed, not what lies in the current folder."""
# Tests talk to this machine alone. To load the certificates of all others takes a process a tenth of a second.
os.environ.setdefault("SSL_CERT_FILE", os.devnull)
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("RUNPOD_", "BATCHRUN_"))}
"""The environment without any setting of batchrun."""
KEYED = {**ENVIRONMENT, "RUNPOD_API_KEY": "rpa_SECRET"}
"""The same with an API key."""
TIMEOUT_S = 100


def batchrun(
    *arguments: object,
    cwd: Path | None = None,
    timeout_s: float = TIMEOUT_S,
    text: bool = True,
    before: Callable[[], object] | None = None,
    stdin: object = subprocess.DEVNULL,
    stdout: object = subprocess.PIPE,
    stderr: object = subprocess.PIPE,
    env: dict[str, str] | None = None,
    **environ: str,
) -> subprocess.CompletedProcess:
    """Run the command to its end, in a process of its own.

    It is forked from one that has imported batchrun already, unless the interpreter itself must begin otherwise.

    Args:
        arguments: What stands behind `batchrun`.
        cwd: The folder that it runs in; None for this process's.
        timeout_s: How long it may take, seconds.
        text: Whether its output is text; else bytes.
        before: What the new process calls first.
        stdin: Its input.
        stdout: Where its output goes.
        stderr: Where its messages go.
        env: Its environment; None for this process's.
        environ: Variables beyond these.
    """
    env = {**(os.environ if env is None else env), **environ}
    run = _forked if before is None and _is_started_alike(env) else subprocess.run
    done = run(
        [*BATCHRUN, *map(str, arguments)],
        cwd=cwd,
        preexec_fn=before,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env=env,
        timeout=timeout_s,
        check=False,
    )
    if text:
        errors = "replace" if "PYTHONIOENCODING" in environ else "strict"
        done.stdout, done.stderr = (_as_text(said, errors) for said in (done.stdout, done.stderr))
    return done


def _as_text(said: bytes | None, errors: str) -> str | None:
    return None if said is None else said.decode(errors=errors).replace("\r\n", "\n").replace("\r", "\n")


def _is_started_alike(env: dict[str, str]) -> bool:
    """Whether an interpreter would begin in this environment as the one of this process has begun."""
    at_start = ("PYTHON", "LC_", "LANG", "LD_", "TMPDIR")
    return all(env.get(name) == _BEGAN_WITH.get(name) for name in {*env, *_BEGAN_WITH} if name.startswith(at_start))


def _forked(
    command: list[str], *, cwd: Path | None, env: dict[str, str], timeout: float, **given: Any
) -> subprocess.CompletedProcess[bytes]:
    """What `subprocess.run` does, by a fork."""
    with lent_forks() as forks, ExitStack() as files:
        fds, caught = {}, {}
        for name in ("stdin", "stdout", "stderr"):
            if given[name] in (subprocess.PIPE, subprocess.DEVNULL):
                file = files.enter_context(TemporaryFile())
                caught[name] = file if given[name] == subprocess.PIPE else None
            else:
                file = given[name]
            fds[name] = file if isinstance(file, int) else file.fileno()
        process = forks.start(command[len(BATCHRUN) :], cwd or Path.cwd(), env=env, alone=True, **fds)
        if process.wait(timeout) is None:
            process.send(signal.SIGKILL)
            process.wait(timeout)
            raise subprocess.TimeoutExpired(command, timeout)
        said = [file and (file.seek(0), file.read())[1] for file in (caught.get("stdout"), caught.get("stderr"))]
    return subprocess.CompletedProcess(command, process.code, *said)


_BEGAN_WITH = dict(os.environ)
_IDLE: list[Forks] = []
"""Those that can fork a command now; several when commands run beside one another."""


@contextmanager
def lent_forks():
    """A process that forks commands, which nobody else uses meanwhile."""
    forks = _IDLE.pop() if _IDLE else Forks().__enter__()
    try:
        yield forks
    finally:
        _IDLE.append(forks)


@atexit.register
def _close() -> None:
    for forks in _IDLE:
        forks.__exit__()


@contextmanager
def served(workers: int = 20, latency_s: float = 0.05, *, api_key: str = ""):
    """A local endpoint in a process of its own, without limits; its base URL."""
    command = ["serve", "--worker", "echo", "--port", "0", "--workers", str(workers), "--latency", str(latency_s)]
    command += ["--api-key", api_key] if api_key else []
    with lent_forks() as forks:
        server = forks.start(command, Path.cwd(), env=ENVIRONMENT, alone=True)
        wait_for(lambda: "\n" in server.said)
        try:
            yield server.said.split("at ")[1].split("/ID")[0]
        finally:
            server.send(signal.SIGTERM)
            code = server.wait(10)
        assert code == 0


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
