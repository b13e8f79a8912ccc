"""Who owns a file: a run writes only into its own, keeps what it needs, and takes none of them for its input."""

from __future__ import annotations

import gzip
import os
import resource
import shlex
import subprocess
import time
from pathlib import Path
from random import Random

import orjson
import pytest

from batchrun.commands.verify import verify
from batchrun.errors import OutputError, StateError, UsageError
from batchrun.results.writer import ResultsFile, ResultsFiles
from batchrun.runs.closing import conclude
from batchrun.runs.driving import drive
from batchrun.runs.opening import open_run
from batchrun.state.store import Store
from tests.support.command import BATCHRUN
from tests.support.rehearsal import Listener, hurried, options_for, rehearse, serving, write_lines
from tests.support.workers import Picky

LINES = [{"id": f"r{n}", "prompt": f"good {n}"} for n in range(3)]
BAD = [*LINES, {"id": "r9", "prompt": "bad"}]


def contents(folder: Path) -> dict[str, bytes]:
    """Each file with what it holds, but for those that SQLite keeps beside a database that is looked at."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(("-wal", "-shm"))]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


async def refused(folder: Path, words: str, error: type[UsageError] = UsageError, **given: object) -> None:
    """A start that is refused, and has sent and changed nothing."""
    before = contents(folder)
    async with serving() as server:
        with pytest.raises(error, match=words):
            await rehearse(folder, server.endpoint.base_url, **given)
    assert server.seen["run"] == 0
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["out.jsonl", "out.errors.jsonl", "out.manifest.json"])
async def test_a_new_run_is_refused_if_a_file_that_it_would_write_is_there(tmp_path: Path, name: str):
    write_lines(tmp_path, LINES)
    (tmp_path / name).write_text("theirs\n")
    await refused(tmp_path, f"{name} exists", StateError)


@pytest.mark.parametrize("name", ["out.jsonl", "out.errors.jsonl", "out.manifest.json"])
@pytest.mark.parametrize("way", ["itself", "symlink", "hard link"])
async def test_an_input_is_never_written_over(tmp_path: Path, name: str, way: str):
    (tmp_path / name).write_bytes(orjson.dumps(LINES[0]) + b"\n")
    given = tmp_path / name
    if way != "itself":
        given = tmp_path / "given.jsonl"
        given.symlink_to(tmp_path / name) if way == "symlink" else given.hardlink_to(tmp_path / name)
    await refused(tmp_path, f"{name} cannot be both .* and the input", inputs=(str(given),))


@pytest.mark.parametrize("name", ["out.jsonl", "out.errors.jsonl", "out.manifest.json", "in.jsonl"])
async def test_a_state_file_is_none_of_the_other_files(tmp_path: Path, name: str):
    write_lines(tmp_path, LINES)
    await refused(tmp_path, f"{name} cannot be both", state=tmp_path / name)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize("name", ["out.jsonl", "out.errors.jsonl", "out.manifest.json", "out.jsonl.state"])
async def test_what_is_not_a_file_is_refused_before_anything_is_sent(tmp_path: Path, name: str, kind: str):
    write_lines(tmp_path, LINES)
    path = tmp_path / name
    {"pipe": os.mkfifo, "device": lambda at: at.symlink_to("/dev/null"), "folder": Path.mkdir}[kind](path)
    await refused(tmp_path, f"{name} cannot be .*: it is a (folder|device)", output_is_folder=False)


async def test_a_wrong_line_leaves_every_file_as_it_was_whatever_the_state_is_called(tmp_path: Path):
    write_lines(tmp_path, [*LINES, ["wrong"]])
    for name in ("run1.prompts.jsonl", "run1.0.jsonl", "run1.lock", "run1.part"):
        (tmp_path / name).write_text("mine\n")
    await refused(tmp_path, "an object or a string, found a list", state=tmp_path / "run1")


async def test_somebodys_lock_and_part_files_are_left_alone(tmp_path: Path):
    write_lines(tmp_path, BAD)
    names = ("Cargo.lock", "out.manifest.json.part", "out.errors.jsonl.part", "out.jsonl.part")
    for name in names:
        (tmp_path / name).write_text("mine\n")
    async with serving(worker=Picky()) as server:
        await rehearse(tmp_path, server.endpoint.base_url, state=tmp_path / "Cargo")
    assert all((tmp_path / name).read_text() == "mine\n" for name in names)
    assert (tmp_path / "out.errors.jsonl").is_file()


async def test_no_file_is_written_through_a_planted_link(tmp_path: Path):
    write_lines(tmp_path, BAD)
    precious = tmp_path / "precious"
    precious.write_text("precious\n")
    async with serving(worker=Picky()) as server:
        await rehearse(tmp_path, server.endpoint.base_url)
        with Store(tmp_path / "out.jsonl.state") as store:
            token = store.token
        for name in (f"out.manifest.json.{token}.part", f"out.errors.jsonl.{token}.part", "out.jsonl.state.lock"):
            (tmp_path / name).symlink_to(precious)
        await rehearse(tmp_path, server.endpoint.base_url, retry=())
    assert precious.read_text() == "precious\n"


async def test_an_error_file_that_somebody_has_put_there_in_the_meantime_is_left_as_it_is(tmp_path: Path):
    write_lines(tmp_path, BAD)
    theirs = tmp_path / "out.errors.jsonl"

    async def fault(*_: object) -> None:
        theirs.write_text("theirs\n")

    async with serving(fault, Picky()) as server:
        with open_run(options_for(tmp_path), Listener(), clock=hurried, wall=time.time) as run:
            stopped = conclude(run, await drive(run, server.endpoint.base_url, Random(0)))
        assert stopped.exit_code == 4
        assert "this run did not write it" in stopped.reason
        assert theirs.read_text() == "theirs\n"
    theirs.unlink()
    async with serving(worker=Picky()) as server:
        assert [row["id"] for row in (await rehearse(tmp_path, server.endpoint.base_url)).errors] == ["r9"]
    assert server.seen["run"] == 0


async def test_files_of_a_run_of_an_earlier_version_are_its_own(tmp_path: Path):
    write_lines(tmp_path, BAD)
    async with serving(worker=Picky()) as server:
        await rehearse(tmp_path, server.endpoint.base_url)
        with Store(tmp_path / "out.jsonl.state") as store, store.transaction() as db:
            db.execute("DELETE FROM settings WHERE name IN ('files', 'token')")
        await rehearse(tmp_path, server.endpoint.base_url, retry=())
        (tmp_path / "out.manifest.json").write_text("{}\n")
        with Store(tmp_path / "out.jsonl.state") as store, store.transaction() as db:
            db.execute("DELETE FROM settings WHERE name = 'files'")
    await refused(tmp_path, "out.manifest.json exists", StateError)


async def test_a_run_that_is_begun_anew_replaces_the_manifest_of_the_one_before(tmp_path: Path):
    write_lines(tmp_path, LINES)
    async with serving() as server:
        for _ in range(2):
            await rehearse(tmp_path, server.endpoint.base_url)
            for name in ("out.jsonl", "out.jsonl.state"):
                (tmp_path / name).unlink()
    assert server.seen["run"] == 6


async def test_the_same_command_on_a_folder_works_although_its_results_are_in_it(tmp_path: Path):
    write_lines(tmp_path, BAD)
    inputs = (str(tmp_path),)
    async with serving(worker=Picky()) as server:
        for _ in range(3):
            again = await rehearse(tmp_path, server.endpoint.base_url, inputs=inputs)
            assert sorted(again.ids()) == ["r0", "r1", "r2"]
    assert server.seen["run"] == 4


async def test_results_in_the_input_folder_are_not_an_input_before_they_have_a_line(tmp_path: Path):
    write_lines(tmp_path, LINES)
    inputs = (str(tmp_path),)
    async with serving() as server:
        with open_run(options_for(tmp_path, inputs=inputs), Listener(), clock=hurried, wall=time.time):
            assert (tmp_path / "out.jsonl").read_bytes() == b""
        assert len((await rehearse(tmp_path, server.endpoint.base_url, inputs=inputs)).results) == 3


async def test_the_copies_of_compressed_inputs_are_not_taken_for_inputs(tmp_path: Path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.jsonl.gz").write_bytes(gzip.compress(b"".join(orjson.dumps(line) + b"\n" for line in LINES)))
    given = {"inputs": (str(data),), "output": data / "results", "output_is_folder": True, "state": data / "r.state"}
    async with serving() as server:
        for _ in range(2):
            assert (await rehearse(tmp_path, server.endpoint.base_url, **given)).summary.succeeded == 3
    assert server.seen["run"] == 3


async def test_a_compressed_input_keeps_its_copy_when_others_come_and_go(tmp_path: Path):
    def write(name: str, letter: str) -> None:
        line = b'{"prompt": "good %s"}\n' % letter.encode()
        (tmp_path / name).write_bytes(gzip.compress(line))

    async def run(*names: str) -> list[str]:
        inputs = tuple(str(tmp_path / name) for name in names)
        done = await rehearse(tmp_path, server.endpoint.base_url, inputs=inputs)
        assert verify(tmp_path / "out.jsonl.state").is_whole
        return sorted(row["text"] for row in done.results)

    async with serving() as server:
        write("b.gz", "b")
        first = await run("b.gz")
        write("a.gz", "a")
        assert len(await run("a.gz", "b.gz")) == 2
        assert set(first) <= set(await run("a.gz", "b.gz"))
    assert server.seen["run"] == 2


def test_two_runs_cannot_write_one_results_file(tmp_path: Path):
    one = ResultsFile(tmp_path / "out.jsonl", 0)
    (tmp_path / "link").symlink_to(tmp_path / "out.jsonl")
    for name in ("out.jsonl", "link"):
        with pytest.raises(StateError, match="another batchrun writes its results there"):
            ResultsFile(tmp_path / name, 0)
    one.close()
    ResultsFile(tmp_path / "out.jsonl", 0).close()


def test_results_that_another_program_has_changed_are_not_written_over(tmp_path: Path):
    file = ResultsFile(tmp_path / "out.jsonl", 0)
    file.append([b"mine\n"])
    with (tmp_path / "out.jsonl").open("ab") as other:
        other.write(b"theirs\n")
    with pytest.raises(OutputError, match=r"another program has changed the results .* \(12 bytes instead of 5\)"):
        file.append([b"mine\n"])
    file.close()
    assert (tmp_path / "out.jsonl").read_bytes() == b"mine\ntheirs\n"


def test_of_many_results_files_only_some_are_open_and_each_gets_its_lines(tmp_path: Path):
    files = ResultsFiles(most_open=3)
    for number in range(10):
        files.add(number, ResultsFile(tmp_path / f"{number}.jsonl", 0))
    for turn in range(3):
        for number in range(10):
            files[number].append([b"%d %d\n" % (number, turn)])
        files.sync(range(10))
        assert sum(file.is_open for file in files.values()) == 3
    files.close()
    for number in range(10):
        expected = b"".join(b"%d %d\n" % (number, turn) for turn in range(3))
        assert (tmp_path / f"{number}.jsonl").read_bytes() == expected


@pytest.mark.parametrize("mode", [0o600, 0o644])
async def test_only_the_owner_may_read_the_results_of_a_private_input(tmp_path: Path, mode: int):
    os.umask(0o022)
    write_lines(tmp_path, BAD)
    (tmp_path / "in.jsonl").chmod(mode)
    async with serving(worker=Picky()) as server:
        await rehearse(tmp_path, server.endpoint.base_url)
    for name in ("out.jsonl", "out.errors.jsonl"):
        assert (tmp_path / name).stat().st_mode & 0o777 == mode


COMMAND = shlex.join(BATCHRUN)
OPTIONS = "-o out.jsonl -e abc --run-limit 0 --status-limit 0 --progress none"


def shell(folder: Path, command: str, base_url: str, stdin: int = subprocess.DEVNULL, files: int = 1024) -> str:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        stdin=stdin,
        capture_output=True,
        text=True,
        env={**os.environ, "RUNPOD_API_KEY": "rpa_SECRET", "BATCHRUN_BASE_URL": base_url},
        preexec_fn=limit,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return f"{done.returncode}: {done.stderr}"


def prompts(folder: Path) -> list[str]:
    return sorted(orjson.loads(line)["id"] for line in (folder / "out.jsonl").read_bytes().splitlines())


@pytest.fixture
def two(tmp_path: Path) -> Path:
    for name in "ab":
        lines = [{"id": f"{name}{n}", "prompt": f"good {n}"} for n in range(3)]
        (tmp_path / f"{name}.jsonl").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    return tmp_path


ALL = ["a0", "a1", "a2", "b0", "b1", "b2"]


def test_two_pipes_are_two_inputs_and_the_run_resumes_from_their_copies(two: Path, base_url: str):
    command = f"{COMMAND} run <(cat a.jsonl) <(cat b.jsonl) {OPTIONS}"
    assert shell(two, f"{command} --limit 4", base_url).startswith("0")
    assert prompts(two) == ALL[:4]
    assert shell(two, command, base_url).startswith("0")
    assert prompts(two) == ALL
    assert shell(two, f"{COMMAND} resume out.jsonl.state", base_url).startswith("0")
    assert verify(two / "out.jsonl.state").is_whole


@pytest.mark.parametrize("source", ["", "true |"])
def test_without_a_pipe_a_run_on_stdin_resumes_from_its_copy(two: Path, base_url: str, source: str):
    assert shell(two, f"cat a.jsonl b.jsonl | {COMMAND} run - {OPTIONS} --limit 4", base_url).startswith("0")
    said = shell(two, f"{source} {COMMAND} run - {OPTIONS}", base_url)
    assert said.startswith("0")
    assert prompts(two) == ALL


def test_a_pipe_that_broke_off_is_refused_and_the_copy_is_as_it_was(two: Path, base_url: str):
    assert shell(two, f"cat a.jsonl b.jsonl | {COMMAND} run - {OPTIONS} --limit 4", base_url).startswith("0")
    before = contents(two)
    for lost in ("head -c 20", "head -n 2"):
        assert shell(two, f"{lost} a.jsonl | {COMMAND} run - {OPTIONS}", base_url).startswith("2")
        assert contents(two) == before
    assert shell(two, f"{COMMAND} resume out.jsonl.state", base_url).startswith("0")


def test_a_run_is_found_and_resumed_through_a_link_to_its_state_in_another_folder(two: Path, base_url: str):
    assert shell(two, f"{COMMAND} run a.jsonl b.jsonl {OPTIONS} --limit 4", base_url).startswith("0")
    (two / "links").mkdir()
    (two / "links" / "latest").symlink_to(two / "out.jsonl.state")
    for command in ("status latest", "verify latest", "export latest -o -"):
        assert shell(two / "links", f"{COMMAND} {command}", base_url).startswith("0")
    again = f"{COMMAND} run a.jsonl b.jsonl {OPTIONS} --state links/latest"
    assert shell(two, again, base_url).startswith("0")
    assert prompts(two) == ALL
    assert [path.name for path in (two / "links").iterdir()] == ["latest"]


def test_the_copy_of_what_was_piped_is_replaced_only_when_the_run_has_taken_the_new_one(two: Path, base_url: str):
    assert shell(two, f"cat a.jsonl | {COMMAND} run - {OPTIONS}", base_url).startswith("0")
    (first,) = two.glob("out.jsonl.state.0-*.jsonl")
    assert shell(two, f"cat a.jsonl b.jsonl | {COMMAND} run - {OPTIONS}", base_url).startswith("0")
    (second,) = two.glob("out.jsonl.state.0-*.jsonl")
    assert first != second
    assert (two / "out.jsonl.state.stdin.jsonl").resolve() == second
    assert second.stat().st_mode & 0o777 == 0o600
    assert prompts(two) == ALL


def test_a_folder_with_more_files_than_a_process_may_open_is_run(tmp_path: Path, base_url: str):
    inbox = tmp_path / "in"
    inbox.mkdir()
    for n in range(300):
        (inbox / f"{n:03}.jsonl").write_text(f'{{"id": "r{n}", "prompt": "x"}}\n')
    options = OPTIONS.replace("out.jsonl", "out/")
    assert shell(tmp_path, f"{COMMAND} run in {options} -j 20", base_url, files=400).startswith("0")
    assert sum(path.read_bytes().count(b"\n") for path in (tmp_path / "out").glob("*.results.jsonl")) == 300
