"""A page in a real Chromium, driven by the DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

if TYPE_CHECKING:
    from pathlib import Path

BLACK_HOLE = "127.0.0.1:9"
"""A proxy that is not there: no request leaves the machine."""
_KEYS = {"Enter": 13, "Escape": 27, "End": 35, "Home": 36, "PageDown": 34, "PageUp": 33, "ArrowDown": 40, "ArrowUp": 38}


class Page:
    """An open page, and what it has said, loaded and refused."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._count = 0
        self._answers: dict[int, asyncio.Future[dict]] = {}
        self._loaded = asyncio.Event()
        self.said: list[str] = []
        """Messages of the console and the log, violations of the policy among them, and exceptions."""
        self.requests: list[str] = []
        """The addresses of all requests but the page's own."""

    async def listen(self) -> None:
        async for message in self._socket:
            data = json.loads(message.data)
            if "id" in data:
                self._answers.pop(data["id"]).set_result(data)
                continue
            params = data["params"]
            match data["method"]:
                case "Runtime.consoleAPICalled":
                    self.said.append(str(params["args"]))
                case "Runtime.exceptionThrown":
                    self.said.append(str(params["exceptionDetails"]))
                case "Log.entryAdded":
                    self.said.append(params["entry"]["text"])
                case "Page.javascriptDialogOpening":
                    self.said.append(f"dialog: {params['message']}")
                case "Network.requestWillBeSent" if params["type"] != "Document" or params["documentURL"] == "":
                    self.requests.append(params["request"]["url"])
                case "Page.loadEventFired":
                    self._loaded.set()

    async def call(self, method: str, **params: Any) -> dict:
        self._count += 1
        self._answers[self._count] = future = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": self._count, "method": method, "params": params})
        answer = await asyncio.wait_for(future, 60)
        assert "error" not in answer, answer
        return answer["result"]

    async def open(self, address: str) -> None:
        """Open an address, and wait until the page says that it has drawn its rows."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=address)
        await self.until("document.documentElement?.dataset.shown")

    async def value(self, expression: str) -> Any:
        """What an expression is worth in the page; a promise is awaited."""
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, expression: str) -> Any:
        """The first true value of an expression."""
        async with asyncio.timeout(30):
            while not (value := await self.value(expression)):  # noqa: ASYNC110 - the page is another process
                await asyncio.sleep(0.02)
        return value

    async def text(self, selector: str) -> str:
        """The visible text of the first element."""
        return await self.value(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    async def press(self, *keys: str) -> None:
        """Press keys: characters, or names like `Enter`."""
        for key in keys:
            is_text = len(key) == 1
            code = {} if is_text else {"windowsVirtualKeyCode": _KEYS[key], "code": key}
            down = {"text": key} if is_text else {"text": "\r"} if key == "Enter" else {}
            await self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **code, **down)
            await self.call("Input.dispatchKeyEvent", type="keyUp", key=key, **code)

    async def choose(self, selector: str, value: str) -> None:
        """Choose an option of a select by its value."""
        place = f"document.querySelector({json.dumps(selector)})"
        await self.value(
            f"{place}.value = {json.dumps(value)}; {place}.dispatchEvent(new Event('change', {{bubbles: true}}))"
        )

    async def resize(self, width: int, height: int) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    async def prefer(self, scheme: str) -> None:
        """Emulate a system that is `dark` or `light`."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        await self.call("Emulation.setEmulatedMedia", features=[feature])

    async def screenshot(self) -> bytes:
        """What is in sight, as PNG."""
        shot = await self.call("Page.captureScreenshot", format="png")
        return base64.b64decode(shot["data"])


@asynccontextmanager
async def browsing(folder: Path):
    """A page in a browser with a profile in `folder`; without a browser, the test is skipped."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("there is no Chromium to open the page")
    profile = folder / "profile"
    process = await asyncio.create_subprocess_exec(
        browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--no-first-run",
        "--remote-debugging-port=0", "--window-size=1200,800", f"--proxy-server={BLACK_HOLE}", "about:blank",
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        where = profile / "DevToolsActivePort"
        async with asyncio.timeout(60):
            while not (where.exists() and "\n" in where.read_text()):  # noqa: ASYNC110 - a file of another process
                await asyncio.sleep(0.02)
        port = where.read_text().split("\n")[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                target = next(each for each in await answer.json() if each["type"] == "page")
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                listening = asyncio.create_task(page.listen())
                yield page
                listening.cancel()
    finally:
        process.kill()
        await process.wait()
