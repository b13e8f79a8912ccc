"""A watched folder through the command, against a local endpoint in a process of its own."""

from __future__ import annotations

import asyncio
import gzip
import os
import signal
import subprocess
import time
import urllib.request
from hashlib import sha256
from typing import TYPE_CHECKING

import orjson
import pytest

from tests.support.claims import assert_adds_up, assert_each_id_once
from tests.support.command import BATCHRUN, ENVIRONMENT, KEYED, assert_one_clear_line, batchrun
from tests.support.notifications import listening
from tests.support.rehearsal import read_lines, serving
from tests.support.waiting import lines_in, wait_for

if TYPE_CHECKING:
    from pathlib import Path

ECHO = ("-e", "local", "--worker", "echo")
UNTIL_EMPTY = ("--until-empty", "--progress", "none")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path


def at(base_url: str) -> tuple[str, ...]:
    return ("-e", "abc", "--base-url", base_url, "--run-limit", "0", "--status-limit", "0", "-j", "100")


def arrive(folder: Path, name: str, prompts: list | bytes, age_s: float = 60.0) -> Path:
    """Put a file into the watched folder as one that was written some time ago, by rename."""
    data = prompts if isinstance(prompts, bytes) else b"".join(orjson.dumps(prompt) + b"\n" for prompt in prompts)
    part, path = folder / "arriving", folder / "in" / name
    part.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    written_at = time.time() - age_s
    os.utime(part, (written_at, written_at))
    return part.rename(path)


def command(folder: Path, *options: str) -> list[str]:
    return [*BATCHRUN, "watch", str(folder / "in"), "-o", str(folder / "out"), *options]


def watch(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return batchrun(*command(folder, *options)[len(BATCHRUN) :], env=KEYED)


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(command(folder, *options), stderr=subprocess.PIPE, text=True, env=KEYED)


def hear(process: subprocess.Popen[str], words: str) -> str:
    """Read what a watch says up to a line with these words."""
    for line in process.stderr:
        if words in line:
            return line
    raise AssertionError(f"it never said {words!r}")


def record(folder: Path, name: str) -> dict:
    return orjson.loads((folder / "out" / name).read_bytes())


def records(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "out").iterdir() if path.suffix in (".done", ".failed"))


def texts(folder: Path, stem: str) -> list[str]:
    return [result["text"] for result in read_lines(folder / "out" / f"{stem}.results.jsonl")]


def results_of(folder: Path, stem: str) -> Path:
    return folder / "out" / f"{stem}.results.jsonl"


def assert_whole(folder: Path, stem: str, rows: int) -> None:
    assert_each_id_once(results_of(folder, stem), rows)
    assert_adds_up(folder / "out" / f"{stem}.results.jsonl.state")


def rows(name: str, count: int) -> list[dict]:
    return [{"id": f"{name}{n}", "prompt": f"{name} {n}", "max_tokens": 4} for n in range(count)]


def test_each_file_is_a_run_of_its_own_with_a_record_in_the_order_of_arrival(folder: Path):
    second = arrive(folder, "a.jsonl", ["second"], age_s=60)
    first = arrive(folder, "b.jsonl.gz", ["first", "too"], age_s=90)
    before = {path.name: path.read_bytes() for path in (first, second)}
    done = watch(folder, *ECHO, *UNTIL_EMPTY)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert {path.name: path.read_bytes() for path in (folder / "in").iterdir()} == before
    assert (records(folder), sorted(texts(folder, "b")), texts(folder, "a")) == (
        ["a.done", "b.done"],
        ["first", "too"],
        ["second"],
    )
    told = record(folder, "b.done")
    assert told["ended_at"] <= record(folder, "a.done")["started_at"]
    assert (told["outcome"], told["exit_code"], told["rows"]["total"], told["rows"]["succeeded"]) == (
        "finished",
        0,
        2,
        2,
    )
    assert told["input"]["sha256"] == sha256(before["b.jsonl.gz"]).hexdigest()
    for stem, count in (("a", 1), ("b", 2)):
        assert_whole(folder, stem, count)
    assert "watch finished: files: 2 done; 3 of 3 rows succeeded" in done.stderr
    assert done.stderr.count("finished: ") == 3, "a summary for each file, and the total"


