"""The report's page, as a browser sees it."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import orjson
import pytest

from batchrun.state.figures import sessions
from batchrun.state.store import Store
from tests.support.command import BATCHRUN
from tests.support.rehearsal import mixed_run

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = "<script>alert(1)</script><img src=http://192.0.2.1/x>"


def report(state: Path, target: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [*BATCHRUN, "report", str(state), "--html", str(target)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environ or None)


def look(browser: str, page: Path) -> subprocess.CompletedProcess[str]:
    """Open the page; the screenshot stands beside it."""
    folder = page.parent
    return subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
         "--window-size=1000,2400", f"--screenshot={folder / 'page.png'}", "--dump-dom", page.as_uri(),
         "--enable-logging=stderr", "--proxy-server=127.0.0.1:9"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip


async def test_the_page_draws_in_a_browser_and_what_workers_say_stays_text(tmp_path: Path):
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("there is no chromium to look at the page with")
    state, page = await mixed_run(tmp_path), tmp_path / "page.html"
    with Store(state) as store, store.transaction() as db:
        db.execute("UPDATE failures SET message = ?", (HOSTILE,))
        start_ms = sessions(store)[0][0]
        points = [[start_ms + n * 60_000, 50 + n % 7, 40 + n % 5, 30, n * n, n, 0] for n in range(60)]
        db.execute("INSERT OR REPLACE INTO settings VALUES ('timeline', ?)", (orjson.dumps(points),))
    done = report(state, page)
    assert done.returncode == 0, done.stderr
    seen = look(browser, page)
    assert "CONSOLE" not in seen.stderr
    assert "<script" not in seen.stdout
    assert "<img" not in seen.stdout
    assert not re.search(r"href=\"(?!#)|url\((?!#)|@import", seen.stdout)
    assert "&lt;script&gt;alert(1)" in seen.stdout
    assert seen.stdout.count('class="wide"') == 5


async def test_without_the_extra_one_line_says_how_to_get_it(tmp_path: Path):
    (tmp_path / "none" / "matplotlib").mkdir(parents=True)
    (tmp_path / "none" / "matplotlib" / "__init__.py").write_text("raise ImportError\n")
    done = report(await mixed_run(tmp_path), tmp_path / "page.html", PYTHONPATH=str(tmp_path / "none"))
    assert done.returncode == 2
    assert "pip install 'runpod-batchrun[report]'" in done.stderr
    assert "Traceback" not in done.stderr


async def test_the_page_is_never_written_over_a_file_of_the_run(tmp_path: Path):
    state = await mixed_run(tmp_path)
    done = report(state, tmp_path / "out.jsonl")
    assert done.returncode == 2
    assert "a file of the run itself" in done.stderr
