"""Rows that have ended are run again in the same run: their old results are kept aside, and all of it is proven."""

from __future__ import annotations

import time
from random import Random
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from batchrun.commands import verify as verification
from batchrun.config import RequestOptions, SweepOptions
from batchrun.errors import InputError, StateError, UsageError
from batchrun.local.workers import WorkerFailure
from batchrun.prompts.sources import is_own_file, is_prompt_file
from batchrun.results.conditions import Conditions
from batchrun.runs.choosing import Selection, choose
from batchrun.runs.closing import conclude
from batchrun.runs.driving import drive
from batchrun.runs.opening import open_run
from batchrun.runs.superseding import Redo
from batchrun.scheduler.states import RowState
from batchrun.state.lock import StateLock
from batchrun.state.store import Store
from tests.support.claims import assert_adds_up, assert_each_id_once
from tests.support.command import invoke
from tests.support.rehearsal import Listener, hurried, options_for, read_lines, serving, write_lines
from tests.support.workers import Answering, Picky

if TYPE_CHECKING:
    from pathlib import Path

    from batchrun.display.summary import Summary
    from batchrun.runs.choosing import Chosen
    from tests.support.rehearsal import Server

ROWS = 6
NEEDED = 40
"""The tokens of a whole answer."""
PROMPTS = [
    {"id": f"r{n}", "prompt": f"p{n}", "max_tokens": 8 if n % 3 == 0 else 64, "metadata": {"n": n}} for n in range(ROWS)
]
CUT = ("finish_reason=length",)


def limited(request: dict[str, Any]) -> Any:
    """An answer that is cut off at the request's limit, or refused if that is too large."""
    inner = request.get("openai_input") or request.get("sampling_params", {})
    most = inner.get("max_tokens", 16)
    if most > 1000:
        return WorkerFailure("vLLM returned HTTP 400: max_tokens is too large")
    reason, tokens = ("length", most) if most < NEEDED else ("stop", NEEDED)
    text = f"{request.get('prompt') or inner['prompt']}: {tokens}"
    usage = {"prompt_tokens": 1, "completion_tokens": tokens}
    return [{"choices": [{"text": text, "finish_reason": reason, "index": 0}], "usage": usage}]


async def session(folder: Path, server: Server, redo: Redo | None = None, **given: Any) -> tuple[Summary, Listener]:
    """One session."""
    listener = Listener()
    repair, options = given.pop("repair", False), options_for(folder, **given)
    with open_run(options, listener, clock=hurried, wall=time.time, repair=repair, redo=redo) as run:
        summary = conclude(run, await drive(run, server.endpoint.base_url, Random(0)))
    assert summary.exit_code in (0, 3), summary.reason
    return summary, listener


def chosen(folder: Path, *where: str, **given: Any) -> Chosen:
    ids = given.pop("ids", None)
    named = None if ids is None else [(f"ids:{number}", row_id) for number, row_id in enumerate(ids, 1)]
    return choose(folder / "out.jsonl.state", Selection(Conditions(where), named, **given))


def texts(path: Path) -> dict[str, str]:
    records = read_lines(path)
    assert len({record["id"] for record in records}) == len(records)
    return {record["id"]: record["text"] for record in records}


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


async def test_cut_off_answers_are_asked_for_again_with_more_and_the_old_ones_are_kept_aside(tmp_path: Path):
    write_lines(tmp_path, PROMPTS)
    results, aside = tmp_path / "out.jsonl", tmp_path / "out.superseded.jsonl"
    async with serving(worker=Answering(limited)) as server:
        before, _ = await session(tmp_path, server)
        assert before.truncated == 2
        old = [line for line in lines_of(results) if b'"length"' in line]
        kept = [line for line in lines_of(results) if b'"length"' not in line]
        rows = chosen(tmp_path, *CUT)
        assert (rows.rows, rows.jobs(amended=False), rows.succeeded, rows.failed) == (2, 2, 2, 0)
        summary, listener = await session(tmp_path, server, Redo(rows, {"max_tokens": 64}))
        assert server.seen["run"] == ROWS + 2
    assert lines_of(aside) == old
    assert lines_of(results)[: len(kept)] == kept
    assert texts(results) == {f"r{n}": f"p{n}: {NEEDED}" for n in range(ROWS)}
    assert {record["job"]["attempts"] for record in read_lines(results) if record["id"] in ("r0", "r3")} == {2}
    assert (summary.succeeded, summary.truncated, summary.exit_code) == (ROWS, 0, 0)
    assert f"old results moved to {aside}: 2" in listener.messages
    found = assert_adds_up(tmp_path / "out.jsonl.state")
    assert (found.results, found.compared, found.superseded) == (ROWS, ROWS, 2)
    manifest = orjson.loads((tmp_path / "out.manifest.json").read_bytes())
    assert [entry["size_bytes"] for entry in manifest["superseded"]] == [aside.stat().st_size]


