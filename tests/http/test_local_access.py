"""Who is answered at the local endpoint: programs, and no web page."""

from __future__ import annotations

import asyncio
import io
from contextlib import asynccontextmanager

import aiohttp
import orjson
import pytest

from batchrun.errors import UsageError
from batchrun.local.access import Access, is_loopback
from batchrun.local.echo import EchoWorker
from batchrun.local.server import LocalEndpoint, LocalOptions

JOB = b'{"input": {"prompt": "a b"}}'


@asynccontextmanager
async def endpoint(**options):
    async with LocalEndpoint(LocalOptions(**options), EchoWorker()) as server, aiohttp.ClientSession() as session:
        yield server, session


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST", "127.0.0.1", "127.9.9.9", "[::1]"])
def test_this_machine_is_answered_by_any_of_its_loopback_names(name: str):
    assert Access("127.0.0.1", 8000, None).refusal({"Host": f"{name}:8000"}) is None


@pytest.mark.parametrize(
    "host",
    [
        *("", "evil.example", "evil.example:8000", "localhost", "localhost:8001", "localhost.evil.example:8000"),
        *("127.0.0.1.evil.example:8000", "10.0.0.1:8000", "[::1", "127.0.0.1:x", "user@127.0.0.1:9", "0.0.0.0:8000"),
    ],
)
def test_a_name_that_leads_here_by_dns_rebinding_is_refused(host: str):
    status, message = Access("127.0.0.1", 8000, None).refusal({"Host": host})
    assert (status, "is not the address of this server" in message) == (403, True)


@pytest.mark.parametrize("api_key", [None, "good"])
@pytest.mark.parametrize(
    "more",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:3000"},
        {"Origin": "https://127.0.0.1:8000"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_page_of_another_origin_is_refused_whatever_it_knows(more: dict, api_key: str | None):
    headers = {"Host": "127.0.0.1:8000", "Authorization": "Bearer good", **more}
    assert Access("127.0.0.1", 8000, api_key).refusal(headers) == (403, "requests from web pages are refused")


def test_a_page_of_the_servers_own_origin_is_answered():
    headers = {"Host": "127.0.0.1:8000", "Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"}
    assert Access("127.0.0.1", 8000, None).refusal(headers) is None


@pytest.mark.parametrize(
    ("sent", "status"),
    [("Bearer good", None), ("good", None), ("Bearer goo", 401), ("", 401), ("Bearer \udcff", 401), ("Bearer é", 401)],
)
def test_with_a_key_any_name_is_answered_to_who_has_it(sent: str, status: int | None):
    refusal = Access("0.0.0.0", 8000, "good").refusal({"Host": "big-box.lan:8000", "Authorization": sent})
    assert (refusal and refusal[0]) == status


@pytest.mark.parametrize(
    ("host", "is_own"),
    [
        *(("localhost", True), ("127.0.0.1", True), ("127.1.2.3", True), ("::1", True)),
        *(("0.0.0.0", False), ("::", False), ("0", False), ("", False), ("10.0.0.1", False), ("box.lan", False)),
    ],
)
def test_what_only_this_machine_reaches_is_known(host: str, is_own: bool):
    assert is_loopback(host) is is_own


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "0"])
async def test_a_server_that_others_reach_needs_a_key(host: str):
    with pytest.raises(UsageError, match="other machines can reach this address without a key"):
        async with endpoint(host=host):
            pass
    async with endpoint(host="0.0.0.0", api_key="good") as (server, session):
        url = server.base_url.replace("0.0.0.0", "127.0.0.1") + "/abc/health"
        for key, status in (("bad", 401), ("good", 200)):
            async with session.get(url, headers={"Authorization": f"Bearer {key}"}) as response:
                assert response.status == status


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a" * 300, "\ud800", "1.2.3.4.5"])
async def test_an_address_that_cannot_be_listened_at_is_refused_by_name(host: str):
    with pytest.raises(UsageError, match="--host") as caught:
        async with endpoint(host=host, api_key="good"):
            pass
    assert caught.value.hint


async def test_a_server_at_an_ipv6_address_says_its_url_with_brackets():
    try:
        async with endpoint(host="::1") as (server, session):
            assert server.base_url.startswith("http://[::1]:")
            async with session.post(f"{server.base_url}/abc/runsync", data=JOB) as response:
                assert orjson.loads(await response.read())["status"] == "COMPLETED"
    except UsageError as error:
        pytest.skip(f"no IPv6 here: {error}")


@pytest.mark.parametrize("content_type", ["application/json", "application/x-www-form-urlencoded", None])
async def test_programs_are_answered_and_pages_neither_run_nor_purge_anything(content_type: str | None):
    async with endpoint(workers=0) as (server, session):
        headers = {} if content_type is None else {"Content-Type": content_type}
        async with session.post(f"{server.base_url}/abc/run", data=JOB, headers=headers) as response:
            assert response.status == 200
            assert not any(name.lower().startswith("access-control") for name in response.headers)
        simple = {"Content-Type": "text/plain", "Origin": "http://evil.example"}
        for way in ("run", "runsync", "purge-queue"):
            async with session.post(f"{server.base_url}/abc/{way}", data=JOB, headers=simple) as response:
                assert response.status == 403
        async with session.options(f"{server.base_url}/abc/run", headers={"Origin": "http://evil.example"}) as response:
            assert response.status == 403
        assert len(server.queue) == 1


@pytest.mark.parametrize(("way", "limit_bytes"), [("run", 10_000_000), ("runsync", 20_000_000)])
async def test_a_body_above_the_apis_limit_is_refused_whole_in_pieces_and_compressed(way: str, limit_bytes: int):
    async def pieces():
        for _ in range(limit_bytes // 1_000_000 + 2):
            yield b"x" * 1_000_000
            await asyncio.sleep(0)

    too_large = b"x" * (limit_bytes + 1)
    async with endpoint() as (server, session):
        url = f"{server.base_url}/abc/{way}"
        for data, compress in ((io.BytesIO(too_large), None), (pieces(), None), (io.BytesIO(too_large), "gzip")):
            async with session.post(url, data=data, compress=compress) as response:
                assert response.status == 413
