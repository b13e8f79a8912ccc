"""With a results file for each input, ids need to be unique within a file only, as those of split batches are."""

from __future__ import annotations

import signal
import subprocess
import time
from itertools import chain, permutations
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import orjson
import pytest

from batchrun.commands import findings
from batchrun.commands.verify import verify
from batchrun.config import FOLDER_STATE
from batchrun.results.writer import errors_path
from batchrun.runs.closing import conclude
from batchrun.runs.driving import drive
from batchrun.runs.opening import open_run
from batchrun.state.store import Store
from tests.support.claims import assert_adds_up
from tests.support.command import BATCHRUN, KEYED, invoke
from tests.support.crashes import Doom, Nights, after_every, at_random
from tests.support.rehearsal import Listener, hurried, options_for, read_lines, serving
from tests.support.waiting import lines_in, wait_for

if TYPE_CHECKING:
    from batchrun.config import RunOptions

NAMES = ("part-1.jsonl", "part-2.jsonl", "part-3.jsonl")
STATE = Path("out") / FOLDER_STATE


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        write(name, 4)
    return tmp_path


def question(name: str, number: int) -> str:
    return f"{number} of {name}"


def write(name: str, count: int, *, first: int = 0, ask=question) -> None:
    """A file of a split batch: the ids start anew in each."""
    lines = [
        {
            "custom_id": f"request-{n}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "m", "messages": [{"role": "user", "content": ask(name, n)}]},
        }
        for n in range(first, count)
    ]
    Path(name).write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))


def run(*arguments: object) -> tuple[int, str]:
    return invoke("run", *arguments, "-e", "local", "--worker", "echo", "--progress", "plain")


def results(name: str) -> Path:
    return Path("out") / name.replace(".jsonl", ".results.jsonl")


def answers(path: Path) -> list[tuple[str, str]]:
    """The id and the text of each line, in order."""
    records = read_lines(path)
    return [
        (record["custom_id"], record["response"]["body"]["choices"][0]["message"]["content"])
        if "custom_id" in record
        else (record["id"], record["text"])
        for record in records
    ]


def expected(name: str, count: int = 4, *, ask=question) -> list[tuple[str, str]]:
    return [(f"request-{n}", ask(name, n)) for n in range(count)]


def assert_whole(names=NAMES, count: int = 4) -> None:
    for name in names:
        assert sorted(answers(results(name))) == sorted(expected(name, count))
    found = assert_adds_up(STATE)
    assert (found.rows, found.results) == (len(names) * count, len(names) * count)


@pytest.mark.parametrize("more", [(), ("--ordered",), ("--dedupe",), ("--format", "batchrun")])
def test_ids_that_start_anew_in_each_file_are_run_into_results_of_their_own(more: tuple[str, ...]):
    assert run(*NAMES, "-o", "out/", *more)[0] == 0
    assert_whole()
    code, said = run(*NAMES, "-o", "out/", *more)
    assert (code, "input changed" in said) == (0, False)
    assert_whole()


def test_an_id_that_stands_twice_in_one_results_file_is_refused_with_both_lines():
    Path("part-2.jsonl").write_bytes(Path("part-2.jsonl").read_bytes() * 2)
    code, said = run(*NAMES, "-o", "out/")
    assert (code, "'request-0': part-2.jsonl:1 and part-2.jsonl:5" in said, "FOLDER" in said) == (2, True, False)
    assert "\x1f" not in said
    assert not Path("out").exists()


def test_ids_of_several_files_in_one_results_file_are_refused_with_the_way_that_works():
    code, said = run(*NAMES, "-o", "r.jsonl")
    assert (code, "'request-0': part-1.jsonl:1 and part-2.jsonl:1" in said) == (2, True)
    assert "-o FOLDER/" in said
    assert "-o FOLDER/" in invoke("check", *NAMES)[1]


@pytest.mark.parametrize("order", list(permutations(NAMES)))
def test_rows_are_known_again_in_any_order_of_the_files(order: tuple[str, ...]):
    assert run(*NAMES, "-o", "out/", "--limit", 7)[0] == 0
    code, said = run(*order, "-o", "out/")
    assert code == 0, said
    assert_whole()


def test_a_file_that_is_added_later_may_have_the_ids_of_an_earlier_one():
    assert run(NAMES[1], "-o", "out/")[0] == 0
    assert run(*NAMES[:2], "-o", "out/")[0] == 0
    code, said = run(*NAMES, "-o", "out/")
    assert (code, "4 rows added, 0 removed" in said) == (0, True), said
    assert_whole()


