"""Proxies and certificates of the environment, and what a failure to connect means."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from contextlib import asynccontextmanager

import pytest
from aiohttp import ClientConnectorError
from aiohttp.client_reqrep import ConnectionKey

from batchrun.endpoint.connections import no_connection, refuse_bad_way
from batchrun.endpoint.proxies import Proxy, environment_proxies, proxy_for
from batchrun.errors import UnreachableError, UsageError
from tests.support.wire import OK, client, server, tls_server

API = "https://api.example.com/v2"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    """Neither proxies nor certificates but those that a test sets."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("environ", "url", "proxy"),
    [
        ({"https_proxy": "http://p:1"}, API, ("http://p:1", "https_proxy")),
        ({"HTTPS_PROXY": "http://p:1"}, API, ("http://p:1", "HTTPS_PROXY")),
        ({"HTTPS_PROXY": "http://q:1", "https_proxy": "http://p:1"}, API, ("http://p:1", "https_proxy")),
        ({"https_proxy": "p:1"}, API, ("http://p:1", "https_proxy")),
        ({"https_proxy": "me:pw@p:1"}, API, ("http://me:pw@p:1", "https_proxy")),
        ({"https_proxy": " HTTP://p:1/ "}, API, ("http://p:1/", "https_proxy")),
        ({"http_proxy": "p:1"}, API, None),
        ({"ALL_PROXY": "p:1"}, API, ("http://p:1", "ALL_PROXY")),
        ({"ALL_PROXY": "socks5h://p:1"}, API, ("socks5h://p:1", "ALL_PROXY")),
        ({"ALL_PROXY": "p:1", "https_proxy": "q:1"}, API, ("http://q:1", "https_proxy")),
        ({"all_proxy": "p:1"}, "http://127.0.0.1:8000/v2", None),
        ({"all_proxy": "127.0.0.1:1"}, "http://127.0.0.1:8000/v2", ("http://127.0.0.1:1", "all_proxy")),
        ({}, API, None),
    ],
)
def test_a_proxy_is_read_as_curl_and_requests_read_it(monkeypatch, environ: dict[str, str], url: str, proxy):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert proxy_for(url) == (None if proxy is None else Proxy(*proxy))


@pytest.mark.parametrize(
    ("no_proxy", "url", "is_exempt"),
    [
        ("*", API, True),
        ("api.example.com", API, True),
        ("API.Example.com", API, True),
        ("other, example.com", API, True),
        ("other .example.com", API, True),
        ("*.example.com", API, True),
        ("ample.com", API, False),
        ("api.example.com:443", API, True),
        ("api.example.com:8443", API, False),
        ("api.example.com:8443", "https://api.example.com:8443/v2", True),
        ("10.0.0.0/8", "https://10.1.2.3/v2", True),
        ("10.1.2.3", "https://10.1.2.3/v2", True),
        ("10.1.2.3:443", "https://10.1.2.3/v2", True),
        ("10.0.0.0/8", "https://11.1.2.3/v2", False),
        ("10.0.0.0/8", API, False),
        ("fd00::/8", "https://[fd00::1]:8443/v2", True),
        ("[fd00::1]", "https://[fd00::1]:8443/v2", True),
        ("[fd00::1]:8443", "https://[fd00::1]:8443/v2", True),
        ("[fd00::1]:1", "https://[fd00::1]:8443/v2", False),
        (",, ,.", API, False),
    ],
)
def test_no_proxy_lists_names_domains_networks_and_ports(monkeypatch, no_proxy: str, url: str, is_exempt: bool):
    monkeypatch.setenv("https_proxy", "http://p:1")
    monkeypatch.setenv("no_proxy", no_proxy)
    assert (proxy_for(url) is None) == is_exempt


@pytest.mark.parametrize("proxy", ["ftp://me:s3cret@p:1", "http://me:s3cret@p:port", "http://", "me:s3cret@p q:1"])
def test_what_is_no_proxy_is_refused_by_its_variable_and_without_its_password(monkeypatch, proxy: str):
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(UsageError, match=r"^HTTPS_PROXY ") as caught:
        refuse_bad_way(API)
    assert "s3cret" not in caught.value.message + caught.value.hint


def test_a_password_is_found_in_a_proxy_without_a_scheme(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "me:s3cret@p:1")
    monkeypatch.setenv("NO_PROXY", "localhost")
    assert environment_proxies() == ["http://me:s3cret@p:1"]


