"""Equal requests are paid once, and answered in each of their rows."""

from __future__ import annotations

import asyncio
import time
from random import Random
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.commands.status import read_status
from batchrun.commands.status import render as render_status
from batchrun.commands.verify import verify
from batchrun.config import GuardOptions, RequestOptions, SweepOptions
from batchrun.display.summary_text import render
from batchrun.errors import StateError
from batchrun.runs.closing import conclude
from batchrun.runs.driving import cancel_jobs
from batchrun.runs.opening import open_as_it_is, open_run
from batchrun.scheduler.states import RowState
from batchrun.state.store import Store
from tests.support.command import batchrun
from tests.support.rehearsal import Listener, hurried, options_for, read_lines, rehearse, serving, write_lines
from tests.support.workers import LOST, Answering, Picky

if TYPE_CHECKING:
    from pathlib import Path

    from aiohttp import web

CUT = Answering(lambda _: [{"choices": [{"text": "a", "finish_reason": "length"}]}])
"""A worker whose text ends at max_tokens."""

PROMPTS = st.sampled_from(["one", "two", "three"])
LINES = st.lists(
    st.tuples(PROMPTS, st.sampled_from([None, 0, 0.5, 1]), st.booleans(), st.booleans()), min_size=1, max_size=25
)


def as_line(number: int, prompt: str, temperature: float | None, *, turned: bool, named: bool) -> bytes:
    """A line that says the same in one of several ways."""
    fields: dict[str, Any] = {"prompt": prompt, "metadata": {"n": number}}
    if temperature is not None:
        fields["sampling_params"] = {"temperature": temperature, "top_k": 3}
    if named:
        fields["id"] = f"r{number}"
    if turned:
        fields = dict(reversed(fields.items()))
        if temperature is not None:
            fields["sampling_params"] = {"top_k": 3, "temperature": temperature}
        return orjson.dumps(fields, option=orjson.OPT_INDENT_2).replace(b"\n", b" ") + b"\n"
    return orjson.dumps(fields) + b"\n"


@settings(max_examples=20)
@given(LINES)
def test_there_are_as_many_jobs_as_different_requests_and_one_line_for_each_row(tmp_path_factory, lines: list):
    folder = tmp_path_factory.mktemp("run")
    (folder / "in.jsonl").write_bytes(
        b"".join(
            as_line(number, prompt, temperature, turned=turned, named=named)
            for number, (prompt, temperature, turned, named) in enumerate(lines)
        )
    )

    async def run() -> tuple[Any, int]:
        async with serving() as server:
            return await rehearse(folder, server.endpoint.base_url, dedupe=True), server.seen["run"]

    rehearsal, jobs = asyncio.run(run())
    different = {orjson.dumps([prompt, temperature]) for prompt, temperature, *_ in lines}
    assert jobs == len(different) == len({record["job"]["id"] for record in rehearsal.results})
    assert sorted(record["metadata"]["n"] for record in rehearsal.results) == list(range(len(lines)))
    assert len(set(rehearsal.ids())) == len(lines)
    for record in rehearsal.results:
        number = record["metadata"]["n"]
        assert record["text"] == lines[number][0]
        assert record["source"]["line"] == number + 1
    assert sum("same_as" in record["job"] for record in rehearsal.results) == len(lines) - len(different)
    assert rehearsal.summary.shared == len(lines) - len(different)
    assert verify(folder / "out.jsonl.state").is_whole


def lines_of(*prompts: str) -> list[dict]:
    return [{"id": f"r{n}", "prompt": prompt, "metadata": {"n": n}} for n, prompt in enumerate(prompts)]


async def test_without_the_option_equal_requests_are_paid_for_each(tmp_path: Path):
    write_lines(tmp_path, lines_of("p", "p", "q"))
    async with serving() as server:
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url)
        assert server.seen["run"] == 3
    assert rehearsal.summary.shared == 0
    assert not any("same_as" in record["job"] for record in rehearsal.results)


