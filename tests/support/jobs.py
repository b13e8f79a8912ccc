"""What an endpoint in a process of its own says of its jobs."""

from __future__ import annotations

import urllib.request

import orjson


def jobs(base_url: str) -> dict[str, int]:
    """How many jobs the endpoint has in each status."""
    with urllib.request.urlopen(f"{base_url}/abc/health") as answer:
        return orjson.loads(answer.read())["jobs"]


def jobs_run(base_url: str) -> int:
    """How many jobs the endpoint has run: what would have been paid for."""
    return jobs(base_url)["completed"]
