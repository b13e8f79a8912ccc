"""The client against servers that misbehave on the wire."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from batchrun.endpoint.client import EndpointClient
from batchrun.errors import (
    AmbiguousError,
    CallError,
    DeniedError,
    MismatchedError,
    UnreachableError,
    UsageError,
)

JOB = b'{"id": "j", "status": "IN_QUEUE"}'
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(JOB), JOB)
KEY = "rpa_SECRET"


@asynccontextmanager
async def server(answer: bytes | None, *, close: bool = True):
    """A raw server: reads a request, writes `answer`, and closes; None: says nothing at all."""
    requests: list[bytes] = []
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        requests.append(await reader.read(65_536))
        if answer is not None:
            writer.write(answer)
            await writer.drain()
        if close:
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/v2", requests
    for writer in writers:
        writer.close()
    listening.close()


def client(base_url: str, timeout_s: float = 5.0) -> EndpointClient:
    return EndpointClient(base_url, "abc", KEY, connections=4, timeout_s=timeout_s)


async def test_a_request_carries_the_key_and_the_path_of_the_documentation():
    async with server(OK) as (url, requests), client(url) as api:
        assert (await api.run(b'{"input": {}}')).id == "j"
    assert requests[0].startswith(b"POST /v2/abc/run HTTP/1.1\r\n")
    assert b"Authorization: Bearer rpa_SECRET\r\n" in requests[0]


async def test_a_strange_job_id_stays_within_its_path():
    async with server(OK) as (url, requests), client(url) as api:
        with pytest.raises(MismatchedError, match="another job, 'j'"):
            await api.status("a/../b?ttl=1 ü")
    assert requests[0].startswith(b"GET /v2/abc/status/a%2F..%2Fb%3Fttl%3D1%20%C3%BC HTTP/1.1\r\n")


async def test_a_refused_connection_and_an_unknown_host_surely_reached_nobody(unused_tcp_port: int):
    for url in (f"http://127.0.0.1:{unused_tcp_port}/v2", "http://no-such-host.invalid/v2"):
        async with client(url) as api:
            with pytest.raises(UnreachableError, match="no connection"):
                await api.run(b"{}")


async def test_a_server_that_does_not_speak_tls_surely_saw_no_request():
    async with server(b"HTTP/1.1 400 Bad Request\r\n\r\n") as (url, _), client(url.replace("http", "https")) as api:
        with pytest.raises(UnreachableError):
            await api.run(b"{}")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_a_connection_that_breaks_after_the_request_is_ambiguous(answer: bytes):
    async with server(answer) as (url, _), client(url) as api:
        with pytest.raises(AmbiguousError):
            await api.run(b"{}")


async def test_a_server_that_says_nothing_is_given_up_and_the_client_goes_on():
    async with server(None, close=False) as (url, _), client(url, timeout_s=0.1) as api:
        for _ in range(2):
            with pytest.raises(AmbiguousError, match="no answer in time"):
                await api.run(b"{}")


async def test_a_request_that_never_got_a_connection_surely_reached_nobody():
    async with server(None, close=False) as (url, requests), client(url, timeout_s=0.1) as api:
        ends = await asyncio.gather(*(api.run(b"{}") for _ in range(12)), return_exceptions=True)
    assert [type(end) for end in ends] == [AmbiguousError] * 8 + [UnreachableError] * 4
    assert len(requests) == 8


async def test_a_server_that_never_shakes_hands_surely_saw_no_request():
    async with server(None, close=False) as (url, _), client(url.replace("http", "https"), timeout_s=0.1) as api:
        with pytest.raises(UnreachableError, match="no connection in time"):
            await api.run(b"{}")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", UnreachableError),
        (b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", DeniedError),
        (b"", UnreachableError),
        (b"nonsense\r\n\r\n", UnreachableError),
    ],
)
async def test_what_a_proxy_did_not_let_through_surely_reached_nobody(monkeypatch, answer: bytes, error):
    async with server(answer) as (url, requests):
        monkeypatch.setenv("https_proxy", url.removesuffix("/v2"))
        async with client("https://api.example.invalid/v2") as api:
            with pytest.raises(error):
                await api.run(b"{}")
    assert requests[0].startswith(b"CONNECT api.example.invalid:443 ")


async def test_a_request_that_is_cancelled_by_its_caller_is_cancelled():
    async with server(None, close=False) as (url, _), client(url) as api:
        asking = asyncio.create_task(api.status("j"))
        await asyncio.sleep(0.05)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking


async def test_a_redirect_is_not_followed():
    answer = b"HTTP/1.1 301 Moved\r\nLocation: http://elsewhere.invalid/\r\nContent-Length: 0\r\n\r\n"
    async with server(answer) as (url, _), client(url) as api:
        with pytest.raises(DeniedError):
            await api.health()


async def test_no_error_holds_the_key():
    answers = (
        None,
        b"",
        b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 500 x\r\nContent-Length: 0\r\n\r\n",
    )
    for answer in answers:
        async with server(answer, close=answer is not None) as (url, _), client(url, timeout_s=0.1) as api:
            with pytest.raises(CallError) as caught:
                await api.run(b"{}")
            assert KEY not in str(caught.value) + repr(caught.value.__cause__)


def test_a_base_url_that_is_none_is_refused():
    with pytest.raises(UsageError, match="no http"):
        client("ftp://x")
