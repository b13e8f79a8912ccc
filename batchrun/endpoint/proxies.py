"""Find the environment's proxy for a URL, by the same rules as curl and requests."""

from __future__ import annotations

import os
import re
from ipaddress import ip_address, ip_network
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from batchrun.errors import UsageError
from batchrun.files.server_urls import checked_url, is_loopback

_PORTS = {"http": 80, "https": 443}
_SOCKS = ("socks", "socks4", "socks4a", "socks5", "socks5h")
_ENTRY = re.compile(r"\[?(?P<host>[^\[\]]*?)\]?(?::(?P<port>\d+))?")
"""An entry of NO_PROXY: `host`, `host:port`, `[::1]:port`."""


class Proxy(NamedTuple):
    """A proxy that the environment sets."""

    url: str
    """With its scheme; it may contain a user name and a password."""
    variable: str
    """The variable that sets it."""

    @property
    def is_socks(self) -> bool:
        """Whether it speaks SOCKS, not HTTP."""
        return self.url.startswith("socks")


def environment_proxies() -> list[str]:
    """All proxies that the environment sets, as URLs."""
    return [_with_scheme(proxy) for name, proxy in getproxies().items() if name != "no"]


def proxy_for(url: str) -> Proxy | None:
    """The environment's proxy for a URL; None if there is none.

    It is `http_proxy` or `https_proxy`, by the URL's scheme, else `all_proxy`, each also in capitals; `no_proxy` lists
    the hosts for which none is used.

    With plain http, a proxy sees everything that is sent, including the API key. So requests to this machine go only
    through a proxy on this machine.

    Raises:
        UsageError: there is one, and it is not the URL of a proxy.
    """
    parts, proxies = urlsplit(url), getproxies()
    if parts.hostname is None or _is_exempt(parts.hostname, parts.port or _PORTS.get(parts.scheme), proxies):
        return None
    key = next((key for key in (parts.scheme, "all") if proxies.get(key)), None)
    if key is None:
        return None
    variable = f"{key}_proxy" if f"{key}_proxy" in os.environ else f"{key}_proxy".upper()
    proxy = _checked(_with_scheme(proxies[key]), variable)
    return None if parts.scheme == "http" and is_loopback(url) and not is_loopback(proxy) else Proxy(proxy, variable)


def _with_scheme(proxy: str) -> str:
    proxy = proxy.strip()
    return proxy if "://" in proxy else f"http://{proxy}"


def _checked(proxy: str, variable: str) -> str:
    """A proxy's URL, checked; no message repeats it, because it may contain a password."""
    scheme, _, rest = proxy.partition("://")
    if scheme.lower() not in (*_PORTS, *_SOCKS):
        raise UsageError(
            f"{variable} is not the URL of a proxy that batchrun can use", "for example http://proxy.example:3128"
        )
    checked_url(variable, f"http://{rest}", example="http://proxy.example:3128")
    return f"{scheme.lower()}://{rest}"


def _is_exempt(host: str, port: int | None, proxies: dict[str, str]) -> bool:
    """Whether `no_proxy` lists a host: its name, a parent domain, its address, a network or `*`; also with a port."""
    return any(_fits(entry, host, port) for entry in re.split(r"[,\s]+", proxies.get("no", ""))) or proxy_bypass(host)


def _fits(entry: str, host: str, port: int | None) -> bool:
    if entry == "*":
        return True
    try:
        return ip_address(host) in ip_network(entry.strip("[]"), strict=False)
    except ValueError:  # one of them is a name, or the entry has a port
        found = _ENTRY.fullmatch(entry.lower())
    if found is None or (found["port"] is not None and int(found["port"]) != port):
        return False
    name = found["host"].removeprefix("*").lstrip(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))