async def test_what_is_compared_is_what_is_sent(tmp_path: Path):
    write_lines(tmp_path, [{"prompt": "p", "temperature": 0.1}, {"prompt": "p", "temperature": 0.9}])
    async with serving() as server:
        request = RequestOptions(override={"temperature": 0})
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url, dedupe=True, request=request)
        assert server.seen["run"] == 1
    assert len(rehearsal.results) == 2


async def test_a_row_carries_its_own_fields_and_none_of_its_leader(tmp_path: Path):
    write_lines(tmp_path, [{"prompt": "p", "topic": "rain", "status": "old"}, {"prompt": "p", "output": 1}])
    async with serving() as server:
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url, dedupe=True)
    first, second = rehearsal.results
    assert (first["topic"], first["carried"]) == ("rain", {"status": "old"})
    assert ("topic" in second, second["carried"]) == (False, {"output": 1})
    assert (second["output"], second["usage"]) == (first["output"], first["usage"])
    assert second["job"] == {**first["job"], "same_as": first["id"]}
    assert list(second) == [key for key in first if key != "topic"]


async def test_texts_that_were_cut_off_are_counted_in_each_row(tmp_path: Path):
    write_lines(tmp_path, lines_of("p", "p", "p"))
    async with serving(worker=CUT) as server:
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url, dedupe=True)
    assert rehearsal.summary.truncated == 3


async def test_a_leader_of_many_rows_is_one_job_and_all_pictures_add_up(tmp_path: Path):
    write_lines(tmp_path, lines_of(*["p"] * 1200, *["bad"] * 700))
    async with serving(worker=Picky()) as server:
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url, dedupe=True)
        assert server.seen["run"] == 2
    summary, last = rehearsal.summary, rehearsal.listener.snapshots[-1]
    assert (summary.succeeded, summary.failed, summary.not_run, summary.shared) == (1200, 700, 0, 1199)
    assert (last.succeeded, last.failed, last.pending, last.done) == (1200, 700, 0, 1900)
    assert (summary.input_tokens, summary.output_tokens) == (1, 1)
    assert "1,199 rows with the answer to an equal request" in render(summary)
    standing = read_status(tmp_path / "out.jsonl.state")
    assert (standing.succeeded, standing.failed, standing.pending, standing.shared) == (1200, 700, 0, 1199)
    assert "rows that share the answer to an equal request: 1,199" in render_status(standing)
    assert [group.rows for group in summary.failures] == [700]
    assert len(set(rehearsal.ids())) == 1200
    assert len({error["id"] for error in rehearsal.errors}) == 700


async def test_a_failure_is_that_of_all_rows_and_one_job_tries_it_again(tmp_path: Path):
    write_lines(tmp_path, lines_of("bad", "good", "bad", "bad"))
    async with serving(worker=Picky()) as server:
        first = await rehearse(tmp_path, server.endpoint.base_url, dedupe=True)
        assert server.seen["run"] == 2
    assert [error["id"] for error in first.errors] == ["r0", "r2", "r3"]
    assert [error["request"]["metadata"]["n"] for error in first.errors] == [0, 2, 3]
    assert [error["job"].get("same_as") for error in first.errors] == [None, "r0", "r0"]
    assert len({error["job"]["id"] for error in first.errors}) == 1
    async with serving() as server:
        again = await rehearse(tmp_path, server.endpoint.base_url, dedupe=True, retry=("bad_request",))
        assert server.seen["run"] == 1
    assert (again.summary.exit_code, again.summary.shared, again.errors) == (0, 2, [])
    assert sorted(again.ids()) == ["r0", "r1", "r2", "r3"]
    assert verify(tmp_path / "out.jsonl.state").is_whole


async def test_a_retryable_failure_is_retried_for_the_leader_alone(tmp_path: Path):
    write_lines(tmp_path, lines_of(*["p"] * 5))
    async with serving(fail_rate=1.0) as server:
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url, dedupe=True, scheduler={"max_retries": 2})
        assert server.seen["run"] == 1 + rehearsal.summary.retries
    assert (rehearsal.summary.failed, len(rehearsal.errors)) == (5, 5)


