"""Make connections, through which proxy and with which certificates; and explain why one could not be made."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.tracing import Trace

from batchrun.endpoint.proxies import Proxy, proxy_for
from batchrun.errors import CallError, DeniedError, UnreachableError, UsageError

_BUNDLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""OpenSSL's variable, and those of requests and curl: files or folders of CA certificates."""
_PROXY_PASSWORD = 407
_PROXY_REFUSES = range(400, 500)
_PASSING = (408, 429)
_NO_SUCH_HOST = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
"""The DNS says that there is no such host; an unreachable resolver gives EAI_AGAIN instead."""
_NOT_ALLOWED = 2
"""The answer of a SOCKS5 proxy whose rules forbid a connection (RFC 1928)."""
_ASK_PROXY = "ask the proxy's administrator; or list the host in NO_PROXY, if it can be reached without the proxy"
_CUT_OFF = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
_EXPIRED = (9, 10)
"""OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and _HAS_EXPIRED."""
_OTHER_NAME = (62, 64)
"""OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and _IP_ADDRESS_MISMATCH."""


class Connector(aiohttp.TCPConnector):
    """Records which tasks got a connection: a request that fails before that certainly reached no server.

    A reused connection that has sent bytes since its last answer is closed: they would be taken for the next answer.
    """

    def __init__(self, connected: dict[asyncio.Task[Any], ResponseHandler | None], **options: Any) -> None:
        super().__init__(**options)
        self._connected_tasks = connected

    async def connect(  # noqa: D102 - aiohttp's own
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - as above
    ) -> Connection:
        connection = await super().connect(req, traces, timeout)
        protocol = connection.protocol
        while protocol is not None and protocol.should_close:
            connection.close()
            connection = await super().connect(req, traces, timeout)
            protocol = connection.protocol
        task = asyncio.current_task()
        if task is not None:
            self._connected_tasks[task] = protocol
        return connection


class SocksError(aiohttp.ClientConnectionError):
    """A SOCKS proxy could not be reached, or did not make the connection.

    Args:
        message: Why.
        is_final: Whether it will never make a connection to this host.
    """

    def __init__(self, message: str, *, is_final: bool) -> None:
        super().__init__(message)
        self.is_final = is_final


def refuse_bad_way(url: str) -> None:
    """Refuse the environment's proxy for a URL if it cannot be used.

    Raises:
        UsageError: the proxy is invalid, or needs a package that is not installed.
    """
    proxy = proxy_for(url)
    if proxy is not None and proxy.is_socks:
        _socks(proxy)


def make_connector(
    url: str, connected: dict[asyncio.Task[Any], ResponseHandler | None], proxy: Proxy | None, **options: Any
) -> Connector:
    """A connector for requests to a URL. An HTTP proxy must also be passed with each request.

    Args:
        url: All requests have its scheme, and go through the same proxy.
        connected: Receives the tasks that got a connection.
        proxy: The proxy; None for none.
        options: Passed on to aiohttp.

    Raises:
        UsageError: the proxy needs a package that is not installed.
    """
    if any(way.startswith("https:") for way in (url, "" if proxy is None else proxy.url)):
        options["ssl"] = _trusted()
    if proxy is None or not proxy.is_socks:
        return Connector(connected, **options)
    kind, settings = _socks(proxy)
    # The proxy may know names that this machine does not.
    return kind(connected, **settings, rdns=True, **options)  # type: ignore[no-any-return]


def _socks(proxy: Proxy) -> tuple[Any, dict[str, Any]]:
    """The class of a connector for a SOCKS proxy, and its arguments.

    Raises:
        UsageError: aiohttp-socks is not installed.
    """
    try:
        from aiohttp_socks import ProxyConnectionError, ProxyConnector, ProxyError, ProxyTimeoutError
        from python_socks import parse_proxy_url
    except ImportError as error:
        raise UsageError(
            f"{proxy.variable} names a SOCKS proxy, which needs aiohttp-socks",
            "pip install 'runpod-batchrun[socks]'; or list the host in NO_PROXY if it can be reached without the proxy",
        ) from error

    class SocksConnector(Connector, ProxyConnector):  # type: ignore[misc, unused-ignore] # it may not be installed
        """Connects through a SOCKS proxy."""

        async def connect(self, *given: Any, **named: Any) -> Connection:
            try:
                return await super().connect(*given, **named)
            except ProxyError as error:
                # Without a code, the proxy refused the password or does not speak SOCKS.
                is_final = error.error_code in (None, _NOT_ALLOWED)
                raise SocksError(f"the proxy says: {error}", is_final=is_final) from error
            except (ProxyConnectionError, ProxyTimeoutError) as error:
                raise SocksError(f"the proxy cannot be reached: {error}", is_final=False) from error

    scheme, _, rest = proxy.url.partition("://")
    known = "socks4" if scheme.startswith("socks4") else "socks5"
    names = ("proxy_type", "host", "port", "username", "password")
    return SocksConnector, dict(zip(names, parse_proxy_url(f"{known}://{rest}"), strict=True))


