"""The client that moves requests and answers over HTTP. What they mean is `protocol`'s business.

Every failure leaves here as a CallError, and the class says what matters about it: whether the request may have
reached the server. One that never got a connection (refused, DNS, TLS, proxy, all connections busy) surely did not;
anything that breaks afterwards may have.

The key leaves with each request and in no other way: a default header of the session would go to a proxy as well. Nor
does it come back: errors, and what an answer says of a worker, are without it.
"""

from __future__ import annotations

import asyncio
from functools import wraps
from io import BytesIO
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar
from urllib.parse import quote

import aiohttp
from yarl import URL

from batchrun.config import DEFAULT_BASE_URL, checked_url
from batchrun.endpoint.protocol import (
    Health,
    JobAnswer,
    Operation,
    operation_url,
    parse_health,
    parse_job,
)
from batchrun.endpoint.proxies import proxy_for
from batchrun.errors import AmbiguousError, CallError, DeniedError, UnreachableError, UsageError
from batchrun.foreign import Secrets, url_secrets

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping

    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

P = ParamSpec("P")
Answer = TypeVar("Answer")

_CONNECT_S = 10.0
_KEEPALIVE_S = 15.0
"""Shorter than any server's own: a POST on a connection that the server just closed would be ambiguous."""
_WATCH_S = 0.5
"""How often it is looked at what is overdue."""
_SENT_IN_PIECES_BYTES = 1 << 20
"""A larger body would hold the event loop up if it were sent in one piece."""
_PROXY_PASSWORD = 407
_SPARE_CONNECTIONS = 4
"""For /health, beside those that the scheduler counts."""


def _without_secrets(
    call: Callable[Concatenate[EndpointClient, P], Awaitable[Answer]],
) -> Callable[Concatenate[EndpointClient, P], Coroutine[Any, Any, Answer]]:
    """What a call gives or raises, without secrets; but for a job's output, which is the user's own.

    What a job's `error` holds is taken out when it is decoded: it may be wrapped in ways that hide a secret.
    """

    @wraps(call)
    async def guarded(client: EndpointClient, /, *args: P.args, **given: P.kwargs) -> Answer:
        try:
            answer = await call(client, *args, **given)
        except CallError as error:
            error.rewrite(client.hide)
            raise
        if isinstance(answer, JobAnswer):
            if client.hide(answer.id) != answer.id:
                raise AmbiguousError("the job's ID in the answer holds the API key")
            if answer.worker_id is not None:
                answer.worker_id = client.hide(answer.worker_id)
        return answer

    return guarded