async def test_a_row_keeps_what_was_set_for_it_alone_in_every_later_session(tmp_path: Path):
    write_lines(tmp_path, PROMPTS)
    sent: list[tuple[str, dict[str, Any]]] = []

    def noted(request: dict[str, Any]) -> Any:
        sent.append((request["prompt"], request["sampling_params"]))
        return limited(request)

    results = tmp_path / "out.jsonl"
    async with serving(worker=Answering(noted)) as server:
        await session(tmp_path, server)
        sent.clear()
        await session(tmp_path, server, Redo(chosen(tmp_path, "id=r0"), {"max_tokens": 2000, "temperature": 0.5}))
        assert sent == [("p0", {"max_tokens": 2000, "temperature": 0.5})]
        await session(tmp_path, server, Redo(chosen(tmp_path, failed=True), {"max_tokens": 99}))
        assert sent[1:] == [("p0", {"max_tokens": 99, "temperature": 0.5})]
        await session(tmp_path, server, Redo(chosen(tmp_path, "id~r[01]"), {}))
        assert sorted(sent[2:]) == [("p0", {"max_tokens": 99, "temperature": 0.5}), ("p1", {"max_tokens": 64})]
        data = b"".join(line for line in lines_of(results) if b'"id":"r0"' not in line)
        results.write_bytes(data)
    async with serving(worker=Answering(noted)) as server:
        await session(tmp_path, server, repair=True)
    assert sent[4:] == [("p0", {"max_tokens": 99, "temperature": 0.5})]
    assert len(read_lines(tmp_path / "out.superseded.jsonl")) == 3
    assert_adds_up(tmp_path / "out.jsonl.state")
    assert_each_id_once(results, ROWS)


async def test_a_row_that_fails_when_it_is_run_again_has_an_error_record_and_its_old_result_aside(tmp_path: Path):
    write_lines(tmp_path, PROMPTS)
    async with serving(worker=Answering(limited)) as server:
        await session(tmp_path, server)
        summary, _ = await session(tmp_path, server, Redo(chosen(tmp_path, *CUT), {"max_tokens": 5000}))
    assert (summary.succeeded, summary.failed, summary.exit_code) == (ROWS - 2, 2, 3)
    assert set(texts(tmp_path / "out.jsonl")) == {"r1", "r2", "r4", "r5"}
    assert set(texts(tmp_path / "out.superseded.jsonl")) == {"r0", "r3"}
    assert {record["id"] for record in read_lines(tmp_path / "out.errors.jsonl")} == {"r0", "r3"}
    assert_adds_up(tmp_path / "out.jsonl.state")


async def test_an_error_record_asks_for_what_was_set_for_its_row_when_it_is_run_as_an_input(tmp_path: Path):
    write_lines(tmp_path, PROMPTS)
    async with serving(worker=Answering(limited)) as server:
        await session(tmp_path, server)
        await session(tmp_path, server, Redo(chosen(tmp_path, "id=r0"), {"max_tokens": 5000}))
    (error,) = read_lines(tmp_path / "out.errors.jsonl")
    assert error["request"] == {**PROMPTS[0], "max_tokens": 5000}


