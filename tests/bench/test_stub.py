"""The stub that the bench measures against keeps its own promises: exact events, the documented limits, its draws."""

from __future__ import annotations

import json
import socket
import sys
import time
from typing import TYPE_CHECKING, Any, Self

import pytest

from tests.bench import runs
from tests.bench.bounds import draws, fifo, ideal_s
from tests.bench.stub import Setting, Stub, compiler

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or compiler() is None, reason="the stub is a C program for Linux"
)


class Line:
    """One connection; requests may follow each other without waiting."""

    def __init__(self, stub: Stub) -> None:
        self._socket = socket.create_connection(("127.0.0.1", int(stub.base_url.split(":")[2].split("/")[0])))
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def send(self, *requests: tuple[str, bytes]) -> list[tuple[int, dict[str, Any]]]:
        """Send all at once; a request is an operation (`run`, `status/<id>`, ...) and a body."""
        head = "{} /v2/x/{} HTTP/1.1\r\nHost: x\r\ncontent-length: {}\r\n\r\n"
        parts = (head.format("POST" if body else "GET", path, len(body)).encode() + body for path, body in requests)
        self._socket.sendall(b"".join(parts))
        return [self._answer() for _ in requests]

    def ask(self, path: str, body: bytes = b"") -> dict[str, Any]:
        """One request that is answered with 200."""
        ((status, answer),) = self.send((path, body))
        assert status == 200
        return answer

    def submit(self, *rows: int) -> list[str]:
        """Submit these rows; the jobs' ids."""
        answers = self.send(*(("run", b'{"input":{"prompt":"%d"}}' % row) for row in rows))
        return [answer["id"] for _, answer in answers]

    def _answer(self) -> tuple[int, dict[str, Any]]:
        status = int(self._file.readline().split()[1])
        length = 0
        while (line := self._file.readline().strip()) != b"":
            if line.startswith(b"Content-Length: "):
                length = int(line[16:])
        return status, json.loads(self._file.read(length))


def times(line: Line, ids: list[str]) -> list[tuple[int, int]]:
    answers = [line.ask(f"status/{job}") for job in ids]
    assert {answer["status"] for answer in answers} == {"COMPLETED"}
    return [(answer["delayTime"], answer["executionTime"]) for answer in answers]


def test_a_freed_worker_starts_the_next_job_at_once_however_late_somebody_asks():
    with Stub(Setting(((0, 2),), "constant:0.2")) as stub, Line(stub) as line:
        ids = line.submit(0, 1, 2, 3, 4)
        assert [line.ask(f"status/{job}")["status"] for job in ids] == ["IN_PROGRESS"] * 2 + ["IN_QUEUE"] * 3
        health = line.ask("health")
        assert (health["jobs"]["inProgress"], health["jobs"]["inQueue"], health["workers"]["running"]) == (2, 3, 2)
        time.sleep(0.8)
        assert times(line, ids) == [(0, 200), (0, 200), (200, 200), (200, 200), (400, 200)]
        report = stub.report()
    assert (report["max_queue"], report["told"]) == (3, 5)
    assert 0.8 < report["nine_tenths_s"] <= report["makespan_s"]
    assert report["detection_s"]["max"] == pytest.approx(report["makespan_s"] - 0.2, abs=0.1)


@pytest.mark.parametrize("service", ["exponential:0.02", "lognormal:0.01:1"])
def test_the_jobs_have_the_draws_that_the_bound_is_worked_out_from(service: str):
    setting = Setting(((0, 5),), service, seed=7)
    with Stub(setting) as stub, Line(stub) as line:
        ids = line.submit(*range(100))
        time.sleep(ideal_s(setting, 100) + 0.05)
        found = times(line, ids)
    assert [ran for _, ran in found] == [round(1000 * drawn) for drawn in draws(setting, 100)]
    assert max(sum(both) for both in found) == pytest.approx(1000 * ideal_s(setting, 100), abs=2)


def test_workers_come_and_go_by_the_plan():
    with Stub(Setting(((0, 0), (0.2, 2), (0.25, 1)), "constant:0.1")) as stub, Line(stub) as line:
        ids = line.submit(0, 1, 2, 3)
        workers = line.ask("health")["workers"]
        assert (workers["ready"], workers["initializing"], workers["running"]) == (0, 2, 0)
        time.sleep(0.6)
        assert times(line, ids) == [(200, 100), (200, 100), (300, 100), (400, 100)]


def test_a_job_that_is_cancelled_in_the_queue_takes_no_worker_and_a_running_one_frees_it():
    with Stub(Setting(((0, 1),), "constant:0.3")) as stub, Line(stub) as line:
        first, second, third = line.submit(0, 1, 2)
        assert line.ask(f"cancel/{second}", b"{}")["status"] == "CANCELLED"
        time.sleep(0.1)
        line.ask(f"cancel/{first}", b"{}")
        time.sleep(0.4)
        assert line.ask(f"status/{second}")["status"] == "CANCELLED"
        assert times(line, [third])[0][0] == pytest.approx(105, abs=30)


def test_the_limits_are_the_documented_ones():
    with Stub(Setting(limits=True)) as stub, Line(stub) as line:
        ids = line.submit(*range(1000))
        assert [status for status, _ in line.send(("run", b"{}"), ("run", b"{}"))] == [429, 429]
        statuses = [status for status, _ in line.send(*[(f"status/{ids[0]}", b"")] * 2001)]
        assert statuses == [200] * 2000 + [429]
        assert [status for status, _ in line.send(*[(f"cancel/{ids[0]}", b"{}")] * 101)] == [200] * 100 + [429]
        assert stub.report()["refused"] == {"run": 2, "status": 1, "cancel": 1, "health": 0}


def test_requests_under_way_are_counted_where_there_is_a_latency():
    with Stub(Setting(limits=True, latency_s=0.1)) as stub, Line(stub) as line:
        began = time.monotonic()
        answers = line.send(*[("run", b"{}")] * 201)
        assert 0.2 <= time.monotonic() - began < 1
        assert [status for status, _ in answers] == [200] * 200 + [429]
        assert line.ask(f"status/{answers[0][1]['id']}")["status"] == "COMPLETED"


def test_rows_are_counted_by_what_they_ask_for_and_unknown_or_old_jobs_are_not_found():
    with Stub(Setting(retention_s=0.05)) as stub, Line(stub) as line:
        ids = line.submit(0, 1, 1, 1, 2)
        report = stub.report()
        assert (report["jobs"], report["rows"], report["twice"]) == (5, 3, 1)
        time.sleep(0.1)
        assert [status for status, _ in line.send((f"status/{ids[0]}", b""), ("status/else", b""))] == [404, 404]


def test_a_bound_is_that_of_a_queue_whose_workers_become_more():
    assert list(fifo(((0, 0), (10, 1), (11, 2)), [0, 0, 0, 30], [3, 3, 3, 1])) == [13, 14, 16, 31]
    assert ideal_s(Setting(((0, 1000),), "constant:1", latency_s=0.25, limits=True), 2001) == 21.5
    assert ideal_s(Setting(((0, 1),), "constant:2"), 10, 0.9) == 18


def test_the_obvious_script_loses_each_row_that_is_over_the_limit(tmp_path: Path):
    runs.write_rows(tmp_path / "in.jsonl", 1200)
    with Stub(Setting(limits=True)) as stub:
        ran = runs.client("obvious", tmp_path / "in.jsonl", stub.base_url, 200)
        assert ran.results == 1000
        assert stub.report()["refused"]["run"] == 200
