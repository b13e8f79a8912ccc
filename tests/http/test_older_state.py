"""A state file of an earlier version: looked at as it is, and brought up to date by the run that resumes it."""

from __future__ import annotations

import gzip
import shutil
import sqlite3
from collections import Counter, defaultdict
from contextlib import closing
from pathlib import Path

import pytest
from aiohttp import web

from batchrun.commands.report import read as report
from batchrun.commands.status import read_status
from batchrun.commands.verify import verify
from batchrun.config import DEFAULT_BASE_URL
from batchrun.local.echo import EchoWorker
from batchrun.prompts.shapes import READING
from batchrun.state.opening import log_of
from batchrun.state.reader import StateReader
from batchrun.state.schema import SCHEMA_VERSION
from tests.support.rehearsal import read_lines, rehearse, serving, write_lines
from tests.support.workers import Answering

OLDER = Path(__file__).parent / "older"
LINES = [{"id": f"r{n}", "prompt": f"prompt {n}"} for n in range(6)]

ONE_ROW_A_JOB = """
ALTER TABLE jobs RENAME TO new_jobs;
CREATE TABLE jobs (job INTEGER PRIMARY KEY, row INTEGER NOT NULL, attempt INTEGER NOT NULL, remote_id TEXT,
    status TEXT, submitted_ms INTEGER NOT NULL, delay_ms INTEGER, execution_ms INTEGER);
INSERT INTO jobs SELECT job, carried, 1, remote_id, status, submitted_ms, delay_ms, execution_ms FROM new_jobs;
DROP VIEW job_rows;
DROP TABLE new_jobs;
DROP TABLE parts;
"""
"""The tables of jobs as versions 1 to 3 have them."""


def version_of(state: Path) -> int:
    with closing(sqlite3.connect(state)) as db:
        return db.execute("PRAGMA user_version").fetchone()[0]


def make_old(state: Path, version: int) -> None:
    added = {5: (), 4: (), 3: (), 2: ("result",), 1: ("result", "variant", "same_as")}[version]
    columns = " ".join(f"ALTER TABLE rows DROP COLUMN {column};" for column in added)
    jobs = ONE_ROW_A_JOB if version < 4 else "ALTER TABLE jobs DROP COLUMN endpoint;"
    amendments = "DROP TABLE amendments;" if version < 5 else ""
    with closing(sqlite3.connect(state)) as db:
        db.executescript(f"{amendments} {jobs} {columns} PRAGMA user_version = {version};")


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5])
async def test_who_only_looks_changes_nothing(tmp_path: Path, version: int):
    write_lines(tmp_path, LINES)
    state = tmp_path / "out.jsonl.state"
    async with serving() as server:
        await rehearse(tmp_path, server.endpoint.base_url)
    make_old(state, version)
    assert read_status(state).succeeded == 6
    assert verify(state).is_whole
    assert version_of(state) == version


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5])
async def test_a_run_resumes_it_and_brings_it_up_to_date(tmp_path: Path, version: int):
    write_lines(tmp_path, LINES[:4])
    state = tmp_path / "out.jsonl.state"
    async with serving() as server:
        await rehearse(tmp_path, server.endpoint.base_url)
        make_old(state, version)
        write_lines(tmp_path, LINES)
        again = await rehearse(tmp_path, server.endpoint.base_url)
        assert server.seen["run"] == 6
    assert sorted(again.ids()) == [f"r{n}" for n in range(6)]
    assert version_of(state) == SCHEMA_VERSION
    assert verify(state).is_whole


NEWLY_READ = [
    {"prompt": "one", "max_tokens": 5, "documents": ["a"], "temperature": None},
    {"prompt": "two", "max_tokens": 5, "user": "u", "seed": 3.0},
]


async def test_a_run_continues_asking_as_it_began(tmp_path: Path, monkeypatch):
    write_lines(tmp_path, NEWLY_READ[:1])
    state = tmp_path / "out.jsonl.state"
    asked: list[dict] = []

    def answer(request: dict) -> object:
        asked.append(request)
        return EchoWorker().answer(request)

    async with serving(worker=Answering(answer)) as server:
        with monkeypatch.context() as before:
            before.setattr("batchrun.runs.intake.READING", 1)
            await rehearse(tmp_path, server.endpoint.base_url)
        with closing(sqlite3.connect(state)) as db:
            db.execute("DELETE FROM settings WHERE name = 'reading'")
            db.commit()
        write_lines(tmp_path, NEWLY_READ)
        again = await rehearse(tmp_path, server.endpoint.base_url)
    assert asked == [
        {"prompt": "one", "sampling_params": {"max_tokens": 5, "temperature": None}},
        {"prompt": "two", "sampling_params": {"max_tokens": 5, "seed": 3.0}},
    ]
    assert again.summary.succeeded == 2
    assert any("`user` is not sent: the version that started this run" in text for text in again.listener.messages)
    assert verify(state).is_whole


async def test_a_new_run_of_the_same_lines_asks_for_all_that_they_say(tmp_path: Path):
    write_lines(tmp_path, NEWLY_READ)
    async with serving() as server:
        await rehearse(tmp_path, server.endpoint.base_url)
    with closing(sqlite3.connect(tmp_path / "out.jsonl.state")) as db:
        assert db.execute("SELECT value FROM settings WHERE name = 'reading'").fetchone()[0] == str(READING).encode()


