"""Send requests and receive answers over HTTP. What they mean is decided in `protocol`.

Every failure is raised as a CallError, whose class says whether the request may have reached the server. A request that
never got a connection (refused, DNS, TLS, proxy, all connections busy) certainly did not; if anything fails later, it
may have.

The API key is sent only with each request: a default header of the session would go to a proxy as well. It is redacted
from errors, and from what an answer says about a worker.

An answer is used only if it belongs to the job that was asked for; a connection that gave another one, or sent bytes
without a request, is closed. Answers are read in pieces: silence ends them, slowness does not. Their size is limited,
each by itself and all together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from functools import lru_cache, partial
from io import BytesIO
from typing import Any, Self, TypeVar
from urllib.parse import quote

import aiohttp
from aiohttp.client_proto import ResponseHandler
from multidict import CIMultiDict
from yarl import URL

from batchrun.config import DEFAULT_BASE_URL, DEFAULT_MEMORY_BYTES
from batchrun.endpoint.call_errors import MAX_ERROR_BYTES
from batchrun.endpoint.connections import make_connector, no_connection, reason
from batchrun.endpoint.job_ids import JobIds, echo_asked
from batchrun.endpoint.memory import BYTES_PER_BYTE, MemoryBudget, parsed_bytes
from batchrun.endpoint.protocol import (
    JOB_STATUSES,
    MAX_ANSWER_BYTES,
    Health,
    JobAnswer,
    JobStatus,
    Operation,
    operation_url,
    parse_health,
    parse_job,
    parse_stream,
)
from batchrun.endpoint.proxies import proxy_for
from batchrun.endpoint.secrets import Secrets, url_secrets
from batchrun.errors import (
    AmbiguousError,
    CallError,
    MismatchedError,
    NotFoundError,
    TooLargeError,
    UnreachableError,
    UsageError,
)
from batchrun.files.server_urls import checked_url

_CONNECT_S = 10.0
_KEEPALIVE_S = 15.0
"""Shorter than the timeout of any server: a POST on a connection that the server just closed would be ambiguous."""
_WATCH_S = 0.5
"""How often overdue requests are looked for."""
_LONGEST_S = 3600.0
"""An answer that has not arrived by then never will: 20 MB take that long at 5 kB a second."""
_SENT_IN_PIECES_BYTES = 1 << 20
"""A larger body would block the event loop if it were sent in one piece."""
_PARSED_ASIDE_BYTES = 1 << 15
"""A larger body is parsed in a thread: the slowest parser takes 10 ms for this much."""
_BUFFER_BYTES = 1 << 16
"""How far aiohttp reads ahead while an answer waits for memory; at most twice as much."""
_SPARE_CONNECTIONS = 4
"""For /health, in addition to those that the scheduler counts."""

T = TypeVar("T")


_Reply = tuple[int, "Mapping[str, str]", bytes, int, "ResponseHandler | None"]
"""A raw answer: HTTP status, headers, body, the bytes that the body takes in the memory budget, and its connection."""


class EndpointClient:
    """A client of one endpoint.

    Args:
        base_url: Jobs go to `<base_url>/<endpoint>/run`.
        endpoint: The endpoint's ID.
        api_key: Sent as a Bearer token; None sends none (a local endpoint).
        connections: The most HTTP connections.
        timeout_s: How long the server may be silent: before the first byte of an answer, and between two pieces of it.
        memory: The budget for answers that are held, shared with other clients; None for its own budget of 256 MB.
        use_proxy: Whether to use the environment's proxy for this URL.

    `hide` redacts the key and the proxy's password in a text.

    Raises:
        UsageError: the base URL is not an http(s) URL, or the proxy is invalid.
    """

    def __init__(
        self,
        base_url: str,
        endpoint: str,
        api_key: str | None,
        *,
        connections: int,
        timeout_s: float,
        memory: MemoryBudget | None = None,
        use_proxy: bool = True,
    ) -> None:
        checked_url("--base-url", base_url, example=DEFAULT_BASE_URL)
        self._run_url = URL(operation_url(base_url, endpoint, Operation.RUN))
        self._status_url = URL(operation_url(base_url, endpoint, Operation.STATUS))
        self._stream_url = URL(operation_url(base_url, endpoint, Operation.STREAM))
        self._cancel_url = URL(operation_url(base_url, endpoint, Operation.CANCEL))
        self._health_url = URL(operation_url(base_url, endpoint, Operation.HEALTH))
        # aiohttp copies a plain mapping for each request.
        self._key_header = CIMultiDict() if api_key is None else CIMultiDict(Authorization=f"Bearer {api_key}")
        self.ids = JobIds()
        """The jobs whose answers are accepted: add a job of an earlier session before polling it."""
        self._memory = memory or MemoryBudget(DEFAULT_MEMORY_BYTES)
        self._connected: dict[asyncio.Task[Any], ResponseHandler | None] = {}
        proxy = self._way = proxy_for(base_url) if use_proxy else None
        self._proxy = None if proxy is None or proxy.is_socks else proxy.url
        self._session = aiohttp.ClientSession(
            connector=make_connector(
                base_url,
                self._connected,
                proxy,
                limit=connections + _SPARE_CONNECTIONS,
                keepalive_timeout=_KEEPALIVE_S,
                ttl_dns_cache=60,
            ),
            headers={"Content-Type": "application/json", "Accept": "application/json"},
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
            read_bufsize=_BUFFER_BYTES,
        )
        self._timeout_s = timeout_s
        self._deadlines: dict[asyncio.Task[Any], float] = {}
        self._overdue: set[asyncio.Task[Any]] = set()
        self._watch: asyncio.TimerHandle | None = None
        self.hide = Secrets(api_key, *url_secrets(None if proxy is None else proxy.url)).hide
        self._hide_in_name = lru_cache(maxsize=256)(self.hide)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._watch is not None:
            self._watch.cancel()
        await self._session.close()

    def run(self, body: bytes) -> Coroutine[Any, Any, JobAnswer]:
        """Submit a job.

        Raises:
            CallError: UnreachableError if the job certainly does not exist, AmbiguousError if it may.
        """
        return self._job("POST", self._run_url, body, None)

    def status(self, job_id: str) -> Coroutine[Any, Any, JobAnswer]:
        """Poll a job. Never sends `?ttl=`, which would shorten the job's life.

        A final answer counts in the memory budget until it is released.

        Raises:
            CallError: no usable answer; NotFoundError if the job is unknown or gone.
        """
        return self._job("GET", _of_job(self._status_url, job_id), None, job_id)

    async def cancel(self, job_id: str) -> JobAnswer:
        """Cancel a job, queued or running.

        Raises:
            CallError: no usable answer; NotFoundError if the job is unknown or gone.
        """
        answer = await self._job("POST", _of_job(self._cancel_url, job_id), None, job_id)
        self.release(answer)
        return answer

    async def health(self) -> Health:
        """The state of the endpoint's queue and workers.

        Raises:
            CallError: NotFoundError for an unknown endpoint, DeniedError for a key that is not accepted.
        """
        health, _ = await self._get(self._health_url, parse_health)
        return health

    async def stream(self, job_id: str) -> tuple[list[Any], JobStatus | None, int]:
        """A job's output since the last such call, its state (None if not given), and the bytes of the answer.

        Raises:
            CallError: no usable answer; NotFoundError if there is no stream.
        """
        (pieces, status), size_bytes = await self._get(
            _of_job(self._stream_url, job_id), partial(parse_stream, job_id=job_id)
        )
        return pieces, status, size_bytes

    async def _get(self, url: URL, parse: Callable[[int, Mapping[str, str], bytes], T]) -> tuple[T, int]:
        """The parsed form of an answer that is not a job's, and its size. Secrets are redacted in errors."""
        connection = None
        try:
            http_status, headers, body, held_bytes, connection = await self._request("GET", url, None)
            self._memory.release(held_bytes)
            if len(body) <= _PARSED_ASIDE_BYTES:
                return parse(http_status, headers, body), len(body)
            return await _aside(lambda: parse(http_status, headers, body)), len(body)
        except CallError as error:
            if isinstance(error, MismatchedError) and connection is not None:
                connection.close()
            error.rewrite(self.hide)
            raise

    async def hold(self, answer: JobAnswer, size_bytes: int) -> None:
        """Count what was added to an answer from other answers in the memory budget, as soon as there is room."""
        answer.held_bytes += await self._memory.room(BYTES_PER_BYTE * size_bytes)

    def release(self, answer: JobAnswer) -> None:
        """Give back an answer's memory: it is no longer needed, or the rest of it is small."""
        held_bytes, answer.held_bytes = answer.held_bytes, 0
        if held_bytes:
            self._memory.release(held_bytes)

    async def _job(self, method: str, url: URL, sent: bytes | None, job_id: str | None) -> JobAnswer:
        """Make a request about a job; `job_id` is None for a new one.

        Secrets are redacted in what it returns and raises, except in the job's output, which is the user's own, and in
        its `error`, where they are redacted once it is decoded, because its wrapping may disguise them.
        """
        connection, held_bytes = None, 0
        try:
            http_status, headers, body, held_bytes, connection = await self._request(method, url, sent)
            if len(body) <= _PARSED_ASIDE_BYTES:
                answer = parse_job(http_status, headers, body)
            else:
                answer = await _aside(lambda: parse_job(http_status, headers, body))
            if job_id is None:
                self.ids.check_new(answer.id)
                if self.hide(answer.id) != answer.id:
                    raise AmbiguousError("the job's ID in the answer contains the API key")
                self.ids.add(answer.id, echo_asked(sent or b""))
            else:
                self.ids.check(job_id, answer)
            if answer.worker_id is not None:
                answer.worker_id = self._hide_in_name(answer.worker_id)
            if answer.status.is_final:
                answer.held_bytes = held_bytes or await self._memory.room(BYTES_PER_BYTE * len(body))
                held_bytes = 0
                self.ids.end(answer.id)
        except CallError as error:
            if isinstance(error, MismatchedError) and connection is not None:
                connection.close()
            if isinstance(error, NotFoundError) and job_id is not None:
                self.ids.end(job_id)
            error.rewrite(self.hide)
            raise
        finally:
            if held_bytes:
                self._memory.release(held_bytes)
        return answer

    async def _request(self, method: str, url: URL, body: bytes | None) -> _Reply:
        data = BytesIO(body) if body and len(body) > _SENT_IN_PIECES_BYTES else body
        task = self._begin()
        try:
            # Reading to the end returns the connection, and a failure closes it: a context would only cost time.
            response = await self._session.request(
                method, url, data=data, headers=self._key_header, allow_redirects=False, proxy=self._proxy
            )
            content, held_bytes = response.content, 0
            if content.is_eof() and content.total_bytes <= _PARSED_ASIDE_BYTES:
                received = content.read_nowait()
            else:
                received, held_bytes = await self._read(response, task)
            return response.status, response.headers, received, held_bytes, self._connected.get(task)
        except asyncio.CancelledError:
            if task not in self._overdue:
                raise
            task.uncancel()
            if task not in self._connected:
                raise UnreachableError("no connection in time") from None
            raise AmbiguousError("no answer in time") from None
        except aiohttp.ConnectionTimeoutError as error:
            raise UnreachableError(f"no connection within {_CONNECT_S:.0f} s") from error
        except aiohttp.InvalidURL as error:
            raise UsageError(f"--base-url: {url} is not a valid URL") from error
        except (aiohttp.ClientError, asyncio.IncompleteReadError, OSError) as error:
            if task not in self._connected:
                raise no_connection(error, self._way) from error
            raise AmbiguousError(f"the connection was lost: {reason(error)}") from error
        finally:
            self._deadlines.pop(task, None)
            self._overdue.discard(task)
            self._connected.pop(task, None)

    async def _read(self, response: aiohttp.ClientResponse, task: asyncio.Task[Any]) -> tuple[bytes, int]:
        """The body of an answer that is large or has not fully arrived, and what it takes in the memory budget."""
        number = self._memory.begin()
        try:
            body = await self._read_in_pieces(response, task, number)
            self._deadlines.pop(task, None)
            if len(body) > _PARSED_ASIDE_BYTES:
                await self._memory.grow(number, await _aside(lambda: parsed_bytes(body)))
            return body, self._memory.complete(number)
        except BaseException:
            response.close()
            raise
        finally:
            self._memory.abandon(number)

    async def _read_in_pieces(self, response: aiohttp.ClientResponse, task: asyncio.Task[Any], number: int) -> bytes:
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + _LONGEST_S
        is_job = response.status in JOB_STATUSES
        most = MAX_ANSWER_BYTES if is_job else MAX_ERROR_BYTES
        pieces, size_bytes = [], 0
        while piece := await response.content.readany():
            size_bytes += len(piece)
            if loop.time() > ends_at:
                raise AmbiguousError(f"the answer did not arrive within {_LONGEST_S / 60:.0f} minutes")
            if size_bytes > most and is_job:
                raise TooLargeError(
                    f"the answer is larger than {most // 1_000_000} MB: the API accepts at most 20 MB from a worker",
                    http_status=response.status,
                )
            pieces.append(piece)
            if size_bytes > most:
                response.close()
                break
            if not self._memory.has_room(number, BYTES_PER_BYTE * len(piece)):
                # While we wait for memory, the server is not the one that is silent.
                self._deadlines.pop(task, None)
            await self._memory.grow(number, BYTES_PER_BYTE * len(piece))
            self._await_byte(task, loop)
        return b"".join(pieces)

    def _begin(self) -> asyncio.Task[Any]:
        """Set the time by which the answer to the running task's request must begin.

        One timer watches all requests: aiohttp would create one for each.
        """
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None  # noqa: S101 - a coroutine of asyncio runs in a task
        self._deadlines[task] = loop.time() + self._timeout_s
        if self._watch is None:
            self._watch = loop.call_later(_WATCH_S, self._look, loop)
        return task

    def _await_byte(self, task: asyncio.Task[Any], loop: asyncio.AbstractEventLoop) -> None:
        """Set the time until which the server may be silent."""
        self._deadlines.pop(task, None)
        self._deadlines[task] = loop.time() + self._timeout_s
        if self._watch is None:
            self._watch = loop.call_later(_WATCH_S, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Cancel overdue requests. They are kept in the order in which the server was last heard."""
        now = loop.time()
        for task, deadline in self._deadlines.items():
            if deadline > now:
                break
            if task not in self._overdue:
                self._overdue.add(task)
                task.cancel()
        self._watch = loop.call_later(_WATCH_S, self._look, loop) if self._deadlines else None


def _of_job(url: URL, job_id: str) -> URL:
    """An operation's URL for one job. Parsing the whole URL again would take twice as long."""
    return url.with_path(f"{url.raw_path}/{quote(job_id, safe='')}", encoded=True)


async def _aside(work: Callable[[], T]) -> T:
    """Do long work in a thread."""
    return await asyncio.get_running_loop().run_in_executor(None, work)