def test_a_file_of_which_nothing_was_sent_may_go_and_come_back():
    first, second, third = NAMES
    assert run(second, first, "-o", "out/", "--limit", 4)[0] == 0
    write(second, 6, first=0)
    assert run(second, first, third, "-o", "out/", "--limit", 4)[0] == 0
    assert run(second, "-o", "out/")[0] == 0
    assert run(second, third, "-o", "out/")[0] == 0
    write(first, 6)
    write(third, 6)
    assert run(*NAMES, "-o", "out/")[0] == 0
    assert_whole(count=6)


async def test_rows_that_were_never_sent_go_with_their_file_and_those_of_the_other_stay(tmp_path: Path):
    async with serving() as server:
        for names, is_driven in ((NAMES[:2], False), (NAMES[1:2], False), (NAMES[1:], True), (NAMES, True)):
            with open_run(options_of(tmp_path, names), Listener(), clock=hurried, wall=time.time) as opened:
                if is_driven:
                    conclude(opened, await drive(opened, server.endpoint.base_url, Random(0)))
                    assert_whole(names)
        assert server.seen["run"] == 12


def test_a_line_that_was_sent_and_is_gone_is_named_by_its_file():
    assert run(*NAMES[:2], "-o", "out/")[0] == 0
    code, said = run(NAMES[0], "-o", "out/")
    assert code == 2
    assert "missing from the input: part-2.jsonl:1 (id 'request-0'), part-2.jsonl:2 (id 'request-1')" in said
    write(NAMES[1], 4, ask=lambda name, n: f"another {n} of {name}")
    code, said = run(*NAMES[:2], "-o", "out/")
    assert (code, "has changed since it was submitted: part-2.jsonl:1 (id 'request-0')" in said) == (2, True)


def test_a_moved_line_keeps_its_result_when_its_id_comes_again_in_its_old_file():
    first, second, _ = NAMES
    assert run(first, "-o", "out/", "--format", "batchrun")[0] == 0
    Path(first).rename(second)
    assert run(second, "-o", "out/")[0] == 0
    write(first, 4, ask=lambda name, n: f"new {n} of {name}")
    code, said = run(first, second, "-o", "out/", "--ordered")
    assert code == 0, said
    found = verify(STATE)
    assert (found.is_whole, found.results) == (True, 8), findings.render(found)
    texts = {text for _, text in answers(results(first))}
    assert texts == {f"{n} of {first}" for n in range(4)} | {f"new {n} of {first}" for n in range(4)}
    code, said = invoke("resume", "out", "--repair", "--worker", "echo", "--progress", "plain")
    assert (code, "no results of succeeded rows are lost" in said) == (0, True), said


def test_an_export_has_all_lines_of_an_id_and_says_so():
    assert run(*NAMES, "-o", "out/")[0] == 0
    for form in ("openai", "batchrun"):
        code, said = invoke("export", "out", "-o", "all.jsonl", "--format", form)
        assert (code, "12 of 12 rows exported to all.jsonl" in said) == (0, True)
        assert said.splitlines()[-1].endswith("differ in `source`: 4")
        assert answers(Path("all.jsonl")) == [pair for name in NAMES for pair in expected(name)]


def test_an_export_of_a_run_whose_ids_are_its_own_says_nothing_of_them():
    write(NAMES[1], 8, first=4)
    assert run(*NAMES[:2], "-o", "out/")[0] == 0
    assert "source" not in invoke("export", "out", "-o", "all.jsonl")[1]


def test_shards_of_files_that_share_ids_are_merged_whole():
    for shard in ("1/2", "2/2"):
        code, said = run(*NAMES, "-o", f"out-{shard[0]}/", "--shard", shard)
        assert code == 0, said
    states = [Path(f"out-{n}") / FOLDER_STATE for n in (1, 2)]
    code, said = invoke("merge", *states, "-o", "all.jsonl")
    assert (code, said.splitlines()[-1].endswith("differ in `source`: 4")) == (0, True), said
    assert answers(Path("all.jsonl")) == [pair for name in NAMES for pair in expected(name)]


