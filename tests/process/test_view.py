"""`view`, as a browser shows it; `show` and `head`, as a terminal does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from batchrun.config import SweepOptions
from batchrun.display.page import is_page
from batchrun.display.view_page import ViewRow, view_page
from batchrun.local.workers import WorkerFailure
from batchrun.runs.exported import RunResults
from batchrun.state.reader import StateReader
from batchrun.state.store import Store
from tests.support.browser import Page, browsing
from tests.support.command import invoke
from tests.support.rehearsal import mixed_run, read_lines, rehearse, serving, write_lines
from tests.support.workers import Answering

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=http://192.0.2.1/x onerror=alert(1)>",
    "<svg onload=alert(1)><a href='javascript:alert(1)'>x</a></svg>",
    "</style><iframe src=http://192.0.2.1/></iframe><!--",
    "turned \u202e round \u2028 line \u2029 end \x00 \U000e0041 \u05e9\u05dc\u05d5\u05dd",
)
TOPICS = ("algebra", "physics", "history")


def answer(request: dict[str, Any]) -> Any:
    text = request["messages"][-1]["content"]
    if "broken" in text:
        return WorkerFailure(f"vLLM returned HTTP 400: {HOSTILE[0]}")
    temperature = request["sampling_params"]["temperature"]
    said = f"At {temperature}: {text}"
    message = {"role": "assistant", "content": said, "reasoning_content": f"Thinking of {text}"}
    usage = {"prompt_tokens": len(text), "completion_tokens": len(said) + int(10 * temperature)}
    return [{"choices": [{"index": 0, "finish_reason": "stop", "message": message}], "usage": usage}]


def is_wrong(row_id: str) -> bool:
    """At 0, every answer is right; at 0.7, those to every second question."""
    question, temperature = row_id[1:].split("/temperature=")
    return temperature == "0.7" and int(question) % 2 == 1


async def swept_run(folder: Path, texts: list[str]) -> Path:
    """A finished run over two temperatures, with scores."""
    lines = [
        {"id": f"q{n}", "messages": [{"role": "user", "content": text}], "metadata": {"topic": TOPICS[n % 3]}}
        for n, text in enumerate(texts)
    ]
    write_lines(folder, lines)
    sweep = SweepOptions(keys=(("temperature", (0, 0.7)),))
    async with serving(worker=Answering(answer)) as server:
        done = await rehearse(folder, server.endpoint.base_url, sweep=sweep)
    scores = [
        {"id": each["id"], "scorer": "exact", "value": float(not is_wrong(each["id"])), "extracted": "x",
         "reason": HOSTILE[1]}
        for each in done.results
    ]  # fmt: skip
    (folder / "out.scores.jsonl").write_text("".join(json.dumps(score) + "\n" for score in scores))
    return folder / "out.jsonl.state"


def written(state: Path, *options: object) -> Path:
    code, said = invoke("view", state, *options)
    assert code == 0, said
    return state.with_name("out.view.html")


async def ids(page: Page) -> list[str]:
    """The entries in sight, in order."""
    entries = "[...document.querySelectorAll('.entry')].sort((a, b) => a.dataset.at - b.dataset.at)"
    return await page.value(f"{entries}.map((entry) => entry.querySelector('.id').textContent)")


async def count(page: Page, text: str) -> None:
    await page.until(f"document.getElementById('count').textContent === {json.dumps(text)}")


async def heading(page: Page, text: str) -> None:
    await page.until(f"document.querySelector('.heading h2')?.textContent === {json.dumps(text)}")


async def test_hostile_rows_stay_text_and_nothing_leaves_the_page(tmp_path: Path):
    state = await swept_run(tmp_path, [*HOSTILE, f"broken {HOSTILE[0]}"])
    async with browsing(tmp_path) as page:
        await page.open(written(state).as_uri())
        await count(page, "12 rows")
        for _ in range(12):
            await page.press("j")
        await heading(page, "q5/temperature=0.7")
        assert HOSTILE[0] in await page.text(".error")
        await page.press("v")
        await count(page, "6 questions")
        for number in range(6):
            await page.press("Home", *("j" * number))
            await heading(page, f"q{number}")
            seen = await page.text("#right")
            if number < 4:
                assert seen.count(HOSTILE[number]) >= 3
        assert await page.value("document.querySelectorAll('svg, img, iframe, a, script[src]').length") == 0
        await page.press("Home", "j", "j", "j", "j")
        await heading(page, "q4")
        assert "turned U+202E round U+2028 line U+2029 end U+0000 U+E0041" in await page.text(".prompt")
        await page.value("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        assert page.said == []
        assert page.requests == []
        await page.value(
            "document.body.append(Object.assign(document.createElement('img'), {src: 'http://192.0.2.1/'}))"
        )
        await page.until("document.querySelectorAll('img').length")
        assert any("Content Security Policy" in text for text in page.said), "the policy is not in force"


async def test_rows_are_searched_filtered_sorted_and_compared_by_keys(tmp_path: Path):
    texts = [f"Question {n} about {'rain' if n % 2 else 'SNOW'}" + "." * n for n in range(12)]
    state = await swept_run(tmp_path, [*texts, "broken"])
    async with browsing(tmp_path) as page:
        await page.open(written(state).as_uri() + "#q3%2Ftemperature%3D0")
        await heading(page, "q3/temperature=0")  # the address leads to a row
        await count(page, "26 rows")
        await page.press("ArrowDown")
        await heading(page, "q3/temperature=0.7")
        await page.press("Home", "k")
        await heading(page, "q0/temperature=0")
        await page.press("End")
        await heading(page, "q12/temperature=0.7")

        await page.press("/", *"snow")
        await count(page, "12 of 26 rows")
        assert await page.value("document.querySelector('.said mark').textContent") == "SNOW"
        await page.press("Enter", "x")
        await count(page, "26 rows")
        await page.press("/", *"[.*")
        await count(page, "0 of 26 rows")
        assert "No row matches" in await page.text("#right")
        await page.press("Enter", "x")
        await count(page, "26 rows")

        await page.choose("#status", "failed")
        await count(page, "2 of 26 rows")
        assert await ids(page) == ["q12/temperature=0", "q12/temperature=0.7"]
        await page.choose("#status", "o0")
        await page.choose("#score", "0")
        await count(page, "6 of 26 rows")
        await page.choose("#field-0", "1")
        await count(page, "2 of 26 rows")
        await page.press("x")
        await page.value("document.querySelector('#variants input').click()")
        await count(page, "13 of 26 rows")
        assert "1 of 2" in await page.text("#variants summary")
        await page.value("document.getElementById('list').focus()")
        await page.press("x")

        await page.choose("#sort", "output")
        assert (await ids(page))[:2] == ["q11/temperature=0.7", "q10/temperature=0.7"]
        await page.value("document.getElementById('direction').click()")
        assert (await ids(page))[0] == "q0/temperature=0"
        await page.value("document.getElementById('list').focus()")
        await page.press("v")
        await count(page, "13 questions")
        await page.choose("#score", "differ")
        await count(page, "6 of 13 questions")
        await page.press("Home")
        columns = await page.value("[...document.querySelectorAll('.column h3')].map((each) => each.textContent)")
        assert columns == ["temperature=0", "temperature=0.7"]
        assert page.said == []

        await page.press("?")
        await page.until("document.getElementById('help').open")
        await page.press("Escape")
        await page.resize(400, 800)
        await page.press("Enter")
        assert await page.value("getComputedStyle(document.getElementById('right')).display") == "block"
        assert await page.value("document.documentElement.scrollWidth") <= 400
        await page.press("Escape")
        assert await page.value("getComputedStyle(document.getElementById('right')).display") == "none"
        colour = "getComputedStyle(document.body).backgroundColor"
        await page.prefer("dark")
        dark = await page.value(colour)
        await page.prefer("light")
        assert await page.value(colour) != dark
        await page.press("t")
        assert await page.value(colour) == dark


async def test_of_20_000_rows_only_those_in_sight_are_drawn(tmp_path: Path):
    said = "The answer is 42. " * 40
    texts = {"turns": [("user", said)], "answers": [said], "output": None, "reasoning": said, "parsed": None,
             "calls": None, "error": None, "scores": [], "fields": [], "facts": []}  # fmt: skip
    rows = (
        ViewRow(f"r{n}", (1, n), f"r{n}", "all", 0, None, (), n, n, 1.0, {}, [], said, said, texts)
        for n in range(20_000)
    )
    target = tmp_path / "page.html"
    target.write_bytes(b"".join(view_page(rows, [], {"title": "t", "subtitle": "s", "note": "a sample"})))
    async with browsing(tmp_path) as page:
        await page.open(target.as_uri())
        await count(page, "20,000 rows")
        assert await page.text("#note") == "a sample"
        assert 5 < await page.value("document.querySelectorAll('.entry').length") < 50
        await page.press("End")
        await heading(page, "r19999")
        assert (await ids(page))[-1] == "r19999"
        assert await page.value("document.querySelectorAll('script[type]').length") > 70, "blocks wait to be unpacked"
        await page.press("/", *"answer is")
        await count(page, "20,000 rows")
        target.write_bytes(target.read_bytes()[:-10_000])
        await page.open(target.as_uri())
        await page.press("End")
        await page.until("document.querySelector('#right').innerText.includes('the file of this page is cut off')")
        await page.press("Home")
        await heading(page, "r0")


async def test_a_page_is_replaced_but_no_file_of_the_run_and_no_other_file(tmp_path: Path):
    state = await mixed_run(tmp_path)
    page = written(state)
    first = page.read_bytes()
    assert is_page(first.split(b"\n")[0] + b"\n")
    written(state)
    (tmp_path / "notes.html").write_text("<p>mine")
    for target in ("out.jsonl", "in.jsonl", "out.jsonl.state", "notes.html"):
        code, said = invoke("view", state, "-o", tmp_path / target)
        assert (code, "Traceback" in said) == (2, False), said
    assert (tmp_path / "notes.html").read_text() == "<p>mine"


@pytest.mark.parametrize("command", [("view",), ("head",)])
async def test_a_run_in_which_nothing_has_ended_is_one_clear_line(tmp_path: Path, command: tuple[str, ...]):
    state = await mixed_run(tmp_path)
    with Store(state) as store, store.transaction() as db:
        db.execute("UPDATE rows SET state = 0")
        db.execute("DELETE FROM failures")
        db.execute("UPDATE outputs SET committed_bytes = 0")
    code, said = invoke(*command, state)
    assert code == 2
    assert "no row has ended yet" in said
    assert not state.with_name("out.view.html").exists()


@pytest.mark.parametrize("command", [("view",), ("head",), ("show",)])
def test_a_state_file_that_cannot_be_read_is_one_clear_line(tmp_path: Path, command: tuple[str, ...]):
    state = tmp_path / "out.jsonl.state"
    more = ("q1",) if command == ("show",) else ()
    code, said = invoke(*command, state, *more)
    assert (code, "there is no such state file" in said) == (2, True)
    state.write_text("no database")
    code, said = invoke(*command, state, *more)
    assert (code, "Traceback" in said, said.count("batchrun: ")) == (2, False, 1)


async def test_a_damaged_scores_file_is_one_clear_line(tmp_path: Path):
    state = await mixed_run(tmp_path)
    (tmp_path / "out.scores.jsonl").write_text("{}\n")
    for command in (("view", state), ("head", state), ("show", state, "r2")):
        code, said = invoke(*command)
        assert (code, "out.scores.jsonl:1" in said) == (2, True), said


async def test_unfinished_rows_are_counted_on_the_page_and_named_by_show(tmp_path: Path):
    state = await mixed_run(tmp_path)
    with Store(state) as store, store.transaction() as db:
        db.execute("DELETE FROM failures WHERE row = 4")
        db.execute("UPDATE rows SET state = 0 WHERE row = 4")
    code, said = invoke("view", state)
    assert (code, "11 rows written to" in said, "(1 not finished)" in said) == (0, True, True)
    code, said = invoke("show", state, "r4")
    assert (code, "not submitted yet" in said) == (0, True)


async def test_show_and_head_say_what_was_asked_answered_and_scored(tmp_path: Path):
    state = await swept_run(tmp_path, ["one", "two \x1b[31m", "broken"])
    code, said = invoke("show", state, "q1/temperature=0.7")
    assert code == 0
    for part in (
        "user\n  two \\x1b[31m",
        "reasoning\n  Thinking of two",
        "answer\n  At 0.7: two",
        "exact  ",
        "metadata.topic",
    ):
        assert part in said
    code, said = invoke("show", state, "q0")
    assert (code, said.count("\nanswer\n")) == (0, 2)
    code, said = invoke("show", state, "q2/temperature=0")
    assert (code, "error: " in said) == (0, True)
    with StateReader(state) as store:
        failed = [row.row for row, *_ in store.failures()]
    with RunResults(state, with_results=False, with_errors=True, errors_of=failed[1:]) as results:
        assert (len(failed), len(list(results.lines()))) == (2, 1), "of many failures only that of the row is read"
    code, said = invoke("show", state, "q0", "--json")
    found = [json.loads(line) for line in said.splitlines()]
    assert [each["variant"] for each in found] == ["temperature=0", "temperature=0.7"]
    assert found[0]["scores"][0]["value"] == 1
    code, said = invoke("show", state, "q9")
    assert (code, "has no row with the id" in said) == (2, True)

    code, said = invoke("head", state, "-n", "2")
    assert code == 0
    assert [line[:18] for line in said.splitlines()] == [
        "q0/temperature=0 ·", "  ? one", "  > At 0: one", "q0/temperature=0.7", "  ? one", "  > At 0.7: one",
    ]  # fmt: skip
    code, said = invoke("head", state, "--failed")
    assert (code, said.count("  ? broken")) == (0, 2)
    assert read_lines(tmp_path / "out.jsonl")
