"""Tells a URL that a run is over. A notification that fails is a warning, never more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aiohttp
import orjson

from batchrun.results.cost import span
from batchrun.results.summary import duration

if TYPE_CHECKING:
    from batchrun.errors import BatchrunError
    from batchrun.results.summary import Summary

_TIMEOUT_S = 10.0


def payload(summary: Summary) -> dict[str, Any]:
    """What is sent: `text` for Slack and its like, and the figures for programs. No secrets."""
    s = summary
    text = f"batchrun {s.outcome}: {s.succeeded:,} of {s.total:,} rows succeeded"
    text += "".join(f", {count:,} {name}" for name, count in s.rest)
    text += f", in {duration(s.wall_s)}"
    if s.cost is not None:
        text += f", for {span(s.cost.least, s.cost.most)}"
    if s.reason:
        text += f". {s.reason}"
    if s.failures:
        text += f" Most failures: {s.failures[0].kind} ({s.failures[0].rows:,})."
    text += f" ({s.state.absolute()})"
    return {"text": text, "event": s.outcome, **s.to_json()}


def failure_payload(error: BaseException, state: str) -> dict[str, Any]:
    """What is sent when a run ends by a defect."""
    text = f"batchrun ended by an unexpected error: {type(error).__name__}: {error} ({state})"
    return {"text": text, "event": "failed", "exit_code": 1}


def refusal_payload(error: BatchrunError, file: str) -> dict[str, Any]:
    """What is sent when a file of a watched folder was refused."""
    return {
        "text": f"batchrun refused {file}: nothing was sent. {error.message}",
        "event": "refused",
        "exit_code": error.exit_code,
    }


async def notify(url: str, data: dict[str, Any]) -> str | None:
    """POST the data once.

    Returns:
        Why it did not arrive, one line without the URL, which may hold a secret; None when it did.
    """
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S), trust_env=True) as session,
            session.post(
                url,
                data=orjson.dumps(data, default=str),
                headers={"Content-Type": "application/json"},
                allow_redirects=False,
            ) as answer,
        ):
            if answer.status < 300:  # noqa: PLR2004 - a redirect is no success: the POST was not taken
                return None
            return f"HTTP {answer.status}"
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        return f"{type(error).__name__}"