async def test_failed_rows_are_run_again_by_their_kind_and_their_record(tmp_path: Path):
    write_lines(tmp_path, [{"id": f"r{n}", "prompt": f"{'bad' if n < 4 else 'good'} {n}"} for n in range(6)])
    async with serving(worker=Picky()) as server:
        await session(tmp_path, server)
    assert chosen(tmp_path, failed=True).rows == 4
    assert chosen(tmp_path, failed=True, kinds=("bad_request",)).rows == 4
    assert chosen(tmp_path, "request.prompt~bad [12]", failed=True).rows == 2
    assert chosen(tmp_path, "error.kind=bad_request", "id!=r0", failed=True).rows == 3
    assert (chosen(tmp_path, "id!=r0").succeeded, chosen(tmp_path, "id!=r0").failed) == (2, 0)
    both = chosen(tmp_path, ids=["r0", "r5"])
    assert (both.succeeded, both.failed) == (1, 1)
    with pytest.raises(UsageError, match=r"no row of .* is chosen"):
        chosen(tmp_path, failed=True, kinds=("platform",))
    with pytest.raises(UsageError, match=r"no record has the field 'metadata\.topic'") as refused:
        chosen(tmp_path, "metadata.topic=x", failed=True)
    assert "in the error file, for example error.message" in refused.value.hint
    async with serving() as server:
        summary, _ = await session(tmp_path, server, Redo(both, {}))
        assert server.seen["run"] == 2
    assert (summary.succeeded, summary.failed) == (3, 3)
    assert set(texts(tmp_path / "out.superseded.jsonl")) == {"r5"}
    assert_adds_up(tmp_path / "out.jsonl.state")


async def test_rows_that_share_an_answer_are_run_again_together_and_paid_for_once(tmp_path: Path):
    lines = [{"id": f"r{n}", "prompt": f"p{n % 2}", "max_tokens": 8, "metadata": n} for n in range(8)]
    write_lines(tmp_path, lines)
    async with serving(worker=Answering(limited)) as server:
        await session(tmp_path, server, dedupe=True)
        rows = chosen(tmp_path, ids=["r3"])
        assert (rows.rows, rows.jobs(amended=False), rows.shared, rows.joined) == (4, 1, 3, 3)
        # A line that is equal, but is added now, asks for what it says.
        write_lines(tmp_path, [*lines, {"id": "new", "prompt": "p1", "max_tokens": 8, "metadata": 8}])
        summary, _ = await session(tmp_path, server, Redo(rows, {"max_tokens": 64}), dedupe=True)
        assert server.seen["run"] == 2 + 1 + 1
    found = {record["id"]: (record["text"], record["metadata"]) for record in read_lines(tmp_path / "out.jsonl")}
    assert found == {f"r{n}": (f"p1: {NEEDED}" if n % 2 else "p0: 8", n) for n in range(8)} | {"new": ("p1: 8", 8)}
    assert (summary.shared, summary.truncated) == (6, 5)
    assert set(texts(tmp_path / "out.superseded.jsonl")) == {"r1", "r3", "r5", "r7"}
    assert_adds_up(tmp_path / "out.jsonl.state")


@pytest.mark.parametrize("override", [{}, {"max_tokens": 64}])
async def test_as_many_jobs_are_paid_for_as_were_counted_although_rows_wait_for_the_answer(tmp_path: Path, override):
    lines = [{"id": f"r{n}", "prompt": f"p{n % 2}", "max_tokens": 8} for n in range(4)]
    write_lines(tmp_path, lines)
    async with serving(worker=Answering(limited)) as server:
        await session(tmp_path, server, dedupe=True)
        late = [{"id": f"n{n}", "prompt": "p1", "max_tokens": 8} for n in range(3)]
        write_lines(tmp_path, [*lines, *late, {"id": "other", "prompt": "p2", "max_tokens": 8}])
        with open_run(options_for(tmp_path, dedupe=True), Listener(), clock=hurried, wall=time.time):
            pass  # cut off before anything is sent
        rows = chosen(tmp_path, ids=["r3"])
        assert (rows.rows, rows.waiting) == (2, 4)
        before = server.seen["run"]
        await session(tmp_path, server, Redo(rows, override), dedupe=True)
        assert server.seen["run"] - before == rows.jobs(amended=bool(override)) == (3 if override else 2)
    found = texts(tmp_path / "out.jsonl")
    assert {row_id for row_id, text in found.items() if text == f"p1: {NEEDED}"} == (
        {"r1", "r3"} if override else set()
    )
    assert_adds_up(tmp_path / "out.jsonl.state")


