"""A queue endpoint on loopback, in a thread: it counts what it is given, and misbehaves when it is told to.

The text of an answer is a function of the prompt, so that an answer in the wrong row is seen.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator

READY = {
    "jobs": {},
    "workers": {"idle": 1, "initializing": 0, "ready": 3, "running": 2, "throttled": 0, "unhealthy": 0},
}
PAGE = b"<html><head><title>502 Bad Gateway</title></head></html>"


def text_of(prompt: str) -> str:
    """What a worker says to a prompt."""
    return f"echo of {prompt}"


def fails(prompt: str) -> bool:
    """Whether a worker refuses a prompt."""
    return prompt.startswith("bad")


@dataclass(slots=True)
class Job:
    """A job that was accepted."""

    id: str
    prompt: str
    moment: int
    """When, by the endpoint's `moment`."""
    is_over: bool = False
    is_cancelled: bool = False
    is_forgotten: bool = False
    """Whether its result has expired."""

    def answer(self) -> dict[str, Any]:
        """What /status says of it."""
        if self.is_cancelled:
            return {"id": self.id, "status": "CANCELLED"}
        if not self.is_over:
            return {"id": self.id, "status": "IN_PROGRESS", "delayTime": 1, "workerId": "w1"}
        times = {"delayTime": 1, "executionTime": 2, "workerId": "w1"}
        if fails(self.prompt):
            error = json.dumps({"error_message": "vLLM returned HTTP 400: no", "error_type": "<class 'ValueError'>"})
            return {"id": self.id, "status": "FAILED", "error": error, **times}
        choices = [{"text": text_of(self.prompt), "finish_reason": "stop", "index": 0}]
        usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
        return {"id": self.id, "status": "COMPLETED", "output": [{"choices": choices, "usage": usage}], **times}


@dataclass
class Endpoint:
    """The endpoint, as a context.

    Args:
        moment: Noted for each job when it is accepted.
    """

    moment: Callable[[], int] = lambda: 0
    jobs: dict[str, Job] = field(default_factory=dict)
    ending: int | None = None
    """How many jobs may still end; None: all."""
    faults: dict[str, deque[str]] = field(default_factory=dict)
    """What is wrong with the next answers, by operation."""
    sent: set[str] = field(default_factory=set)
    """Every prompt that has come, whatever came of it."""
    known: set[str] = field(default_factory=set)
    """The jobs that the present client surely knows of."""
    told: int = 0
    """How many final answers were given."""
    calls: Counter[str] = field(default_factory=Counter)
    _numbers: Iterator[int] = field(default_factory=count)

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        start = asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=512)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result()
        self.base_url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v2"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def paid(self) -> Counter[str]:
        """How many jobs of each prompt have run, or will."""
        return Counter(job.prompt for job in list(self.jobs.values()) if not job.is_cancelled)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                path = line.decode("latin1").split(" ")[1]
                length = 0
                while (header := await reader.readline()) not in (b"\r\n", b""):
                    name, _, value = header.partition(b":")
                    length = int(value) if name.lower() == b"content-length" else length
                said = await self._answer(path, await reader.readexactly(length))
                if said is None:
                    break
                writer.write(said)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    async def _answer(self, path: str, body: bytes) -> bytes | None:
        """The bytes of an answer; None: the connection is broken off instead."""
        operation, job_id = (*path.split("/", 4)[3:], "")[:2]
        self.calls[operation] += 1
        queue = self.faults.get(operation)
        fault = queue.popleft() if queue else ""
        if operation == "health":
            return fault_of(fault, {}, None) or _http(200, READY)
        if operation == "run":
            return self._run(json.loads(body), fault)
        job = self.jobs.get(unquote(job_id))
        self.known.add(unquote(job_id))
        if job is None or job.is_forgotten or fault == "expired":
            if job is not None:
                job.is_forgotten = True
            return _http(404, {"error": "job not found"})
        if fault == "slow":
            await asyncio.sleep(0.05)
        if operation == "cancel" and not job.is_over:
            job.is_cancelled = True
        elif not (job.is_over or job.is_cancelled) and self.ending != 0:
            self.ending = None if self.ending is None else self.ending - 1
            job.is_over = True
        said = job.answer()
        if (broken := fault_of(fault, said, self._other(job))) is not None:
            return broken
        if fault == "reset":
            return None
        self.told += said["status"] in ("COMPLETED", "FAILED")
        return _http(200, said)

    def _run(self, body: dict[str, Any], fault: str) -> bytes | None:
        self.sent.add(body["input"]["prompt"])
        if fault == "429":
            return _http(429, {"error": "too many requests"})
        job = Job(f"{next(self._numbers):06}-u1", body["input"]["prompt"], self.moment())
        if fault != "500 before":
            self.jobs[job.id] = job
        if fault == "reset":
            return None
        said = {"id": job.id, "status": "IN_QUEUE"}
        # The ID of a job whose own answer was lost, or is on its way, would be like one of its own.
        return fault_of(fault, said, self._other(job, of=self.known)) or _http(200, said)

    def _other(self, job: Job, of: Container[str] | None = None) -> Job | None:
        others = (other for other in self.jobs.values() if other.prompt != job.prompt)
        return next((other for other in others if of is None or other.id in of), None)


def fault_of(fault: str, said: dict[str, Any], other: Job | None) -> bytes | None:
    """The bytes of a wrong answer; None when the fault is none of that kind."""
    wrong = {
        "page": lambda: _http(502, PAGE, "text/html"),
        "500": lambda: _http(500, {"error": "internal"}),
        "500 before": lambda: _http(500, {"error": "internal"}),
        "forbidden": lambda: _http(403, PAGE, "text/html"),
        "cut": lambda: _http(200, json.dumps(said).encode()[:-9]),
        "empty": lambda: _http(200, b""),
    }
    if fault == "another's" and other is not None:
        return _http(200, {**said, "id": other.id} if said.get("status") == "IN_QUEUE" else other.answer())
    return wrong[fault]() if fault in wrong else None


def _http(status: int, body: dict[str, Any] | bytes, kind: str = "application/json") -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