class EndpointClient:
    """A client of one endpoint.

    Args:
        base_url: Jobs go to `<base_url>/<endpoint>/run`.
        endpoint: The endpoint's ID.
        api_key: Sent as a Bearer token; None sends none (a local endpoint).
        connections: HTTP connections at most.
        timeout_s: One request, from the connection to the last byte.
        use_proxy: Whether to go through the proxy that the environment names for this URL.

    `hide` takes the key and the proxy's password out of a text.

    Raises:
        UsageError: the base URL is no http(s) URL.
    """

    def __init__(
        self,
        base_url: str,
        endpoint: str,
        api_key: str | None,
        *,
        connections: int,
        timeout_s: float,
        use_proxy: bool = True,
    ) -> None:
        checked_url("--base-url", base_url, example=DEFAULT_BASE_URL)
        self._run_url = URL(operation_url(base_url, endpoint, Operation.RUN))
        self._status_url = operation_url(base_url, endpoint, Operation.STATUS) + "/"
        self._cancel_url = operation_url(base_url, endpoint, Operation.CANCEL) + "/"
        self._health_url = URL(operation_url(base_url, endpoint, Operation.HEALTH))
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._connected: set[asyncio.Task[Any]] = set()
        self._session = aiohttp.ClientSession(
            connector=_Connector(
                self._connected,
                limit=connections + _SPARE_CONNECTIONS,
                keepalive_timeout=_KEEPALIVE_S,
                ttl_dns_cache=60,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
        )
        self._timeout_s = timeout_s
        self._deadlines: dict[asyncio.Task[Any], float] = {}
        self._overdue: set[asyncio.Task[Any]] = set()
        self._watch: asyncio.TimerHandle | None = None
        self._proxy = proxy_for(base_url) if use_proxy else None
        self.hide = Secrets(api_key, *url_secrets(self._proxy)).hide

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._watch is not None:
            self._watch.cancel()
        await self._session.close()

    @_without_secrets
    async def run(self, body: bytes) -> JobAnswer:
        """Submit a job.

        Raises:
            CallError: UnreachableError when the job surely does not exist, AmbiguousError when it may.
        """
        return parse_job(*await self._request("POST", self._run_url, body))

    @_without_secrets
    async def status(self, job_id: str) -> JobAnswer:
        """Ask after a job. Never sends `?ttl=`, which would shorten the job's life.

        Raises:
            CallError: no usable answer; NotFoundError when the job is unknown or gone.
        """
        return parse_job(
            *await self._request("GET", URL(self._status_url + quote(job_id, safe=""), encoded=True), None)
        )

    @_without_secrets
    async def cancel(self, job_id: str) -> JobAnswer:
        """Cancel a job, queued or running.

        Raises:
            CallError: no usable answer; NotFoundError when the job is unknown or gone.
        """
        return parse_job(
            *await self._request("POST", URL(self._cancel_url + quote(job_id, safe=""), encoded=True), None)
        )

    @_without_secrets
    async def health(self) -> Health:
        """Ask how the endpoint's queue and workers are.

        Raises:
            CallError: NotFoundError for an unknown endpoint, DeniedError for a key that is not accepted.
        """
        return parse_health(*await self._request("GET", self._health_url, None))

    async def _request(self, method: str, url: URL, body: bytes | None) -> tuple[int, Mapping[str, str], bytes]:
        data = BytesIO(body) if body and len(body) > _SENT_IN_PIECES_BYTES else body
        task = self._begin()
        try:
            # Reading to the end gives the connection back, and a failure closes it: a context would only cost time.
            response = await self._session.request(
                method, url, data=data, headers=self._headers, allow_redirects=False, proxy=self._proxy
            )
            return response.status, response.headers, await response.read()
        except asyncio.CancelledError:
            if task not in self._overdue:
                raise
            task.uncancel()
            if task not in self._connected:
                raise UnreachableError("no connection in time") from None
            raise AmbiguousError("no answer in time") from None
        except aiohttp.ClientHttpProxyError as error:
            if error.status == _PROXY_PASSWORD:
                raise DeniedError(
                    f"the proxy asks for a password: {error.message}", http_status=error.status
                ) from error
            raise UnreachableError(f"no connection: the proxy answers {error.status} {error.message}") from error
        except aiohttp.ConnectionTimeoutError as error:
            raise UnreachableError(f"no connection within {_CONNECT_S:.0f} s") from error
        except aiohttp.InvalidURL as error:
            raise UsageError(f"--base-url: {url} is no valid URL") from error
        except (aiohttp.ClientError, asyncio.IncompleteReadError, OSError) as error:
            if task not in self._connected:
                raise UnreachableError(f"no connection: {_reason(error)}") from error
            raise AmbiguousError(f"the connection broke: {_reason(error)}") from error
        finally:
            del self._deadlines[task]
            self._overdue.discard(task)
            self._connected.discard(task)

    def _begin(self) -> asyncio.Task[Any]:
        """Note when the request of the running task is overdue. One timer watches all: aiohttp would make one each."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None  # noqa: S101 - a coroutine of asyncio runs in a task
        self._deadlines[task] = loop.time() + self._timeout_s
        if self._watch is None:
            self._watch = loop.call_later(_WATCH_S, self._look, loop)
        return task

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Cancel what is overdue. Requests began in the order in which they are kept."""
        now = loop.time()
        for task, deadline in self._deadlines.items():
            if deadline > now:
                break
            if task not in self._overdue:
                self._overdue.add(task)
                task.cancel()
        self._watch = loop.call_later(_WATCH_S, self._look, loop) if self._deadlines else None


class _Connector(aiohttp.TCPConnector):
    """Notes which tasks have been given a connection: what fails before that has surely reached nobody."""

    def __init__(self, connected: set[asyncio.Task[Any]], **options: Any) -> None:
        super().__init__(**options)
        self._connected_tasks = connected

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's own signature
    ) -> Connection:
        connection = await super().connect(req, traces, timeout)
        task = asyncio.current_task()
        if task is not None:
            self._connected_tasks.add(task)
        return connection


def _reason(error: BaseException) -> str:
    """What went wrong, without aiohttp's own wrapping."""
    cause = getattr(error, "os_error", None) or error
    text = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    host = f"{error.host}: " if isinstance(error, aiohttp.ClientConnectorError) else ""
    return " ".join(f"{host}{text}".split())
