"""A push to the Hugging Face Hub, by its own library, to a stand-in for its HTTP API on this machine."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from batchrun.errors import UsageError
from batchrun.results.hub import HubFile, hub_file
from tests.support.command import BATCHRUN, assert_one_clear_line
from tests.support.rehearsal import mixed_run

if TYPE_CHECKING:
    from pathlib import Path


class Hub(ThreadingHTTPServer):
    """Takes files as parts of a commit, as the Hub takes small ones; or refuses everything."""

    def __init__(self, status: int = 200) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = status
        self.seen: list[tuple[str, Any, str | None]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        lines = [json.loads(line) for line in body.splitlines()]
        self.server.seen.append((self.path, lines, self.headers["Authorization"]))
        if self.server.status != 200:
            self._answer(self.server.status, {"error": "Invalid credentials in Authorization header"})
        elif self.path.endswith("/preupload/main"):
            kept = {"uploadMode": "regular", "shouldIgnore": False}
            files = [{"path": file["path"], **kept} for file in lines[0]["files"]]
            self._answer(200, {"files": files})
        elif self.path.endswith("/commit/main"):
            place = "https://huggingface.co/datasets/me/answers/commit/1"
            self._answer(200, {"success": True, "commitOid": "1" * 40, "commitUrl": place})
        else:
            self._answer(200, {"url": "https://huggingface.co/datasets/me/answers", "name": "me/answers"})

    def do_GET(self) -> None:
        self._answer(404, {"error": "not found"})

    def _answer(self, status: int, data: Any) -> None:
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
async def state(tmp_path: Path) -> Path:
    return await mixed_run(tmp_path)


@pytest.fixture
def hub():
    with Hub() as server:
        yield server
        server.shutdown()


def push(state: Path, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    place = {"HF_ENDPOINT": url, "HF_TOKEN": "hf_SECRET", "HF_HOME": str(state.parent / "hub"), "NO_PROXY": "127.0.0.1"}
    return subprocess.run(
        [*BATCHRUN, "export", str(state), *arguments],
        env={**os.environ, **place},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_a_push_makes_a_private_data_set_and_commits_the_table(state: Path, hub: Hub, tmp_path: Path):
    done = push(state, hub.url, "-o", "hf://datasets/me/answers")
    assert done.returncode == 0, done.stderr
    name = "data/train-00000-of-00001.parquet"
    assert f"9 of 12 rows exported to hf://datasets/me/answers/{name} (3 failed)" in done.stderr
    (made, [asked], key), *_, (committed, lines, _) = hub.seen
    assert (made, asked["name"], asked["type"]) == ("/api/repos/create", "answers", "dataset")
    assert asked.get("visibility") == "private" or asked["private"] is True
    assert key == "Bearer hf_SECRET"
    assert committed == "/api/datasets/me/answers/commit/main"
    (file,) = [line["value"] for line in lines if line["key"] == "file"]
    assert file["path"] == name
    assert pl.read_parquet(base64.b64decode(file["content"]))["id"].to_list() == [
        f"r{n}" for n in range(1, 13) if n % 4
    ]
    for path in tmp_path.iterdir():
        assert path.is_dir() or b"hf_SECRET" not in path.read_bytes()


def test_what_the_hub_refuses_is_one_clear_line(state: Path, hub: Hub):
    hub.status = 401
    done = push(state, hub.url, "-o", "hf://datasets/me/answers/all.csv")
    assert_one_clear_line(done, 4, "hf://datasets/me/answers/all.csv cannot be written: ")
    assert "401" in done.stderr
    assert "hf auth login" in done.stderr
    assert "hf_SECRET" not in done.stderr


def test_a_hub_that_cannot_be_reached_is_one_clear_line(state: Path):
    done = push(state, "http://127.0.0.1:9", "-o", "hf://datasets/me/answers")
    assert_one_clear_line(done, 4, "cannot be written: ")


@pytest.mark.parametrize("name", ["hf://datasets/me", "hf://models/me/x", "hf://datasets/me/x//", "hf://", "hf:x"])
def test_names_that_lead_to_no_data_set_are_refused(name: str):
    with pytest.raises(UsageError):
        hub_file(name)
    assert hub_file("hf://datasets/me/x/a/b.csv.gz") == HubFile("me/x", "a/b.csv.gz")


def test_the_library_is_not_loaded_for_a_file_on_this_machine(state: Path):
    code = (
        "import sys; from batchrun.__main__ import main\n"
        "try: main()\nfinally: print(sorted({'huggingface_hub', 'pyarrow', 'zstandard'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, "export", str(state), "-o", str(state.with_name("t.csv.gz"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n"
