"""Decides which requests a server on this machine answers. Pure.

Any web page that is open in a browser can send requests to loopback: directly, which the browser marks with the page's
origin, or through the page's own host name that resolves to loopback (DNS rebinding), which is then in `Host`.
"""

from __future__ import annotations

from collections.abc import Mapping
from hmac import compare_digest
from ipaddress import ip_address
from urllib.parse import urlsplit

_FOREIGN_SITES = ("cross-site", "same-site")
"""Values of `Sec-Fetch-Site` for requests by a page of another origin. Programs do not send this header."""


def is_loopback(host: str) -> bool:
    """Whether a host, given as a name or an address, can be reached only from this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() in ("localhost", "localhost.")


class Access:
    """Decides which requests are answered.

    Args:
        host: The name or address on which the server listens.
        port: Its port.
        api_key: Required in each request; None: no key is required, and only this machine is answered.
    """

    def __init__(self, host: str, port: int, api_key: str | None) -> None:
        self._host = host.lower()
        self._port = port
        self._last_own = ""
        self._api_key = None if api_key is None else api_key.encode()

    def refusal(self, headers: Mapping[str, str]) -> tuple[int, str] | None:
        """Why a request with these headers is refused, as HTTP status and message; None if it is not."""
        host, origin = headers.get("Host", ""), headers.get("Origin")
        if headers.get("Sec-Fetch-Site") in _FOREIGN_SITES or (origin is not None and origin != f"http://{host}"):
            return 403, "requests from web pages are refused"
        if self._api_key is not None:
            # A page does not know the key. `Host` is not checked: a public server may have unknown names.
            sent = headers.get("Authorization", "").removeprefix("Bearer ").encode("utf-8", "surrogateescape")
            return None if compare_digest(sent, self._api_key) else (401, "unauthorized")
        return None if self._is_own(host) else (403, f"{host!r} is not the address of this server")

    def _is_own(self, host: str) -> bool:
        # A client sends the same Host each time.
        if not host or host != self._last_own:
            try:
                parts = urlsplit(f"//{host}")
                name, port = parts.hostname or "", parts.port or 80
            except ValueError:
                return False
            if port != self._port or not (name == self._host or is_loopback(name)):
                return False
            self._last_own = host
        return True
