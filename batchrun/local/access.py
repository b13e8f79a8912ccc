"""Who may ask a server on this machine. Pure.

Any web page that is open in a browser can send requests to loopback: to its address, which the browser marks with the
page's origin, and by a name of the page's own that leads there (DNS rebinding), which stands in `Host`.
"""

from __future__ import annotations

from collections.abc import Mapping
from hmac import compare_digest
from ipaddress import ip_address
from urllib.parse import urlsplit

_FOREIGN_SITES = ("cross-site", "same-site")
"""Values of `Sec-Fetch-Site`: the request is a page's of another origin. Programs do not send it."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host, given as a name or an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() in ("localhost", "localhost.")


class Access:
    """Who is answered.

    Args:
        host: Where the server listens, a name or an address.
        port: Its port.
        api_key: Demanded of each request; None: none is, and then only this machine is answered.
    """

    def __init__(self, host: str, port: int, api_key: str | None) -> None:
        self._host = host.lower()
        self._port = port
        self._last_own = ""
        self._api_key = None if api_key is None else api_key.encode()

    def refusal(self, headers: Mapping[str, str]) -> tuple[int, str] | None:
        """Why a request with these headers is refused, as status and message; None when it is not."""
        host, origin = headers.get("Host", ""), headers.get("Origin")
        if headers.get("Sec-Fetch-Site") in _FOREIGN_SITES or (origin is not None and origin != f"http://{host}"):
            return 403, "requests of web pages are refused"
        if self._api_key is not None:
            # A page does not know the key; and a server that others reach has names that it does not know.
            sent = headers.get("Authorization", "").removeprefix("Bearer ").encode("utf-8", "surrogateescape")
            return None if compare_digest(sent, self._api_key) else (401, "unauthorized")
        return None if self._is_own(host) else (403, f"this server has another address than {host!r}")

    def _is_own(self, host: str) -> bool:
        # A client names it the same each time.
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