async def test_the_rows_of_a_variant_are_chosen_by_its_values(tmp_path: Path):
    write_lines(tmp_path, PROMPTS[:2])
    sweep = SweepOptions((("temperature", (0, 0.7)), ("seed", (1, 2))))
    async with serving(worker=Answering(limited)) as server:
        await session(tmp_path, server, sweep=sweep)
        rows = chosen(tmp_path, "variant.temperature=0.7", "variant.seed!=1")
        assert rows.rows == 2
        await session(tmp_path, server, Redo(rows, {"max_tokens": 64}), sweep=sweep)
    aside = read_lines(tmp_path / "out.superseded.jsonl")
    assert {record["id"] for record in aside} == {f"r{n}/temperature=0.7/seed=2" for n in range(2)}
    again = {r["id"]: (r["text"], r["variant"]) for r in read_lines(tmp_path / "out.jsonl") if r["id"].startswith("r0")}
    assert again.pop("r0/temperature=0.7/seed=2") == (f"p0: {NEEDED}", {"temperature": 0.7, "seed": 2})
    assert {text for text, _ in again.values()} == {"p0: 8"}
    assert_adds_up(tmp_path / "out.jsonl.state")


async def test_openai_lines_are_chosen_by_the_fields_of_our_records_and_stay_openai_lines(tmp_path: Path):
    url = "/v1/completions"
    lines = [
        {
            "custom_id": f"r{n}",
            "method": "POST",
            "url": url,
            "body": {"prompt": f"p{n}", "max_tokens": 8 + 60 * (n % 2)},
        }
        for n in range(4)
    ]
    write_lines(tmp_path, lines)
    async with serving(worker=Answering(limited)) as server:
        await session(tmp_path, server)
        rows = chosen(tmp_path, *CUT, "text~^p[02]: 8$", "usage.output_tokens=8")
        assert rows.rows == 2
        await session(tmp_path, server, Redo(rows, {"max_tokens": 64}))
    ids = [
        [record["custom_id"] for record in read_lines(tmp_path / name)]
        for name in ("out.superseded.jsonl", "out.jsonl")
    ]
    assert [sorted(each) for each in ids] == [["r0", "r2"], ["r0", "r1", "r2", "r3"]]
    reasons = {r["response"]["body"]["choices"][0]["finish_reason"] for r in read_lines(tmp_path / "out.jsonl")}
    assert reasons == {"stop"}
    assert_adds_up(tmp_path / "out.jsonl.state")


async def test_each_results_file_of_a_folder_has_a_file_of_its_own_for_what_is_replaced(tmp_path: Path):
    for name in "abc":
        (tmp_path / f"{name}.jsonl").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in PROMPTS[:4]))
    out, state = tmp_path / "out", tmp_path / "out.jsonl.state"
    given = {"inputs": tuple(str(tmp_path / f"{n}.jsonl") for n in "abc"), "output": out, "output_is_folder": True}
    async with serving(worker=Answering(limited)) as server:
        await session(tmp_path, server, **given)
        assert chosen(tmp_path, ids=["r0"]).rows == 3, "each file has a row with this id"
        rows = chosen(tmp_path, ids=[f"{tmp_path}/a.jsonl:r0", f"{tmp_path}/c.jsonl:r3"])
        assert rows.rows == 2
        with pytest.raises(InputError, match="ids:1: "):
            chosen(tmp_path, ids=[f"{tmp_path}/b.jsonl:r9"])
        await session(tmp_path, server, Redo(rows, {"max_tokens": 64}), **given)
    assert [each.name for each in sorted(out.glob("*.superseded.*"))] == [
        f"{name}.results.superseded.jsonl" for name in "ac"
    ]
    assert texts(out / "a.results.jsonl")["r0"] == f"p0: {NEEDED}"
    assert texts(out / "b.results.jsonl")["r0"] == texts(out / "c.results.jsonl")["r0"] == "p0: 8"
    assert texts(out / "c.results.jsonl")["r3"] == f"p3: {NEEDED}"
    assert assert_adds_up(state).superseded == 2


