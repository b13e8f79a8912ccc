"""Runpod's SDK as its documentation shows it, for many rows: `AsyncioEndpoint`, `run`, `output(timeout=...)`.

`python sdk_async.py INPUT WINDOW`, with the SDK installed and RUNPOD_ENDPOINT_BASE_URL set, prints how many rows
there were, and how many results.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import aiohttp
import runpod
from runpod import AsyncioEndpoint


async def main(path: str, window: int) -> None:
    """Run every row."""
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]  # noqa: ASYNC240 - nothing else runs
    semaphore = asyncio.Semaphore(window)

    async def work(endpoint: AsyncioEndpoint, row: dict[str, Any]) -> Any:
        async with semaphore:
            job = await endpoint.run(row)
            return await job.output(timeout=3600)

    async with aiohttp.ClientSession() as session:
        endpoint = AsyncioEndpoint("x", session)
        results = await asyncio.gather(*(work(endpoint, row) for row in rows), return_exceptions=True)
    found = [result for result in results if result is not None and not isinstance(result, BaseException)]
    print(json.dumps({"rows": len(rows), "results": len(found)}))


if __name__ == "__main__":
    runpod.api_key = "none"
    arguments = (sys.argv[1], int(sys.argv[2]))
    try:
        import uvloop

        uvloop.run(main(*arguments))
    except ImportError:
        asyncio.run(main(*arguments))
