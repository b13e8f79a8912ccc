"""The client against servers that misbehave on the wire."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress

import pytest

from batchrun.errors import (
    AmbiguousError,
    CallError,
    DeniedError,
    MismatchedError,
    UnreachableError,
    UsageError,
)
from tests.support.wire import KEY, OK, client, server, tls_server


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


async def test_a_server_that_says_nothing_is_given_up_and_the_client_continues():
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


@asynccontextmanager
async def connect_proxy(port: int):
    """A proxy that writes down all that it can read, and passes the rest on: to a port of this machine."""
    heads: list[bytes] = []
    copying: set[asyncio.Task[None]] = set()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                heads[-1] += data
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.1 200 ok\r\n\r\n")
        pair = (copy(reader, far_writer), copy(far_reader, writer))
        copying.update(asyncio.create_task(each) for each in pair)

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"127.0.0.1:{listening.sockets[0].getsockname()[1]}", heads
    listening.close()
    await asyncio.gather(*copying)


async def test_a_connect_proxy_gets_its_own_password_and_never_the_key(monkeypatch, certificate):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    async with tls_server(certificate) as (port, heard), connect_proxy(port) as (proxy, heads):
        monkeypatch.setenv("https_proxy", f"http://me:pw@{proxy}")
        async with client(f"https://localhost:{port}/v2") as api:
            assert (await api.run(b"{}")).id == "j"
    assert b"Authorization: Bearer rpa_SECRET\r\n" in heard[0]
    assert heads[0].startswith(f"CONNECT localhost:{port} HTTP/1.1\r\n".encode())
    assert b"Proxy-Authorization: Basic bWU6cHc=\r\n" in heads[0]
    assert not any(secret in b"".join(heads) for secret in (b"SECRET", b"Bearer"))


async def test_plain_http_to_this_machine_shows_the_key_to_no_proxy_of_another(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://192.0.2.1:3128")
    async with server(OK) as (url, requests), client(url) as api:
        assert (await api.run(b"{}")).id == "j"
    assert requests[0].startswith(b"POST /v2/abc/run HTTP/1.1\r\n")


ECHO = b'{"error": "Incorrect API key provided: rpa_SECRET"}'


@pytest.mark.parametrize("status", [400, 401, 404, 408, 429, 500])
async def test_an_answer_that_repeats_the_key_is_told_without_it(status: int):
    answer = b"HTTP/1.1 %d No\r\nContent-Length: %d\r\n\r\n%s" % (status, len(ECHO), ECHO)
    for name in ("run", "status", "cancel", "health"):
        async with server(answer) as (url, _), client(url) as api:
            with pytest.raises(CallError, match=r"Incorrect API key provided: \[redacted\]") as caught:
                await getattr(api, name)(*([] if name == "health" else [b"{}"] if name == "run" else ["j"]))
        assert "SECRET" not in f"{caught.value!r} {caught.value.message} {caught.value.raw}"


async def test_an_id_that_is_the_key_is_not_taken_and_a_worker_of_that_name_is_told_without_it():
    async with (
        server(OK.replace(b'"j", ', b'"rpa_SECRET", ').replace(b": 33", b": 42")) as (url, _),
        client(url) as api,
    ):
        with pytest.raises(AmbiguousError, match="contains the API key"):
            await api.run(b"{}")
    job = b'{"id": "j", "status": "COMPLETED", "workerId": "w-rpa_SECRET", "output": "rpa_SECRET"}'
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(job), job)
    async with server(answer) as (url, _), client(url) as api:
        found = await api.status("j")
    assert (found.worker_id, found.output) == ("w-[redacted]", "rpa_SECRET")


async def test_a_redirect_names_where_it_leads_and_nothing_secret_of_it():
    location = b"https://me:pw@elsewhere.invalid:8443/v2?token=rpa_SECRET"
    answer = b"HTTP/1.1 307 Moved\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % location
    async with server(answer) as (url, _), client(url) as api:
        with pytest.raises(DeniedError) as caught:
            await api.run(b"{}")
    assert caught.value.message == "HTTP 307: redirects to https://elsewhere.invalid:8443"


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
    with pytest.raises(UsageError, match="not an http"):
        client("ftp://x")
