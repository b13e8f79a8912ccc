"""Notifies a URL that a run has ended. If the notification fails, that is only a warning."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from batchrun.config import RunOptions
from batchrun.display.cost import span
from batchrun.display.summary import Observer, Summary
from batchrun.display.units import duration
from batchrun.endpoint.connections import make_connector, refuse_bad_way
from batchrun.endpoint.proxies import proxy_for
from batchrun.endpoint.secrets import Secrets
from batchrun.engine.signals import wakeup_fd_kept
from batchrun.errors import BatchrunError, UsageError
from batchrun.files.server_urls import checked_url

_TIMEOUT_S = 10.0


def payload(summary: Summary) -> dict[str, Any]:
    """The notification of a run: `text` for Slack and similar services, figures for programs. Contains no secrets."""
    s = summary
    text = f"batchrun {s.outcome}: {s.succeeded:,} of {s.total:,} rows succeeded"
    text += "".join(f", {count:,} {name}" for name, count in s.rest)
    text += f", in {duration(s.wall_s)}"
    if s.cost is not None:
        text += f", for {span(s.cost.least, s.cost.most)}"
    if s.reason:
        text += f". {s.reason}"
    if s.failures:
        text += f" Most frequent failure: {s.failures[0].kind} ({s.failures[0].rows:,})."
    text += f" ({s.state.absolute()})"
    return {"text": text, "event": s.outcome, **s.to_json()}


def failure_payload(error: BaseException, state: str) -> dict[str, Any]:
    """The notification of a run that an unexpected error ended."""
    text = f"batchrun stopped because of an unexpected error: {type(error).__name__}: {error} ({state})"
    return {"text": text, "event": "failed", "exit_code": 1}


def refusal_payload(error: BatchrunError, file: str) -> dict[str, Any]:
    """The notification that a file in a watched folder was refused."""
    return {
        "text": f"batchrun refused {file}; nothing was sent. {error.message}",
        "event": "refused",
        "exit_code": error.exit_code,
    }


async def notify(url: str, data: dict[str, Any]) -> str | None:
    """POST the data once.

    Returns:
        Why it failed, in one line without the URL, which may contain a secret; None if it succeeded.
    """
    try:
        # Not aiohttp's `trust_env`, which would also send passwords from ~/.netrc.
        proxy = proxy_for(url)
        async with (
            aiohttp.ClientSession(
                connector=make_connector(url, {}, proxy), timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S)
            ) as session,
            session.post(
                url,
                proxy=None if proxy is None or proxy.is_socks else proxy.url,
                data=orjson.dumps(data, default=str),
                headers={"Content-Type": "application/json"},
                allow_redirects=False,
            ) as answer,
        ):
            if answer.status < 300:  # noqa: PLR2004 - a redirect has not accepted the POST
                return None
            return f"HTTP {answer.status}"
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError, UsageError) as error:
        return f"{type(error).__name__}"


def refuse_bad_urls(options: RunOptions, url: str | None) -> None:
    """Refuse invalid URLs and proxies before anything is sent.

    Args:
        options: The run's options.
        url: URL to notify; None: no notification.

    Raises:
        UsageError: the URL is not an http(s) URL, or the environment's proxy for it or for the endpoint is invalid.
    """
    if url is not None:
        refuse_bad_way(checked_url("--notify", url, example="https://hooks.slack.com/services/..."))
    if not options.is_local:
        refuse_bad_way(options.base_url)


@contextmanager
def notifying(url: str | None, state: Path, observer: Observer, api_key: str | None) -> Iterator[list[Summary]]:
    """Notify a URL of the summary that the caller appends to the yielded list, or of an unexpected error."""
    summaries: list[Summary] = []
    try:
        yield summaries
    except Exception as error:
        if url is not None and getattr(error, "exit_code", 1) == 1:
            failure = failure_payload(error, state.name)
            tell(url, {**failure, "text": Secrets(api_key).hide(failure["text"])}, observer)
        raise
    if url is not None:
        tell(url, payload(summaries[0]), observer)


def tell(url: str, data: dict[str, Any], observer: Observer) -> None:
    """POST the data once; if that fails, the observer receives a message."""
    # Without a factory, a runner would set, and finally unset, the program's event loop.
    with wakeup_fd_kept(), asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        failed = runner.run(notify(url, data))
    if failed is not None:
        observer.message(f"--notify: the notification failed: {failed}")
