"""URLs of servers that requests are sent to."""

from __future__ import annotations

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

from batchrun.errors import UsageError

_HOST = re.compile(r"[A-Za-z0-9._~:%-]{1,253}")
"""A DNS name of at most 253 characters, or an IP address."""


def checked_url(option: str, url: str, *, example: str, is_prefix: bool = False) -> str:
    """Check that requests can be sent to a URL, and return it.

    Args:
        option: The option that set it; the message does not repeat the URL, which may contain a secret.
        url: The URL.
        example: A valid URL, for the hint.
        is_prefix: Whether paths are appended to it, so that it may have neither a query nor a fragment.

    Raises:
        UsageError: it is not an http(s) URL, or its host or port is invalid.
    """
    hint = f"for example {example}"
    if not url.startswith(("http://", "https://")) or not url.isprintable() or " " in url:
        raise UsageError(f"{option} is not an http(s) URL", hint)
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").encode("idna").decode(), parts.port
    except ValueError:  # includes UnicodeError
        host, port = "", 0
    if not _HOST.fullmatch(host) or port == 0:
        raise UsageError(f"{option} has an invalid host or port", hint)
    if is_prefix and (parts.query or parts.fragment or url.endswith(("?", "#"))):
        raise UsageError(f"{option} must not have a query or a fragment: paths are appended to it", hint)
    return url


def without_user(url: str) -> str:
    """A URL without its user name and password, if it has them."""
    scheme, slashes, rest = url.partition("//")
    place, slash, path = rest.partition("/")
    return f"{scheme}{slashes}{place.rpartition('@')[2]}{slash}{path}"


def is_loopback(url: str) -> bool:
    """Whether a URL points to this machine: `localhost`, 127.0.0.0/8 or ::1."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def is_plain_http(url: str) -> bool:
    """Whether anyone on the network path can read what is sent to a URL."""
    return url.startswith("http://") and not is_loopback(url)