async def test_a_sweep_shares_within_a_combination(tmp_path: Path):
    write_lines(tmp_path, lines_of("p", "p", "q"))
    sweep = SweepOptions((("temperature", (0, 0.7)),), 2)
    async with serving() as server:
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url, dedupe=True, sweep=sweep)
        assert server.seen["run"] == 8
    assert len(set(rehearsal.ids())) == 12
    by_id = {record["id"]: record for record in rehearsal.results}
    for record in rehearsal.results:
        if leader := record["job"].get("same_as"):
            assert record["variant"] == by_id[leader]["variant"]
    assert by_id["r1/temperature=0.7/2"]["variant"] == {"temperature": 0.7, "repeat": 2}


async def test_endpoints_do_not_share(tmp_path: Path):
    write_lines(tmp_path, lines_of("p", "p", "p"))
    sweep = SweepOptions((("endpoint", ("one", "two")),))
    async with serving() as server:
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url, key="k", dedupe=True, sweep=sweep)
        assert server.seen["run"] == 2
    for record in rehearsal.results:
        assert record["job"]["endpoint"] == record["variant"]["endpoint"]
    assert len(set(rehearsal.ids())) == 6


async def test_samples_of_one_line_stay_apart_where_nothing_tells_them_apart(tmp_path: Path):
    write_lines(tmp_path, [{"input": {"image": "x"}}, {"input": {"image": "x"}}])
    async with serving(worker=Answering(lambda request: {"seen": request})) as server:
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url, dedupe=True, sweep=SweepOptions(repeat=3))
        assert server.seen["run"] == 3
    assert len(set(rehearsal.ids())) == 6


async def test_rows_that_are_added_later_get_the_answer_that_is_there(tmp_path: Path):
    write_lines(tmp_path, lines_of("p", "q"))
    async with serving() as server:
        await rehearse(tmp_path, server.endpoint.base_url, dedupe=True)
        write_lines(tmp_path, lines_of("p", "q", "p", "new", "p"))
        again = await rehearse(tmp_path, server.endpoint.base_url, dedupe=True)
        assert server.seen["run"] == 3
    assert sorted(again.ids()) == ["r0", "r1", "r2", "r3", "r4"]
    assert {record["job"].get("same_as") for record in again.results} == {None, "r0"}
    assert (again.summary.succeeded, again.summary.shared) == (5, 2)
    assert "rows that get the answer to an equal request of another row: 2" in again.listener.messages
    assert verify(tmp_path / "out.jsonl.state").is_whole


async def test_rows_that_failed_get_the_answer_that_an_equal_one_has_got_since(tmp_path: Path):
    write_lines(tmp_path, lines_of("bad", "bad"))
    async with serving(worker=Picky()) as server:
        await rehearse(tmp_path, server.endpoint.base_url, dedupe=True)
    write_lines(tmp_path, lines_of("bad", "bad", "bad"))
    async with serving() as server:
        added = await rehearse(tmp_path, server.endpoint.base_url, dedupe=True)
        assert (server.seen["run"], added.ids(), len(added.errors)) == (1, ["r2"], 2)
        again = await rehearse(tmp_path, server.endpoint.base_url, dedupe=True, retry=())
        assert server.seen["run"] == 1
        assert (sorted(again.ids()), again.errors) == (["r0", "r1", "r2"], [])
        write_lines(tmp_path, lines_of("bad", "bad", "bad", "bad"))
        again = await rehearse(tmp_path, server.endpoint.base_url, dedupe=True)
        assert server.seen["run"] == 1
    assert {record["job"].get("same_as") for record in again.results} == {None, "r2"}
    assert verify(tmp_path / "out.jsonl.state").is_whole


async def test_of_rows_that_are_tried_again_without_their_leader_the_first_leads(tmp_path: Path):
    write_lines(tmp_path, lines_of("bad", "bad"))
    async with serving(worker=Picky()) as server:
        await rehearse(tmp_path, server.endpoint.base_url, dedupe=True)
    write_lines(tmp_path, lines_of("bad", "bad", "bad"))
    async with serving(worker=Answering(lambda _: LOST)) as server:
        lost = await rehearse(tmp_path, server.endpoint.base_url, dedupe=True, scheduler={"max_retries": 0})
    assert {error["id"]: error["error"]["kind"] for error in lost.errors} == {
        "r0": "bad_request",
        "r1": "bad_request",
        "r2": "platform",
    }
    async with serving() as server:
        again = await rehearse(tmp_path, server.endpoint.base_url, dedupe=True, retry=("bad_request",))
        assert server.seen["run"] == 1
    assert [record["job"].get("same_as") for record in again.results] == [None, "r0"]
    assert [error["id"] for error in again.errors] == ["r2"]


