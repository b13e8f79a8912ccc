"""A server of Runpod's queue API by script, written from the documentation alone: it imports nothing of batchrun.

It speaks raw HTTP, so that it can break every rule of it. What a client may not do (a wrong path, method, key or
body, a job ID that was never given out) is written down in `complaints`.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Self
from urllib.parse import unquote

from tests.support.packs import Output, Spoil, prompts_of, right

KEY = "rpa_rehearsal"
_TLS = b"\x16"
"""The first byte of a handshake."""
JSON = ("Content-Type", "application/json")
HTML = ("Content-Type", "text/html")
ID = "$ID"
"""In a body: the ID of the job that is polled, or that is given out."""


@dataclass(frozen=True)
class Answer:
    """What the server says to one request."""

    body: bytes = b""
    status: int = 200
    headers: tuple[tuple[str, str], ...] = (JSON,)
    length: int | None = None
    """A Content-Length that is not the body's."""
    raw: bytes | None = None
    """Sent instead of any HTTP."""
    fault: str = ""
    """reset, close: instead of an answer; stall: before it; drip: within its body; slow: a byte now and then of
    its body; leave: the server goes after it."""
    output: Callable[[dict[str, Any]], Output] | None = None
    """Makes the output of a job of its `input`."""

    def bytes_for(self, job_id: str) -> bytes:
        """What goes over the wire."""
        if self.raw is not None:
            return self.raw
        body = self.body.replace(ID.encode(), json.dumps(job_id)[1:-1].encode())
        length = len(body) if self.length is None else self.length
        lines = [f"HTTP/1.1 {self.status} Whatever", *(f"{name}: {value}" for name, value in self.headers)]
        if not any(name == "Transfer-Encoding" for name, _ in self.headers) and self.status != 204:
            lines.append(f"Content-Length: {length}")
        return "\r\n".join([*lines, "", ""]).encode() + body


def job(status: str, /, **fields: Any) -> Answer:
    """A job as the documentation shows it."""
    return Answer(json.dumps({"id": ID, "status": status, **fields}).encode())


def packed(spoil: Spoil | None = None) -> Answer:
    """A job that has ended with an output for each of its prompts, or with what becomes of that."""
    done = job("COMPLETED", delayTime=10, executionTime=20, workerId="w")
    return replace(done, output=right if spoil is None else lambda request: spoil(right(request)))


def failed(error: str) -> Answer:
    """A job that has failed with the worker's error."""
    return job("FAILED", delayTime=10, executionTime=20, workerId="w", error=error)


def body(data: object, status: int = 200, **headers: str) -> Answer:
    """JSON, or bytes as they are."""
    given = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Answer(data if isinstance(data, bytes) else json.dumps(data).encode(), status, (JSON, *given))


def page(status: int, title: str = "Bad gateway") -> Answer:
    """What an edge answers with in the API's place."""
    return Answer(f"<html><head><title>{title}</title></head></html>".encode(), status, (HTML,))


RESET = Answer(fault="reset")
CLOSE = Answer(fault="close")
STALL = Answer(fault="stall")
QUEUED = job("IN_QUEUE")
HEALTHY = body(
    {
        "jobs": {"completed": 31, "failed": 1, "inProgress": 0, "inQueue": 2, "retried": 1},
        "workers": {"idle": 1, "initializing": 0, "ready": 1, "running": 0, "throttled": 0, "unhealthy": 0},
    }
)
DONE = job("COMPLETED", delayTime=10, executionTime=20, workerId="w", output=[{"choices": [{"tokens": ["fine"]}]}])


EXPIRED = body({"error": "job not found"}, 404)
"""What is said of a job that was kept too long, or that the platform has lost."""


