"""How long a browser takes to show the page of a run, and how large the page is."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from batchrun.display.view_page import ViewRow, view_page
from tests.bench.figures import Asked, Figure, Figures, one
from tests.support.browser import browsing

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROWS = 20_000
_WORDS = {"prompt": 150, "answer": 200, "reasoning": 400}
"""Random words, which hardly compress."""


def pages(asked: Asked) -> Figures:
    """A page of 20,000 rows of 5 kB each, of two variants, from its opening to its first rows."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        page = Path(name) / "page.html"
        page.write_bytes(b"".join(view_page(_rows(), [], {"title": "bench", "subtitle": "", "note": ""})))
        shown = [asyncio.run(_shown_ms(page, Path(tempfile.mkdtemp(dir=name)))) for _ in range(asked.rounds)]
        size_mb = page.stat().st_size / 1e6
    return {"20,000 rows shown, ms": Figure(shown, "<= 2,000"), "the page, MB": one(size_mb)}


async def _shown_ms(page: Path, folder: Path) -> float:
    async with browsing(folder) as browser:
        await browser.open(page.as_uri())
        return float(await browser.value("document.documentElement.dataset.shown"))


def _rows() -> Iterator[ViewRow]:
    random = Random(0)
    words = ["".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=random.randint(2, 10))) for _ in range(5000)]
    for number in range(_ROWS):
        prompt, answer, reasoning = (" ".join(random.choices(words, k=count)) for count in _WORDS.values())
        texts = {"turns": [("user", prompt)], "answers": [answer], "output": None, "reasoning": reasoning,
                 "parsed": None, "calls": None, "error": None, "scores": [], "fields": [], "facts": []}  # fmt: skip
        yield ViewRow(
            id=f"q{number // 2}/temperature={number % 2}",
            question=(1, number // 2),
            question_id=f"q{number // 2}",
            variant=f"temperature={number % 2}",
            sample=0,
            outcome=None,
            marks=(),
            input_tokens=number,
            output_tokens=number,
            execution_ms=1.0,
            scores={"exact": float(number % 3 == 0)},
            fields=[("metadata.topic", str(number % 7))],
            prompt=prompt,
            answer=answer,
            texts=texts,
        )
