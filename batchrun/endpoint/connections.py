"""How a connection is made: through which proxy, with which certificates; and what it means when there is none."""

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
"""OpenSSL's variable, and those of requests and curl: files, or folders, of CA certificates."""
_PROXY_PASSWORD = 407
_PROXY_REFUSES = range(400, 500)
_PASSING = (408, 429)
_NO_SUCH_HOST = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
"""The name's own servers say that there is no such host; a resolver that is out of reach is EAI_AGAIN."""
_NOT_ALLOWED = 2
"""What a SOCKS5 proxy answers where its rules forbid a connection (RFC 1928)."""
_ASK_PROXY = "ask who runs the proxy; or list the host in NO_PROXY, if it can be reached without"
_CUT_OFF = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
_EXPIRED = (9, 10)
"""OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and _HAS_EXPIRED."""
_OTHER_NAME = (62, 64)
"""OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and _IP_ADDRESS_MISMATCH."""


class Connector(aiohttp.TCPConnector):
    """Notes which tasks have been given a connection: what fails before that has surely reached nobody.

    A kept connection that has sent something since its last answer is closed: it would be taken for the next one.
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
    """A SOCKS proxy could not be reached, or has made no connection.

    Args:
        message: Why.
        is_final: Whether it will not make one to this host, whenever it is asked.
    """

    def __init__(self, message: str, *, is_final: bool) -> None:
        super().__init__(message)
        self.is_final = is_final


def refuse_bad_way(url: str) -> None:
    """Refuse a proxy of the environment that requests to a URL cannot go through.

    Raises:
        UsageError: it is no proxy, or one that needs what is not installed.
    """
    proxy = proxy_for(url)
    if proxy is not None and proxy.is_socks:
        _socks(proxy)


def make_connector(
    url: str, connected: dict[asyncio.Task[Any], ResponseHandler | None], proxy: Proxy | None, **options: Any
) -> Connector:
    """A connector for requests to a URL. An HTTP proxy is to be named with each request as well.

    Args:
        url: Of this scheme, and through this proxy, if any, all requests go.
        connected: Gets the tasks that have a connection.
        proxy: None: none.
        options: aiohttp's own.

    Raises:
        UsageError: the proxy needs what is not installed.
    """
    if any(way.startswith("https:") for way in (url, "" if proxy is None else proxy.url)):
        options["ssl"] = _trusted()
    if proxy is None or not proxy.is_socks:
        return Connector(connected, **options)
    kind, settings = _socks(proxy)
    # A proxy knows names that this machine may not know.
    return kind(connected, **settings, rdns=True, **options)  # type: ignore[no-any-return]


def _socks(proxy: Proxy) -> tuple[Any, dict[str, Any]]:
    """The class of a connector through a SOCKS proxy, and what it needs to know of it.

    Raises:
        UsageError: aiohttp-socks is not installed.
    """
    try:
        from aiohttp_socks import ProxyConnectionError, ProxyConnector, ProxyError, ProxyTimeoutError
        from python_socks import parse_proxy_url
    except ImportError as error:
        raise UsageError(
            f"{proxy.variable} names a SOCKS proxy, which needs aiohttp-socks",
            "pip install 'runpod-batchrun[socks]'; or list the host in NO_PROXY if it can be reached without",
        ) from error

    class SocksConnector(Connector, ProxyConnector):  # type: ignore[misc, unused-ignore] # it may not be installed
        """Through a SOCKS proxy."""

        async def connect(self, *given: Any, **named: Any) -> Connection:
            try:
                return await super().connect(*given, **named)
            except ProxyError as error:
                # Without a code it has refused the password, or speaks something else.
                is_final = error.error_code in (None, _NOT_ALLOWED)
                raise SocksError(f"the proxy says: {error}", is_final=is_final) from error
            except (ProxyConnectionError, ProxyTimeoutError) as error:
                raise SocksError(f"the proxy cannot be reached: {error}", is_final=False) from error

    scheme, _, rest = proxy.url.partition("://")
    known = "socks4" if scheme.startswith("socks4") else "socks5"
    names = ("proxy_type", "host", "port", "username", "password")
    return SocksConnector, dict(zip(names, parse_proxy_url(f"{known}://{rest}"), strict=True))


def _trusted() -> ssl.SSLContext:
    """The certificates of the system, of SSL_CERT_FILE in their place, and those of the other bundles as well."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    for variable in _BUNDLES[1:]:
        if os.environ.get(variable):
            _add(context, os.environ[variable])
    return context


def _add(context: ssl.SSLContext, bundle: str) -> str:
    """Trust a file or folder of certificates; returns why that cannot be, empty when it can."""
    try:
        context.load_verify_locations(**{"capath" if Path(bundle).is_dir() else "cafile": bundle})
    except ssl.SSLError:
        return "has no certificate in PEM form"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return ""


def no_connection(error: Exception, proxy: Proxy | None) -> CallError:
    """What it means that there is no connection, in what way ever it failed; with a hint when that never passes."""
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return _refused_by_proxy(error)
    if isinstance(error, SocksError):
        return UnreachableError(f"no connection: {error}", hint=_ASK_PROXY if error.is_final else "")
    cause = _cause(error)
    host, is_at_proxy = getattr(error, "host", "the server"), isinstance(error, aiohttp.ClientProxyConnectionError)
    if isinstance(cause, ssl.SSLError) and not isinstance(cause, _CUT_OFF):
        return _without_trust(cause, host)
    # A proxy looks up the names of others itself.
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
            hint="check --base-url: does something else than https answer there?",
        )
    unusable = [
        f"{name} {os.environ[name]} {why}"
        for name in _BUNDLES
        if os.environ.get(name) and (why := _add(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), os.environ[name]))
    ]
    if cause.verify_code in _EXPIRED:
        hint = "check the date of this machine; if it is right, only the server's owner can help"
    elif cause.verify_code in _OTHER_NAME:
        hint = "check --base-url: another server, or a proxy, answers in its place"
    else:
        hint = "; ".join(unusable) or (
            "if a proxy or firewall of your own opens TLS, set SSL_CERT_FILE to a file with its CA certificate;"
            " else somebody listens in: do not go on"
        )
    return UnreachableError(f"the certificate of {host} is not trusted: {cause.verify_message}", hint=hint)


def _cause(error: BaseException) -> BaseException:
    """The system's or OpenSSL's own error."""
    for name in ("os_error", "certificate_error"):
        error = getattr(error, name, None) or error
    return error


def reason(error: BaseException) -> str:
    """What went wrong, without aiohttp's own wrapping."""
    cause = _cause(error)
    text = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    host = f"{error.host}: " if isinstance(error, aiohttp.ClientConnectorError) else ""
    return " ".join(f"{host}{text}".split())
