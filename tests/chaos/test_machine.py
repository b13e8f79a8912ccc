"""A run that people work on in any order owes the same at each step (Hypothesis, by its stateful machine).

`BATCHRUN_CHAOS=N` tries N times 1,000 orders instead of 100, and BATCHRUN_SEED others; `-s` shows how many ran.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections import deque
from itertools import count
from pathlib import Path
from random import Random
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.chaos.disk import compiler, library
from tests.chaos.endpoint import Endpoint
from tests.chaos.layout import LAYOUTS, Layout, as_lines
from tests.chaos.place import Place, said_by
from tests.support.forks import Forks

EFFORT = int(os.environ.get("BATCHRUN_CHAOS", "0"))
SEED = int(os.environ.get("BATCHRUN_SEED", "0"))
EXAMPLES = 25 if EFFORT else 12
"""Of one seed. What Hypothesis gives up as flaky costs the rest of these, so there are few."""
ROUNDS = EFFORT * 1000 // len(LAYOUTS) // EXAMPLES or 1
STEPS = 6

rows = st.lists(st.tuples(st.booleans(), st.sampled_from(["good", "good", "good", "bad"])), min_size=1, max_size=6)
stderrs = st.sampled_from(["read", "read", "read", "stalled", "gone", "closed"])
faults = st.one_of(
    st.tuples(
        st.just("status"),
        st.sampled_from(["page", "500", "cut", "empty", "reset", "slow", "expired", "another's", "forbidden"]),
    ),
    st.tuples(st.just("run"), st.sampled_from(["500", "reset", "429", "cut", "page", "another's", "500 before"])),
)
numbers = st.integers(0, 11)
T = TypeVar("T")


def one_of(things: list[T], number: int) -> T:
    """One of them, whatever there is: what Hypothesis draws may not depend on how far a process has come."""
    return things[number % len(things)]


def idle(machine: Machine) -> bool:
    return machine.place.running is None


def going(machine: Machine) -> bool:
    return machine.place.running is not None


def begun(machine: Machine) -> bool:
    return machine.place.running is None and machine.place.state is not None


class Machine(RuleBasedStateMachine):
    """What people do in the folder of a run.

    Args:
        forks: Starts processes.
        layout: How the run is set up.
        failures: Is given what goes wrong.
        lives: Counts the runs that were worked on.
    """

    def __init__(self, forks: Forks, layout: str, failures: list[str], lives: count[int]) -> None:
        super().__init__()
        next(lives)
        self.failures = failures
        self.forks, self.layout = forks, Layout(layout)
        self.top = Path(
            tempfile.mkdtemp(prefix="batchrun-chaos-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        )
        self.endpoint = Endpoint().__enter__()
        self.number = 0

    def made(self, shapes: list[tuple[bool, str]]) -> list[dict]:
        """Rows that were not there before, some of them without an id."""
        made = []
        for has_id, word in shapes:
            self.number += 1
            row = {"prompt": f"{word} {self.number}"}
            made.append({"id": f"r{self.number}", **row} if has_id else row)
        return made

    @initialize(first=rows, second=rows, narrow=st.booleans())
    def begin(self, first, second, narrow):
        files = [self.made(first), self.made(second)][: self.layout.first]
        options = ("-j", "2") if narrow else ()
        self.place = Place(self.top, self.forks, self.layout, self.endpoint, files, options)

    # While nothing runs

    @precondition(idle)
    @rule(
        moment=st.one_of(st.integers(1, 4), st.sampled_from(["sent", "at once"])), stderr=stderrs, resume=st.booleans()
    )
    def start(self, moment, stderr, resume):
        self.place.begin(moment, stderr=stderr, resume=resume and bool(self.endpoint.jobs))

    @precondition(idle)
    @rule(stderr=stderrs, resume=st.booleans())
    def run(self, stderr, resume):
        resumed = resume and bool(self.endpoint.jobs)
        self.place.run({self.place.last_code} if not resumed else {0, 3}, stderr=stderr, resume=resumed)
        self.place.check_whole()

    @precondition(lambda self: idle(self) and not self.layout.is_piped)
    @rule(shapes=rows, file=numbers, at=numbers)
    def add_lines(self, shapes, file, at):
        here = self.place.rows[one_of(sorted(self.place.rows), file)]
        here[at % (len(here) + 1) : 0] = self.made(shapes)
        self.place.write()

    @precondition(lambda self: idle(self) and not self.layout.is_piped)
    @rule(file=numbers, by=numbers)
    def reorder_lines(self, file, by):
        Random(by).shuffle(self.place.rows[one_of(sorted(self.place.rows), file)])
        self.place.write()

    @precondition(lambda self: idle(self) and not self.layout.is_piped)
    @rule(at=numbers)
    def take_out_a_line(self, at):
        free = self.place.untaken()
        if free and len(self.place.all_rows) > 1:
            row = one_of(free, at)
            for here in self.place.rows.values():
                if row in here and len(here) > 1:
                    here.remove(row)
            self.place.write()

    @precondition(lambda self: idle(self) and self.layout.is_folder)
    @rule(shapes=rows)
    def add_a_file(self, shapes):
        free = [name for name in self.layout.names if name not in self.place.rows]
        if free:
            self.place.rows[free[0]] = self.made(shapes)
            self.place.write()

    @precondition(lambda self: idle(self) and self.layout.is_folder)
    @rule(file=numbers)
    def take_away_a_file(self, file):
        name = one_of(sorted(self.place.rows), file)
        free = self.place.untaken()
        if len(self.place.rows) > 1 and all(row in free for row in self.place.rows[name]):
            del self.place.rows[name]
            (self.place.folder / name).unlink()

    @precondition(idle)
    @rule()
    def move(self):
        self.place.move()

    @precondition(begun)
    @rule()
    def copy(self):
        self.place.copy_and_run()

    @precondition(lambda self: idle(self) and compiler() is not None)
    @rule(room=st.sampled_from([0, 100, 3000, 20_000, 50_000, 100_000, 150_000, 200_000]))
    def run_on_a_disk_that_fills_up(self, room):
        process = self.place.run({0, 3, 4}, root=str(self.place.folder), room=room)
        self.place.is_killed = process.code == 4

    @precondition(idle)
    @rule(size=st.sampled_from([0, 100, 3000, 20_000, 50_000, 100_000]))
    def run_with_small_files(self, size):
        process = self.place.run({0, 3, 4}, file_size=size)
        self.place.is_killed = process.code == 4

    @precondition(lambda self: idle(self) and not self.layout.is_piped)
    @rule(line=st.sampled_from([b"{a wrong line\n", b'{"prompt": 7}\n', b'{"prompt": "x", "id": ""}\n\xff\n']))
    def run_with_a_wrong_line(self, line):
        path = self.place.folder / min(self.place.rows)
        if path.suffix == ".gz":
            return
        data = path.read_bytes()
        path.write_bytes(data + line)
        self.place.refused(*self.place.arguments())
        path.write_bytes(data)

    @precondition(lambda self: idle(self) and self.place.state is None and self.layout.output == "r.jsonl")
    @rule(name=st.sampled_from(["r.jsonl", "r.errors.jsonl", "r.manifest.json"]))
    def run_onto_a_file_of_somebody(self, name):
        path = self.place.folder / name
        if not path.exists():
            path.write_text("{}\n")
            self.place.refused(*self.place.arguments())
            path.unlink()

    @precondition(begun)
    @rule()
    def run_without_the_log(self):
        log = self.place.state.with_name(self.place.state.name + "-wal")
        if log.exists() and log.stat().st_size and self.endpoint.jobs:
            whole = said_by(self.place.state, self.top)
            kept = log.rename(self.top / "kept-wal")
            # What filled the disk may have left a log without a whole transaction: nothing is lost with it.
            if said_by(self.place.state, self.top) != whole:
                self.place.refused(*self.place.arguments())
            kept.rename(log)

    @precondition(lambda self: begun(self) and self.layout.name == "stdin")
    @rule()
    def run_with_nothing_to_read(self):
        self.endpoint.ending = None
        with Path(os.devnull).open("rb") as nothing:
            self.place.command(*self.place.arguments(), stdin=nothing.fileno())

    @precondition(begun)
    @rule()
    def cancel(self):
        self.endpoint.ending = None
        self.place.command("cancel", self.place.state_name)

    @rule(fault=faults)
    def answer_wrongly(self, fault):
        operation, kind = fault
        queue = self.endpoint.faults.setdefault(operation, deque())
        if len(queue) < 2:
            queue.append(kind)

    # While it continues

    @precondition(going)
    @rule()
    def kill(self):
        self.place.end(set(), signal.SIGKILL)

    @precondition(going)
    @rule(number=st.sampled_from([signal.SIGINT, signal.SIGTERM, signal.SIGHUP]))
    def interrupt(self, number):
        self.place.end({130, 0, 3}, number)

    @precondition(going)
    @rule()
    def interrupt_twice(self):
        self.place.end({130, 0, 3}, signal.SIGINT, signal.SIGINT)

    @precondition(going)
    @rule()
    def let_it_finish(self):
        self.place.end({0, 3})

    @precondition(going)
    @rule()
    def stop_and_continue(self):
        self.place.running.send(signal.SIGSTOP)
        if self.place.state is not None:
            self.look("status")
        self.place.running.send(signal.SIGCONT)

    @precondition(lambda self: going(self) and self.place.state is not None)
    @rule(way=st.sampled_from(["same", "path", "symlink", "hard link", "state"]))
    def start_a_second(self, way):
        place = self.place
        arguments, other = place.arguments(), place.folder / "other"
        if way == "path":
            arguments = ["resume", f"../{place.folder.name}/{place.state_name}"]
        elif way == "state":
            arguments += ["--state", "other"]
        elif way != "same":
            (other.symlink_to if way == "symlink" else other.hardlink_to)(place.state)
            arguments = ["resume", "other"]
        place.refused_beside(arguments)
        other.unlink(missing_ok=True)

    @precondition(lambda self: self.place.state is not None)
    @rule(how=st.sampled_from(["status", "verify", "export", "report"]))
    def look(self, how):
        self.place.command(how, self.place.state_name, *(["-o", "-"] if how == "export" else []))

    @precondition(lambda self: going(self) and not self.layout.is_piped and self.layout.name != "gz")
    @rule(shapes=rows)
    def append_lines(self, shapes):
        name = max(self.place.rows)
        new = self.made(shapes)
        with (self.place.folder / name).open("ab") as file:
            file.write(as_lines(new))
        self.place.rows[name] += new

    @precondition(lambda self: going(self) and self.place.state is not None)
    @rule()
    def cancel_it(self):
        self.place.command("cancel", self.place.state_name)
        # What is not there yet finds the state file in use.
        self.place.end({130, 0, 3, 2} if self.place.is_early else {130, 0, 3})

    # Always

    @invariant()
    def it_owes_nothing(self):
        if hasattr(self, "place"):
            self.place.check()

    def teardown(self):
        try:
            if sys.exc_info()[0] is None and hasattr(self, "place"):
                self.finish()
        finally:
            error = sys.exc_info()[1]
            # Hypothesis ends an example by exceptions of its own, too: those are nobody's fault.
            if error is not None and not type(error).__module__.startswith("hypothesis") and hasattr(self, "place"):
                self.failures.append("\n".join([*self.place.story, str(error)]))
            if hasattr(self, "place"):
                self.place.close()
            self.endpoint.__exit__()
            shutil.rmtree(self.top, ignore_errors=True)

    def finish(self):
        if self.place.running is not None:
            self.place.end({0, 3})
        self.place.run({self.place.last_code})
        self.place.check()
        self.place.check_whole()


@pytest.fixture(scope="module")
def forks():
    with Forks(library() if compiler() else None) as started:
        yield started


@pytest.mark.timeout(0)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_whatever_is_done_to_a_run_it_owes_the_same(forks, layout):
    chosen = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    failures: list[str] = []
    lives = count()
    for number in range(ROUNDS):
        orders = seed(SEED * 1000 + number)(lambda: Machine(forks, layout, failures, lives))
        try:
            run_state_machine_as_test(orders, settings=chosen)
        except Flaky:
            # The moments of real processes differ from one time to the next, and with them what can be drawn. That
            # alone breaks no claim; one that was broken is told as it was found first.
            if failures:
                pytest.fail(failures[0], pytrace=False)
        except Exception:  # noqa: BLE001 - told by its own words
            pytest.fail(failures[0] if failures else traceback.format_exc(), pytrace=False)
    print(f"{next(lives)} lives of a run: {layout}")
