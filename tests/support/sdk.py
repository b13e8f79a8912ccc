"""Runpod's own worker, as its SDK makes it, behind the local endpoint; and a model server behind that."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import deque
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from aiohttp import web

from batchrun.local.workers import WorkerFailure
from tests.support.packs import BATCH_ROUTE, right

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_HANDLER = Path(__file__).with_name("sdk_handler.py")
_HELD_S = 2.0
"""How long a request for jobs is held while there are none."""
_ALWAYS = {"RUNPOD_AI_API_KEY": "key", "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true", "RUNPOD_SKIP_GPU_CHECK": "true"}


def sdk_python() -> Path | None:
    """The Python of an environment with the SDK, as `python -m tests.bench` makes it; None: there is none."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "batchrun-bench"
    found = cache.glob(f"runpod-*-python{sys.version_info.major}.{sys.version_info.minor}/complete")
    return next((each.parent / "bin" / "python" for each in sorted(found)), None)


class Platform:
    """What the platform is for a worker: it hands out jobs, and takes their results. A worker of the local endpoint.

    Args:
        python: The Python of an environment with the SDK.
        model_url: The model server behind the worker.
        home: A folder for the SDK, which looks for credentials in its home.
    """

    name = "the SDK's worker"
    parallel = 30

    def __init__(self, python: Path, model_url: str, home: Path) -> None:
        self._python, self._model_url, self._home = python, model_url, home
        self._waiting: deque[dict[str, Any]] = deque()
        self._arrived = asyncio.Event()
        self._open: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._stopped: deque[str] = deque()
        self.taken: list[int] = []
        """How many jobs the worker took at once, each time."""

    async def start(self) -> None:
        """Serve the worker's side of the platform, and start the worker."""
        app = web.Application(client_max_size=100_000_000)
        app.router.add_get("/job-take/{worker}", self._take)
        app.router.add_get("/job-take-batch/{worker}", self._take)
        app.router.add_post("/job-done/{worker}/{job}", self._done)
        app.router.add_post("/job-stream/{worker}/{job}", self._nothing)
        app.router.add_get("/job-stop/{worker}", self._stop)
        app.router.add_get("/ping/{worker}", self._nothing)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        places = {
            "RUNPOD_POD_ID": "sdk-1",
            "RUNPOD_WEBHOOK_GET_JOB": f"{url}/job-take/$ID?gpu=x",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{url}/job-done/$RUNPOD_POD_ID/$ID?gpu=x",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{url}/job-stream/$RUNPOD_POD_ID/$ID?gpu=x",
            "RUNPOD_WEBHOOK_PING": f"{url}/ping/$RUNPOD_POD_ID",
        }
        with (self._home / "worker.log").open("wb") as log:
            self._worker = await asyncio.create_subprocess_exec(
                self._python,
                _HANDLER,
                self._model_url,
                env={**os.environ, **_ALWAYS, **places, "HOME": str(self._home)},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )

    async def run(self, request: dict[str, Any]) -> Any:
        """The output that the worker gives for a job."""
        job_id = str(uuid4())
        ended = self._open[job_id] = asyncio.get_running_loop().create_future()
        self._waiting.append({"id": job_id, "input": request})
        self._arrived.set()
        try:
            result = await ended
        except asyncio.CancelledError:
            self._stopped.append(job_id)
            raise
        finally:
            del self._open[job_id]
        if "error" in result:
            raise WorkerFailure(result["error"])
        return result["output"]

    async def close(self) -> None:
        """End the worker, with the process that sends its pings."""
        with suppress(ProcessLookupError):
            os.killpg(self._worker.pid, signal.SIGKILL)
        await self._worker.wait()
        await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        count = int(request.query.get("batch_size", "1"))
        with suppress(TimeoutError):
            await asyncio.wait_for(self._arrived.wait(), _HELD_S)
        jobs = [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))]
        if not self._waiting:
            self._arrived.clear()
        if not jobs:
            return web.Response(status=204)
        self.taken.append(len(jobs))
        return web.json_response(jobs if "batch_size" in request.query else jobs[0])

    async def _done(self, request: web.Request) -> web.Response:
        ended = self._open.get(request.match_info["job"])
        if ended is not None and not ended.done():
            ended.set_result(json.loads(await request.read()))
        return web.Response()

    async def _stop(self, _: web.Request) -> web.Response:
        if not self._stopped:
            await asyncio.sleep(0.2)
            return web.Response(status=204)
        jobs = list(self._stopped)
        self._stopped.clear()
        return web.json_response({"jobsToStop": jobs})

    async def _nothing(self, _: web.Request) -> web.Response:
        return web.Response()


class ModelServer:
    """A model server with the routes of OpenAI's API, and vLLM's for several chats.

    Args:
        has_batches: Whether it has the route for several chats.
        poison: A request with this in one of its prompts is refused as a whole, as vLLM does.
    """

    def __init__(self, *, has_batches: bool = True, poison: str = "poison") -> None:
        self._has_batches = has_batches
        self._poison = poison
        self.asked: list[tuple[str, dict[str, Any]]] = []
        """The route and the body of each request."""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Serve on a free port; gives the URL."""
        app = web.Application(client_max_size=100_000_000)
        app.router.add_post("/{route:.*}", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        route, body = request.path, await request.json()
        self.asked.append((route, body))
        if route not in ("/v1/completions", "/v1/chat/completions", *[BATCH_ROUTE] * self._has_batches):
            return web.json_response({"detail": "Not Found"}, status=404)
        if self._poison in json.dumps(body):
            error = {"message": "the prompt is too long", "type": "BadRequestError", "param": None, "code": 400}
            return web.json_response({"error": error}, status=400)
        return web.json_response(right({"openai_route": route, "openai_input": body})[0])
