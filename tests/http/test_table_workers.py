"""A table is the same, byte for byte, whether it is read in this process alone or in several others, or not there."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from batchrun.commands.export import Wanted, export
from batchrun.config import RequestOptions, SweepOptions
from batchrun.errors import OutputError, StateError
from batchrun.local.workers import WorkerFailure
from batchrun.results import marks
from batchrun.runs import exported, table_workers
from batchrun.state.amendments import write_amendments
from batchrun.state.records import Amendment
from batchrun.state.store import Store
from tests.support.rehearsal import rehearse, serving, write_lines
from tests.support.workers import Answering

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 60
COLUMNS = ("id", "prompt", "request", "messages", "metadata", "n", "job.attempts", "error.kind")


def line(n: int) -> dict[str, Any]:
    """Late in the file, there are other columns, and a column has another type."""
    metadata: dict[str, Any] = {"n": n if n < ROWS - 5 else f"text {n}", "tags": [n] * (n % 3), "large": 2**63 + n}
    if n > ROWS // 2:
        metadata = {"late": {"a": n / 2, f"b{n % 4}": None}, **metadata}
    chat = {"messages": [{"role": "user", "content": f"ü {n}"}]}
    asked = chat if n % 2 else {"prompt": "bad" if n in (8, ROWS - 2) else "p"}
    return {"id": f"r{n}", **asked, "max_tokens": 9, "metadata": metadata, **({"extra": n} if n == ROWS - 1 else {})}


def answer(request: dict[str, Any]) -> Any:
    asked = request.get("openai_input", request)
    if asked.get("prompt", "").startswith("bad"):
        return WorkerFailure("vLLM returned HTTP 400: no")
    message = {"role": "assistant", "content": "said", "reasoning": "hm"}
    return [{"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}]


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported, "_GROUP_ROWS", 7)
    monkeypatch.setattr(exported, "_ROWS_FOR_WORKERS", 1)
    monkeypatch.setattr(marks, "_PART_BYTES", 700)
    monkeypatch.setattr(marks, "_GROUP_LINES", 3)


async def run(folder: Path, **given: Any) -> Path:
    write_lines(folder, [line(n) for n in range(ROWS)])
    async with serving(worker=Answering(answer)) as server:
        await rehearse(folder, server.endpoint.base_url, **given)
    return folder / "out.jsonl.state"


def written(state: Path, name: str, count: int, monkeypatch: pytest.MonkeyPatch, wanted: Wanted) -> tuple[bytes, str]:
    monkeypatch.setattr(table_workers, "processes", lambda: count)
    target = state.with_name(name)
    target.unlink(missing_ok=True)
    told = export(state, target, io.BytesIO(), wanted)
    return target.read_bytes(), str(told)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"format": "openai"},
        {"sweep": SweepOptions((("temperature", (0, 1)),), 2), "with_request": True},
        {"request": RequestOptions(override={"top_p": 0.5}, chat=True, system="s")},
    ],
    ids=["plain", "openai", "sweep", "options"],
)
async def test_the_table_is_the_same_however_many_processes_read_it(tmp_path: Path, monkeypatch, given: dict[str, Any]):
    state = await run(tmp_path, **given)
    if not given:
        with Store(state) as store, store.transaction() as db:
            write_amendments(db, [(3, Amendment({"max_tokens": 99}, seed=5))])
    for name, wanted in (("t.parquet", Wanted(with_errors=True)), ("t.csv.gz", Wanted(columns=COLUMNS))):
        counts = (0, 2) if given else (0, 1, 4)
        alone, *others = (written(state, name, count, monkeypatch, wanted) for count in counts)
        assert len(alone[0]) > ROWS
        assert others == [alone] * len(others), name


def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes that are started from now on."""
    found, start = [], table_workers._Worker.__init__

    def noted(self: Any, *given: Any) -> None:
        start(self, *given)
        found.append(self._process.pid)

    monkeypatch.setattr(table_workers._Worker, "__init__", noted)
    monkeypatch.setattr(table_workers, "processes", lambda: 2)
    return found


