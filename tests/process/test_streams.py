"""Standard streams that are closed, full or given up, and places that are gone: what a daemon or a cron job meets."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner

from batchrun.cli.app import main
from tests.support.command import batchrun as as_text
from tests.support.rehearsal import read_lines

batchrun = partial(as_text, text=False)

pytestmark = pytest.mark.usefixtures("quiet_home")

LOCAL = ["-e", "local", "--worker", "echo"]
RUN = ["run", "p.jsonl", "-o", "o.jsonl", *LOCAL]
FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")


def closing(*numbers: int):
    return lambda: [os.close(number) for number in numbers]


@pytest.fixture
def state() -> str:
    assert batchrun(*RUN, "-q").returncode == 0
    return "o.jsonl.state"


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_run_whose_standard_streams_are_closed_ends_as_any_other(tmp_path: Path, closed: tuple[int, ...]):
    done = batchrun(*RUN, "-v", before=closing(*closed))
    assert (done.returncode, done.stdout, b"Traceback" in done.stderr) == (0, b"", False)
    # No message has gone into a file that got the number of the stream.
    assert sorted(record["text"] for record in read_lines(tmp_path / "o.jsonl")) == ["x y", "z"]
    assert batchrun("verify", "o.jsonl.state").returncode == 0


def test_a_closed_stdin_is_an_empty_one():
    done = batchrun("run", "-", "-o", "o.jsonl", *LOCAL, before=closing(0))
    assert (done.returncode, b"the input has no lines" in done.stderr) == (2, True)


@FULL
def test_a_finished_run_whose_messages_go_to_a_full_disk_ends_with_its_own_code():
    with Path("/dev/full").open("w") as full:
        assert batchrun(*RUN, "-v", stderr=full).returncode == 0
        assert batchrun("status", "none.state", stderr=full).returncode == 2


COMMANDS = [
    *(["status", "o.jsonl.state"], ["verify", "o.jsonl.state"], ["export", "o.jsonl.state", "-o", "-"]),
    *(["report", "o.jsonl.state"], ["check", "p.jsonl"], ["run", "p.jsonl", "-o", "d.jsonl", *LOCAL, "--dry-run"]),
    *(["--help"], ["run", "--help"]),
]


@FULL
def test_data_that_cannot_be_written_is_exit_4_with_the_reason(state: str):
    for command in COMMANDS:
        with Path("/dev/full").open("w") as full:
            done = batchrun(*command, stdout=full)
        assert done.returncode == 4, command
        assert done.stderr.count(b"batchrun: ") == 1
        assert b"batchrun: stdout cannot be written: No space left on device\n" in done.stderr
    done = batchrun("export", state, "-o", "-", before=closing(1))
    assert (done.returncode, b"stdout cannot be written" in done.stderr) == (4, True)


def test_a_reader_who_has_seen_enough_ends_a_command_without_a_word(state: str):
    for command in COMMANDS:
        read, write = os.pipe()
        os.close(read)
        done = batchrun(*command, stdout=write)
        os.close(write)
        assert (done.returncode, done.stderr) == (141, b""), command


def test_a_run_whose_messages_nobody_reads_any_more_ends_with_its_own_code():
    read, write = os.pipe()
    os.close(read)
    assert batchrun(*RUN, stderr=write).returncode == 0
    os.close(write)


def test_what_the_locale_cannot_write_is_shown_as_an_escape(tmp_path: Path):
    (tmp_path / "日本.jsonl").write_text('"x"\n')
    done = batchrun("check", "日本.jsonl", PYTHONIOENCODING="iso8859-1")
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"\u65e5\u672c.jsonl" in done.stdout


def test_a_path_in_a_folder_that_is_gone_is_one_clear_line(tmp_path: Path):
    for command in (RUN, ["run", "p.jsonl", *LOCAL], ["status", "o.state"], ["check", "p.jsonl"]):
        gone = tmp_path / "gone"
        gone.mkdir()
        done = batchrun(*command, before=lambda: (os.chdir(gone), gone.rmdir()))  # noqa: B023 - called at once
        assert done.returncode == 2
        assert done.stderr.startswith(b"batchrun: the current folder no longer exists\n  -> ")


def test_a_run_of_absolute_paths_needs_no_current_folder(tmp_path: Path):
    gone = tmp_path / "gone"
    gone.mkdir()
    paths = [str(tmp_path / "p.jsonl"), "-o", str(tmp_path / "o.jsonl")]
    done = batchrun("run", *paths, *LOCAL, "-q", before=lambda: (os.chdir(gone), gone.rmdir()))
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_run_and_an_export_need_no_folder_for_temporary_files(state: str):
    env = {"TMPDIR": "/no/such/folder"}
    assert batchrun("run", "p.jsonl", "-o", "t.jsonl", *LOCAL, "-q", **env).returncode == 0
    assert batchrun("export", state, "-o", "x.jsonl", **env).returncode == 0


def test_an_input_that_is_empty_is_not_the_current_folder():
    for arguments, named in (
        (["run", "", "-o", "o.jsonl", *LOCAL], "INPUT"),
        (["run", "p.jsonl", "-o", "", *LOCAL], "--output"),
        (["run", "p.jsonl", "--state", "", *LOCAL], "--state"),
        (["run", "p.jsonl", "--config", "", *LOCAL], "--config"),
        (["watch", "", "-o", "out", *LOCAL], "FOLDER"),
        (["watch", ".", "-o", "", *LOCAL], "--output"),
        (["check", ""], "INPUT"),
        (["status", ""], "STATE"),
        (["report", "", "--html", "x"], "STATE"),
    ):
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 2
        assert done.output.startswith(f"batchrun: {named} is empty\n  -> is a shell variable unset?"), arguments


class Log:
    """What a scheduler of tasks puts in the place of a stream: no file, no terminal, no bytes."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        assert isinstance(text, str)
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


