"""Which proxy of the environment a request goes through."""

from __future__ import annotations

from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from batchrun.config import is_loopback


def environment_proxies() -> list[str]:
    """All proxies that the environment names."""
    return list(getproxies().values())


def proxy_for(url: str) -> str | None:
    """The proxy of the environment for a URL; None: none.

    Plain http shows a proxy all that is sent, the API key too. So what is for this machine goes through a proxy of
    this machine only.
    """
    parts = urlsplit(url)
    if parts.hostname is None or proxy_bypass(parts.hostname):
        return None
    proxy = getproxies().get(parts.scheme)
    if proxy and parts.scheme == "http" and is_loopback(url) and not is_loopback(proxy):
        return None
    return proxy
