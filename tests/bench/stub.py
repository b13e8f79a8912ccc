"""An endpoint that completes every job at once, as cheaply as Python can: a bare asyncio.Protocol, no framework.

Run as a process of its own: `python -m tests.bench.stub`. It prints its port, and answers `GET /report` with what it
has seen since the last report.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
_HEALTH = b'{"jobs": {"inQueue": 0}, "workers": {"idle": 1, "ready": 1}}'
_OUTPUT = (
    b'","status":"COMPLETED","delayTime":0,"executionTime":0,"workerId":"stub","output":[{"id":"cmpl-1",'
    b'"object":"text_completion","model":"stub","choices":[{"index":0,"text":"'
    + b"All the rivers run into the sea, yet the sea is not full. " * 4
    + b'","finish_reason":"stop"}],"usage":{"prompt_tokens":12,"completion_tokens":60,"total_tokens":72}}]}'
)


class Seen:
    """What the stub has seen."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.first = 0.0
        self.last = 0.0
        self.jobs = 0

    def report(self) -> bytes:
        data = {"requests": dict(self.requests), "span_s": self.last - self.first}
        self.__init__()
        return json.dumps(data).encode()


class Stub(asyncio.Protocol):
    """One connection."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self._buffer = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        while (end := buffer.find(b"\r\n\r\n")) >= 0:
            head = buffer[:end]
            at = head.find(b"Content-Length: ")
            length = int(head[at + 16 : head.find(b"\r\n", at) if head.find(b"\r\n", at) > 0 else end]) if at > 0 else 0
            if len(buffer) < end + 4 + length:
                break
            buffer = buffer[end + 4 + length :]
            body = self._answer(head[: head.find(b"\r\n")].split(b" ")[1])
            self._transport.write(_HEAD + str(len(body)).encode() + b"\r\n\r\n" + body)
        self._buffer = buffer

    def _answer(self, path: bytes) -> bytes:
        seen = self._seen
        if path == b"/report":
            return seen.report()
        operation = path.split(b"/")[3].decode()
        seen.requests[operation] += 1
        if operation == "health":
            return _HEALTH
        seen.last = time.perf_counter()
        if not seen.first:
            seen.first = seen.last
        if operation == "run":
            seen.jobs += 1
            return b'{"id":"2f0a4c1e-6b1d-4a7e-9f39-%012d-u1","status":"IN_QUEUE"}' % seen.jobs
        return b'{"id":"' + path.rpartition(b"/")[2] + _OUTPUT


async def main() -> None:
    """Serve until the process is ended."""
    seen = Seen()
    server = await asyncio.get_running_loop().create_server(lambda: Stub(seen), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    try:
        import uvloop

        uvloop.run(main())
    except ImportError:
        asyncio.run(main())