def killed_before(folder: Path, version: int) -> Path:
    """What a process of an earlier version left of a run of 12 rows when it was killed.

    Of version 2: 7 rows were done, and 4 in flight. Of later ones: 8 were done, one had failed, and 3 were in flight.
    The URL is another: its endpoint is gone. Version 2 does not know its folder, so there that is another, too.
    """
    older = OLDER / f"version-{version}"
    shutil.copy(OLDER / "in.jsonl", folder)
    shutil.copy(older / "r.jsonl", folder)
    state = folder / "r.jsonl.state"
    for packed, path in (("state.gz", state), ("log.gz", log_of(state))):
        path.write_bytes(gzip.decompress((older / packed).read_bytes()))
    with closing(sqlite3.connect(state)) as db:
        set_url = "UPDATE settings SET value = json_set(value, '$.base_url', ?) WHERE name = 'options'"
        assert db.execute(set_url, (DEFAULT_BASE_URL,)).rowcount == 1
        if version == 2:
            (origin,) = db.execute("SELECT origin FROM sources").fetchone()
            moved = {"was": str(Path(origin).parent), "is": str(folder)}
            db.execute(
                "UPDATE settings SET value = replace(value, :was, :is) WHERE name IN ('options', 'intake')", moved
            )
            db.execute("UPDATE sources SET origin = replace(origin, :was, :is), file = replace(file, :was, :is)", moved)
        db.commit()
        assert db.execute("PRAGMA user_version").fetchone() == (version,)
    return state


@pytest.mark.parametrize(("version", "failed", "submitted"), [(2, 0, 5), (3, 1, 3), (4, 1, 3), (5, 1, 3)])
async def test_a_run_that_an_earlier_version_was_killed_in_is_resumed_to_its_end(
    tmp_path: Path, version: int, failed: int, submitted: int
):
    state = killed_before(tmp_path, version)
    before = read_lines(tmp_path / "r.jsonl")
    async with serving() as server:
        again = await rehearse(
            tmp_path, server.endpoint.base_url, output=tmp_path / "r.jsonl", state=state, endpoint="ep"
        )
        assert (again.summary.failed, again.summary.exit_code) == (failed, 3 if failed else 0)
        assert server.seen["run"] == submitted, "jobs in flight that are gone are submitted again"
    assert again.results[: len(before)] == before
    texts = sorted(record["text"] for record in again.results)
    assert texts == sorted(f"Say {n}." for n in range(12) if not failed or n != 5)
    assert version_of(state) == SCHEMA_VERSION
    assert verify(state).is_whole


@pytest.mark.parametrize("version", [2, 3, 4, 5])
async def test_a_run_that_an_earlier_version_was_killed_in_is_resumed_by_a_pool_with_its_endpoint(
    tmp_path: Path, version: int
):
    state = killed_before(tmp_path, version)
    with StateReader(state) as store:
        in_flight = {job.remote_id for job in store.open_jobs()}
    asked: defaultdict[str, set[str]] = defaultdict(set)
    runs: Counter[str] = Counter()

    async def note(request: web.BaseRequest, operation: str) -> None:
        endpoint = request.path.split("/")[2]
        runs[endpoint] += operation == "run"
        if operation == "status":
            asked[request.path.split("/")[4]].add(endpoint)

    async with serving(note, workers=2, latency_s=0.02) as server:
        again = await rehearse(
            tmp_path,
            server.endpoint.base_url,
            output=tmp_path / "r.jsonl",
            state=state,
            endpoint="ep",
            pool=("ep", "new"),
            retry=(),
        )
    assert (again.summary.succeeded, again.summary.exit_code) == (12, 0)
    assert in_flight
    assert all(asked[job] == {"ep"} for job in in_flight), "only the old endpoint can know of the old jobs"
    assert runs["ep"] + runs["new"] == {2: 5, 3: 4, 4: 4, 5: 4}[version]
    assert [each.endpoint for each in read_status(state).endpoints] == ["ep", "new"]
    assert verify(state).is_whole


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5])
async def test_rows_that_were_added_to_an_older_run_are_done_by_a_pool(tmp_path: Path, version: int):
    write_lines(tmp_path, LINES[:4])
    state = tmp_path / "out.jsonl.state"
    async with serving(latency_s=0.05) as server:
        await rehearse(tmp_path, server.endpoint.base_url)
        make_old(state, version)
        more = [*LINES, *({"id": f"n{n}", "prompt": "p"} for n in range(40))]
        write_lines(tmp_path, more)
        pool = {"endpoint": "local", "pool": ("other", "local")}
        again = await rehearse(tmp_path, server.endpoint.base_url, **pool, scheduler={"concurrency": 4})
        assert server.seen["run"] == 46
    at = {record["id"]: record["job"]["endpoint"] for record in read_lines(tmp_path / "out.jsonl")}
    assert sorted(at) == sorted(line["id"] for line in more)
    assert {at[f"r{n}"] for n in range(4)} == {"local"}
    assert set(at.values()) == {"local", "other"}
    assert again.summary.exit_code == 0
    assert verify(state).is_whole


@pytest.mark.parametrize(
    ("version", "done", "failed", "in_flight"), [(2, 7, 0, 4), (3, 8, 1, 3), (4, 8, 1, 3), (5, 8, 1, 3)]
)
def test_a_run_that_an_earlier_version_was_killed_in_can_be_looked_at(tmp_path: Path, version, done, failed, in_flight):
    state = killed_before(tmp_path, version)
    before = state.read_bytes()
    standing = read_status(state)
    assert (standing.succeeded, standing.failed, standing.in_flight) == (done, failed, in_flight)
    assert len(standing.jobs) == in_flight
    assert verify(state).is_whole
    assert sum(variant.rows for variant in report(state).variants) == 12
    with StateReader(state) as store:
        assert [(row.line, job.remote_id is not None) for row, _, job in store.failures()] == [(6, True)] * failed
    assert state.read_bytes() == before
