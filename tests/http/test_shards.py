"""Shards: each line is in one of them, and together they are the run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from batchrun.commands.export import export
from batchrun.commands.merge import merge, whole_shards
from batchrun.config import SweepOptions
from batchrun.errors import StateError, UsageError
from batchrun.prompts.identity import line_digest
from batchrun.prompts.shard import LineSum, Shard
from tests.support.command import batchrun
from tests.support.places import SAMPLES
from tests.support.rehearsal import read_lines, rehearse, serving, write_lines
from tests.support.workers import Picky

LINES = [{"id": f"r{n}", "prompt": f"prompt {n}"} for n in range(30)] + [{"prompt": f"p{n % 7}"} for n in range(21)]


@given(st.text(min_size=1), st.integers(1, 50))
def test_every_line_falls_to_exactly_one_shard(line_id: str, count: int):
    assert sum(Shard(index, count).holds(line_id) for index in range(1, count + 1)) == 1


def test_shards_are_of_about_the_same_size():
    sizes = [sum(Shard(index, 8).holds(f"line-{n}") for n in range(8000)) for index in range(1, 9)]
    assert sum(sizes) == 8000
    assert min(sizes) > 900
    assert max(sizes) < 1100


@given(st.lists(st.binary(), max_size=20), st.randoms(), st.integers(0, 20))
def test_a_sum_of_lines_depends_on_the_lines_and_not_on_their_order(lines: list[bytes], rng, cut: int):
    def summed(some: list[bytes]) -> LineSum:
        total = LineSum()
        for line in some:
            total.add(line_digest(line))
        return total

    other = list(lines)
    rng.shuffle(other)
    whole = summed(lines)
    assert summed(other[:cut]) + summed(other[cut:]) == whole
    assert LineSum.from_json(whole.to_json()) == whole
    assert summed([*lines, b"one more"]) != whole


@pytest.mark.parametrize("text", ["", "3", "0/3", "4/3", "a/b", "1/0", "-1/3", "1/3/5"])
def test_what_is_no_shard_is_refused(text: str):
    with pytest.raises(UsageError, match="--shard"):
        Shard.parse(text)


async def shards(
    folder: Path, count: int = 3, lines: list = LINES, worker: object | None = None, **given
) -> list[Path]:
    """Run each shard in a folder of its own; returns the state files."""
    states = []
    for index in range(1, count + 1):
        part = folder / str(index)
        part.mkdir()
        write_lines(part, lines[index:] + lines[:index])
        async with serving(worker=worker) as server:
            await rehearse(part, server.endpoint.base_url, shard=f"{index}/{count}", **given)
        states.append(part / "out.jsonl.state")
    return states


def answers(path: Path) -> list[tuple]:
    return sorted((record["id"], record["text"]) for record in read_lines(path))


async def test_the_shards_together_are_the_run_without_shards_whatever_the_order_of_their_lines(tmp_path: Path):
    states = await shards(tmp_path)
    (tmp_path / "whole").mkdir()
    write_lines(tmp_path / "whole", LINES)
    async with serving() as server:
        await rehearse(tmp_path / "whole", server.endpoint.base_url)
    merged = merge(states, tmp_path / "merged.jsonl", sys.stdout.buffer)
    assert (merged.results, merged.failed, merged.shards) == (len(LINES), 0, 3)
    assert answers(tmp_path / "merged.jsonl") == answers(tmp_path / "whole" / "out.jsonl")
    assert "each of the 51 input lines" in whole_shards(states)


async def test_merged_results_are_in_input_order(tmp_path: Path):
    lines = [{"id": f"r{n}", "prompt": "p"} for n in range(20)]
    for index in (1, 2):
        part = tmp_path / str(index)
        part.mkdir()
        write_lines(part, lines)
        sweep = SweepOptions((("temperature", (0, 1)),))
        async with serving() as server:
            await rehearse(part, server.endpoint.base_url, shard=f"{index}/2", sweep=sweep)
    merge([tmp_path / n / "out.jsonl.state" for n in "21"], tmp_path / "merged.jsonl", sys.stdout.buffer)
    ids = [record["id"] for record in read_lines(tmp_path / "merged.jsonl")]
    assert ids == [f"r{n}/temperature={t}" for n in range(20) for t in (0, 1)]


async def test_the_rows_that_failed_go_to_one_error_file(tmp_path: Path):
    lines = [{"id": f"r{n}", "prompt": f"{'bad' if n % 4 == 0 else 'good'} {n}"} for n in range(20)]
    states = await shards(tmp_path, lines=lines, worker=Picky())
    merged = merge(states, tmp_path / "merged.jsonl", sys.stdout.buffer)
    assert (merged.results, merged.failed) == (15, 5)
    errors = read_lines(tmp_path / "merged.errors.jsonl")
    assert {error["id"] for error in errors} == {f"r{n}" for n in range(0, 20, 4)}
    assert str(tmp_path / "merged.errors.jsonl") in str(merged)


async def test_shards_that_overlap_are_missing_or_of_another_input_are_refused(tmp_path: Path):
    states = await shards(tmp_path)
    (tmp_path / "other").mkdir()
    (other, *_) = await shards(tmp_path / "other", lines=[*LINES, {"prompt": "one more"}])
    target = tmp_path / "merged.jsonl"
    for given_states, words in [
        (states[:2], "missing shards: 3"),
        ([*states, states[0]], "are both shard 1/3"),
        ([other, *states[1:]], "shards of different inputs"),
    ]:
        with pytest.raises(StateError, match=words):
            merge(given_states, target, sys.stdout.buffer)
        with pytest.raises(StateError, match=words):
            whole_shards(given_states)
    assert not target.exists()
    assert "missing shards: 1 of 3" in str(merge(states[:2], target, sys.stdout.buffer, partial=True))


async def test_a_run_without_shards_cannot_be_merged(tmp_path: Path):
    write_lines(tmp_path, LINES)
    async with serving() as server:
        await rehearse(tmp_path, server.endpoint.base_url)
    with pytest.raises(StateError, match="is not a shard"):
        merge([tmp_path / "out.jsonl.state"], None, sys.stdout.buffer)
    assert export(tmp_path / "out.jsonl.state", tmp_path / "all.jsonl", sys.stdout.buffer).results == len(LINES)


async def test_a_shard_that_was_limited_is_not_taken_for_whole(tmp_path: Path):
    states = await shards(tmp_path, limit=5)
    with pytest.raises(StateError, match="the shards are incomplete: they have 15 lines, but the input has 51"):
        merge(states, tmp_path / "merged.jsonl", sys.stdout.buffer)


async def test_a_shard_without_lines_is_a_finished_run(tmp_path: Path):
    states = await shards(tmp_path, count=5, lines=[{"id": "only", "prompt": "p"}])
    assert merge(states, tmp_path / "merged.jsonl", sys.stdout.buffer).results == 1


async def test_another_shard_does_not_continue_with_the_same_state(tmp_path: Path):
    (state, *_) = await shards(tmp_path)
    async with serving() as server:
        with pytest.raises(StateError, match=r"--shard 1/3 \(now --shard 2/3\)"):
            await rehearse(state.parent, server.endpoint.base_url, shard="2/3")


def without_job_facts(path: Path) -> list[dict]:
    return [
        {key: value for key, value in record.items() if key not in ("job", "source")} for record in read_lines(path)
    ]


async def test_merged_shards_are_the_export_of_the_run_without_shards(tmp_path: Path):
    states = []
    for name, shard in (("whole", None), ("one", "1/3"), ("two", "2/3"), ("three", "3/3")):
        (tmp_path / name).mkdir()
        write_lines(tmp_path / name, LINES)
        async with serving() as server:
            await rehearse(tmp_path / name, server.endpoint.base_url, shard=shard)
        states.append(f"{name}/out.jsonl.state")
    exported = batchrun("export", states[0], "-o", "exported.jsonl", cwd=tmp_path)
    merged = batchrun("merge", *reversed(states[1:]), "-o", "merged.jsonl", cwd=tmp_path)
    assert (exported.returncode, merged.returncode, merged.stdout) == (0, 0, "")
    assert merged.stderr == "51 results of 3 shards merged into merged.jsonl\n"
    assert without_job_facts(tmp_path / "merged.jsonl") == without_job_facts(tmp_path / "exported.jsonl")
    assert batchrun("merge", *states[1:], "-o", "-", cwd=tmp_path).stdout == (tmp_path / "merged.jsonl").read_text()


async def test_the_command_refuses_shards_that_are_not_whole_in_one_line(tmp_path: Path):
    states = await shards(tmp_path)
    for given_states, words in ((states[1:], "missing shards: 1"), ([*states, states[2]], "are both shard 3/3")):
        merged = batchrun("merge", *given_states, "-o", "merged.jsonl", cwd=tmp_path)
        assert (merged.returncode, merged.stdout) == (2, "")
        assert words in merged.stderr.splitlines()[0]
        assert "Traceback" not in merged.stderr
        verified = batchrun("verify", *given_states, cwd=tmp_path)
        assert verified.returncode == 2
        assert words in verified.stderr
    assert not (tmp_path / "merged.jsonl").exists()
    assert batchrun("verify", *states, cwd=tmp_path).returncode == 0


async def test_shards_that_were_limited_are_merged_as_a_part(tmp_path: Path):
    states = await shards(tmp_path, limit=5)
    assert merge(states, tmp_path / "merged.jsonl", sys.stdout.buffer, partial=True).results == 15


async def test_failed_rows_without_an_error_file_are_not_left_out_unsaid(tmp_path: Path):
    lines = [{"id": f"r{n}", "prompt": f"bad {n}"} for n in range(9)]
    states = await shards(tmp_path, lines=lines, worker=Picky())
    failed = len(read_lines(states[0].with_name("out.errors.jsonl")))
    states[0].with_name("out.errors.jsonl").unlink()
    with pytest.raises(StateError, match=f"failed rows: {failed}, but records in its error file: 0"):
        merge(states, tmp_path / "merged.jsonl", sys.stdout.buffer)
    partial = merge(states, tmp_path / "merged.jsonl", sys.stdout.buffer, partial=True)
    assert partial.failed == 9
    assert len(read_lines(tmp_path / "merged.errors.jsonl")) == 9 - failed


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.glob("*/out.*jsonl")}


async def test_the_merged_error_file_never_takes_the_place_of_a_file_of_a_shard(tmp_path: Path):
    states = await shards(tmp_path, lines=[{"id": "r", "prompt": "bad"}], worker=Picky())
    before = contents(tmp_path)
    for state in states:
        with pytest.raises(UsageError, match="a file of the run itself"):
            merge(states, state.with_name("out"), sys.stdout.buffer)
    assert contents(tmp_path) == before


async def test_an_input_that_is_an_error_file_is_not_removed_by_a_merge_without_failures(tmp_path: Path):
    write_lines(tmp_path, LINES)
    source = (tmp_path / "in.jsonl").rename(tmp_path / "merged.errors.jsonl")
    async with serving() as server:
        await rehearse(tmp_path, server.endpoint.base_url, shard="1/1", inputs=(str(source),))
    with pytest.raises(UsageError, match=r"merged\.errors\.jsonl"):
        merge([tmp_path / "out.jsonl.state"], tmp_path / "merged.jsonl", sys.stdout.buffer)
    assert len(read_lines(source)) == len(LINES)


async def test_shards_that_were_asked_differently_are_refused(tmp_path: Path):
    states = await shards(tmp_path)
    (tmp_path / "other").mkdir()
    sweep = SweepOptions((("temperature", (0, 1)),))
    for asked, word in (({"endpoint": "another"}, "--endpoint"), ({"sweep": sweep}, "--sweep")):
        (tmp_path / "other" / word).mkdir()
        (other, *_) = await shards(tmp_path / "other" / word, **asked)
        with pytest.raises(StateError, match=f"run with different {word}"):
            merge([other, *states[1:]], tmp_path / "merged.jsonl", sys.stdout.buffer)


def test_the_sample_of_a_slurm_array_runs_each_shard_and_the_command_merges_them(tmp_path: Path):
    write_lines(tmp_path, LINES)
    (tmp_path / "in.jsonl").rename(tmp_path / "prompts.jsonl")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SHARDS": "2",
        "RUNPOD_ENDPOINT_ID": "local",
        "BATCHRUN_WORKER": "echo",
    }
    for task in ("0", "1"):
        script = [str(SAMPLES / "slurm_array.sh")]
        subprocess.run(script, cwd=tmp_path, env={**environment, "SLURM_ARRAY_TASK_ID": task}, check=True, timeout=60)
    # One task that is run again alone is the same shard, with nothing left to do.
    again = {**environment, "SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "1", "SLURM_ARRAY_TASK_MIN": "1"}
    subprocess.run(script, cwd=tmp_path, env=again, check=True, timeout=60)
    states = sorted(path.name for path in tmp_path.glob("*.state"))
    assert states == [f"prompts.shard-{n}-of-2.results.jsonl.state" for n in (1, 2)]
    for command, words in (("merge", "51 results of 2 shards"), ("verify", "together: 2 shards")):
        target = ["-o", "results.jsonl"] if command == "merge" else []
        done = subprocess.run(
            ["batchrun", command, *states, *target],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert words in done.stdout + done.stderr
    assert len((tmp_path / "results.jsonl").read_bytes().splitlines()) == len(LINES)


def test_the_sample_of_an_indexed_job_gives_every_index_its_shard(tmp_path: Path):
    shutil.copy(SAMPLES / "prompts.jsonl", tmp_path)
    spec = yaml.safe_load((SAMPLES / "kubernetes_indexed_job.yaml").read_text())["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert (spec["completionMode"], container["command"]) == ("Indexed", ["/bin/sh", "-c"])
    (script,) = container["args"]
    install, command = script.split(" && ")
    assert install == "pip install --quiet runpod-batchrun"
    bodies = []
    for index in range(spec["completions"]):
        done = subprocess.run(
            [*container["command"], f"{command} --dry-run all"],
            cwd=tmp_path,
            env={
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "RUNPOD_ENDPOINT_ID": "x",
                "JOB_COMPLETION_INDEX": str(index),
            },
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        bodies += done.stdout.splitlines()
    assert len(bodies) == len((SAMPLES / "prompts.jsonl").read_text().splitlines())