def test_variants_of_lines_that_share_ids_are_reported_apart():
    for name in NAMES:
        lines = [{"id": "x", "prompt": f"{question(name, 0)} at length", "temperature": 0.5}]
        Path(name).write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    assert run(*NAMES, "-o", "out/", "--sweep", "max_tokens=1,2")[0] == 0
    for name in NAMES:
        assert sorted(answers(results(name))) == [("x/max_tokens=1", "0"), ("x/max_tokens=2", "0 of")]
    variants = orjson.loads(invoke("report", "out", "--json")[1])["variants"]
    assert [(each["rows"], each["succeeded"], each["output_tokens"]["mean"]) for each in variants] == [
        (3, 3, 1.0),
        (3, 3, 2.0),
    ]
    assert verify(STATE).is_whole


def test_what_is_lost_is_named_with_its_file_and_made_good():
    assert run(*NAMES, "-o", "out/", "--format", "batchrun")[0] == 0
    for name, gone in ((NAMES[1], b'"request-2"'), (NAMES[2], b'"request-0"')):
        lines = results(name).read_bytes().splitlines(keepends=True)
        results(name).write_bytes(b"".join(line for line in lines if gone not in line))
    code, said = invoke("verify", "out", "--repair-list")
    assert (code, sorted(said.split())) == (1, ["part-2.jsonl:request-2", "part-3.jsonl:request-0"])
    code, said = invoke("resume", "out", "--repair", "--worker", "echo", "--progress", "plain")
    assert (code, "2 to be paid for again" in said) == (0, True), said
    assert_whole()


def test_a_lost_state_file_is_rebuilt_from_the_results_of_all_files():
    assert run(*NAMES, "-o", "out/", "--format", "batchrun")[0] == 0
    before = {name: results(name).read_bytes() for name in NAMES}
    STATE.unlink()
    code, said = run(*NAMES, "-o", "out/", "--format", "batchrun", "--repair")
    assert (code, "did not know of: 12" in said) == (0, True), said
    assert {name: results(name).read_bytes() for name in NAMES} == before
    assert_whole()


def test_a_result_in_the_file_of_another_row_with_its_id_is_noticed():
    assert run(*NAMES[:2], "-o", "out/", "--format", "batchrun", "--ordered")[0] == 0
    paths = [results(name) for name in NAMES[:2]]
    lines = [path.read_bytes().splitlines(keepends=True) for path in paths]
    for path, own, other in zip(paths, lines, reversed(lines), strict=True):
        path.write_bytes(b"".join([other[0], *own[1:]]))
    found = verify(STATE)
    assert {problem.kind for problem in found.problems} & {"wrong_file", "altered"}, findings.render(found)


def test_a_line_that_only_looks_like_the_name_of_another_row_is_of_no_row():
    for name in NAMES[:2]:
        Path(name).write_text('{"id": "r", "prompt": "a"}\n{"id": "12345678", "prompt": "b"}\n')
    assert run(*NAMES[:2], "-o", "out/")[0] == 0
    lines = results(NAMES[0]).read_bytes()
    results(NAMES[0]).write_bytes(lines.replace(b'"12345678"', b'"r\\u001f2"'))
    found = verify(STATE)
    assert {"unknown_row", "missing"} <= {problem.kind for problem in found.problems}, findings.render(found)


def test_failed_rows_are_in_the_error_file_of_their_input_and_are_run_again_from_there():
    names = NAMES[:2]
    for name in names:
        lines = [{"id": f"r{n}", "prompt": question(name, n), "temperature": -(n % 2)} for n in range(4)]
        Path(name).write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    for command in (("run", *names, "-o", "out/", "-e", "local"), ("resume", "out", "--retry-failed")):
        assert invoke(*command, "--worker", "echo", "--progress", "plain")[0] == 3
        assert verify(STATE).is_whole
    errors = [errors_path(results(name)) for name in names]
    for name, path in zip(names, errors, strict=True):
        failed = [(each["id"], each["request"]["prompt"]) for each in read_lines(path)]
        assert failed == [("r1", question(name, 1)), ("r3", question(name, 3))]
        assert sorted(answers(results(name))) == [("r0", question(name, 0)), ("r2", question(name, 2))]
    code, said = invoke("export", "out", "-o", "all.jsonl", "--all")
    assert (code, said.splitlines()[-1].endswith("differ in `source`: 4")) == (0, True), said
    assert [each["id"] for each in read_lines(Path("all.jsonl"))] == ["r0", "r1", "r2", "r3"] * 2
    assert "\x1f" not in invoke("status", "out")[1] + invoke("status", "out", "--json")[1]
    assert run(*errors, "-o", "again/", "--set", "temperature=0")[0] == 0
    for name, path in zip(names, errors, strict=True):
        found = answers(Path("again") / path.name.replace(".jsonl", ".results.jsonl"))
        assert sorted(found) == [("r1", question(name, 1)), ("r3", question(name, 3))]