def test_the_local_endpoint_is_started_once_for_all_files(folder: Path):
    for name in ("a", "b"):
        arrive(folder, f"{name}.jsonl", [name])
    assert watch(folder, *ECHO, *UNTIL_EMPTY).returncode == 0
    workers = {
        result["job"]["worker_id"].rpartition("-")[0]
        for name in ("a", "b")
        for result in read_lines(folder / "out" / f"{name}.results.jsonl")
    }
    assert len(workers) == 1


def test_a_bad_file_does_not_stop_those_around_it_and_is_taken_up_again_when_it_is_mended(folder: Path):
    arrive(folder, "a.jsonl", ["good"], age_s=90)
    arrive(folder, "b.jsonl", b'"fine"\nnonsense\n', age_s=80)
    arrive(folder, "c.jsonl", ["good too"], age_s=70)
    done = watch(folder, *ECHO, *UNTIL_EMPTY)
    assert_one_clear_line(done, 4, "b.jsonl was refused, and none of it was sent: ")
    assert records(folder) == ["a.done", "b.failed", "c.done"]
    refused = record(folder, "b.failed")
    assert (refused["outcome"], refused["exit_code"], refused["rows"]) == ("refused", 2, {})
    assert "b.jsonl:2: invalid JSON" in refused["reason"]
    again = watch(folder, *ECHO, *UNTIL_EMPTY)
    assert (again.returncode, "running" in again.stderr) == (4, False)
    arrive(folder, "b.jsonl", ["fine"])
    assert watch(folder, *ECHO, *UNTIL_EMPTY).returncode == 0
    assert (records(folder), texts(folder, "b")) == (["a.done", "b.done", "c.done"], ["fine"])


def test_a_watch_that_is_killed_in_the_middle_continues_with_that_file_and_pays_for_nothing_twice(
    folder: Path, base_url: str
):
    for place, name in enumerate("abc"):
        arrive(folder, f"{name}.jsonl", rows(name, 300), age_s=90 - place)
    process = start(folder, *at(base_url), *UNTIL_EMPTY)
    wait_for(lambda: lines_in(results_of(folder, "b")) > 50)
    process.kill()
    process.communicate()
    assert records(folder) == ["a.done"]
    first = record(folder, "a.done")
    arrive(folder, "older.jsonl", ["came meanwhile"], age_s=900)
    done = watch(folder, *at(base_url), "--until-empty", "--progress", "plain")
    assert done.returncode == 0, done.stderr
    taken = [line for line in done.stderr.splitlines() if "files still queued" in line]
    assert taken == [
        "resuming b.jsonl; files still queued: 2",
        "running older.jsonl; files still queued: 1",
        "running c.jsonl; files still queued: 0",
    ]
    assert record(folder, "a.done") == first
    for name in "abc":
        assert_whole(folder, name, 300)
    with urllib.request.urlopen(f"{base_url}/abc/health") as answer:
        paid = orjson.loads(answer.read())["jobs"]["completed"]
    assert 901 <= paid <= 901 + unconfirmed(folder, "b")


def unconfirmed(folder: Path, stem: str) -> int:
    """Submissions of a file whose answer never arrived."""
    state = folder / "out" / f"{stem}.results.jsonl.state"
    said = batchrun("status", "--json", state)
    return orjson.loads(said.stdout)["counters"].get("unconfirmed", 0)


def test_a_file_that_is_still_written_to_is_waited_for(folder: Path):
    process = start(folder, *ECHO, "--progress", "plain")
    hear(process, "waiting for files in ")
    path = folder / "in" / "slow.jsonl"
    path.write_text('"one"\n"tw')
    hear(process, "waiting for slow.jsonl to be written completely")
    with path.open("a") as file:
        file.write('o"\n')
    wait_for((folder / "out" / "slow.done").exists)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert sorted(texts(folder, "slow")) == ["one", "two"]


