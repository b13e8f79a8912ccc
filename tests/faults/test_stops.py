"""Runs that cannot go on: what stops them, what they wait for, and that nothing is lost or paid for twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

import pytest

from batchrun.commands.status import read_status
from batchrun.endpoint.client import EndpointClient
from batchrun.endpoint.protocol import JobStatus
from batchrun.errors import AmbiguousError, DeniedError, NotFoundError, RejectedError, ThrottledError
from batchrun.runs.driving import drive
from batchrun.runs.opening import open_run
from tests.support.fault_server import (
    CLOSE,
    DONE,
    HEALTHY,
    KEY,
    QUEUED,
    RESET,
    Answer,
    FaultServer,
    Script,
    body,
    job,
    page,
)
from tests.support.rehearsal import Listener, hurried, options_for, rehearse, write_lines

if TYPE_CHECKING:
    from pathlib import Path

ROWS = [{"id": f"r{n}", "prompt": f"p{n}"} for n in range(8)]
REFUSALS = {
    "a wrong key": (body({"error": "unauthorized"}, 401), "API key is not accepted"),
    "a wrong key, without a word": (body(b"", 401), "API key is not accepted"),
    "an empty account": (body({"error": "insufficient funds"}, 402), "no credit left"),
    "a scoped key": (page(403, "Forbidden"), "may not use this endpoint"),
    "moved, 301": (replace(page(301), headers=(("Location", "/v2/local/elsewhere"),)), "refuses every request"),
    "moved, 302": (replace(page(302), headers=(("Location", "https://console.runpod.io/login"),)), "refuses every"),
    "moved, 307": (replace(page(307), headers=(("Location", "/v2/local/elsewhere"),)), "refuses every request"),
    "moved, 308": (replace(page(308), headers=(("Location", "/v2/local/elsewhere"),)), "refuses every request"),
    "an endpoint without a queue": (
        body({"error": "not allowed for QB API"}, 400),
        "this is a load-balancing endpoint",
    ),
    "one without a queue, in other words": (
        body({"error": "not allowed for QB API, load balancer endpoint"}, 400),
        "this is a load-balancing endpoint",
    ),
    "a proxy that wants a password": (page(407, "Proxy Authentication Required"), "the proxy asks for a password"),
}
NO_ENDPOINT = {
    "another host": (body({"message": "Not Found"}, 404), "no such endpoint"),
    "no endpoint": (body({"error": "endpoint not found"}, 404), "no such endpoint"),
    "no endpoint, in HTML": (page(404, "404"), "no such endpoint"),
}


IN_ITS_OWN_WORDS = (
    *("a wrong key", "an empty account", "another host", "no endpoint"),
    *("an endpoint without a queue", "one without a queue, in other words"),
)
"""Refusals that are the API's own JSON, or that only the API makes; the others may be an edge's."""
PAGES = {
    **{name: said for name, said in (REFUSALS | NO_ENDPOINT).items() if name not in IN_ITS_OWN_WORDS},
    "too early": (page(425, "Too Early"), "refuses every request"),
}


async def assert_continues(folder: Path, server: FaultServer) -> None:
    """The same command ends the run; every job was made once."""
    again = await rehearse(folder, server.base_url, key=KEY, scheduler={"concurrency": 3})
    assert sorted(again.ids()) == [row["id"] for row in ROWS]
    assert (again.summary.exit_code, again.summary.unconfirmed) == (0, 0)
    assert {record["job"]["attempts"] for record in again.results} == {1}
    assert server.complaints == []


@pytest.mark.parametrize("refusal", REFUSALS | NO_ENDPOINT)
async def test_a_refusal_before_the_start_stops_the_run_before_anything_is_sent(tmp_path: Path, refusal: str):
    answer, words = (REFUSALS | NO_ENDPOINT)[refusal]
    write_lines(tmp_path, ROWS)
    async with FaultServer({"": Script()}, health=(answer, HEALTHY)) as server:
        stopped = await rehearse(tmp_path, server.base_url, key=KEY)
        assert (stopped.summary.exit_code, stopped.summary.not_run, server.seen["run"]) == (4, len(ROWS), 0)
        assert words in stopped.summary.reason
        assert stopped.summary.hint
        await assert_continues(tmp_path, server)


@pytest.mark.parametrize("refusal", IN_ITS_OWN_WORDS)
async def test_a_refused_submission_stops_the_run_and_no_job_is_made_twice(tmp_path: Path, refusal: str):
    answer, words = (REFUSALS | NO_ENDPOINT)[refusal]
    write_lines(tmp_path, ROWS)
    async with FaultServer({"": Script(), "p4": Script(run=(answer, QUEUED))}) as server:
        stopped = await rehearse(tmp_path, server.base_url, key=KEY, scheduler={"concurrency": 3})
        assert (stopped.summary.exit_code, stopped.summary.unconfirmed) == (4, 0)
        assert words in stopped.summary.reason
        assert stopped.errors == []
        await assert_continues(tmp_path, server)
        assert Counter(server.asked)["run", "p4"] == 2
        assert server.seen["run"] == len(ROWS) + 1


@pytest.mark.parametrize("refusal", ["a wrong key", "an empty account"])
async def test_a_refused_poll_stops_the_run_and_its_job_is_polled_again(tmp_path: Path, refusal: str):
    answer, words = REFUSALS[refusal]
    write_lines(tmp_path, ROWS)
    async with FaultServer({"": Script(), "p4": Script(status=(job("IN_PROGRESS"), answer, DONE))}) as server:
        stopped = await rehearse(tmp_path, server.base_url, key=KEY, scheduler={"concurrency": 3})
        assert (stopped.summary.exit_code, stopped.summary.unconfirmed) == (4, 0)
        assert words in stopped.summary.reason
        assert stopped.errors == []
        await assert_continues(tmp_path, server)
        assert server.seen["run"] == len(ROWS)


@pytest.mark.parametrize("name", PAGES)
async def test_one_page_of_an_edge_ends_no_run_and_makes_no_job_twice(tmp_path: Path, name: str):
    write_lines(tmp_path, ROWS)
    refused, _ = PAGES[name]
    scripts = {"p2": Script(run=(refused, QUEUED)), "p4": Script(status=(job("IN_PROGRESS"), refused, DONE))}
    async with FaultServer({"": Script(), **scripts}, health=(HEALTHY, refused, HEALTHY)) as server:
        rehearsal = await rehearse(tmp_path, server.base_url, key=KEY, scheduler={"concurrency": 3})
    assert sorted(rehearsal.ids()) == [row["id"] for row in ROWS]
    assert (rehearsal.summary.exit_code, rehearsal.summary.unconfirmed) == (0, 0)
    assert {record["job"]["attempts"] for record in rehearsal.results} == {1}
    assert (server.seen["run"], server.complaints) == (len(ROWS) + 1, [])


@pytest.mark.parametrize("name", PAGES)
async def test_a_page_that_comes_again_and_again_ends_the_run_once_the_jobs_in_flight_are_collected(
    tmp_path: Path, name: str
):
    write_lines(tmp_path, ROWS)
    refused, words = PAGES[name]
    scripts = {"p2": Script(run=(refused,)), "p4": Script(status=(*[job("IN_PROGRESS")] * 4, DONE))}
    async with FaultServer({"": Script(), **scripts}) as server:
        stopped = await rehearse(tmp_path, server.base_url, key=KEY)
        assert (stopped.summary.exit_code, stopped.summary.in_flight, stopped.summary.unconfirmed) == (4, 0, 0)
        assert words in stopped.summary.reason
        assert sorted(stopped.ids()) == [row["id"] for row in ROWS if row["id"] != "r2"]
        assert stopped.errors == []
        server.scripts["p2"] = Script()
        await assert_continues(tmp_path, server)


async def test_a_job_that_an_edge_does_not_know_is_not_paid_for_twice(tmp_path: Path):
    write_lines(tmp_path, ROWS)
    unknown = page(404, "Not Found")
    scripts = {f"p{n}": Script(status=(*[unknown] * n, DONE)) for n in range(3)}
    async with FaultServer({"": Script(), **scripts}) as server:
        rehearsal = await rehearse(tmp_path, server.base_url, key=KEY)
    assert (rehearsal.summary.exit_code, rehearsal.summary.retries) == (0, 0)
    assert server.seen["run"] == len(ROWS)


async def test_a_job_that_is_unknown_again_and_again_is_gone_whoever_says_so(tmp_path: Path):
    write_lines(tmp_path, ROWS[:1])
    async with FaultServer({"": Script(status=(*[page(404)] * 3, DONE))}) as server:
        rehearsal = await rehearse(tmp_path, server.base_url, key=KEY)
    assert (rehearsal.summary.exit_code, rehearsal.summary.retries, server.seen["run"]) == (0, 1, 2)


async def test_a_key_that_is_refused_while_submissions_fail_stops_the_run(tmp_path: Path):
    write_lines(tmp_path, ROWS[:1])
    lost = Script(run=(RESET, CLOSE, page(502), QUEUED))
    async with FaultServer({"": lost}, health=(HEALTHY, body({"error": "no"}, 401), HEALTHY)) as server:
        stopped = await rehearse(tmp_path, server.base_url, key=KEY, scheduler={"max_retries": 9})
        assert (stopped.summary.exit_code, stopped.summary.not_run) == (4, 1)
        assert 1 <= stopped.summary.unconfirmed <= 3
        again = await rehearse(tmp_path, server.base_url, key=KEY, scheduler={"max_retries": 9})
    assert (again.ids(), again.summary.exit_code, again.summary.unconfirmed) == (["r0"], 0, 3)
    assert again.results[0]["job"]["possible_duplicate"]


def address(kind: str, server: FaultServer) -> str:
    port = server.base_url.rpartition(":")[2]
    return {
        "refused": f"http://127.0.0.1:{port}",
        "a handshake that is cut off": f"https://127.0.0.1:{port}",
    }[kind]


@pytest.mark.parametrize("kind", ["refused", "a handshake that is cut off"])
async def test_where_nobody_can_be_reached_the_run_waits_and_submits_nothing(tmp_path: Path, kind: str):
    write_lines(tmp_path, ROWS)
    async with FaultServer({"": Script()}) as server:
        if kind == "refused":
            server.leave()
        options, listener = options_for(tmp_path), Listener()
        said = asyncio.Event()
        listener.update = lambda snapshot: said.set() if "waiting for the endpoint" in snapshot.note else None
        with open_run(options, listener, clock=hurried, wall=lambda: 1e9, api_key=KEY) as run:
            waiting = asyncio.create_task(drive(run, address(kind, server), Random(0)))
            await asyncio.wait_for(said.wait(), 20)
            assert not waiting.done()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        standing = read_status(options.state)
        assert (standing.pending, standing.submitting, standing.in_flight) == (len(ROWS), 0, 0)
        assert server.seen == {}
        if server.gone.is_set():
            await server.come_back()
        await assert_continues(tmp_path, server)


LOGIN = page(200, "Sign in to the network")


@pytest.mark.parametrize("name", ["HTML", "a host that does not exist", "something that does not speak TLS"])
async def test_a_first_contact_that_can_never_succeed_stops_the_run_with_the_remedy(tmp_path: Path, name: str):
    write_lines(tmp_path, ROWS)
    async with FaultServer({"": Script()}, health=(LOGIN, LOGIN, LOGIN, HEALTHY)) as server:
        url, words = {
            "HTML": (server.base_url, "the answer is not JSON: Sign in to the network"),
            "a host that does not exist": ("http://no-such-host.invalid/v2", "no-such-host.invalid: "),
            "something that does not speak TLS": (server.base_url.replace("http", "https"), "no secure connection"),
        }[name]
        server.is_plain = True
        stopped = await rehearse(tmp_path, url, key=KEY)
        assert (stopped.summary.exit_code, stopped.summary.not_run, server.seen["run"]) == (4, len(ROWS), 0)
        assert words in stopped.summary.reason
        assert "check --base-url" in stopped.summary.hint
        server.health = (HEALTHY,)
        await assert_continues(tmp_path, server)


async def test_what_a_first_contact_would_not_survive_is_an_outage_after_a_good_answer(tmp_path: Path):
    write_lines(tmp_path, ROWS)
    scripts = {"p2": Script(run=(LOGIN, QUEUED)), "p4": Script(status=(job("IN_PROGRESS"), LOGIN, DONE))}
    async with FaultServer({"": Script(), **scripts}, health=(HEALTHY, LOGIN, HEALTHY)) as server:
        rehearsal = await rehearse(tmp_path, server.base_url, key=KEY, scheduler={"concurrency": 3})
    assert sorted(rehearsal.ids()) == [row["id"] for row in ROWS]
    assert (rehearsal.summary.exit_code, rehearsal.summary.unconfirmed) == (0, 1)


async def test_a_refused_connection_is_no_attempt(tmp_path: Path):
    write_lines(tmp_path, ROWS)
    last_word = replace(HEALTHY, fault="leave", headers=(("Connection", "close"),))
    async with FaultServer({"": Script()}, health=(last_word, HEALTHY)) as server:
        running = asyncio.create_task(rehearse(tmp_path, server.base_url, key=KEY))
        await asyncio.wait_for(server.gone.wait(), 20)
        await asyncio.sleep(0.3)
        await server.come_back()
        rehearsal = await running
    assert rehearsal.summary.exit_code == 0
    assert {record["job"]["attempts"] for record in rehearsal.results} == {1}
    assert (server.seen["run"], rehearsal.summary.unconfirmed) == (len(ROWS), 0)


async def test_jobs_outlive_a_network_that_is_gone_for_a_while(tmp_path: Path):
    write_lines(tmp_path, ROWS)
    slow = Script(status=(*[job("IN_PROGRESS")] * 3, DONE))
    leaving = Script(status=(*[job("IN_PROGRESS")] * 2, replace(job("IN_PROGRESS"), fault="leave"), DONE))
    async with FaultServer({"": slow, "p7": leaving}) as server:
        running = asyncio.create_task(rehearse(tmp_path, server.base_url, key=KEY))
        await asyncio.wait_for(server.gone.wait(), 20)
        await asyncio.sleep(0.3)
        await server.come_back()
        rehearsal = await running
    assert sorted(rehearsal.ids()) == [row["id"] for row in ROWS]
    assert (server.seen["run"], server.complaints) == (len(ROWS), [])


@pytest.mark.parametrize(
    ("answer", "end"),
    [
        (job("CANCELLED"), JobStatus.CANCELLED),
        (DONE, JobStatus.COMPLETED),
        (job("IN_PROGRESS"), JobStatus.IN_PROGRESS),
        (body({"error": "job not found"}, 404), NotFoundError),
        (body(b"", 429, Retry_After="3"), ThrottledError),
        (body({"error": "job is over"}, 400), RejectedError),
        (body(b"", 401), DeniedError),
        (page(502), AmbiguousError),
        (body({"removed": 2, "status": "completed"}), AmbiguousError),
        (RESET, AmbiguousError),
        (CLOSE, AmbiguousError),
        (Answer(raw=b"nonsense\r\n\r\n"), AmbiguousError),
    ],
)
async def test_a_cancel_tells_the_state_of_the_job_or_why_it_is_unknown(answer: Answer, end):
    server = FaultServer({"": Script(cancel=(answer,), job_id="a/b ü?ttl=1{n}")})
    async with server, EndpointClient(server.base_url, "local", KEY, connections=2, timeout_s=5.0) as client:
        submitted = await client.run(b'{"input": {"prompt": "p"}}')
        if isinstance(end, JobStatus):
            assert (await client.cancel(submitted.id)).status is end
        else:
            with pytest.raises(end):
                await client.cancel(submitted.id)
    assert server.complaints == []