def options_of(folder: Path, names=NAMES, **given: object) -> RunOptions:
    return options_for(
        folder,
        inputs=tuple(str(folder / name) for name in names),
        output=folder / "out",
        output_is_folder=True,
        state=folder / "out" / FOLDER_STATE,
        **given,
    )


class Split(Nights):
    """Such a run of three files whose ids start anew in each.

    Args:
        folder: Where its files go.
        dedupe: Whether each question stands in all of the files, and is asked once.
    """

    def __init__(self, folder: Path, *, dedupe: bool = False) -> None:
        super().__init__(folder)
        self.each = 13
        self.is_shared = dedupe
        for file, name in enumerate(NAMES):
            lines = [{"id": f"r{n}", "prompt": self.ask(file, n), "metadata": [file, n]} for n in range(self.each)]
            (folder / name).write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
        scheduler = {"concurrency": 8, "connections": 4}
        self.options = options_of(folder, scheduler=scheduler, dedupe=dedupe)

    def ask(self, file: int, number: int) -> str:
        return f"{'refused' if number % 11 == 5 else 'p'} {number}" + ("" if self.is_shared else f" of {file}")

    def assert_whole(self) -> None:
        for file, name in enumerate(NAMES):
            kept, failed = read_lines(results(name)), read_lines(errors_path(results(name)))
            ended = [each["metadata"] for each in kept] + [each["request"]["metadata"] for each in failed]
            assert sorted(ended) == [[file, n] for n in range(self.each)]
            assert {each["id"] for each in failed} >= {"r5"}
            for each in kept:
                number = each["metadata"][1]
                assert (each["id"], each["text"]) == (f"r{number}", self.ask(file, number))
            for each in failed:
                number = each["request"]["metadata"][1]
                assert (each["id"], each["request"]["prompt"]) == (f"r{number}", self.ask(file, number))
        with Store(self.options.state) as store:
            unconfirmed = store.counters().get("unconfirmed", 0)
            retries = store.query("SELECT sum(retries) FROM rows")[0][0]
        different = self.each * (1 if self.is_shared else len(NAMES))
        assert sum(self.submitted.values()) <= different + retries + unconfirmed
        assert_adds_up(self.options.state)


@pytest.mark.parametrize("calls", [12, 17, 24, 35])
async def test_rows_that_share_ids_are_each_answered_once_wherever_the_run_dies(tmp_path: Path, calls: int):
    nights = Split(tmp_path)
    await nights.until_it_is_over(after_every(calls))
    nights.assert_whole()
    assert nights.crashes > 0


@pytest.mark.parametrize("calls", range(8, 33, 6))
async def test_rows_that_share_ids_and_jobs_are_each_answered_once_wherever_the_run_dies(tmp_path: Path, calls: int):
    nights = Split(tmp_path, dedupe=True)
    await nights.until_it_is_over(chain([Doom(calls, 10**9)] * 2, at_random(calls)))
    nights.assert_whole()
    assert nights.crashes > 0


def test_a_killed_process_continues_with_each_row_in_its_own_file(base_url: str):
    rng = Random(7)
    for name in NAMES:
        write(name, 150)
    command = [*BATCHRUN, "run"]
    options = ["-e", "abc", "--base-url", base_url, "-o", "out/", "--run-limit", "0", "--status-limit", "0"]
    options += ["-j", "60", "--progress", "none"]
    for wanted in (1, 120, 300):
        order = rng.sample(NAMES, len(NAMES))
        with subprocess.Popen([*command, *order, *options], stderr=subprocess.PIPE, env=KEYED) as process:
            wait_for(lambda wanted=wanted: sum(lines_in(results(name)) for name in NAMES) >= wanted)
            process.send_signal(signal.SIGKILL)
        assert_adds_up(STATE)
    said = subprocess.run([*command, *NAMES, *options], capture_output=True, text=True, env=KEYED, check=False)
    assert said.returncode == 0, said.stderr
    assert_whole(count=150)
