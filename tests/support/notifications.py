"""A server that takes notifications."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

from aiohttp import web


@asynccontextmanager
async def listening(status: int = 200, delay_s: float = 0.0):
    """A server that takes notifications: its URL, and what it was sent."""
    heard: list[dict] = []

    async def handle(request: web.BaseRequest) -> web.Response:
        heard.append(await request.json())
        await asyncio.sleep(delay_s)
        return web.Response(status=status)

    runner = web.ServerRunner(web.Server(handle))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}/hook/T0KEN", heard
    finally:
        await runner.cleanup()