def test_a_file_that_is_renamed_into_the_folder_is_taken_up_as_it_is(folder: Path):
    process = start(folder, *ECHO, "--settle", "30m", "--progress", "plain")
    hear(process, "waiting for files in ")
    arrive(folder, "fresh.jsonl", ["not yet"], age_s=0)
    hear(process, "waiting for fresh.jsonl to be written completely; 0 done")
    arrive(folder, "whole.jsonl", ["now"], age_s=3600)
    hear(process, "running whole.jsonl; files still queued: 0")
    hear(process, "waiting for fresh.jsonl to be written completely; 1 done")
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=20)[1]
    assert process.returncode == 130
    assert "watch interrupted: files: 1 done, 1 left; 1 of 1 rows succeeded" in said
    assert records(folder) == ["whole.done"]
    assert [path.name for path in (folder / "in").iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_collects_what_is_in_flight_and_the_same_command_continues(
    folder: Path, base_url: str, number
):
    for name in "ab":
        arrive(folder, f"{name}.jsonl", rows(name, 400))
    process = start(folder, *at(base_url), *UNTIL_EMPTY)
    wait_for(lambda: lines_in(results_of(folder, "a")) > 50)
    process.send_signal(number)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 130, said
    assert records(folder) == []
    done = len(texts(folder, "a"))
    assert 50 < done < 400
    assert f"watch interrupted: files: 0 done, 2 left; {done} of 400 rows succeeded" in said
    assert watch(folder, *at(base_url), *UNTIL_EMPTY).returncode == 0
    for name in "ab":
        assert_whole(folder, name, 400)


def test_a_file_that_says_something_else_since_its_run_is_named_and_not_run(folder: Path):
    path = arrive(folder, "a.jsonl", ["one"])
    assert watch(folder, *ECHO, *UNTIL_EMPTY).returncode == 0
    path.touch()
    assert watch(folder, *ECHO, *UNTIL_EMPTY).returncode == 0, "its content is the same"
    arrive(folder, "a.jsonl", ["one", "two"])
    done = watch(folder, *ECHO, "--until-empty", "--progress", "plain")
    assert_one_clear_line(done, 4, "a.jsonl is skipped: it has changed since it was run")
    assert done.stderr.count("has changed since") == 1
    assert "watch finished: files: 1 done, 1 skipped; 1 of 1 rows succeeded" in done.stderr
    assert texts(folder, "a") == ["one"]
    (folder / "out" / "a.done").unlink()
    assert watch(folder, *ECHO, *UNTIL_EMPTY).returncode == 0
    assert texts(folder, "a") == ["one", "two"], "the line that is new, and that alone"


def test_rows_that_fail_are_exit_3_and_a_run_that_stops_early_is_4(folder: Path):
    arrive(folder, "a.jsonl", [{"prompt": "x", "max_tokens": 0}, "good"], age_s=90)
    done = watch(folder, *ECHO, *UNTIL_EMPTY)
    assert done.returncode == 3, done.stderr
    assert "files: 1 done (1 with failed rows); 1 of 2 rows succeeded" in done.stderr
    assert (record(folder, "a.done")["exit_code"], record(folder, "a.done")["rows"]["failed"]) == (3, 1)
    arrive(folder, "b.jsonl", [{"id": str(n), "prompt": "x", "max_tokens": 0} for n in range(3)], age_s=80)
    arrive(folder, "c.jsonl", ["good"], age_s=70)
    done = watch(folder, *ECHO, *UNTIL_EMPTY, "--canary", "1")
    assert done.returncode == 4, done.stderr
    assert records(folder) == ["a.done", "b.failed", "c.done"]
    assert (record(folder, "b.failed")["outcome"], record(folder, "b.failed")["exit_code"]) == ("stopped", 4)
    assert "canary" in record(folder, "b.failed")["reason"]


async def watch_async(folder: Path, *options: str, **environ: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *command(folder, *options), stderr=asyncio.subprocess.PIPE, env={**ENVIRONMENT, **environ}
    )
    said = (await asyncio.wait_for(process.communicate(), 60))[1]
    return process.returncode, said.decode()


async def test_a_refused_key_ends_the_watch_and_leaves_the_file_to_be_run(folder: Path):
    for name in "ab":
        arrive(folder, f"{name}.jsonl", [name])
    async with serving(api_key="right") as server:
        options = (*at(server.endpoint.base_url), *UNTIL_EMPTY)
        code, said = await watch_async(folder, *options, RUNPOD_API_KEY="wrong")
        assert code == 4, said
        assert "the API key is not accepted" in said
        assert "watch stopped: files: 0 done, 2 left" in said
        assert (records(folder), (folder / "out" / "b.results.jsonl.state").exists()) == ([], False)
        code, said = await watch_async(folder, *options, RUNPOD_API_KEY="right")
    assert (code, records(folder)) == (0, ["a.done", "b.done"]), said


async def test_an_unknown_endpoint_ends_the_watch(folder: Path):
    for name in "ab":
        arrive(folder, f"{name}.jsonl", [name])
    async with serving(endpoint_id="another") as server:
        code, said = await watch_async(folder, *at(server.endpoint.base_url), *UNTIL_EMPTY, RUNPOD_API_KEY="key")
    assert (code, records(folder)) == (4, []), said
    assert said.count("there is no such endpoint") == 1


async def test_somebody_is_told_once_for_each_file(folder: Path):
    arrive(folder, "a.jsonl", ["good"], age_s=90)
    arrive(folder, "b.jsonl", b"nonsense\n")
    async with listening() as (url, heard):
        assert (await watch_async(folder, *ECHO, *UNTIL_EMPTY, "--notify", url))[0] == 4
    assert [told["event"] for told in heard] == ["finished", "refused"]
    assert "batchrun refused b.jsonl; nothing was sent. " in heard[1]["text"]


def test_a_folder_that_is_gone_ends_the_watch(folder: Path):
    process = start(folder, *ECHO, "--progress", "plain")
    hear(process, "waiting for files in ")
    (folder / "in").rename(folder / "elsewhere")
    said = process.communicate(timeout=20)[1]
    assert process.returncode == 4, said
    assert f"{folder / 'in'}: the folder cannot be read: No such file or directory" in said
    assert "Traceback" not in said


def test_a_second_watch_on_either_folder_is_refused(folder: Path):
    process = start(folder, *ECHO, "--progress", "plain")
    hear(process, "waiting for files in ")
    for done in (
        batchrun("watch", folder / "in", "-o", folder / "elsewhere", *ECHO),
        batchrun("watch", folder, "-o", folder / "out", *ECHO),
    ):
        assert_one_clear_line(done, 2, f"is in use by another watch (process {process.pid})")
    process.kill()
    process.communicate()
    assert watch(folder, *ECHO, *UNTIL_EMPTY).returncode == 0, "the lock dies with its holder"


def test_a_file_that_another_process_runs_is_waited_for(folder: Path, base_url: str):
    # Five seconds of work: more than the other process needs to start, however slow the machine.
    arrive(folder, "a.jsonl", rows("a", 2000))
    results = folder / "out" / "a.results.jsonl"
    run = [*BATCHRUN, "run", str(folder / "in" / "a.jsonl"), "-o", str(results), *at(base_url), "--progress", "none"]
    with subprocess.Popen(run, stderr=subprocess.DEVNULL, env=KEYED) as other:
        wait_for(lambda: lines_in(results_of(folder, "a")) > 20)
        process = start(folder, *at(base_url), "--until-empty", "--progress", "plain")
        hear(process, "waiting for a.jsonl, which another process is running; 0 done")
        assert other.wait(30) == 0
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 0, said
    assert_whole(folder, "a", 2000)


def test_going_on_with_other_options_is_refused_before_anything_is_sent(folder: Path, base_url: str):
    arrive(folder, "a.jsonl", rows("a", 300))
    process = start(folder, *at(base_url), *UNTIL_EMPTY)
    wait_for(lambda: lines_in(results_of(folder, "a")) > 20)
    process.kill()
    process.communicate()
    arrive(folder, "b.jsonl", ["b"], age_s=90)
    done = watch(folder, *at(base_url), *UNTIL_EMPTY, "--set", "top_p=0.5")
    assert_one_clear_line(done, 2, "was created with no --set (now --set top_p=0.5)")
    assert records(folder) == []


def test_two_files_with_the_same_results_are_not_both_run(folder: Path):
    arrive(folder, "a.jsonl", ["plain"], age_s=90)
    arrive(folder, "a.jsonl.gz", ["packed"], age_s=80)
    done = watch(folder, *ECHO, "--until-empty", "--progress", "plain")
    assert_one_clear_line(done, 4, "a.jsonl.gz is skipped: ")
    assert texts(folder, "a") == ["plain"]
    (folder / "in" / "a.jsonl.gz").rename(folder / "in" / "b.jsonl.gz")
    assert watch(folder, *ECHO, *UNTIL_EMPTY).returncode == 0
    assert texts(folder, "b") == ["packed"]


@pytest.mark.parametrize("name", ["two words & more.jsonl", "-e.jsonl", "ü.x.jsonl"])
def test_a_strange_name_is_a_name(folder: Path, name: str):
    arrive(folder, name, ["x"])
    done = watch(folder, *ECHO, *UNTIL_EMPTY)
    assert (done.returncode, records(folder)) == (0, [name.removesuffix(".jsonl") + ".done"]), done.stderr


def test_a_name_that_is_no_valid_text_is_refused_once_and_blocks_nothing(folder: Path):
    arrive(folder, "\udcff.jsonl", ["x"], age_s=90)
    arrive(folder, "b.jsonl", ["x"])
    for _ in range(2):
        done = watch(folder, *ECHO, *UNTIL_EMPTY)
        assert done.returncode == 4, done.stderr
        assert records(folder) == ["b.done", "\udcff.failed"]
    assert record(folder, "\udcff.failed")["input"]["file"] == "\\xff.jsonl"


def test_results_go_into_the_folder_that_one_is_in(folder: Path):
    arrive(folder, "a.jsonl", ["x"])
    (folder / "out").mkdir()
    done = batchrun("watch", "../in", "-o", ".", *ECHO, *UNTIL_EMPTY, cwd=folder / "out", env=KEYED)
    assert done.returncode == 0, done.stderr
    assert_whole(folder, "a", 1)


def test_only_prompt_files_are_taken_up(folder: Path):
    for name in ("a.results.jsonl", "a.errors.jsonl", ".hidden.jsonl", "a.txt", "a.manifest.json", "a.jsonl.part"):
        arrive(folder, name, ["x"])
    (folder / "in" / "folder.jsonl").mkdir()
    done = watch(folder, *ECHO, *UNTIL_EMPTY)
    assert (done.returncode, records(folder)) == (0, []), done.stderr


def test_a_sweep_makes_several_rows_of_each_line(folder: Path):
    arrive(folder, "a.jsonl", [{"id": "a", "prompt": "x"}])
    assert watch(folder, *ECHO, *UNTIL_EMPTY, "--sweep", "temperature=0,1", "--repeat", "2").returncode == 0
    ids = {result["id"] for result in read_lines(folder / "out" / "a.results.jsonl")}
    assert ids == {f"a/temperature={value}/{sample}" for value in (0, 1) for sample in (1, 2)}


def test_the_events_of_a_watch_are_json_lines(folder: Path):
    arrive(folder, "a.jsonl", ["x"], age_s=90)
    arrive(folder, "b.jsonl", b"nonsense\n")
    done = watch(folder, *ECHO, "--until-empty", "--progress", "json")
    events = [orjson.loads(line) for line in done.stderr.splitlines()]
    assert [event["event"] for event in events if event["event"] not in ("message", "progress")] == [
        *("begin", "end", "summary", "refused", "total")
    ]
    assert (events[-1]["done"], events[-1]["failed"], events[-1]["exit_code"]) == (1, 1, 4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none", "-o", "out"], "none: no such folder"),
        (["in", "-o", "in"], "is the watched folder: the results would be run as inputs"),
        (["in", "-o", "in/../in"], "is the watched folder"),
        (["in", "-o", "file"], "--output file is not a folder"),
        (["in"], "`batchrun watch` needs --output"),
        (["in", "-o", "out", "--settle", "2"], "'2' has no unit"),
        (["in", "-o", "out", "--state", "x"], "`batchrun watch` has no option --state"),
        (["in", "-o", "out", "--notify", "slack"], "--notify is not an http(s) URL"),
    ],
)
def test_wrong_usage_is_exit_2_with_one_clear_line_and_nothing_left_behind(folder: Path, arguments, words):
    (folder / "file").touch()
    before = sorted(folder.rglob("*"))
    done = batchrun("watch", *arguments, *ECHO, cwd=folder, env=KEYED)
    assert_one_clear_line(done, 2, words)
    assert done.stdout == ""
    assert sorted(folder.rglob("*")) == before


def test_a_record_of_somebody_else_is_never_overwritten(folder: Path):
    arrive(folder, "a.jsonl", ["x"])
    (folder / "out").mkdir()
    (folder / "out" / "a.done").write_text("mine")
    assert_one_clear_line(watch(folder, *ECHO, *UNTIL_EMPTY), 2, "a.done is not a record of batchrun watch")
    assert (folder / "out" / "a.done").read_text() == "mine"