async def test_rows_that_have_not_finished_are_left_alone_and_told_and_then_run_as_by_resume(tmp_path: Path):
    write_lines(tmp_path, PROMPTS)
    async with serving(worker=Answering(limited)) as server:
        await session(tmp_path, server, limit=4)
        with Store(tmp_path / "out.jsonl.state") as store, store.transaction() as db:
            db.execute("UPDATE rows SET state = 2 WHERE id = 'r3'")
            db.execute("UPDATE jobs SET status = NULL WHERE job = (SELECT job FROM rows WHERE id = 'r3')")
        data = b"".join(line for line in lines_of(tmp_path / "out.jsonl") if b'"id":"r3"' not in line)
        (tmp_path / "out.jsonl").write_bytes(data)
        with Store(tmp_path / "out.jsonl.state") as store, store.transaction() as db:
            db.execute("UPDATE outputs SET committed_bytes = ?", (len(data),))
        rows = chosen(tmp_path, ids=["r0", "r3"])
        assert (rows.rows, rows.unfinished, rows.waiting) == (1, 1, 1)
        await session(tmp_path, server, Redo(rows, {"max_tokens": 64}))
        assert server.seen["run"] == 4 + 1 + 2, "one again, and two that the limit had left out"
    assert texts(tmp_path / "out.jsonl")["r3"] == "p3: 8", "the job in flight was collected"
    assert_adds_up(tmp_path / "out.jsonl.state")


async def test_an_ordered_run_is_in_order_again_after_a_redo(tmp_path: Path):
    write_lines(tmp_path, PROMPTS)
    async with serving(worker=Answering(limited)) as server:
        await session(tmp_path, server, ordered=True)
        await session(tmp_path, server, Redo(chosen(tmp_path, *CUT), {"max_tokens": 64}), ordered=True)
    assert [record["id"] for record in read_lines(tmp_path / "out.jsonl")] == [f"r{n}" for n in range(ROWS)]
    assert_adds_up(tmp_path / "out.jsonl.state")


async def test_a_context_that_was_full_is_no_longer_counted_once_its_answer_is_replaced(tmp_path: Path):
    write_lines(
        tmp_path, [{"id": "r0", "prompt": "p0", "max_tokens": 30}, {"id": "r1", "prompt": "p1", "max_tokens": 30}]
    )
    full = [{"choices": [{"text": "x", "finish_reason": "length"}], "usage": {"completion_tokens": 9}}]
    async with serving(worker=Answering(lambda _: full)) as server:
        before, _ = await session(tmp_path, server)
    async with serving(worker=Answering(limited)) as server:
        after, _ = await session(tmp_path, server, Redo(chosen(tmp_path, "id=r1"), {"max_tokens": 64}))
    assert [(s.truncated, s.context_full) for s in (before, after)] == [(2, 2), (1, 1)]


async def test_a_run_that_another_process_has_resumed_since_the_rows_were_chosen_is_left_alone(tmp_path: Path):
    write_lines(tmp_path, PROMPTS)
    async with serving(worker=Answering(limited)) as server:
        await session(tmp_path, server)
        rows = chosen(tmp_path, *CUT)
        await session(tmp_path, server)
        with pytest.raises(StateError, match="another process has resumed"):
            await session(tmp_path, server, Redo(rows, {}))
        assert server.seen["run"] == ROWS
    assert not (tmp_path / "out.superseded.jsonl").exists()
    assert_adds_up(tmp_path / "out.jsonl.state")


async def finished(folder: Path) -> None:
    write_lines(folder, PROMPTS)
    async with serving(worker=Answering(limited)) as server:
        await session(folder, server)


async def redone(folder: Path) -> None:
    write_lines(folder, PROMPTS)
    async with serving(worker=Answering(limited)) as server:
        await session(folder, server)
        await session(folder, server, Redo(chosen(folder, *CUT), {"max_tokens": 64}))


