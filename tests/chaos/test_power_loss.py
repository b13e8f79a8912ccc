"""A run whose power fails at any change to the disk, in any state that this may leave, is whole in the end.

A run is recorded once. Then each state of its folder after each change is put on the disk, the endpoint is taken back
to what it had been sent by then, and the same command is given again.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from tests.chaos.claims import assert_civil, assert_said, assert_whole, read_records
from tests.chaos.disk import Change, Disk, Tree, compiler, library, read_journal, read_tree, write_tree
from tests.chaos.endpoint import Endpoint, Job, fails
from tests.support.forks import Forks, Process

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(compiler() is None, reason="the layer under the files is built by a C compiler")

EFFORT = int(os.environ.get("BATCHRUN_CHAOS", "0"))
"""How many states are tried: 0 is a sample of 15 for each kind of run, otherwise that many times 1,000."""
SAMPLE = 15
VARIANTS = [
    *[(names, data) for names in ("none", "all") for data in ("none", "all", "blocks")],
    *[("none", "pages"), ("none", "torn"), ("some", "some"), ("some", "some")],
]
"""What is lost of names and of data; see `Disk.after`."""
ENV = {"RUNPOD_API_KEY": "rpa_SECRET_0123456789"}


@dataclass(frozen=True)
class Kind:
    """A kind of run.

    Args:
        rows: How many; every third has no id of its own, and every fifth fails.
        options: Of `batchrun run`.
        source: The input's name beside the run's folder; `-` for stdin.
        results: The results file.
    """

    rows: int = 4
    options: tuple[str, ...] = ()
    source: str = "in.jsonl"
    results: str = "r.jsonl"
    output: str = "r.jsonl"

    @property
    def state(self) -> str:
        return f"{self.output}batchrun.state" if self.output.endswith("/") else f"{self.output}.state"

    def lines(self) -> list[dict[str, Any]]:
        words = ("bad" if n % 5 == 3 else "good" for n in range(self.rows))
        rows = ({"id": f"r{n}", "prompt": f"{word} {n}"} for n, word in enumerate(words))
        return [row if n % 3 else {"prompt": row["prompt"]} for n, row in enumerate(rows)]


KINDS = {
    "a file": Kind(),
    "gz": Kind(source="in.jsonl.gz"),
    "stdin": Kind(source="-"),
    "a new folder": Kind(output="new/deep/", results="new/deep/in.results.jsonl"),
    "a file in a new folder": Kind(output="new/r.jsonl", results="new/r.jsonl"),
    "ordered": Kind(options=("--ordered", "-j", "2")),
    "dedupe": Kind(options=("--dedupe",)),
    "many": Kind(rows=60, options=("-j", "10")),
}


class Rig:
    """A run's folder, its input beside it, its endpoint, and a way to start it.

    Args:
        top: An empty folder.
        forks: Starts processes.
        kind: The kind of run.
    """

    def __init__(self, top: Path, forks: Forks, kind: Kind, endpoint: Endpoint) -> None:
        self.kind, self.folder, self.endpoint = kind, top / "run", endpoint
        self._top, self._forks = top, forks
        self._journals = 0
        self.folder.mkdir()
        self._input = top / (kind.source if kind.source != "-" else "stdin.jsonl")
        data = b"".join(json.dumps(row).encode() + b"\n" for row in kind.lines())
        self._input.write_bytes(gzip.compress(data) if kind.source.endswith(".gz") else data)

    def run(self, journal: Path | None = None) -> Process:
        """The command, to its end."""
        kind = self.kind
        source = "-" if kind.source == "-" else f"../{kind.source}"
        arguments = ["run", source, "-o", kind.output, "-e", "ep", "--base-url", self.endpoint.base_url]
        arguments += ["--run-limit", "0", "--status-limit", "0", "--progress", "plain", *kind.options]
        with self._input.open("rb") as stdin:
            recorded = {} if journal is None else {"journal": str(journal), "root": str(self.folder)}
            return self.command(arguments, stdin=stdin.fileno() if kind.source == "-" else None, **recorded)

    def command(self, arguments: list[str], **given: Any) -> Process:
        process = self._forks.start(arguments, self.folder, stdout=self._top / "stdout", env=ENV, **given)
        process.wait(30)
        assert_civil(process.code, process.said, arguments)
        return process

    def journal(self) -> Path:
        """Where the next run is written down."""
        self._journals += 1
        return self._top / f"{self._journals}.journal"

    def find(self, loss: Loss) -> None:
        """Be where a loss of power has left it."""
        write_tree(loss.tree, self.folder)
        self.endpoint.jobs = dict(loss.jobs)

    def wrong_after(self, loss: Loss) -> str:
        """What is wrong in the end when it continues from there; empty: nothing."""
        self.find(loss)
        try:
            self.assert_whole()
        except AssertionError as error:
            return f"{loss}\n{error}"
        return ""

    def assert_whole(self) -> None:
        """Run it again, and look at what it came to."""
        kind, rows = self.kind, self.kind.lines()
        done = self.run()
        assert done.code == (3 if any(fails(row["prompt"]) for row in rows) else 0), done.said
        results = read_records(self.folder / kind.results)
        errors = read_records(self.folder / f"{kind.results.removesuffix('.jsonl')}.errors.jsonl")
        assert_whole(results, errors, rows)
        status = self.command(["status", "--json", kind.state])
        assert_said(self.endpoint.paid(), rows, json.loads(status.output.read_bytes())["counters"])
        verified = self.command(["verify", kind.state])
        assert verified.code == 0, verified.output.read_text()


@dataclass(frozen=True)
class Loss:
    """A state that a loss of power has left."""

    after: int
    """How many changes had been made."""
    change: str
    names: str
    data: str
    seed: int
    tree: Tree
    jobs: dict[str, Job]
    """What the endpoint had been sent by then."""

    def digest(self) -> bytes:
        """The same for the same state."""
        digest = hashlib.sha256(b"%d" % len(self.jobs))
        for name, data in sorted(self.tree.items()):
            digest.update(repr((name, data if not isinstance(data, bytes) else len(data))).encode())
            digest.update(data if isinstance(data, bytes) else b"")
        return digest.digest()

    def __str__(self) -> str:
        lost = f"names lost: {self.names}, data lost: {self.data}, seed {self.seed}"
        return f"after change {self.after} ({self.change}); {lost}; found: {sorted(self.tree)}"


def losses(rig: Rig, most: int) -> list[Loss]:
    """Record a run, and give states that a loss of power in the midst of it may leave, each once; so many at most."""
    endpoint, rng = rig.endpoint, Random(most)
    disk, before, journal = Disk(rig.folder), set(endpoint.jobs), rig.journal()
    endpoint.moment = lambda: journal.stat().st_size
    rig.run(journal)
    changes = list(read_journal(journal))
    cases = [(number, index) for number in range(1, len(changes) + 1) for index in range(len(VARIANTS))]
    cases = sorted(rng.sample(cases, min(len(cases), 4 * most)), reverse=True)
    found: dict[bytes, Loss] = {}
    for number, change in enumerate(changes, 1):
        disk.apply(change)
        jobs = {id_: job for id_, job in endpoint.jobs.items() if id_ in before or job.moment <= change.end}
        while cases and cases[-1][0] == number:
            names, data = VARIANTS[cases[-1][1]]
            seed = number * len(VARIANTS) + cases.pop()[1]
            loss = Loss(number, str(change), names, data, seed, disk.after(names, data, Random(seed)), jobs)
            found.setdefault(loss.digest(), loss)
    assert disk.after("none", "none", rng) == read_tree(rig.folder), "the layer has not seen all"
    return rng.sample(list(found.values()), min(len(found), most))


@pytest.fixture(scope="module")
def forks():
    with Forks(library()) as started:
        yield started


@pytest.mark.timeout(0 if EFFORT else 120)
@pytest.mark.parametrize("name", KINDS)
def test_a_run_whose_power_fails_is_whole_in_the_end(folder, forks, name):
    with Endpoint() as endpoint:
        rig = Rig(folder, forks, KINDS[name], endpoint)
        found = losses(rig, EFFORT * 1000 or SAMPLE)
        wrong = list(filter(None, (rig.wrong_after(loss) for loss in found)))
    assert not wrong, f"{len(wrong)} of {len(found)} states:\n\n" + "\n\n".join(wrong[:20])


@pytest.mark.timeout(0 if EFFORT else 120)
def test_a_run_whose_power_fails_again_while_it_recovers_is_whole_in_the_end(folder, forks):
    wrong: list[str] = []
    with Endpoint() as endpoint:
        rig = Rig(folder, forks, Kind(), endpoint)
        for first in losses(rig, EFFORT * 50 or 3):
            rig.find(first)
            found = [rig.wrong_after(second) for second in losses(rig, EFFORT * 50 or 8)]
            wrong += [f"{first}, then {text}" for text in found if text]
    assert not wrong, f"{len(wrong)} states:\n\n" + "\n\n".join(wrong[:20])


class Unsynced:
    """Which files and names have changed since their last sync, change by change."""

    def __init__(self) -> None:
        self.names: dict[int, str] = {}
        """Of the files that were made, by inode."""
        self.found: set[str] = set()

    def apply(self, change: Change) -> None:
        if change.what == "C":
            self.names[change.inode] = change.name
        elif change.what in "WT":
            self.found.add(self.names.get(change.inode, ""))
        elif change.what == "S":
            self.found.discard("names" if change.is_folder else self.names.get(change.inode, ""))
        if change.what in "CRU":
            self.found.add("names")


def test_results_and_state_are_written_in_turn_and_each_is_synced_before_the_other_is_written(folder, forks):
    with Endpoint() as endpoint:
        rig = Rig(folder, forks, KINDS["many"], endpoint)
        journal = rig.journal()
        rig.run(journal)
    unsynced, log = Unsynced(), f"{rig.kind.state}-wal"
    turns: list[str] = []
    for change in read_journal(journal):
        unsynced.apply(change)
        name = unsynced.names.get(change.inode, "")
        if change.what == "W" and name in (rig.kind.results, log):
            assert unsynced.found & {rig.kind.results, log} == {name}, str(change)
            turns += [name] if turns[-1:] != [name] else []
    assert turns.count(rig.kind.results) >= 2, "several batches"
    assert turns[0] == turns[-1] == log


def test_a_repair_is_on_disk_as_begun_before_it_replaces_results_and_as_done_after_it(folder, forks):
    with Endpoint() as endpoint:
        rig = Rig(folder, forks, Kind(), endpoint)
        rig.run()
        path, journal = rig.folder / rig.kind.results, rig.journal()
        whole = path.read_bytes()
        path.write_bytes(whole.replace(b"echo", b"EVIL", 1))
        arguments = ["resume", rig.kind.state, "--repair", "--base-url", endpoint.base_url, "--progress", "plain"]
        rig.command(arguments, journal=str(journal), root=str(rig.folder))
        assert sorted(read_records(path), key=str) == sorted(map(json.loads, whole.splitlines()), key=str)
    unsynced, log = Unsynced(), f"{rig.kind.state}-wal"
    steps: list[str] = []
    for change in read_journal(journal):
        if change.what == "R" and change.other == rig.kind.results:
            assert not unsynced.found & {log, change.name}, "what takes its place is on disk, and that it will"
            steps += ["results"]
        elif change.what == "W" and unsynced.names.get(change.inode) == log:
            assert "results" not in steps or not unsynced.found & {"names"}, "the results have their name on disk"
            steps += ["state"]
        unsynced.apply(change)
    at = steps.index("results")
    assert "state" in steps[:at]
    assert "state" in steps[at:]