async def lose_every_answer(request: web.BaseRequest, operation: str) -> web.StreamResponse | None:
    if operation == "run":
        await request.read()
        request.transport.abort()
    return None


async def test_the_followers_of_a_held_row_are_held_and_submitted_with_it(tmp_path: Path):
    write_lines(tmp_path, lines_of("p", "p", "p"))
    async with serving(lose_every_answer) as server:
        held = await rehearse(tmp_path, server.endpoint.base_url, dedupe=True, scheduler={"unconfirmed": "hold"})
        assert server.seen["run"] == 1
        write_lines(tmp_path, lines_of("p", "p", "p", "p"))
        late = await rehearse(tmp_path, server.endpoint.base_url, dedupe=True, scheduler={"unconfirmed": "hold"})
        assert server.seen["run"] == 1
    assert (held.summary.held, held.summary.not_run) == (3, 0)
    assert (late.summary.held, late.summary.not_run) == (4, 0)
    assert [record["status"] for record in late.errors] == ["UNCONFIRMED"] * 4
    assert verify(late.summary.state).is_whole
    async with serving() as server:
        again = await rehearse(tmp_path, server.endpoint.base_url, dedupe=True)
        assert server.seen["run"] == 1
    assert sorted(again.ids()) == ["r0", "r1", "r2", "r3"]
    assert all(record["job"]["possible_duplicate"] for record in again.results)


async def test_a_cancelled_job_leaves_all_of_its_rows_to_the_next_session(tmp_path: Path):
    write_lines(tmp_path, lines_of("p", "p", "p"))
    async with serving(latency_s=20.0) as server:
        base_url = server.endpoint.base_url
        cut = await rehearse(tmp_path, base_url, dedupe=True, guards=GuardOptions(deadline_s=15.0))
        assert (cut.summary.in_flight, cut.summary.not_run) == (1, 2)
        options = options_for(tmp_path, dedupe=True)
        with open_as_it_is(options, Listener(), clock=hurried, wall=time.time) as run:
            cancelled = conclude(run, await cancel_jobs(run, base_url, Random(0)))
        assert (cancelled.in_flight, cancelled.not_run, server.seen["cancel"]) == (0, 3, 1)
    async with serving() as server:
        again = await rehearse(tmp_path, server.endpoint.base_url, dedupe=True)
        assert server.seen["run"] == 1
    assert sorted(again.ids()) == ["r0", "r1", "r2"]


async def test_a_leader_whose_line_is_gone_leaves_its_rows_to_the_first_of_the_others(tmp_path: Path):
    write_lines(tmp_path, lines_of("p", "p", "p"))
    with open_run(options_for(tmp_path, dedupe=True), Listener(), clock=hurried, wall=time.time):
        pass
    write_lines(tmp_path, lines_of("p", "p", "p")[1:])
    async with serving() as server:
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url, dedupe=True)
        assert server.seen["run"] == 1
    assert [record["job"].get("same_as") for record in rehearsal.results] == [None, "r1"]


@pytest.mark.parametrize("before", [True, False])
async def test_a_run_continues_only_as_it_began(tmp_path: Path, before: bool):
    write_lines(tmp_path, lines_of("p", "p"))
    async with serving() as server:
        await rehearse(tmp_path, server.endpoint.base_url, dedupe=before)
        with pytest.raises(StateError, match=f"was created with {'' if before else 'no '}--dedupe "):
            await rehearse(tmp_path, server.endpoint.base_url, dedupe=not before)