@pytest.mark.parametrize(
    ("damage", "there"),
    [
        (lambda path: path.unlink(), 0),
        (lambda path: path.write_bytes(lines_of(path)[0]), 1),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"p0: 8", b"p0: 9")), 2),
    ],
)
async def test_replaced_results_that_are_lost_or_altered_are_found_and_taken_as_they_are_by_a_repair(
    tmp_path: Path, damage, there
):
    await redone(tmp_path)
    state, aside = tmp_path / "out.jsonl.state", tmp_path / "out.superseded.jsonl"
    damage(aside)
    found = verification.verify(state)
    assert [problem.kind for problem in found.problems] == ["superseded"]
    assert str(aside) in found.problems[0].first[0]
    async with serving(worker=Answering(limited)) as server:
        if there < 2:
            code, said = invoke("redo", state, "--where", "id=r1", "--yes", "--worker", "echo", "-q")
            assert code == 2
            assert "--repair" in said
        _, listener = await session(tmp_path, server, repair=True)
        assert any(f"replaced results that are there: {there}, instead of 2" in said for said in listener.messages)
        assert assert_adds_up(state).superseded == there
        await session(tmp_path, server, Redo(chosen(tmp_path, "id=r1"), {}))
        assert server.seen["run"] == 1
    assert assert_adds_up(state).superseded == there + 1


async def test_a_lost_state_file_is_rebuilt_beside_replaced_results(tmp_path: Path):
    await redone(tmp_path)
    for path in tmp_path.glob("out.jsonl.state*"):  # noqa: ASYNC240 - nothing else runs
        path.unlink()
    async with serving(worker=Answering(limited)) as server:
        await session(tmp_path, server, repair=True)
        assert server.seen["run"] == 0
        await session(tmp_path, server, Redo(chosen(tmp_path, "id=r1"), {}))
    assert assert_adds_up(tmp_path / "out.jsonl.state").superseded == 3


async def test_what_was_replaced_is_a_file_of_the_run_and_no_prompt_file(tmp_path: Path):
    await redone(tmp_path)
    aside = tmp_path / "out.superseded.jsonl"
    assert is_own_file(aside)
    assert not is_prompt_file(aside.name)
    code, said = invoke("export", tmp_path / "out.jsonl.state", "-o", aside)
    assert code == 2
    assert "a file of the run itself" in said


async def test_a_redo_never_writes_to_a_file_of_somebody_else(tmp_path: Path):
    await finished(tmp_path)
    aside, before = tmp_path / "out.superseded.jsonl", (tmp_path / "out.jsonl").read_bytes()
    aside.write_text("mine\n")
    code, said = invoke("redo", tmp_path / "out.jsonl.state", "--where", "id=r1", "--yes", "--worker", "echo")
    assert code == 2
    assert "out.superseded.jsonl exists, and this run did not write it" in said
    assert (aside.read_text(), (tmp_path / "out.jsonl").read_bytes()) == ("mine\n", before)
    async with serving(worker=Answering(limited)) as server:
        await session(tmp_path, server)  # a run that redoes nothing does not mind
    assert_adds_up(tmp_path / "out.jsonl.state")


WRONG = [
    ((), "no rows are chosen"),
    (("--where", "finish_reason"), "is not a condition"),
    (("--where", "text~("), "is not a regular expression"),
    (("--where", "finish_raeson=length"), "no record has the field 'finish_raeson'"),
    (("--where", "id=nobody"), "no row of"),
    (("--failed",), "no row of"),
    (("--only", "platform", "--where", "id=r1"), "--only needs --failed"),
    (("--failed", "--only", "nonsense"), "unknown kind of failure"),
    (("--where", "id=r1", "--set", "max_tokns=3"), "there is no such sampling parameter"),
    (("--where", "id=r1", "--set", "max_tokens=many"), "is not a whole number"),
    (("--where", "id=r1", "--set", "stream=true"), "streaming is not supported"),
    (("--ids", "{ids}"), "{ids}:2: 'nobody'"),
    (("--ids", "{folder}/nothing"), "No such file"),
    (("--ids", "{folder}"), "Is a directory"),
    (("--ids", "{binary}"), "is not UTF-8"),
]


