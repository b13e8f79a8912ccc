"""A redo that dies at any change to the disk leaves the old results, or rows to be run again, and all of it adds up.

A redo is recorded once. Then each state of its folder after each change, as a kill or a loss of power leaves it, is put
on the disk, looked at, and gone on from.
"""

from __future__ import annotations

import asyncio
import os
import time
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from batchrun.commands.export import export
from batchrun.runs.opening import open_run
from batchrun.runs.resumed import resumed_options
from batchrun.scheduler.states import RowState
from batchrun.state.superseded import redo_under_way
from tests.chaos.disk import Disk, Tree, compiler, library, read_journal, read_tree, write_tree
from tests.support.claims import assert_adds_up
from tests.support.forks import Forks
from tests.support.rehearsal import Listener, hurried, read_lines, serving, write_lines
from tests.support.workers import Answering

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.forks import Process
    from tests.support.rehearsal import Server

pytestmark = pytest.mark.skipif(compiler() is None, reason="the layer under the files is built by a C compiler")

EFFORT = int(os.environ.get("BATCHRUN_CHAOS", "0"))
"""How many states are resumed by a process: 0 is a sample, otherwise that many times 1,000."""
SAMPLE = 8
ROWS = 6
ROOMY = 64
ENV = {"RUNPOD_API_KEY": "rpa_SECRET_0123456789"}
LOSSES = [(names, data) for names in ("none", "all", "some") for data in ("none", "all", "torn", "blocks", "some")]
"""What is lost of names and of data; see `Disk.after`. The first is what a kill leaves."""


def limited(request: dict[str, Any]) -> Any:
    """An answer that is cut off unless it may be long; its text tells which."""
    most = request["sampling_params"]["max_tokens"]
    choice = {"text": f"{request['prompt']} {most}", "finish_reason": "stop" if most >= ROOMY else "length", "index": 0}
    return [{"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": most}}]


