"""The report's page, as a browser sees it, and what it says."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import orjson
import pytest

from batchrun.commands import report as reporting
from batchrun.commands import report_page
from batchrun.evaluation.quality import Group, Quality, VariantQuality
from batchrun.evaluation.statistics import Interval
from batchrun.state.figures import sessions
from batchrun.state.store import Store
from tests.support.command import BATCHRUN
from tests.support.rehearsal import mixed_run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOSTILE = "<script>alert(1)</script><img src=http://192.0.2.1/x><svg onload=alert(1)>\u202e"
HOUR_MS = 3_600_000


def report(state: Path, target: Path) -> subprocess.CompletedProcess[str]:
    command = [*BATCHRUN, "report", str(state), "--html", str(target)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@contextmanager
def proxy() -> Iterator[tuple[int, list[bytes]]]:
    """A proxy that answers nothing; its port, and the beginning of each request that it was sent."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                with client:
                    asked.append(client.recv(4096))

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        yield server.getsockname()[1], asked
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def browse(page: Path, *options: str, port: int = 9) -> subprocess.CompletedProcess[str]:
    """Open a page in a browser."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("there is no Chromium to open the page")
    return subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'profile'}",
         "--enable-logging=stderr", f"--proxy-server=127.0.0.1:{port}", *options, page.as_uri()],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip


async def eventful_run(folder: Path) -> Path:
    """A run in two sessions with a night between them, with failures, whose ids and messages are hostile."""
    state = await mixed_run(folder)
    with Store(state) as store, store.transaction() as db:
        db.execute("UPDATE failures SET message = ?, kind = kind || ?", (HOSTILE, HOSTILE))
        db.execute("UPDATE rows SET id = id || ? WHERE row > 8", (HOSTILE,))
        start_ms = sessions(store)[0][0]
        spans = [(start_ms, start_ms + HOUR_MS), (start_ms + 12 * HOUR_MS, start_ms + 13 * HOUR_MS)]
        db.execute("UPDATE sessions SET seen_ms = ?", (spans[0][1],))
        db.execute("INSERT INTO sessions (pid, started_ms, seen_ms, outcome) VALUES (1, ?, ?, 'finished')", spans[1])
        moments = [at for start, end in spans for at in range(start, end, 60_000)]
        points = [[at, 50 + n % 7, 40 + n % 5, 30, n * n, n, 9 * n] for n, at in enumerate(moments)]
        db.execute("INSERT OR REPLACE INTO settings VALUES ('timeline', ?)", (orjson.dumps(points),))
        db.execute("UPDATE jobs SET delay_ms = 20 * job, execution_ms = 300 + job * job * job")
    return state


async def test_the_page_draws_in_a_browser_and_asks_for_nothing(tmp_path: Path):
    state, page, outer = await eventful_run(tmp_path), tmp_path / "page.html", tmp_path / "outer.html"
    done = report(state, page)
    assert done.returncode == 0, done.stderr
    # The picture proves that the proxy sees what a page loads, and the frames that the page fits their widths.
    frames = "".join(f'<iframe src="page.html" width="{width}" height="900"></iframe>' for width in (400, 1200))
    outer.write_text(
        f"<img src='http://192.0.2.2/seen'>{frames}<pre></pre><script>onload = () => {{"
        " for (const frame of document.querySelectorAll('iframe')) { const d = frame.contentDocument;"
        " const root = d.documentElement;"
        " document.querySelector('pre').textContent += `${root.scrollWidth}/${root.clientWidth} "
        "${d.querySelectorAll('script, img, [onload], [style]').length} ${d.querySelectorAll('svg.plot').length} "
        "${getComputedStyle(d.querySelector('section')).borderTopLeftRadius};` } }</script>"
    )
    with proxy() as (port, asked):
        seen = browse(outer, "--dump-dom", "--allow-file-access-from-files", port=port)
    assert "<pre>385/385 0 6 10px;1185/1185 0 6 10px;</pre>" in seen.stdout
    assert "page.html" not in "".join(line for line in seen.stderr.splitlines() if "CONSOLE" in line)
    assert any(b"192.0.2.2/seen" in request for request in asked)
    assert not any(b"192.0.2.1" in request for request in asked)
    text = page.read_text()
    assert "&lt;script&gt;alert(1)" in text
    assert "\u202e" not in text
    assert "unsafe" not in text
    assert not re.search(r"href=\"(?!#)|url\((?!#)|@import|src=\"", text)


async def test_the_page_is_printed_on_a4(tmp_path: Path):
    state, page, paper = await eventful_run(tmp_path), tmp_path / "page.html", tmp_path / "page.pdf"
    assert report(state, page).returncode == 0
    browse(page, f"--print-to-pdf={paper}", "--no-pdf-header-footer")
    sizes = {
        tuple(map(round, map(float, box.split()))) for box in re.findall(rb"/MediaBox \[([^\]]*)\]", paper.read_bytes())
    }
    assert sizes == {(0, 0, 595, 842)}


async def test_the_page_says_what_ran_and_what_became_of_it(tmp_path: Path):
    state, page = await eventful_run(tmp_path), tmp_path / "page.html"
    (tmp_path / "out.view.html").write_text("the answers")
    assert report(state, page).returncode == 0
    text = page.read_text()
    for said in (
        "<h1>3 of 12 rows failed</h1>", "<dt>endpoint</dt><dd>local</dd>", "<dt>model</dt><dd>echo</dd>",
        "<dt>input</dt><dd>in.jsonl</dd>", "UTC (finished, after 2 sessions)", "pause of 11 h 00 min",
        "Rows per second", "Output tokens per", "Jobs in flight", "Time in the queue", "Execution time",
        "Failures by kind", "Failures over time", 'href="out.view.html"', "Rows with the longest execution",
    ):  # fmt: skip
        assert said in text, said


async def test_scores_are_the_finding(tmp_path: Path):
    state, page = await mixed_run(tmp_path), tmp_path / "page.html"
    table = reporting.read(state)
    scored = VariantQuality("all", {}, 9, 3, 6, Interval(0.66, 0.5, 0.82, 9), cost_per_right=0.02)
    table.quality.append(Quality("exact", Group(None, [scored], [])))
    report_page.write(table, page)
    text = page.read_text()
    assert "<h1>The mean score is 66.0% <small>(95% interval 50.0% to 82.0%, 9 questions)</small></h1>" in text
    assert "By the scorer &#x27;exact&#x27;. 3 of 12 rows failed." in text
    assert "3 rows could not be scored" in text
    assert "cost per right answer" in text


async def test_a_run_without_rows_has_a_page(tmp_path: Path):
    state, page = await mixed_run(tmp_path), tmp_path / "page.html"
    with Store(state) as store, store.transaction() as db:
        for table in ("failures", "jobs", "rows", "sessions", "sources"):
            db.execute(f"DELETE FROM {table}")
        db.execute("UPDATE outputs SET committed_bytes = 0")
        db.execute("DELETE FROM settings WHERE name = 'timeline'")
    done = report(state, page)
    assert done.returncode == 0, done.stderr
    assert "<h1>The run has no rows yet</h1>" in page.read_text()


async def test_the_page_is_never_written_over_a_file_of_the_run(tmp_path: Path):
    state = await mixed_run(tmp_path)
    done = report(state, tmp_path / "out.jsonl")
    assert done.returncode == 2
    assert "a file of the run itself" in done.stderr
