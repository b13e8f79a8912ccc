"""Check that the endpoints of a sweep or of a pool exist, before its run begins.

Otherwise a typo in an ID would leave part of the sweep undone, or the pool smaller than it was meant to be, and the
state file would keep the wrong ID.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import compress

from batchrun.config import RunOptions
from batchrun.endpoint.client import EndpointClient
from batchrun.errors import CallError, NotFoundError, UsageError

_LOOK_AGAIN_S = 1.0
"""An edge server may err once: a 404 counts only if a second one confirms it."""


async def refuse_unknown_endpoints(options: RunOptions, endpoints: Sequence[str], api_key: str | None) -> None:
    """Check the `/health` of endpoints. Any failure other than a 404 is left to the run.

    Args:
        options: The run's options.
        endpoints: Those of its endpoints to check.
        api_key: The API key; None if none is sent.

    Raises:
        UsageError: an endpoint does not exist.
    """
    are_missing = await asyncio.gather(*(_is_missing(options, endpoint, api_key) for endpoint in endpoints))
    missing = list(compress(endpoints, are_missing))
    if missing:
        option = "--sweep endpoint" if options.sweep.endpoints else "--endpoint"
        raise UsageError(
            f"{option}: there is no endpoint {' or '.join(missing)} at {options.base_url}",
            "check the ID, and that the API key belongs to the same account; nothing was sent",
        )


async def _is_missing(options: RunOptions, endpoint: str, api_key: str | None) -> bool:
    client = EndpointClient(options.base_url, endpoint, api_key, connections=1, timeout_s=options.timeout_s)
    async with client:
        if not await _answers_404(client):
            return False
        await asyncio.sleep(_LOOK_AGAIN_S)
        return await _answers_404(client)


async def _answers_404(client: EndpointClient) -> bool:
    try:
        await client.health()
    except CallError as error:
        return isinstance(error, NotFoundError)
    return False