async def test_results_of_several_files_stand_in_the_file_of_their_own_input(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_bytes(
            b"".join(orjson.dumps({"id": f"{name}{n}", "prompt": f"p{n % 2}"}) + b"\n" for n in range(6))
        )
    async with serving() as server:
        inputs = (str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"))
        given_paths = {"inputs": inputs, "output": tmp_path / "out", "output_is_folder": True}
        await rehearse(tmp_path, server.endpoint.base_url, dedupe=True, **given_paths)
        assert server.seen["run"] == 2
    for name in ("a", "b"):
        results = read_lines(tmp_path / "out" / f"{name}.results.jsonl")
        assert sorted(record["id"] for record in results) == [f"{name}{n}" for n in range(6)]
    assert verify(tmp_path / "out.jsonl.state").is_whole


STEPS = st.lists(
    st.tuples(st.lists(st.integers(0, 3), max_size=4), st.lists(st.sampled_from(list(RowState)), max_size=12)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=40)
@given(STEPS)
def test_of_equal_rows_one_at_most_is_to_be_paid_for_whatever_became_of_them(tmp_path_factory, steps: list):
    folder = tmp_path_factory.mktemp("run")
    options = options_for(folder, dedupe=True)
    prompts: list[str] = ["0"]
    for added, states in steps:
        prompts += [str(number) for number in added]
        write_lines(folder, lines_of(*prompts))
        with open_run(options, Listener(), clock=hurried, wall=time.time):
            pass
        with Store(options.state) as store:
            rows = store.query("SELECT row, id, state, same_as FROM rows")
            assert [row[1] for row in rows] == [f"r{n}" for n in range(len(prompts))]
            _check_groups(rows, prompts)
            # What a driver may do: of the rows that lead, any may come to any state.
            leading = [row for row, _, state, same_as in rows if same_as is None and state == RowState.PENDING]
            for row, state in zip(leading, states, strict=False):
                with store.transaction() as db:
                    db.execute("UPDATE rows SET state = ?, attempts = 1 WHERE row = ?", (int(state), row))
                    ended = state in (RowState.SUCCEEDED, RowState.FAILED)
                    db.execute("UPDATE rows SET state = ? WHERE same_as = ? AND ?", (int(state), row, ended))


def _check_groups(rows: list, prompts: list[str]) -> None:
    groups: dict[str, list] = {}
    for row in rows:
        groups.setdefault(prompts[int(row[1][1:])], []).append(row)
    state_of = {row: state for row, _, state, _ in rows}
    same_as_of = {row: same_as for row, _, _, same_as in rows}
    for group in groups.values():
        payable = [row for row, _, state, same_as in group if state in (1, 2) or (state == 0 and same_as is None)]
        assert len(payable) <= 1
        for row, _, state, same_as in group:
            if state == RowState.PENDING and same_as is not None:
                assert same_as_of[same_as] is None, f"{row} follows a follower"
                assert state_of[same_as] != RowState.FAILED
                assert same_as in {other[0] for other in group}


def test_the_command_shares_resumes_and_exports(tmp_path: Path):
    write_lines(tmp_path, lines_of("p", "q", "p"))
    dry = batchrun("run", "in.jsonl", "-e", "nowhere", "--dedupe", "--dry-run", "all", cwd=tmp_path)
    assert len(dry.stdout.splitlines()) == 2
    assert "2 rows would be sent to" in dry.stderr
    assert "equal requests that would share their answers: 1;" in dry.stderr
    done = batchrun("run", "in.jsonl", "-e", "local", "--worker", "echo", "--dedupe", "-o", "out.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "run 2" in done.stderr
    write_lines(tmp_path, lines_of("p", "q", "p", "q"))
    resumed = batchrun("resume", "out.jsonl.state", "--worker", "echo", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    exported = batchrun("export", "out.jsonl.state", "-o", "-", cwd=tmp_path)
    records = [orjson.loads(line) for line in exported.stdout.splitlines()]
    assert [record["id"] for record in records] == ["r0", "r1", "r2", "r3"]
    assert [record["job"].get("same_as") for record in records] == [None, None, "r0", "r1"]
    status = orjson.loads(batchrun("status", "out.jsonl.state", "--json", cwd=tmp_path).stdout)
    assert (status["succeeded"], status["shared"]) == (4, 2)
