"""A folder in which somebody runs prompts: its inputs, the run, the files of other people, and what may be done there.

What is done here is what a person would do at a shell, in the folder, with the same command each time. What a run owes
is checked whenever no process of it is left.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.chaos.claims import assert_civil, assert_right, assert_said, assert_whole, read_records
from tests.chaos.endpoint import Endpoint, fails
from tests.chaos.layout import Layout, as_lines, pipe_of
from tests.support.forks import READ

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from tests.support.forks import Forks, Process

PATIENCE_S = 30.0
"""A process that takes longer hangs."""
_MOMENT_S = 3.0
"""A moment that has not come by then, because an answer was wrong, is not waited for."""
_KEY = "rpa_SECRET_0123456789"
_FOREIGN = (
    *(
        "r.errors.jsonl.bak",
        "r.errors.jsonl.part",
        "r.jsonl.part",
        "r.manifest.json.part",
        "r.jsonl.lock",
        "notes.lock",
    ),
    *("other.manifest.json", "r.jsonl.state.bak", "r.jsonl.state.notes.txt", "out.state.bak", "prompts.txt"),
)
"""Files of other people: none of them may be changed, whatever it is called."""


class Place:
    """A folder with a run.

    Args:
        top: An empty folder for all of it.
        forks: Starts processes.
        layout: How the run is set up.
        endpoint: Where it goes.
        files: The rows of each of the first inputs.
        options: Further ones for `batchrun run`.
    """

    def __init__(
        self,
        top: Path,
        forks: Forks,
        layout: Layout,
        endpoint: Endpoint,
        files: list[list[dict[str, Any]]],
        options: tuple[str, ...] = (),
    ) -> None:
        self.layout, self.endpoint, self.options = layout, endpoint, options
        self._top, self._forks = top, forks
        self._count = self._checked = 0
        self.is_early = False
        """Whether the process that runs may not have begun yet."""
        self.is_beaten = False
        """Whether another has begun before it, so that it may be refused."""
        self.is_unproven = False
        """Whether the state file may name inputs that it cannot prove to be the user's choice."""
        self.folder = top / "place"
        self.folder.mkdir()
        self.rows = dict(zip(layout.names, files, strict=False))
        """The rows of each input."""
        self.story: list[str] = []
        """What was done, as at a shell."""
        self.running: Process | None = None
        self.is_killed = False
        """Whether the last process of the run was killed."""
        self._reader = -1
        for name in _FOREIGN:
            (self.folder / name).write_text(f"{name} is somebody's\n")
        self.write()

    # What it holds

    @property
    def all_rows(self) -> list[dict[str, Any]]:
        """The rows of all inputs, in order."""
        return [row for name in sorted(self.rows) for row in self.rows[name]]

    @property
    def state(self) -> Path | None:
        """The state file; None: there is none."""
        found = [*self.folder.glob("*.state"), *self.folder.glob("out/*.state"), *self.folder.glob("out/.*.state")]
        return min(found, default=None)

    @property
    def state_name(self) -> str:
        """The state file, as it is named in the folder."""
        assert self.state is not None, "there is no state file"
        return str(self.state.relative_to(self.folder))

    def write(self) -> None:
        """Write the inputs, where they are files."""
        if self.layout.is_piped:
            return
        for name, rows in self.rows.items():
            path = self.folder / name
            path.parent.mkdir(exist_ok=True)
            data = as_lines(rows)
            self._tell(f"cat > {name}  # {[row['prompt'] for row in rows]}")
            path.write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)

    def untaken(self) -> list[dict[str, Any]]:
        """The rows that were not submitted, for certain."""
        if self.state is None:
            return self.all_rows
        is_sure = not self.standing()["submitting"]
        return [row for row in self.all_rows if is_sure and row["prompt"] not in self.endpoint.sent]

    def fingerprint(self) -> dict[str, bytes]:
        """What all files hold; of a state file what it says, wherever it and its log have it."""
        found: dict[str, bytes] = {}
        for path in sorted(self.folder.rglob("*")):
            name = str(path.relative_to(self.folder))
            if path.is_dir() or name.endswith(("-shm", "-wal", ".state.lock")):
                continue
            found[name] = said_by(path, self._top) if name.endswith(".state") else path.read_bytes()
        return found

    # What is done there

    def arguments(self, *, resume: bool = False) -> list[str]:
        """Of the command that starts the run or resumes it."""
        if resume and self.state is not None and not self.is_unproven:
            return ["resume", self.state_name, "--progress", "plain"]
        arguments = ["run", *self.layout.inputs(), "-o", self.layout.output, "-e", "ep"]
        arguments += ["--base-url", self.endpoint.base_url, "--run-limit", "0", "--status-limit", "0"]
        return [*arguments, "--progress", "plain", *self.options]

    def start(self, arguments: list[str], *, stderr: str = "read", **given: Any) -> Process:
        """Start a process in the folder.

        Args:
            arguments: What follows `batchrun`.
            stderr: `read`: a pipe that is; `stalled`: one that is full, and is not; `gone`: one without a reader;
                `closed`: none.
            given: For `Forks.start`.
        """
        self._count += 1
        self.endpoint.known.clear()
        shown = "".join(f"  # {name}: {value}" for name, value in {"stderr": stderr, **given}.items())
        self._tell(f"batchrun {' '.join(arguments)}{shown}")
        fds = [pipe_of(as_lines(self.rows[name])) for name in sorted(self.rows)] if self.layout.is_piped else []
        given.setdefault("stdin", fds[0] if self.layout.name == "stdin" else None)
        if self.layout.name == "two pipes":
            given["extra"] = tuple(fds)
        target: int | None = READ
        if stderr in ("stalled", "gone"):
            target = self._stalled(is_gone=stderr == "gone")
        elif stderr == "closed":
            target = None
        output = self._top / f"{self._count}.stdout"
        process = self._forks.start(
            arguments, self.folder, stdout=output, stderr=target, env={"RUNPOD_API_KEY": _KEY}, **given
        )
        for fd in [*fds, *([target] if stderr in ("stalled", "gone") else [])]:
            os.close(fd)
        return process

    def command(self, *arguments: str, **given: Any) -> Process:
        """A process in the folder, to its end."""
        process = self.start(list(arguments), **given)
        self._wait(process, list(arguments))
        return process

    def begin(self, moment: int | str, *, stderr: str = "read", resume: bool = False) -> None:
        """Start the run, and let it go on up to some moment; then no more of its jobs end.

        Args:
            moment: So many of its jobs are over; `sent`: it has asked for something; `at once`.
            stderr: See `start`.
            resume: Whether to start it with `resume`.
        """
        endpoint = self.endpoint
        endpoint.ending = moment if isinstance(moment, int) else 0
        told, calls = endpoint.told, endpoint.calls.total()
        self.running = self.start(self.arguments(resume=resume), stderr=stderr)
        self.is_early, self.is_beaten = moment == "at once", False
        until = time.monotonic() + (0.0 if self.is_early else _MOMENT_S)
        while self.running.poll() is None and time.monotonic() < until:
            if endpoint.told >= told + moment if isinstance(moment, int) else endpoint.calls.total() > calls:
                break
            time.sleep(0.003)
        if self.running.code is not None:
            self.end({0, 3})

    def end(self, codes: set[int], *numbers: int) -> Process:
        """Send the process signals, let its jobs end, and wait for its end."""
        process = self.running
        assert process is not None
        for number in numbers:
            self._tell(f"kill -{number:d} $!")
            process.send(number)
        self.endpoint.ending = None
        if signal.SIGKILL in numbers:
            process.wait(PATIENCE_S)
            assert "Traceback" not in process.said, process.said
            self.is_killed = True
        else:
            # Nobody catches a signal before there is a Python that could. A shell calls an end by SIGINT 130, too.
            early = {-n for n in numbers if self.is_early} | ({2} if self.is_beaten else set())
            self._wait(process, self.arguments(), early)
            assert process.code in codes | early, f"exit {process.code}, expected {codes}:\n{process.said}"
            self.is_killed = process.code < 0
        self.running = None
        if self._reader >= 0:
            os.close(self._reader)
            self._reader = -1
        return process

    def run(self, codes: set[int], *, stderr: str = "read", resume: bool = False, **given: Any) -> Process:
        """The command, to its end."""
        self.endpoint.ending, self.is_early, self.is_beaten = None, False, False
        self.running = self.start(self.arguments(resume=resume), stderr=stderr, **given)
        return self.end(codes)

    def refused(self, *arguments: str, **given: Any) -> None:
        """A command that must be refused, and change nothing."""
        before, jobs = self.fingerprint(), len(self.endpoint.jobs)
        process = self.command(*arguments, **given)
        assert process.code == 2, f"{arguments} is not refused: exit {process.code}\n{process.said}"
        after = self.fingerprint()
        changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        assert not changed, f"a refused start has changed {changed}:\n{process.said}"
        assert len(self.endpoint.jobs) == jobs, "a refused start has submitted"

    def refused_beside(self, arguments: list[str]) -> None:
        """A command that must be refused while the run continues."""
        assert self.running is not None
        second = self.start(arguments)
        if second.wait(PATIENCE_S / 3) is None:
            second.send(signal.SIGKILL)
            second.wait(PATIENCE_S)
        if second.code == 2:
            return
        if self.running.poll() is not None:
            self.is_beaten = self.is_early and self.running.code == 2
            return
        # It may be let in before the first has begun, and after its end, of which a stalled stderr still has to hear.
        self.is_beaten = self.is_early
        is_over = self.is_early or self.standing()["pid"] is None
        assert is_over, f"{arguments} is let in: exit {second.code}\n{second.said}"

    def move(self) -> None:
        """Give the folder another name."""
        target = self.folder.with_name(f"{self.folder.name}+")
        self._tell(f"mv {self.folder.name} {target.name}")
        self.folder.rename(target)
        self.folder = target
        # An input beside the state's folder that has moved and changed is confirmed by the original command alone.
        self.is_unproven = self.layout.name == "folder to folder"

    def copy_and_run(self) -> None:
        """Run to the end in a copy of the folder, which then is forgotten, with the jobs that only it knows of.

        A copy is a run of its own: it collects the jobs that it knows of, as the original does, and submits the rest.
        """
        self._tell("cp -a . ../copy; cd ../copy")
        kept, original = dict(self.endpoint.jobs), self.folder
        self.folder = shutil.copytree(original, original.with_name("copy"))
        try:
            self.run({0, 3})
            assert_said(self.endpoint.paid(), self.all_rows, self._counters())
            self.check_whole()
        finally:
            shutil.rmtree(self.folder)
            self.folder, self.endpoint.jobs = original, kept
            self._tell("cd -")

    # What it owes

    def standing(self) -> dict[str, Any]:
        """What `status --json` says; of a run whose start was cut off before there was one, that nothing was sent."""
        process = self.command("status", "--json", self.state_name)
        if process.code == 2:
            assert "holds no run" in process.said, process.said
            return {"counters": {}, "submitting": 0, "pid": None}
        return json.loads(process.output.read_bytes())

    def check(self) -> None:
        """Whatever has happened: files of others are as they were, and nothing was paid for twice in silence."""
        for name in _FOREIGN:
            path = self.folder / name
            assert path.is_file(), f"{name} is gone"
            assert path.read_text() == f"{name} is somebody's\n", f"{name} has been written to"
        if not self.layout.is_piped:
            for name, rows in self.rows.items():
                data = (self.folder / name).read_bytes()
                is_same = (gzip.decompress(data) if name.endswith(".gz") else data) == as_lines(rows)
                assert is_same, f"the input {name} has changed"
        if self.running is None and self._count > self._checked:
            assert_said(self.endpoint.paid(), self.all_rows, self._counters())
            assert_right(self._results(), self._ids())
            self._checked = self._count

    def check_whole(self) -> None:
        """After its end: every row has one result or one failure, and `verify` says so."""
        errors = [record for path in self._outputs(".errors.jsonl") for record in read_records(path)]
        assert_whole(self._results(), errors, self.all_rows)
        verified = self.command("verify", self.state_name)
        assert verified.code == 0, verified.output.read_text()
        told = [path.name for path in self.folder.rglob("*") if path.is_file() and _KEY.encode() in path.read_bytes()]
        assert not told, f"the key is in {told}"

    @property
    def last_code(self) -> int:
        """The exit code of a run that comes to its end."""
        return 3 if any(fails(row["prompt"]) for row in self.all_rows) else 0

    def close(self) -> None:
        """End what runs."""
        if self.running is not None:
            self.running.send(signal.SIGKILL)
            self.running.wait(PATIENCE_S)

    def _wait(self, process: Process, arguments: list[str], early: AbstractSet[int] = frozenset()) -> None:
        if process.wait(PATIENCE_S) is None:
            process.send(signal.SIGKILL)
            process.wait(PATIENCE_S)
            process.code = None
        self._tell(f"# exit {process.code}")
        if process.code not in early:
            assert_civil(process.code, process.said, arguments)

    def _tell(self, done: str) -> None:
        self.story.append(f"$ {done}")

    def _counters(self) -> dict[str, int]:
        return self.standing()["counters"] if self.state is not None else {}

    def _ids(self) -> dict[str, str]:
        return {row["id"]: row["prompt"] for row in self.all_rows if "id" in row}

    def _outputs(self, end: str) -> list[Path]:
        if self.layout.name == "folder to folder":
            return sorted((self.folder / "out").glob(f"*{end}"))
        return [self.folder / ("r.jsonl" if end == ".results.jsonl" else f"r{end}")]

    def _results(self) -> list[dict[str, Any]]:
        paths = self._outputs(".results.jsonl")
        return [record for path in paths for record in read_records(path, torn=self.is_killed)]

    def _stalled(self, *, is_gone: bool) -> int:
        """The end of a pipe to write to, full already; or one whose reader is gone."""
        self._reader, writer = os.pipe2(os.O_CLOEXEC)
        if is_gone:
            os.close(self._reader)
            self._reader = -1
            return writer
        size = fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
        os.write(writer, bytes(size))
        return writer


def said_by(state: Path, scratch: Path) -> bytes:
    """A digest of what a state file says with its log, whether or not that has been folded into it."""
    copy = scratch / "looked-at"
    for suffix in ("", "-wal"):
        path = state.with_name(state.name + suffix)
        if path.exists():
            shutil.copyfile(path, f"{copy}{suffix}")
    try:
        with sqlite3.connect(copy) as database:
            said = "\n".join(database.iterdump())
        database.close()
    except sqlite3.Error:
        return state.read_bytes()
    finally:
        for suffix in ("", "-wal", "-shm", "-journal"):
            Path(f"{copy}{suffix}").unlink(missing_ok=True)
    return hashlib.sha256(said.encode()).digest()
