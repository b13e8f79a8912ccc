"""Runpod's SDK as its documentation shows it, for many rows: the synchronous `Endpoint`, in threads.

`python sdk_threads.py INPUT WINDOW`, with the SDK installed and RUNPOD_ENDPOINT_BASE_URL set, prints how many rows
there were, and how many results.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import runpod


def main(path: str, window: int) -> None:
    """Run every row."""
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    endpoint = runpod.Endpoint("x")

    def work(row: dict[str, Any]) -> Any:
        try:
            return endpoint.run({"input": row}).output(timeout=3600)
        except Exception:  # noqa: BLE001 - whatever it was, the row has no result
            return None

    with ThreadPoolExecutor(window) as pool:
        results = list(pool.map(work, rows))
    print(json.dumps({"rows": len(rows), "results": sum(result is not None for result in results)}))


if __name__ == "__main__":
    runpod.api_key = "none"
    main(sys.argv[1], int(sys.argv[2]))
