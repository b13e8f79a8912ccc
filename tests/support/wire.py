"""Raw servers and proxies under a client: what goes over the wire, byte by byte."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from batchrun.endpoint.client import EndpointClient

if TYPE_CHECKING:
    from pathlib import Path

JOB = b'{"id": "j", "status": "IN_QUEUE"}'
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(JOB), JOB)
KEY = "rpa_SECRET"


def client(base_url: str, timeout_s: float = 5.0) -> EndpointClient:
    return EndpointClient(base_url, "abc", KEY, connections=4, timeout_s=timeout_s)


@asynccontextmanager
async def server(answer: bytes | None, *, close: bool = True):
    """A raw server: reads a request, writes `answer`, and closes; None: says nothing at all.

    Its base URL and the requests that it has read.
    """
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


@asynccontextmanager
async def tls_server(certificate: tuple[Path, Path]):
    """A server behind TLS that takes one job a connection: its port and the heads of the requests."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        await writer.drain()
        writer.close()

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    yield listening.sockets[0].getsockname()[1], heads
    listening.close()
