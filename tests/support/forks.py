"""Real processes of batchrun that cost no import: a process that has imported it forks for each of them.

A forked process has its own pid, descriptors, working folder, environment and signals; it calls the command's entry
point as the installed script does, and ends almost as an interpreter ends.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import pkgutil
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Self

_ROOT = Path(__file__).parents[2]
_MESSAGE_BYTES = 1 << 17
_EXTRA_FD = 10
"""The first of the further descriptors that a process is given."""
READ = -1
_HEAVY = ("xllamacpp",)
"""What is not imported beforehand: no process here needs it."""


@dataclass
class Process:
    """A process that was started."""

    pid: int
    pidfd: int
    forks: Forks
    errors: int = -1
    """The end of a pipe from which its stderr can be read; -1: it goes elsewhere."""
    output: Path | None = None
    code: int | None = None
    """Its exit code, or minus the signal that ended it; None while it runs."""

    def poll(self) -> int | None:
        """Its exit code, if it is over."""
        if self.code is None:
            self.forks.collect(0)
        return self.code

    def wait(self, timeout_s: float) -> int | None:
        """Its exit code; None when it is not over in time."""
        until = time.monotonic() + timeout_s
        while self.code is None and (left := until - time.monotonic()) > 0:
            self.forks.collect(left)
        return self.code

    def send(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.code is None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)

    @property
    def said(self) -> str:
        """Its stderr so far, up to the 64 KiB that a pipe holds."""
        while self.errors >= 0:
            try:
                data = os.read(self.errors, 1 << 16)
            except BlockingIOError:
                break
            self._heard += data
            if not data:
                os.close(self.errors)
                self.errors = -1
        return self._heard.decode("utf-8", "replace")

    def __post_init__(self) -> None:
        self._heard = b""

    def __del__(self) -> None:
        if self.errors >= 0:
            os.close(self.errors)


@dataclass
class Forks:
    """The process that forks the others, as a context.

    Args:
        preload: A library for LD_PRELOAD; None: none.
    """

    preload: Path | None = None
    _running: dict[int, Process] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        env = {name: value for name, value in os.environ.items() if not name.startswith(("BATCHRUN_", "RUNPOD_"))}
        if self.preload is not None:
            env["LD_PRELOAD"] = str(self.preload)
        command = [sys.executable, "-m", "tests.support.forks", str(theirs.fileno())]
        self._server = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=_ROOT, env=env)
        theirs.close()
        return self

    def __exit__(self, *_: object) -> None:
        for process in list(self._running.values()):
            process.send(signal.SIGKILL)
            process.wait(10)
        self._socket.close()
        self._server.wait(10)

    def start(
        self,
        arguments: list[str],
        cwd: Path,
        *,
        stdin: int | None = None,
        stdout: Path | int | None = None,
        stderr: int | None = READ,
        extra: tuple[int, ...] = (),
        env: dict[str, str] | None = None,
        **limits: object,
    ) -> Process:
        """Start `batchrun ARGUMENTS...`.

        Args:
            arguments: What follows `batchrun`.
            cwd: Its working folder.
            stdin: A descriptor; None: nothing to read.
            stdout: A file or a descriptor for it; None: it is thrown away.
            stderr: A descriptor; None: it is closed; `READ`: it can be read here.
            extra: Further descriptors, which become 10, 11 and so on there.
            env: Added to the environment.
            limits: What `_become` does for it: `journal` and `root`, `room`, `file_size`; `alone`: `env` is all of its
                environment.
        """
        fds = [
            os.open(os.devnull, os.O_RDONLY) if stdin is None else os.dup(stdin),
            os.dup(stdout)
            if isinstance(stdout, int)
            else os.open(stdout or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644),
        ]
        errors = -1
        if stderr is not None:
            errors, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK) if stderr == READ else (-1, os.dup(stderr))
            os.set_blocking(writer, True)
            fds.append(writer)
        request = {"argv": arguments, "cwd": str(cwd), "env": env or {}, "closed": stderr is None, **limits}
        socket.send_fds(self._socket, [json.dumps(request).encode()], [*fds, *extra])
        for fd in fds:
            os.close(fd)
        while True:
            message, pidfds = self._receive()
            if "started" in message:
                process = Process(
                    message["started"], pidfds[0], self, errors, stdout if isinstance(stdout, Path) else None
                )
                self._running[process.pid] = process
                return process

    def collect(self, timeout_s: float) -> None:
        """Hear which processes are over."""
        if select.select([self._socket], [], [], timeout_s)[0]:
            self._receive()

    def _receive(self) -> tuple[dict[str, Any], list[int]]:
        data, pidfds, *_ = socket.recv_fds(self._socket, _MESSAGE_BYTES, 1)
        if not data:
            raise RuntimeError("the process that forks is gone")
        message = json.loads(data)
        if "ended" in message:
            process = self._running.pop(message["ended"])
            process.code = message["code"]
            os.close(process.pidfd)
        return message, list(pidfds)


def _serve(ours: socket.socket) -> None:
    """Fork for each request, and tell of each process that is over."""
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main = _entry_point()
    gc.freeze()
    while True:
        ready, _, _ = select.select([ours, woken], [], [])
        if woken in ready:
            os.read(woken, 512)
            _tell_of_the_dead(ours)
        if ours in ready:
            data, fds, *_ = socket.recv_fds(ours, _MESSAGE_BYTES, 16)
            if not data:
                return
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                for fd in (woken, wake, ours.detach()):
                    os.close(fd)
                _become(main, json.loads(data), list(fds))
            for fd in fds:
                os.close(fd)
            pidfd = os.pidfd_open(pid)
            socket.send_fds(ours, [json.dumps({"started": pid}).encode()], [pidfd])
            os.close(pidfd)


def _tell_of_the_dead(ours: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        ours.send(json.dumps({"ended": pid, "code": os.waitstatus_to_exitcode(status)}).encode())


def _entry_point() -> Any:
    """The function that the installed script calls; what it may import later is imported now."""
    scripts = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["batchrun"].partition(":")
    package = importlib.import_module("batchrun")
    for found in pkgutil.walk_packages(package.__path__, "batchrun."):
        source = Path(found.module_finder.path, found.name.rpartition(".")[2] + ".py")
        if found.name != "batchrun.__main__" and not (source.exists() and any(w in source.read_text() for w in _HEAVY)):
            importlib.import_module(found.name)
    with suppress(ImportError):
        importlib.import_module("uvloop")
    return getattr(importlib.import_module(module), name)


def _become(main: Any, request: dict[str, Any], fds: list[int]) -> NoReturn:
    """In the new process: be `batchrun` with these arguments."""
    # As in a process in which there is no Python yet, a signal ends it.
    for number in (signal.SIGCHLD, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    fds = [os.dup2(fd, 100 + index) for index, fd in enumerate(fds)]
    targets = [0, 1] if request["closed"] else [0, 1, 2]
    targets += range(_EXTRA_FD, _EXTRA_FD + len(fds) - len(targets))
    os.closerange(2, 100) if request["closed"] else os.closerange(3, 100)
    for fd, target in zip(fds, targets, strict=True):
        os.dup2(fd, target)
    os.closerange(100, 200)
    if request["closed"]:
        sys.stderr = None
    os.chdir(request["cwd"])
    if request.get("alone"):
        os.environ.clear()
    os.environ.update(request["env"])
    if "file_size" in request:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_size"],) * 2)
    if "journal" in request:
        ctypes.CDLL(os.environ["LD_PRELOAD"]).chaos_record(request["root"].encode(), request["journal"].encode())
    if "room" in request:
        ctypes.CDLL(os.environ["LD_PRELOAD"]).chaos_limit(request["root"].encode(), ctypes.c_long(request["room"]))
    sys.argv = ["batchrun", *request["argv"]]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _end(_call(main))


def _call(main: Any) -> int:
    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, int) or end.code is None:
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:  # noqa: BLE001 - as an interpreter does
        traceback.print_exc()
        return 1
    return 0


def _end(code: int) -> NoReturn:
    """End as an interpreter does, but for taking each module apart, which costs more than all else."""
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, AttributeError):
            code = code or 120 * (stream is sys.stdout)
    os._exit(code)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