def _trusted() -> ssl.SSLContext:
    """Trust the system's certificates, or SSL_CERT_FILE in their place, and in addition the other bundles."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    for variable in _BUNDLES[1:]:
        if os.environ.get(variable):
            _add(context, os.environ[variable])
    return context


def _add(context: ssl.SSLContext, bundle: str) -> str:
    """Trust a file or folder of certificates; returns why that is impossible, or an empty text."""
    try:
        context.load_verify_locations(**{"capath" if Path(bundle).is_dir() else "cafile": bundle})
    except ssl.SSLError:
        return "contains no PEM certificate"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return ""


def no_connection(error: Exception, proxy: Proxy | None) -> CallError:
    """The error for a connection that could not be made; it has a hint if waiting will not help."""
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return _refused_by_proxy(error)
    if isinstance(error, SocksError):
        return UnreachableError(f"no connection: {error}", hint=_ASK_PROXY if error.is_final else "")
    cause = _cause(error)
    host, is_at_proxy = getattr(error, "host", "the server"), isinstance(error, aiohttp.ClientProxyConnectionError)
    if isinstance(cause, ssl.SSLError) and not isinstance(cause, _CUT_OFF):
        return _without_trust(cause, host)
    # With a proxy, the only name that is looked up here is the proxy's own.
    hint = ""
    if isinstance(cause, socket.gaierror):
        is_at_proxy = proxy is not None
        if cause.errno in _NO_SUCH_HOST:
            hint = f"check {'--base-url' if proxy is None else proxy.variable}, and whether this machine has a network"
    what = "the proxy cannot be reached" if is_at_proxy else "no connection"
    return UnreachableError(f"{what}: {reason(error)}", hint=hint)


def _refused_by_proxy(error: aiohttp.ClientHttpProxyError) -> CallError:
    if error.status == _PROXY_PASSWORD:
        return DeniedError(f"the proxy asks for a password: {error.message}", http_status=error.status)
    is_final = error.status in _PROXY_REFUSES and error.status not in _PASSING
    return UnreachableError(
        f"no connection: the proxy answers {error.status} {error.message}", hint=_ASK_PROXY if is_final else ""
    )


def _without_trust(cause: ssl.SSLError, host: str) -> CallError:
    if not isinstance(cause, ssl.SSLCertVerificationError):
        return UnreachableError(
            f"no secure connection to {host}: {(cause.reason or 'TLS failed').replace('_', ' ').lower()}",
            hint="check --base-url: does the server there speak https?",
        )
    unusable = [
        f"{name} {os.environ[name]} {why}"
        for name in _BUNDLES
        if os.environ.get(name) and (why := _add(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), os.environ[name]))
    ]
    if cause.verify_code in _EXPIRED:
        hint = "check the date of this machine; if it is right, only the server's owner can fix the certificate"
    elif cause.verify_code in _OTHER_NAME:
        hint = "check --base-url: another server, or a proxy, answers in its place"
    else:
        hint = "; ".join(unusable) or (
            "if your own proxy or firewall inspects TLS, set SSL_CERT_FILE to a file with its CA certificate;"
            " otherwise somebody may be intercepting the connection: do not continue"
        )
    return UnreachableError(f"the certificate of {host} is not trusted: {cause.verify_message}", hint=hint)


def _cause(error: BaseException) -> BaseException:
    """The underlying error of the system or of OpenSSL."""
    for name in ("os_error", "certificate_error"):
        error = getattr(error, name, None) or error
    return error


def reason(error: BaseException) -> str:
    """The reason for an error, without aiohttp's wrapping."""
    cause = _cause(error)
    text = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    host = f"{error.host}: " if isinstance(error, aiohttp.ClientConnectorError) else ""
    return " ".join(f"{host}{text}".split())
