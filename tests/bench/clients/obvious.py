"""What people write first: aiohttp, a semaphore, `gather`, one look a second, and no retry.

`python -m tests.bench.clients.obvious INPUT BASE_URL WINDOW` prints how many rows there were, and how many results.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import aiohttp


async def main(path: str, base_url: str, window: int) -> None:
    """Run every row."""
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]  # noqa: ASYNC240 - nothing else runs
    semaphore = asyncio.Semaphore(window)

    async def work(session: aiohttp.ClientSession, row: dict[str, Any]) -> Any:
        async with semaphore:
            async with session.post(f"{base_url}/x/run", json={"input": row}) as response:
                job = await response.json()
            while True:
                async with session.get(f"{base_url}/x/status/{job['id']}") as response:
                    answer = await response.json()
                if answer["status"] in {"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"}:
                    return answer["output"]
                await asyncio.sleep(1)

    async with aiohttp.ClientSession() as session:
        results = await asyncio.gather(*(work(session, row) for row in rows), return_exceptions=True)
    found = [result for result in results if not isinstance(result, BaseException)]
    print(json.dumps({"rows": len(rows), "results": len(found)}))


if __name__ == "__main__":
    arguments = (sys.argv[1], sys.argv[2], int(sys.argv[3]))
    try:
        import uvloop

        uvloop.run(main(*arguments))
    except ImportError:
        asyncio.run(main(*arguments))