def test_a_socks_proxy_is_refused_clearly_where_its_extra_is_not_installed(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks5://p:1")
    monkeypatch.setitem(sys.modules, "aiohttp_socks", None)
    with pytest.raises(UsageError, match=r"^ALL_PROXY names a SOCKS proxy, which needs aiohttp-socks") as caught:
        refuse_bad_way(API)
    assert "pip install" in caught.value.hint


@asynccontextmanager
async def socks_proxy(code: int, port: int = 0):
    """A SOCKS5 proxy that answers with a code, and connects to a port of this machine for 0."""
    heard: list[bytes] = []
    copying: set[asyncio.Task[None]] = set()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        version, count = await reader.readexactly(2)
        assert version == 5
        await reader.readexactly(count)
        writer.write(b"\x05\x00")
        head = await reader.readexactly(5)
        heard.append(await reader.readexactly(head[4] + 2))
        writer.write(bytes([5, code, 0, 1, 0, 0, 0, 0, 0, 0]))
        if code:
            writer.close()
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        copying.update(asyncio.create_task(copy(*ends)) for ends in ((reader, far_writer), (far_reader, writer)))

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"socks5h://127.0.0.1:{listening.sockets[0].getsockname()[1]}", heard
    listening.close()
    await asyncio.gather(*copying)


async def test_requests_go_through_a_socks_proxy_that_looks_up_the_name(monkeypatch):
    pytest.importorskip("aiohttp_socks")
    async with server(OK) as (url, requests), socks_proxy(0, int(url.split(":")[2].split("/")[0])) as (proxy, heard):
        monkeypatch.setenv("ALL_PROXY", proxy)
        async with client("http://api.example.invalid/v2") as api:
            assert (await api.run(b"{}")).id == "j"
    assert heard == [b"api.example.invalid\x00\x50"]
    assert requests[0].startswith(b"POST /v2/abc/run HTTP/1.1\r\n")


@pytest.mark.parametrize(("code", "is_final"), [(2, True), (4, False), (5, False)])
async def test_a_socks_proxy_that_makes_no_connection_has_reached_nobody(monkeypatch, code: int, is_final: bool):
    pytest.importorskip("aiohttp_socks")
    async with socks_proxy(code) as (proxy, _):
        monkeypatch.setenv("ALL_PROXY", proxy)
        async with client("http://api.example.invalid/v2") as api:
            with pytest.raises(UnreachableError, match=r"^no connection: the proxy says: ") as caught:
                await api.run(b"{}")
    assert bool(caught.value.hint) == is_final


@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_a_proxy_that_is_down_is_named_as_what_cannot_be_reached(monkeypatch, unused_tcp_port: int, scheme: str):
    if scheme == "socks5":
        pytest.importorskip("aiohttp_socks")
    monkeypatch.setenv("https_proxy", f"{scheme}://127.0.0.1:{unused_tcp_port}")
    async with client(API) as api:
        with pytest.raises(UnreachableError, match="the proxy cannot be reached") as caught:
            await api.health()
    assert caught.value.hint == "", "it may come back"


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
async def test_a_certificate_is_trusted_that_the_environment_names(monkeypatch, certificate, variable: str):
    monkeypatch.setenv(variable, str(certificate[0]))
    async with tls_server(certificate) as (port, _), client(f"https://localhost:{port}/v2") as api:
        assert (await api.run(b"{}")).id == "j"


async def test_a_certificate_that_is_not_trusted_says_what_to_do(monkeypatch, certificate, tmp_path):
    async def refused(host: str) -> UnreachableError:
        async with tls_server(certificate) as (port, _), client(f"https://{host}:{port}/v2") as api:
            with pytest.raises(UnreachableError, match=f"^the certificate of {host} is not trusted: ") as caught:
                await api.run(b"{}")
        return caught.value

    assert "set SSL_CERT_FILE" in (await refused("localhost")).hint
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "gone.pem"))
    assert f"REQUESTS_CA_BUNDLE {tmp_path}/gone.pem cannot be read" in (await refused("localhost")).hint
    (tmp_path / "gone.pem").write_text("no certificate")
    assert "contains no PEM certificate" in (await refused("localhost")).hint
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    assert "--base-url" in (await refused("127.0.0.1")).hint


def test_a_host_that_does_not_exist_is_told_from_a_resolver_that_is_out_of_reach():
    key = ConnectionKey("h", 443, is_ssl=True, ssl=True, proxy=None, proxy_auth=None, proxy_headers_hash=None)
    for number, is_final in ((socket.EAI_NONAME, True), (socket.EAI_AGAIN, False), (socket.EAI_FAIL, False)):
        error = ClientConnectorError(key, socket.gaierror(number, "why"))
        for proxy, named in ((None, "check --base-url"), (Proxy("http://p:1", "HTTPS_PROXY"), "check HTTPS_PROXY")):
            meant = no_connection(error, proxy)
            assert isinstance(meant, UnreachableError)
            assert meant.hint.startswith(named) if is_final else not meant.hint
