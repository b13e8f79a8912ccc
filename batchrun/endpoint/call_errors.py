"""Turn an HTTP status and the body of an error into a CallError. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import orjson

from batchrun.endpoint.validation_errors import is_complaint, said
from batchrun.endpoint.worker_errors import without_controls
from batchrun.errors import AmbiguousError, CallError, DeniedError, NotFoundError, RejectedError, ThrottledError
from batchrun.files.exactjson import dump

MAX_ERROR_BYTES = 100_000
"""How much of an error's body is read and kept: an API's reason is shorter."""

MAX_RETRY_AFTER_S = 120.0
"""A longer Retry-After is considered a mistake: no rate limit of this API counts over more than 10 s."""

_MAX_MESSAGE_CHARS = 300
_OTHER_KIND = re.compile(r"not allowed for QB API", re.IGNORECASE)
"""The 400 of a load-balancing endpoint for a queue's operations (recorded by users)."""
# No part of it matches across another tag: thousands of unclosed tags would take minutes to search.
_TITLE = re.compile(r"<title[^<>]*>([^<]*)</title>", re.IGNORECASE)


def call_error(http_status: int, headers: Mapping[str, str], body: bytes) -> CallError:
    """The error for an HTTP status, with the body's message. A 400 from an endpoint without a queue is a denial.

    Runpod documents 400, 401, 404, 429 and 500; its users report others, and an edge server such as Cloudflare's may
    send more. On 429 the job was not accepted; on 5xx it is unknown.
    """
    facts: dict[str, Any] = {
        "http_status": http_status,
        "raw": body[:MAX_ERROR_BYTES].decode("utf-8", "replace"),
        "from_api": is_api_error(body),
    }
    is_redirect = 300 <= http_status < 400
    what = f"redirects to {_origin(headers.get('Location'))}" if is_redirect else body_message(body)
    message = f"HTTP {http_status}: {what}"
    retry_after_s = parse_retry_after(headers.get("Retry-After"))
    if http_status in (408, 429):
        return ThrottledError(message, retry_after_s=retry_after_s, **facts)
    if http_status in (404, 410):
        return NotFoundError(message, **facts)
    if http_status in (401, 402, 403, 407, 425) or is_redirect or (http_status == 400 and _OTHER_KIND.search(what)):
        return DeniedError(message, **facts)
    if 400 <= http_status < 500:
        return RejectedError(message, **facts)
    return AmbiguousError(message, retry_after_s=retry_after_s, **facts)


def is_api_error(body: bytes) -> bool:
    """Whether an error's body is from the API itself: a JSON object with one of the API's keys for a message.

    The API's recorded errors are such objects. The pages of edge servers are HTML, plain text or empty, and
    Cloudflare's own JSON errors name Cloudflare.
    """
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    if not isinstance(data, dict) or any("cloudflare" in key for key in data):
        return False
    return any(data.get(key) for key in ("error", "message", "detail"))


def _origin(location: str | None) -> str:
    """The target of a redirect, without any part that may be secret."""
    try:
        parts = urlsplit(location or "")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host:
        return "another path of the same server" if location else "nowhere"
    return _one_line(f"{parts.scheme or 'the same scheme'}://{host}" + (f":{port}" if port else ""))


def parse_retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header, clamped to 0..120; None without one, or for a date.

    A date would need a clock that agrees with the server's; backoff works as well without it.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        return None
    if seconds != seconds:  # noqa: PLR0124 - NaN is the one number that differs from itself
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)


def body_message(body: bytes) -> str:
    """The message of an error's body, as one line of at most 300 characters.

    It is in one of the usual fields of a JSON object, in the title of an HTML page, or the text itself.
    """
    return _one_line(_said(body)) or "empty answer"


def _said(body: bytes) -> str:
    text = body.decode("utf-8", "replace").strip()
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        title = _TITLE.search(text)
        return title.group(1) if title else text
    for key in ("error", "message", "detail", "title"):
        value = data.get(key) if isinstance(data, dict) else None
        if isinstance(value, dict):
            value = value.get("message", value)
        if isinstance(value, list) and value and all(map(is_complaint, value)):
            return said(value, len(value))
        if value:
            return value if isinstance(value, str) else _json_text(value)
    return text


def _one_line(text: str) -> str:
    line = " ".join(without_controls(text).split())
    return line if len(line) <= _MAX_MESSAGE_CHARS else line[: _MAX_MESSAGE_CHARS - 1] + "…"


def _json_text(value: Any) -> str:
    try:
        return dump(value).decode()
    except TypeError:
        return "nested too deeply to be shown"