class Broken:
    """A stream that fails as nothing of the system does."""

    def write(self, text: str) -> int:
        raise RuntimeError("the task is over")


def closed(stream: io.StringIO) -> io.StringIO:
    stream.close()
    return stream


def called(monkeypatch, *arguments: str, **streams: object) -> int:
    """Run a command in this process, with other standard streams."""
    for name, stream in {"stdin": None, "stdout": Log(), "stderr": Log(), **streams}.items():
        monkeypatch.setattr(sys, name, stream)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    monkeypatch.undo()
    return ended.value.code or 0


STREAMS = {
    "text": io.StringIO('"unread"\n'),
    "bytes": io.BytesIO(b'"unread"\n'),
    "nothing": None,
    "closed": closed(io.StringIO()),
    "anything": object(),
}


@pytest.mark.parametrize("stdin", STREAMS)
def test_a_run_of_files_needs_no_stdin_of_any_kind(tmp_path: Path, stdin: str):
    with pytest.MonkeyPatch.context() as patch:
        assert called(patch, *RUN, stdin=STREAMS[stdin]) == 0
        assert called(patch, "verify", "o.jsonl.state", stdin=STREAMS[stdin]) == 0
    assert len(read_lines(tmp_path / "o.jsonl")) == 2


PIPED = {"text": lambda: io.StringIO('"ünï"\n"z"\n'), "bytes": lambda: io.BytesIO('"ünï"\n"z"\n'.encode())}


@pytest.mark.parametrize("stdin", PIPED)
def test_a_dash_reads_what_a_program_has_put_in_the_place_of_stdin(tmp_path: Path, stdin: str):
    with pytest.MonkeyPatch.context() as patch:
        assert called(patch, "run", "-", "-o", "o.jsonl", *LOCAL, stdin=PIPED[stdin]()) == 0
    assert sorted(record["text"] for record in read_lines(tmp_path / "o.jsonl")) == ["z", "ünï"]


def test_data_goes_to_a_stdout_that_takes_only_text(tmp_path: Path):
    (tmp_path / "p.jsonl").write_text('"日本"\n')
    said = []
    for command in (
        *(RUN, ["status", "o.jsonl.state", "--json"], ["check", "p.jsonl", "--json"]),
        *(["run", "p.jsonl", "-o", "d.jsonl", *LOCAL, "--dry-run"], ["export", "o.jsonl.state", "-o", "-"]),
    ):
        with pytest.MonkeyPatch.context() as patch:
            log = Log()
            assert called(patch, *command, stdout=log) == 0
            said.append(log.text)
    assert said[0] == ""
    assert [bool(orjson.loads(text)) for text in said[1:]] == [True] * 4
    assert orjson.loads(said[-1])["text"] == "日本"


@pytest.mark.parametrize("name", ["broken", "nothing", "closed"])
def test_a_run_whose_messages_nobody_takes_ends_with_its_own_code_in_a_program(name: str):
    stream = {**STREAMS, "broken": Broken()}[name]
    with pytest.MonkeyPatch.context() as patch:
        assert called(patch, *RUN, stdout=stream, stderr=stream) == 0


def test_a_program_without_standard_streams_can_run_a_batch(tmp_path: Path):
    program = "import sys; sys.stdin = None; import batchrun; batchrun.run([{'prompt': 'x'}], worker='echo',"
    command = [sys.executable, "-c", f"{program} endpoint='local', output='o.jsonl')"]
    assert subprocess.run(command, check=False, timeout=60, preexec_fn=closing(0, 1, 2)).returncode == 0
    assert [record["text"] for record in read_lines(tmp_path / "o.jsonl")] == ["x"]
    assert batchrun("verify", "o.jsonl.state").returncode == 0
