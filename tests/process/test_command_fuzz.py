"""Whatever is on the command line, in the environment or in a run file: one clear line and an exit code."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import shutil
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from batchrun.cli.app import main
from batchrun.commands import serve
from batchrun.local.echo import EchoWorker
from batchrun.local.server import LocalEndpoint, LocalOptions

CODES = {0, 2, 3, 4, 130}
HANG_S = 60

NUMBERS = [
    *("nan", "inf", "-inf", "-nan", "Infinity", "-1", "-0", "0", "1", "7", "2.5", "1e400", "1e-400", "1e30", "0x10"),
    *("1_000", "\u0663", "\u00bd", "9" * 5000, "-" + "9" * 5000, "0." + "1" * 5000, "1" + "0" * 30),
    *(str(2**31), str(2**63 - 1), str(2**63), str(2**64), "auto", "off", "50%", "nan%", "-1%", "1e9%", "101%"),
    *("1/1", "0/0", "2/1", "1/99999999999", "1h", "0s", "-1h", "1e9h", "99999999d", "9" * 400 + "d", "1s1s", "1h 30m"),
]
DEEP = "[" * 1000 + "]" * 1000
PAIRS = [
    *("k", "=v", "k=", "k=v", "temperature=0", "temperature=nan", "temperature=1e400", "stream=true", "n=1,,2"),
    *(f"top_k={DEEP}", f"seed={'[' * 300}{']' * 300}", f"stop={'[' * 120}{']' * 120}", "k=" + "[" * 5000),
    *(f"n={'9' * 5000}", "seed=[]", "seed={}", "seed=1,1", "endpoint=a b", "endpoint=local", "endpoint=a,b"),
    *("input." + "a." * 500 + "b=1", "input..a=1", "body.x=[null]", "\udcff=1", "stop=\udcff", "stop=a\u0000b"),
]
URLS = [
    *("http://[::1", "http://[::1]:1/v2", "http://host:abc/v2", "http://127.0.0.1:99999/v2", "http://127.0.0.1:0/v2"),
    *("http://127.0.0.1:-1/", "http://user:pw@127.0.0.1:1/v2", "http://" + "a" * 300, "http://a..b/", "http:///x"),
    *("http://", "https://", "HTTP://127.0.0.1:1", "ftp://x", "//127.0.0.1", "http://127.0.0.1:1/?a=b", "http://x y/"),
    *("http://127.0.0.1:1/#f", "http://\udcff/", "http://127.0.0.1:1/\n", "http://<>/", "http://%zz/", "http://a\\b/"),
    *("http://127.0.0.1:1/" + "a" * 5000, "http://[v1.x]/", "http://[fe80::1%25lo]:1/", "http://\u2603:1/", "http://?"),
]
PATHS = [
    *("", " ", "-", "--", ".", "..", "/", "./", "../", "~", "~nobody-at-all/x", "a" * 300, "a" * 250, "a/" * 3000),
    *(
        "\udcff",
        "\udcff.jsonl",
        "\u202e.jsonl",
        "\x1b[31m",
        "a\nb",
        "loop",
        "loop/x",
        "folder",
        "folder/",
        "in.jsonl",
        "in.jsonl/x",
    ),
    *("run.jsonl.state", "run.jsonl", "broken.jsonl", "dangling", "/dev/null", "/dev/full", "/proc/self/mem"),
    *("/dev/stdin", "none", "none/none", "*", "$HOME", "file:///etc/passwd", "nul\0"),
]
WORDS = ["ep", "local", "a/b", "json", "none", "echo", "smollm2", "openai", "timed_out", "TRUE", "127.0.0.1", "::1"]
texts = st.one_of(
    *map(st.sampled_from, (NUMBERS, PAIRS, URLS, PATHS, WORDS)),
    st.text(max_size=8),
    st.floats().map(str),
    st.integers().map(str),
)


def takes(parameter: click.Parameter) -> st.SearchStrategy:
    """Values for a parameter: mostly such as it may be confused by."""
    kind = parameter.type
    if isinstance(kind, click.Choice):
        return st.sampled_from(list(kind.choices)) | texts
    if isinstance(kind, (click.FloatRange, click.IntRange)):
        return st.sampled_from(NUMBERS) | texts
    if isinstance(kind, click.Path):
        return st.sampled_from(PATHS) | texts
    if "url" in str(parameter.metavar or "").lower():
        return st.sampled_from(URLS) | texts
    if "=" in str(parameter.metavar or ""):
        return st.sampled_from(PAIRS) | texts
    return texts


def base_of(command: str, url: str) -> dict[str, list[str]]:
    """Parameter -> how it is given, of a command that does its work at once."""
    there = {"endpoint": ["-e", "ep"], "base_url": ["--base-url", url], "progress": ["--progress", "none"]}
    run = {"deadline": ["--deadline", "2s"], "run_limit": ["--run-limit", "0"], "status_limit": ["--status-limit", "0"]}
    state = {"state": ["run.jsonl.state"]}
    return {
        "run": {"inputs": ["in.jsonl"], "output": ["-o", "out.jsonl"], **there, **run},
        "estimate": {"inputs": ["in.jsonl"], "output": ["-o", "out.jsonl"], **there, **run, "pilot": ["--pilot", "2"]},
        "watch": {"folder": ["folder"], "output": ["-o", "out"], **there, **run}
        | {"until_empty": ["--until-empty"], "settle": ["--settle", "0.01s"]},
        "resume": {**state, "progress": ["-q"], "deadline": ["--deadline", "2s"]},
        "redo": {**state, "progress": ["-q"], "deadline": ["--deadline", "2s"]}
        | {"where": ["--where", "id=a"], "yes": ["--yes"]},
        "cancel": {**state, "progress": ["-q"]},
        "stop": state,
        "tune": {**state, "pause": ["--pause"]},
        "status": state,
        "ls": {"folders": ["."]},
        "cache": {"file": ["answers.cache"]},
        "verify": {"states": ["run.jsonl.state"]},
        "merge": {"states": ["run.jsonl.state"], "output": ["-o", "merged.jsonl"]},
        "export": {**state, "output": ["-o", "exported.jsonl"]},
        "report": state,
        "view": {**state, "output": ["-o", "page.html"]},
        "show": {**state, "row_id": ["a"]},
        "head": state,
        "score": {**state, "scorer": ["--with", "exact"]},
        "check": {"inputs": ["in.jsonl"]},
        "serve": {"port": ["--port", "0"]},
        "help": {"topic": ["sweeps"]},
    }[command]


STAYS = {"until_empty", "settle"}
"""What keeps a watch from waiting for ever is never left out."""


@st.composite
def usages(draw) -> tuple[str, dict[str, list[str]], dict[str, str], dict[str, str], bool]:
    """A command, what is given on its line, in its environment and in its run file, and whether it has a home."""
    command = draw(st.sampled_from(sorted(main.commands)))
    parameters = [each for each in main.commands[command].params if each.name != "help"]
    line: dict[str, list[str]] = {}
    environ: dict[str, str] = {}
    file: dict[str, str] = {}
    chosen = draw(st.lists(st.sampled_from(parameters), min_size=1, max_size=3, unique_by=lambda each: each.name))
    for parameter in chosen:
        name = str(parameter.name)
        if name in STAYS:
            continue
        if isinstance(parameter, click.Option) and parameter.is_flag:
            line[name] = [draw(st.sampled_from([*parameter.opts, *parameter.secondary_opts]))]
            continue
        value = draw(takes(parameter))
        way = draw(st.sampled_from(["line", "line", "environ", "file"]))
        if way == "file" and command in ("run", "watch") and name != "config":
            key = max(parameter.opts, key=len).removeprefix("--")
            many = parameter.multiple or parameter.nargs == -1
            file[key] = draw(st.sampled_from([_toml(value, many=many), *RAW_TOML]))
            line[name] = []
        elif way == "environ" and isinstance(parameter, click.Option) and "\0" not in value:
            environ[f"BATCHRUN_{name.upper()}"] = value
            line[name] = []
        elif "\0" not in value:
            options = parameter.opts if isinstance(parameter, click.Option) else []
            line[name] = [*([draw(st.sampled_from(options))] if options else []), value]
    return command, line, environ, file, draw(st.booleans())


RAW_TOML = [
    "nan",
    "-inf",
    "1" * 5000,
    "true",
    "[]",
    "[1]",
    "{}",
    "1979-05-27",
    DEEP,
    "'''\n'''",
    "{a = {b = [1]}}",
    "x",
]


def _toml(value: str, *, many: bool) -> str:
    text = json.dumps(value).replace("\x7f", "\\u007f")
    return f"[{text}]" if many else text


class Counted:
    """A local endpoint in a thread, which counts what it is sent."""

    def __init__(self) -> None:
        self.jobs = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.endpoint = LocalEndpoint(LocalOptions(workers=4), EchoWorker(), intercept=self._count)
        self._do(self.endpoint.start())

    def _do(self, work) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    async def _count(self, request) -> None:
        self.jobs += request.path.split("/")[3:4] == ["run"]

    def close(self) -> None:
        self._do(self.endpoint.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="module")
def server():
    counted = Counted()
    yield counted
    counted.close()


@pytest.fixture(scope="module")
def template(server, tmp_path_factory):
    """A folder with a finished run, and what paths can go wrong on."""
    folder = tmp_path_factory.mktemp("template")
    (folder / "in.jsonl").write_text('{"id": "a", "prompt": "x"}\n"y"\n')
    (folder / "broken.jsonl").write_text('{"id": 1')
    (folder / "\udcff.jsonl").write_text('"x"\n')
    (folder / "folder").mkdir()
    (folder / "folder" / "f.jsonl").write_text('"z"\n')
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nowhere/at/all")
    with in_folder(folder, {}):
        base = base_of("run", server.endpoint.base_url) | {"output": ["-o", "run.jsonl"]}
        done = invoke(["run", *(part for parts in base.values() for part in parts)])
    assert done.exit_code == 0, done.stderr
    return folder


@contextmanager
def in_folder(folder: Path, environ: dict[str, str]):
    before, was = dict(os.environ), Path.cwd()
    for name in [*os.environ]:
        if name.startswith(("BATCHRUN_", "RUNPOD_")):
            del os.environ[name]
    os.environ |= {"RUNPOD_API_KEY": "rpa_FUZZ", "HOME": str(folder), **environ}
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(was)
        os.environ.clear()
        os.environ |= before


class HangError(BaseException):
    """A command that does not end."""


def invoke(arguments: list[str]):
    def hang(*_: object) -> None:
        raise HangError(arguments)

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(HANG_S)
    try:
        return CliRunner().invoke(main, arguments, prog_name="batchrun")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        gc.unfreeze()
        for handler in logging.getLogger().handlers[:]:
            if isinstance(handler, logging.FileHandler):
                handler.close()
                logging.getLogger().removeHandler(handler)


def end_detached(said: str) -> None:
    """End the process that `--detach` has left, if this is what it said."""
    with suppress(ValueError, TypeError, KeyError, ProcessLookupError):
        pid = json.loads(said)["pid"]
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


async def serve_shortly(options, worker, _tell) -> None:
    async with LocalEndpoint(options, worker):
        pass


def assert_clear(usage, done, sent: int) -> None:
    command = usage[0]
    shown = f"{usage}\n{done.stdout[-500:]}\n{done.stderr[-2000:]}"
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise AssertionError(shown) from done.exception
    assert done.exit_code in CODES | ({1} if command == "verify" else set()), shown
    assert "Traceback" not in done.stderr, shown
    if done.exit_code == 2 and not (command == "check" and done.stdout):
        assert sum(line.startswith("batchrun: ") for line in done.stderr.split("\n")) == 1, shown
        assert sent == 0, shown
        assert len(done.stderr) < 8000, shown


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")  # by --detach
@example(("run", {"detach": ["--detach"], "run_limit": ["--run-limit", "1"]}, {}, {}, True))
@given(usages())
@settings(max_examples=80, suppress_health_check=[*HealthCheck])
def test_any_usage_is_one_clear_line_and_an_exit_code_that_says_what_happened(
    server, template, tmp_path_factory, monkeypatch, usage
):
    monkeypatch.setattr(serve, "_serve", serve_shortly)
    monkeypatch.setitem(sys.modules, "xllamacpp", None)  # the real model takes seconds to load
    command, line, environ, file, has_home = usage
    folder = tmp_path_factory.mktemp("fuzz") / "f"
    shutil.copytree(template, folder, symlinks=True)
    given_ = base_of(command, server.endpoint.base_url) | line
    if file:
        (folder / "run.toml").write_text("".join(f"{key} = {value}\n" for key, value in file.items()))
        given_["config"] = ["--config", "run.toml"]
    before = server.jobs
    with in_folder(folder, environ):
        if not has_home:
            del os.environ["HOME"]
        done = invoke([command, *(part for parts in given_.values() for part in parts)])
    if "--detach" in line.get("detach", ()):
        end_detached(done.stdout)
    shutil.rmtree(folder.parent)
    assert_clear(usage, done, server.jobs - before)