def assert_nothing_is_left(state: Path, processes: list[int]) -> None:
    assert len(processes) == 2
    for pid in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert not [path.name for path in state.parent.iterdir() if path.name.startswith("t.")]


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
async def test_a_process_that_ends_or_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch, stop: int):
    state, processes = await run(tmp_path), started(monkeypatch)
    pack, packed = table_workers.packed, []

    def pack_and_stop(each: Any) -> Any:
        packed.append(each)
        if len(packed) == ROWS // 2:
            os.kill(os.getpid() if stop == signal.SIGINT else processes[0], stop)
        return pack(each)

    monkeypatch.setattr(table_workers, "packed", pack_and_stop)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as without an event loop
    with pytest.raises((KeyboardInterrupt, OutputError)) as caught:
        export(state, tmp_path / "t.csv", io.BytesIO())
    assert isinstance(caught.value, OutputError) == (stop == signal.SIGKILL)
    if stop == signal.SIGKILL:
        assert caught.value.message == "a process that reads the rows for the table has ended (SIGKILL)"
        assert caught.value.hint
    assert_nothing_is_left(state, processes)


async def test_what_a_process_refuses_is_refused_here_in_the_same_words(tmp_path: Path, monkeypatch):
    state, processes = await run(tmp_path), started(monkeypatch)
    place = exported.find_positions

    def place_and_cut(*arguments: Any, **options: Any) -> None:
        place(*arguments, **options)
        os.truncate(tmp_path / "out.jsonl", 100)

    monkeypatch.setattr(exported, "find_positions", place_and_cut)
    with pytest.raises(StateError, match=r"out\.jsonl was changed while it was read"):
        export(state, tmp_path / "t.csv", io.BytesIO())
    assert_nothing_is_left(state, processes)


async def test_a_line_that_is_no_result_of_the_run_is_named_whoever_reads_it(tmp_path: Path, monkeypatch):
    state, results = await run(tmp_path), tmp_path / "out.jsonl"
    whole = results.read_bytes()
    before, after = b'"id":"r40"', b'"id":"x40"'
    number = whole[: whole.index(before)].count(b"\n") + 1
    results.write_bytes(whole.replace(before, after))
    for count in (0, 2):
        with pytest.raises(StateError) as caught:
            written(state, "t.csv", count, monkeypatch, Wanted())
        assert caught.value.message == f"{results}:{number} belongs to no row of this run (id 'x40')"
    results.write_bytes(whole.replace(b'"id":"r40"', b'"id":"\\u007240"'))  # the same row, written differently
    with Store(state) as store, store.transaction() as db:
        db.execute("UPDATE rows SET result = NULL")  # as an older version wrote them
        db.execute("UPDATE outputs SET committed_bytes = ?", (results.stat().st_size,))
    assert written(state, "t.csv", 2, monkeypatch, Wanted()) == written(state, "t.csv", 0, monkeypatch, Wanted())


async def test_no_side_waits_for_the_other_if_tasks_and_answers_are_larger_than_a_pipe(tmp_path: Path, monkeypatch):
    lines = [{"id": f"r{n}", "prompt": ("bad " if n % 3 else "good ") + "x" * 20_000} for n in range(ROWS)]
    write_lines(tmp_path, lines)
    async with serving(worker=Answering(answer)) as server:
        await rehearse(tmp_path, server.endpoint.base_url)
    monkeypatch.setattr(table_workers, "_PIPE_BYTES", 1 << 12)

    def give_up(*_: Any) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    try:
        wanted = Wanted(with_errors=True, columns=("id", "prompt", "error"))
        tables = [written(tmp_path / "out.jsonl.state", "t.csv", count, monkeypatch, wanted) for count in (0, 2)]
    finally:
        signal.alarm(0)
    assert tables[0] == tables[1]


async def test_where_no_process_can_be_started_the_table_is_the_same(tmp_path: Path, monkeypatch):
    state = await run(tmp_path)
    alone = written(state, "t.csv", 0, monkeypatch, Wanted())
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    assert written(state, "t.csv", 2, monkeypatch, Wanted()) == alone
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert written(state, "t.csv", 2, monkeypatch, Wanted()) == alone


def test_a_process_ends_when_the_one_that_started_it_is_gone():
    program = [sys.executable, "-P", str(table_workers._PROGRAM)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdin.close()
        assert process.wait(30) == 0
        assert process.stdout.read() == b""