@pytest.mark.parametrize(("options", "words"), WRONG)
async def test_what_cannot_be_chosen_is_one_clear_line_and_nothing_changes(tmp_path: Path, options, words):
    await finished(tmp_path)
    (tmp_path / "ids").write_bytes(b"\xef\xbb\xbfr1\r\nnobody\n\n")
    (tmp_path / "binary").write_bytes(b"r1\n\xff\xfe\n")
    places = {"ids": tmp_path / "ids", "folder": tmp_path, "binary": tmp_path / "binary"}
    before = verification.verify(tmp_path / "out.jsonl.state"), (tmp_path / "out.jsonl").read_bytes()
    given = [option.format(**places) for option in options]
    code, said = invoke("redo", tmp_path / "out.jsonl.state", *given, "--yes", "--worker", "echo")
    assert code == 2, said
    assert words.format(**places) in said
    assert "Traceback" not in said
    assert (verification.verify(tmp_path / "out.jsonl.state"), (tmp_path / "out.jsonl").read_bytes()) == before


async def test_without_a_terminal_or_yes_it_says_what_it_would_cost_and_changes_nothing(tmp_path: Path):
    await finished(tmp_path)
    before = (tmp_path / "out.jsonl").read_bytes()
    code, said = invoke("redo", tmp_path / "out.jsonl.state", "--where", CUT[0], "--set", "max_tokens=64")
    assert code == 2
    for words in ("rows to run again: 2", "with max_tokens=64", "jobs to pay for: 2", "add --yes"):
        assert words in said
    assert (tmp_path / "out.jsonl").read_bytes() == before


async def test_a_run_that_another_process_drives_is_refused_before_anything_is_asked(tmp_path: Path):
    await finished(tmp_path)
    lock = StateLock(tmp_path / "out.jsonl.state")
    try:
        code, said = invoke("redo", tmp_path / "out.jsonl.state", "--where", CUT[0])
    finally:
        lock.release()
    assert code == 2
    assert "is in use by another batchrun" in said
    assert "rows to run again" not in said


async def test_a_parameter_of_a_sweep_is_not_set_for_some_of_its_rows(tmp_path: Path):
    write_lines(tmp_path, PROMPTS[:1])
    async with serving(worker=Answering(limited)) as server:
        await session(tmp_path, server, sweep=SweepOptions((("temperature", (0, 1)),)))
    code, said = invoke(
        "redo", tmp_path / "out.jsonl.state", "--where", "variant.temperature=1", "--set", "temperature=2", "--yes"
    )
    assert code == 2
    assert "--set temperature would override --sweep temperature" in said


async def test_options_of_the_run_still_hold_for_rows_that_are_run_again(tmp_path: Path):
    write_lines(tmp_path, [{"id": "r0", "prompt": "p0"}, {"id": "r1", "prompt": "p1"}])
    sent: list[dict[str, Any]] = []

    def noted(request: dict[str, Any]) -> Any:
        sent.append(request["sampling_params"])
        return limited(request)

    given = {"request": RequestOptions(override={"max_tokens": 8, "seed": 3}, default={"top_p": 0.5})}
    async with serving(worker=Answering(noted)) as server:
        await session(tmp_path, server, **given)
        await session(tmp_path, server, Redo(chosen(tmp_path, "id=r1"), {"max_tokens": 64}), **given)
    assert sent[2:] == [{"top_p": 0.5, "max_tokens": 64, "seed": 3}]


async def test_a_redo_that_is_interrupted_continues_with_resume(tmp_path: Path):
    write_lines(tmp_path, PROMPTS)
    async with serving(worker=Answering(limited)) as server:
        await session(tmp_path, server)
        redo, listener = Redo(chosen(tmp_path, *CUT), {"max_tokens": 64}), Listener()
        with open_run(options_for(tmp_path), listener, clock=hurried, wall=time.time, redo=redo) as run:
            assert run.store.counts()[RowState.PENDING] == 2
        assert_adds_up(tmp_path / "out.jsonl.state")
        await session(tmp_path, server)
        assert server.seen["run"] == ROWS + 2
    assert texts(tmp_path / "out.jsonl") == {f"r{n}": f"p{n}: {NEEDED}" for n in range(ROWS)}
    assert_adds_up(tmp_path / "out.jsonl.state")
