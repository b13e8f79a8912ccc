"""batchrun in somebody else's program: nothing of the process is another afterwards."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.command import KEYED
from tests.support.jobs import jobs_run
from tests.support.rehearsal import read_lines

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import asyncio, gc, logging, os, resource, signal, socket, sys, threading, time, warnings
import batchrun

url, folder = sys.argv[1:3]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

def mine(*_):
    pass

def run(name, count=20, **more):
    return batchrun.run(
        [{"prompt": f"{name} {n}"} for n in range(count)],
        endpoint="abc", base_url=url, output=f"{folder}/{name}.jsonl", progress="plain", **more
    )

def umask():
    now = os.umask(0)
    os.umask(now)
    return now

def wakeup_fd():
    now = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(now)
    return now

def picture():
    return {
        "handlers": [signal.getsignal(number) for number in SIGNALS],
        "wakeup fd": wakeup_fd(),
        "gc": (gc.get_threshold(), gc.get_freeze_count()),
        "logging": (logging.root.handlers[:], logging.root.level, logging.getLogger("asyncio").level),
        "warnings": warnings.filters[:],
        "hooks": (sys.excepthook, threading.excepthook, sys.stderr, sys.stdout),
        "policy": asyncio.get_event_loop_policy(),
        "loop": asyncio.get_event_loop_policy().get_event_loop(),
        "umask": umask(),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "limits": resource.getrlimit(resource.RLIMIT_NOFILE),
        "threads": {thread.name for thread in threading.enumerate()} - {"printer"},
    }

for number in SIGNALS:
    signal.signal(number, mine)
ours, theirs = socket.socketpair()
theirs.setblocking(False)
signal.set_wakeup_fd(theirs.fileno())
asyncio.set_event_loop(asyncio.new_event_loop())
"""
UNCHANGED = {
    "in the main thread": 'run("a")',
    "in a running event loop": """
async def cell():
    run("a")
asyncio.run(cell(), debug=False)
asyncio.set_event_loop(before["loop"])
signal.set_wakeup_fd(before["wakeup fd"])
""",
    "twice at once in threads": """
threads = [threading.Thread(target=run, args=(name,)) for name in "ab"]
for thread in threads: thread.start()
for thread in threads: thread.join()
""",
    "in two streams at once": """
async def stream(name):
    requests = [f"{name} {n}" for n in range(20)]
    async for record in batchrun.stream(requests, endpoint="abc", base_url=url, state=f"{folder}/{name}.state"):
        pass
async def both():
    await asyncio.gather(stream("a"), stream("b"))
asyncio.run(both())
asyncio.set_event_loop(before["loop"])
signal.set_wakeup_fd(before["wakeup fd"])
""",
}
COMPARED = """
until = time.monotonic() + 10
while (after := picture())["threads"] != before["threads"] and time.monotonic() < until:
    time.sleep(0.01)  # a thread that is ending has a moment for it
print([name for name in before if before[name] != after[name]])
"""


def program(base_url: str, folder: Path, body: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM + body, base_url, str(folder)],
        capture_output=True,
        text=True,
        env=KEYED,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("where", UNCHANGED)
def test_nothing_global_is_another_after_a_run(tmp_path: Path, base_url: str, where: str):
    done = program(base_url, tmp_path, f"before = picture()\n{UNCHANGED[where]}\n{COMPARED}")
    assert done.stdout == "[]\n", done.stderr
    assert jobs_run(base_url) in (20, 40)


FORKED = """
def fork_later():
    pid = os.fork()
    if pid == 0:
        print("a child that was forked ends", flush=True)
        sys.exit(0)
    os.waitpid(pid, 0)

thread = threading.Thread(target=run, args=("a", 300), kwargs={"concurrency": 20})
thread.start()
while not os.path.exists(f"{folder}/a.jsonl") or not os.path.getsize(f"{folder}/a.jsonl"):
    pass
fork_later()
thread.join()
"""


def test_a_child_that_is_forked_during_a_run_ends_by_itself_and_harms_nothing(tmp_path: Path, base_url: str):
    done = program(base_url, tmp_path, FORKED)
    assert (done.returncode, done.stdout) == (0, "a child that was forked ends\n"), done.stderr
    assert len(read_lines(tmp_path / "a.jsonl")) == jobs_run(base_url) == 300


def test_everything_is_said_in_order_before_a_run_returns(tmp_path: Path, base_url: str):
    done = program(base_url, tmp_path, 'run("a")\nprint("after", file=sys.stderr)')
    first, *_, last, after = done.stderr.splitlines()
    assert first == "20 rows, 0 already done"
    assert ": 20/20, " in last
    assert after == "after"