def broken_in_half(answer: Answer) -> Answer:
    """Half of its body, then the connection ends."""
    return replace(answer, body=answer.body[: len(answer.body) // 2], length=len(answer.body))


@dataclass
class Script:
    """What a row is answered with. The last answer of a list is given again and again."""

    run: tuple[Answer, ...] = (QUEUED,)
    status: tuple[Answer, ...] = (DONE,)
    cancel: tuple[Answer, ...] = (job("CANCELLED"),)
    job_id: str = "3f0c-{n}-u1"


@dataclass
class FaultServer:
    """The server. Rows are known by their prompt, and jobs of several rows by the first prompt that has a script.

    Args:
        scripts: For each prompt; "" for all that have none of their own.
        health: The answers of /health, one after the other.
        reset_at: Which connections are reset before anything is read from them, counted from 1.
        is_plain: Whether a handshake is answered in plain HTTP; else it is cut off.
    """

    scripts: dict[str, Script]
    health: tuple[Answer, ...] = (HEALTHY,)
    reset_at: frozenset[int] = frozenset()
    is_plain: bool = False
    seen: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Each request: its operation and the prompt that it is about."""

    def __post_init__(self) -> None:
        self._turns: Counter[tuple[str, str]] = Counter()
        self._prompts: dict[str, str] = {}
        self.inputs: dict[str, dict[str, Any]] = {}
        """The `input` of each job ID that was given out."""
        self._connections = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self.gone = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self.come_back(0)
        self.base_url = f"http://127.0.0.1:{self._port}/v2"
        return self

    async def __aexit__(self, *_: object) -> None:
        # A connection that was just accepted is known only a turn of the loop later.
        await asyncio.sleep(0)
        self.leave()
        async with asyncio.timeout(5):
            while self._writers:
                await asyncio.sleep(0)
                self.leave()
        await asyncio.sleep(0)

    async def come_back(self, port: int | None = None) -> None:
        """Listen, again at the same place."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port if port is None else port)
        self._port = self._server.sockets[0].getsockname()[1]
        self.gone.clear()

    def leave(self) -> None:
        """Break every connection and take no new one."""
        self.gone.set()
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        self._writers.add(writer)
        try:
            if self._connections in self.reset_at:
                _reset(writer)
                return
            while await self._turn(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            self._writers.discard(writer)

    async def _turn(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether the connection stays open."""
        begin = await reader.readexactly(1)
        if begin == _TLS:
            if self.is_plain:
                writer.write(page(400, "plain HTTP request sent to HTTPS port").bytes_for(""))
            return False
        head = (begin + await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.rstrip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        sent = await reader.readexactly(int(headers.get("content-length", 0)))
        answer, job_id = self._answer(first, headers, sent)
        if answer.fault == "reset":
            _reset(writer)
            return False
        if answer.fault == "close":
            return False
        if answer.fault == "stall":
            await reader.read()
            return False
        said = answer.bytes_for(job_id)
        if answer.fault == "drip":
            head_end = said.index(b"\r\n\r\n") + 4
            writer.write(said[: head_end + 1])
            await reader.read()
            return False
        for piece in (said[at : at + 1] for at in range(len(said))) if answer.fault == "slow" else (said,):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01 if answer.fault == "slow" else 0)
        if answer.fault == "leave":
            writer.close()
            self.leave()
        return answer.raw is None and answer.length is None and ("Connection", "close") not in answer.headers

    def _answer(self, first: str, headers: dict[str, str], sent: bytes) -> tuple[Answer, str]:
        method, path, _ = first.split(" ")
        root, version, endpoint, operation, *rest = path.split("/")
        self.seen[operation] += 1
        if (root, version, endpoint) != ("", "v2", "local"):
            self.complaints.append(f"no such path: {path}")
        if headers.get("authorization") != f"Bearer {KEY}":
            self.complaints.append(f"{path} has no key")
        if method != {"run": "POST", "cancel": "POST"}.get(operation, "GET"):
            self.complaints.append(f"{method} {path}")
        if operation == "health":
            return self._next(("health", ""), self.health), ""
        if operation == "run":
            request = self._input(headers, sent)
            prompts = prompts_of(request)
            prompt = next((each for each in prompts if each in self.scripts), prompts[0])
            script = self.scripts.get(prompt) or self.scripts[""]
            self.asked.append(("run", prompt))
            self._turns["id", prompt] += 1
            job_id = script.job_id.replace("{n}", f"{prompt}-{self._turns['id', prompt]}")
            self._prompts[job_id] = prompt
            self.inputs[job_id] = request
            return self._next(("run", prompt), script.run), job_id
        job_id = unquote(rest[0])
        if len(rest) != 1 or "?" in path or job_id not in self._prompts:
            self.complaints.append(f"{path} names no job")
            return body({"error": "job not found"}, 404), job_id
        prompt = self._prompts[job_id]
        script = self.scripts.get(prompt) or self.scripts[""]
        self.asked.append((operation, prompt))
        answer = self._next((operation, prompt), script.status if operation == "status" else script.cancel)
        if answer.output is not None:
            output = answer.output(self.inputs[job_id])
            answer = replace(answer, body=json.dumps({**json.loads(answer.body), "output": output}).encode())
        return answer, job_id

    def _next(self, turn: tuple[str, str], answers: tuple[Answer, ...]) -> Answer:
        self._turns[turn] += 1
        return answers[min(self._turns[turn], len(answers)) - 1]

    def _input(self, headers: dict[str, str], sent: bytes) -> dict[str, Any]:
        data = json.loads(sent)
        if not headers.get("content-type", "").startswith("application/json"):
            self.complaints.append("/run is sent JSON under another name")
        if set(data) - {"input", "webhook", "policy", "s3Config"} or not data.get("input"):
            self.complaints.append(f"the platform drops some of {data}")
        return data["input"]


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection as a crashed host does."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
