"""The reference: a bare aiohttp loop that makes one /run and one /status for each row, and keeps no state.

`python -m tests.bench.clients.bare INPUT BASE_URL CONNECTIONS`, for jobs that are over at once: as fast as a client in
Python can be that promises nothing.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import aiohttp
import orjson


async def main(path: str, base_url: str, connections: int) -> None:
    """Run every row."""
    lines = iter(Path(path).read_bytes().splitlines())  # noqa: ASYNC240 - before anything else runs
    out = []

    async def work(session: aiohttp.ClientSession) -> None:
        for line in lines:
            body = orjson.dumps({"input": orjson.loads(line)})
            async with session.post(f"{base_url}/x/run", data=body) as response:
                job = orjson.loads(await response.read())
            async with session.get(f"{base_url}/x/status/{job['id']}") as response:
                out.append(orjson.dumps(orjson.loads(await response.read())))

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=connections)) as session:
        await asyncio.gather(*(work(session) for _ in range(connections)))
    Path(path + ".bare").write_bytes(b"\n".join(out))  # noqa: ASYNC240 - after everything else ran
    print(json.dumps({"rows": len(out), "results": len(out)}))


if __name__ == "__main__":
    arguments = (sys.argv[1], sys.argv[2], int(sys.argv[3]))
    try:
        import uvloop

        uvloop.run(main(*arguments))
    except ImportError:
        asyncio.run(main(*arguments))