class Rig:
    """A finished run whose answers are cut off in every third row, and its redo.

    Args:
        top: An empty folder.
        forks: Starts processes.
        server: The endpoint.
        options: Further ones of `batchrun run`.
    """

    def __init__(self, top: Path, forks: Forks, server: Server, *options: str) -> None:
        self._top, self._forks, self._server, self._options = top, forks, server, options
        self.folder = top / "run"
        self.folder.mkdir()
        self.state = self.folder / "r.jsonl.state"
        # Rows 0 and 3 have equal prompts, for `--dedupe`.
        lines = [{"id": f"r{n}", "prompt": f"p{n % 3}", "max_tokens": ROOMY if n % 3 else 8} for n in range(ROWS)]
        write_lines(top, lines)

    async def begin(self) -> None:
        """Run it, and redo it under the recorder."""
        base = ("--base-url", self._server.endpoint.base_url, "-q")
        limits = ("--run-limit", "0", "--status-limit", "0")
        await self.command("run", "../in.jsonl", "-o", "r.jsonl", "-e", "ep", *limits, *base, *self._options)
        self.old = sorted((self.folder / "r.jsonl").read_bytes().splitlines())
        self.disk, self.journal = Disk(self.folder), self._top / "journal"
        choice = ("--where", "finish_reason=length", "--set", f"max_tokens={ROOMY}", "--yes")
        recorded = {"journal": str(self.journal), "root": str(self.folder)}
        await self.command("redo", "r.jsonl.state", *choice, *base, **recorded)
        assert self.is_redone()

    async def command(self, *arguments: str, **given: Any) -> Process:
        process = self._forks.start(list(arguments), self.folder, env=ENV, **given)
        await asyncio.to_thread(process.wait, 30)
        assert process.code == 0, process.said
        return process

    def is_redone(self) -> bool:
        """Whether the rows have their new answers; whatever else is there must fit."""
        aside = self.folder / "r.superseded.jsonl"
        replaced = aside.read_bytes().splitlines() if aside.exists() else []
        results = read_lines(self.folder / "r.jsonl")
        assert sorted(record["id"] for record in results) == [f"r{n}" for n in range(ROWS)]
        if not replaced:
            assert sorted((self.folder / "r.jsonl").read_bytes().splitlines()) == self.old
            return False
        assert sorted(replaced) == [line for line in self.old if b'"length"' in line]
        assert {record["text"].rpartition(" ")[2] for record in results} == {str(ROOMY)}
        return True

    def states(self) -> list[tuple[str, bool, Tree]]:
        """What may be found after each change: its description, whether a kill leaves it, and the files."""
        found = []
        for number, change in enumerate(read_journal(self.journal), 1):
            self.disk.apply(change)
            for index, (names, data) in enumerate(LOSSES):
                tree = self.disk.after(names, data, Random(number * len(LOSSES) + index))
                found.append((f"after change {number} ({change}); lost: {names}, {data}", index == 0, tree))
        assert self.disk.after("none", "none", Random(0)) == read_tree(self.folder), "the layer has not seen all"
        return found

    def settle(self, tree: Tree, *, is_killed: bool) -> str:
        """Look at a state, then let the next session begin and end at once; what it has found."""
        write_tree(tree, self.folder)
        if is_killed:
            # A loss of power may leave a file that only the next session can read.
            found = assert_adds_up(self.state)
            written = export(self.state, self._top / "exported.jsonl", None)
            assert written.results == found.results == found.counts[RowState.SUCCEEDED]
        listener = Listener()
        with open_run(resumed_options(self.state), listener, clock=hurried, wall=time.time) as run:
            counts = run.store.counts()
            assert redo_under_way(run.store) is None
        found = assert_adds_up(self.state)
        assert not list(self.folder.glob("*.redo.part"))
        assert counts[RowState.SUCCEEDED] + sum(counts[state] for state in RowState if state.is_open) == ROWS
        aside = self.folder / "r.superseded.jsonl"
        replaced = aside.read_bytes().splitlines() if aside.exists() else []
        assert found.superseded == len(replaced)
        if not replaced:
            assert sorted((self.folder / "r.jsonl").read_bytes().splitlines()) == self.old
            return "old"
        assert sorted(replaced) == [line for line in self.old if b'"length"' in line]
        return "open" if counts[RowState.SUCCEEDED] < ROWS else "new"

    async def resume(self) -> None:
        """Go on to the end; each row that is open is paid for once, and no other."""
        with open_run(resumed_options(self.state), Listener(), clock=hurried, wall=time.time) as run:
            (unsent,) = run.store.query("SELECT count(*) FROM rows WHERE state IN (0, 1) AND same_as IS NULL")[0]
        before = self._server.seen["run"]
        await self.command("resume", "r.jsonl.state", "--base-url", self._server.endpoint.base_url, "-q")
        assert self._server.seen["run"] - before == unsent
        assert_adds_up(self.state)
        assert self.is_redone() or not unsent


@pytest.fixture(scope="module")
def forks():
    with Forks(library()) as started:
        yield started


@pytest.mark.timeout(0 if EFFORT else 120)
@pytest.mark.parametrize(
    "options",
    [pytest.param((), marks=pytest.mark.slow, id="plain"), pytest.param(("--dedupe", "--ordered"), id="both")],
)
async def test_a_redo_that_dies_anywhere_leaves_the_old_results_or_rows_to_be_run_again(folder, forks, options):
    async with serving(worker=Answering(limited)) as server:
        rig = Rig(folder, forks, server, *options)
        await rig.begin()
        states, wrong, found = rig.states(), [], set()
        rng = Random(len(options))
        kills = [each for each in states if each[1]]
        losses = [each for each in states if not each[1]]
        chosen = kills + rng.sample(losses, len(losses) if EFFORT else len(kills) // 4)
        for what, is_killed, tree in chosen:
            try:
                found.add(rig.settle(tree, is_killed=is_killed))
            except AssertionError as error:
                wrong.append(f"{what}\n{error}")
        assert not wrong, f"{len(wrong)} of {len(chosen)} states:\n\n" + "\n\n".join(wrong[:10])
        assert found == {"old", "open", "new"}
        for what, _, tree in rng.sample(states, min(EFFORT * 1000 or SAMPLE, len(states))):
            write_tree(tree, rig.folder)
            try:
                await rig.resume()
            except AssertionError as error:
                wrong.append(f"{what}\n{error}")
        assert not wrong, f"{len(wrong)} states:\n\n" + "\n\n".join(wrong[:10])
