"""What an answer must prove, how large it may be, and how long it may take."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from batchrun.endpoint.client import EndpointClient
from batchrun.endpoint.job_ids import JobIds, echo_asked, echo_given
from batchrun.endpoint.memory import MemoryBudget
from batchrun.endpoint.protocol import MAX_ANSWER_BYTES, parse_job
from batchrun.errors import AmbiguousError, MismatchedError, RejectedError, TooLargeError

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = "rpa_SECRET"


def job(job_id: str, status: str = "IN_QUEUE", **fields) -> bytes:
    return json.dumps({"id": job_id, "status": status, **fields}).encode()


def http(body: bytes, *headers: bytes, status: int = 200) -> bytes:
    lines = [b"HTTP/1.1 %d Whatever" % status, b"Content-Length: %d" % len(body), *headers, b"", b""]
    return b"\r\n".join(lines) + body


@asynccontextmanager
async def serving(*answers: bytes | Callable):
    """A server that gives these answers, one a request, on as many connections as there are; yields its connections."""
    connections: list[int] = []
    turns = iter(answers)
    writers = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        connections.append(0)
        place = len(connections) - 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length or 0))
                connections[place] += 1
                answer = next(turns)
                if callable(answer):
                    await answer(writer)
                else:
                    writer.write(answer)
        except (ConnectionError, asyncio.IncompleteReadError, StopIteration):
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v2", connections
    for writer in writers:
        writer.close()
    listening.close()


def client(url: str, *, timeout_s: float = 5.0, connections: int = 1, **options) -> EndpointClient:
    return EndpointClient(url, "abc", KEY, connections=connections, timeout_s=timeout_s, **options)


async def test_the_answer_of_another_job_is_not_used_and_its_connection_is_closed():
    async with (
        serving(http(job("a")), http(job("b", "COMPLETED", output=1)), http(job("a", "COMPLETED", output=2))) as (
            url,
            connections,
        ),
        client(url) as api,
    ):
        assert (await api.run(b"{}")).id == "a"
        with pytest.raises(MismatchedError, match="another job, 'b'"):
            await api.status("a")
        assert (await api.status("a")).output == 2
    assert connections == [2, 1]


@pytest.mark.parametrize("when", ["with the answer", "later"])
async def test_a_connection_that_says_more_than_it_was_asked_for_is_closed(when: str):
    async def twice(writer: asyncio.StreamWriter) -> None:
        writer.write(http(job("a")) * (2 if when == "with the answer" else 1))
        if when == "later":
            await writer.drain()
            await asyncio.sleep(0.02)
            writer.write(http(job("a")))

    async with serving(twice, http(job("b"))) as (url, connections), client(url) as api:
        assert (await api.run(b"{}")).id == "a"
        await asyncio.sleep(0.1)
        assert (await api.run(b"{}")).id == "b"
    assert connections == [1, 1]


async def test_a_response_too_many_that_comes_with_the_next_request_makes_no_job_that_of_another_row():
    """The second submission is answered with the first one's ID, the third with that of the second: if it is heard."""
    first, second, third = (http(job(name)) for name in "abc")

    async def answer_late(writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(second)

    async with serving(first, answer_late, third) as (url, connections), client(url) as api:
        assert (await api.run(b"{}")).id == "a"
        with pytest.raises(MismatchedError, match="ID of another job, a"):
            await api.run(b"{}")
        assert (await api.run(b"{}")).id == "c"
    assert connections == [2, 1]


@pytest.mark.parametrize("job_id", ["x" * 257, "a\nb", "a\u202eb"])
async def test_an_id_that_cannot_be_one_is_no_job(job_id: str):
    async with serving(http(job(job_id))) as (url, _), client(url) as api:
        with pytest.raises(AmbiguousError):
            await api.run(b"{}")


def test_the_id_of_a_job_that_is_over_is_not_given_again():
    ids = JobIds()
    ids.add("a")
    ids.end("a")
    with pytest.raises(MismatchedError):
        ids.check_new("a")
    for number in range(10_000):
        ids.add(str(number))
        ids.end(str(number))
    ids.check_new("a")


@pytest.mark.parametrize(
    ("request_of", "answer_id"),
    [
        ({"openai_route": "/v1/completions", "openai_input": {"prompt": "a", "request_id": "row-1"}}, "cmpl-row-1"),
        ({"messages": [], "sampling_params": {"request_id": "row-1"}}, "chatcmpl-row-1"),
        ({"prompt": "a", "request_id": "row-1"}, "row-1"),
    ],
)
def test_an_answer_to_the_request_of_another_row_is_not_used(request_of: dict, answer_id: str):
    """As recorded: vLLM 0.32 gives a request_id back in the id of its answer."""
    ids = JobIds()
    echo = echo_asked(json.dumps({"input": request_of}).encode())
    assert (echo, echo_given([{"id": answer_id}])) == ("row-1", "row-1")
    ids.add("a", echo)
    ids.add("b", "row-2")
    for good in (answer_id, "chatcmpl-7830b47a", None):
        ids.check("a", parse_job(200, {}, job("a", "COMPLETED", output=[{"id": good}])))
    with pytest.raises(MismatchedError, match="another request, 'row-2'"):
        ids.check("a", parse_job(200, {}, job("a", "COMPLETED", output=[{"id": answer_id.replace("1", "2")}])))


@pytest.mark.parametrize("name", ["plain", "chunked", "gzip"])
async def test_an_answer_that_is_too_large_is_not_read_to_its_end(name: str):
    zeros = b"0" * 100_000
    head, piece = {
        "plain": (b"Content-Length: 9999999999", zeros),
        "chunked": (b"Transfer-Encoding: chunked", b"186a0\r\n" + zeros + b"\r\n"),
        "gzip": (b"Content-Encoding: gzip", gzip.compress(zeros * 1000)),
    }[name]
    sent = []

    async def endless(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n")
        for _ in range(1000):
            writer.write(piece)
            await writer.drain()
            sent.append(len(piece))

    async with serving(endless) as (url, _), client(url) as api:
        with pytest.raises(TooLargeError, match="larger than 25 MB"):
            await api.status("a")
    assert sum(sent) < 2 * MAX_ANSWER_BYTES


async def test_of_an_error_page_only_the_beginning_is_read():
    async with serving(http(b"<title>no</title>" + b"x" * 10_000_000, status=418)) as (url, _), client(url) as api:
        with pytest.raises(RejectedError, match="HTTP 418: no") as caught:
            await api.status("a")
    assert len(caught.value.raw) == 100_000


async def test_an_answer_that_keeps_arriving_may_take_several_times_as_long_as_silence():
    body = http(job("a", "COMPLETED", output="x" * 20))

    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(body[:-20])
        for byte in body[-20:]:
            await asyncio.sleep(0.06)
            writer.write(bytes([byte]))

    async with serving(drip) as (url, _), client(url, timeout_s=0.3) as api:
        began = time.monotonic()
        assert (await api.status("a")).output == "x" * 20
    assert time.monotonic() - began > 1


@pytest.mark.parametrize("shown", [0, 20, 90])
async def test_silence_ends_an_answer_wherever_it_comes(shown: int):
    body = http(job("a", "COMPLETED", output="x" * 1000))

    async def stall(writer: asyncio.StreamWriter) -> None:
        writer.write(body[:shown])
        await asyncio.sleep(60)

    async with serving(stall) as (url, _), client(url, timeout_s=0.2) as api:
        with pytest.raises(AmbiguousError, match="no answer in time"):
            await api.status("a")


async def test_answers_that_find_no_room_wait_for_it_longer_than_a_server_may_be_silent():
    bodies = [http(job("j", "COMPLETED", output="x" * 1_000_000)) for _ in range(4)]
    memory = MemoryBudget(15_000_000)
    async with serving(*bodies) as (url, _), client(url, timeout_s=0.5, connections=4, memory=memory) as api:
        asking = {asyncio.create_task(api.status("j")) for _ in bodies}
        while asking:
            await asyncio.sleep(1.2)
            done = {task for task in asking if task.done()}
            assert len(done) == 1
            assert memory.held_bytes <= 15_000_000 + 10 * len(bodies[0]), "and what one takes that must go on"
            for task in done:
                api.release(task.result())
            asking -= done
    assert memory.held_bytes == 0


async def test_a_small_answer_that_finds_no_room_waits_and_is_whole():
    memory = MemoryBudget(1_000)
    await memory.room(900)
    async with serving(http(job("a", "COMPLETED", output="fine"))) as (url, _), client(url, memory=memory) as api:
        asking = asyncio.create_task(api.status("a"))
        await asyncio.sleep(0.2)
        assert not asking.done()
        memory.release(900)
        assert (await asking).output == "fine"


async def test_of_answers_that_wait_for_each_other_the_oldest_continues():
    memory = MemoryBudget(100)
    first, second = memory.begin(), memory.begin()
    await memory.grow(second, 90)
    await asyncio.wait_for(memory.grow(first, 1000), 1)
    waiting = asyncio.create_task(memory.grow(second, 20))
    await asyncio.sleep(0)
    assert not waiting.done()
    taken = memory.complete(first)
    await asyncio.sleep(0)
    assert not waiting.done(), "what is complete will go by itself"
    memory.release(taken)
    await asyncio.wait_for(waiting, 1)
    memory.abandon(second)
    assert memory.held_bytes == 0


async def test_a_request_that_is_given_up_gives_back_what_it_took():
    async def stall(writer: asyncio.StreamWriter) -> None:
        writer.write(http(job("a", output="x" * 5_000_000))[:3_000_000])
        await asyncio.sleep(60)

    memory = MemoryBudget(256_000_000)
    async with serving(stall) as (url, _), client(url, timeout_s=0.2, memory=memory) as api:
        with pytest.raises(AmbiguousError):
            await api.status("a")
    assert memory.held_bytes == 0
