"""Paths that cannot be looked at: named in one line, wherever they are given."""

from __future__ import annotations

import ctypes
import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from batchrun.cli.app import main
from batchrun.errors import InputError, UsageError
from batchrun.files.paths import look_at
from tests.support.command import BATCHRUN

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("quiet_home")

LOCAL = ["-e", "local", "--worker", "echo"]
LONG, LOOP, SECRET = "a" * 300, "loop", "secret/x"

WAYS = [
    *(["run", "{}", "-o", "o.jsonl", *LOCAL], ["run", "{}", *LOCAL], ["run", "p.jsonl", "-o", "{}", *LOCAL]),
    *(["run", "p.jsonl", "--state", "{}", *LOCAL], ["run", "p.jsonl", "-o", "o.jsonl", *LOCAL, "--config", "{}"]),
    *(["run", "p.jsonl", "-e", "x", "--api-key-file", "{}"], ["run", "p.jsonl", "-e", "local", "--model-file", "{}"]),
    *(["run", "p.jsonl", *LOCAL, "--log-file", "{}"], ["watch", "{}", "-o", "out", *LOCAL]),
    *(["watch", ".", "-o", "{}", *LOCAL], ["resume", "{}"], ["status", "{}"], ["verify", "{}"], ["cancel", "{}"]),
    *(["export", "{}", "-o", "-"], ["export", "x", "-o", "{}"], ["merge", "{}", "-o", "-"], ["merge", "x", "-o", "{}"]),
    *(["report", "{}"], ["report", "x", "--html", "{}"], ["check", "{}"]),
]


@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_a_name_that_is_too_long_or_a_link_to_itself_is_named(tmp_path: Path, way: list[str]):
    (tmp_path / LOOP).symlink_to(LOOP)
    for path, reason in ((LONG, "File name too long"), (LOOP, "Too many levels of symbolic links")):
        done = CliRunner().invoke(main, [part.format(path) for part in way])
        assert done.exit_code == 2, done.output
        assert done.output.startswith(f"batchrun: {path}: {reason}\n  -> "), done.output


@pytest.mark.slow
def test_a_folder_that_may_not_be_entered_is_named(tmp_path: Path):
    (tmp_path / "secret").mkdir(mode=0)
    for way in (WAYS[0], WAYS[2], WAYS[3], WAYS[11]):
        command = [*BATCHRUN, *(part.format(SECRET) for part in way)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=without_root)
        assert done.returncode == 2
        assert done.stderr.startswith("batchrun: secret/x: Permission denied\n  -> "), done.stderr
    (tmp_path / "secret").chmod(0o700)


@pytest.mark.slow
def test_bytes_that_are_no_utf_8_are_shown_as_escapes(tmp_path: Path):
    (tmp_path / os.fsdecode(b"\xff.jsonl")).write_text('"x"\n')
    for way in (WAYS[0], WAYS[2], WAYS[3], WAYS[11], WAYS[-1]):
        command = [os.fsencode(part.replace("{}", "\udcff.jsonl")) for part in (*BATCHRUN, *way)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
        assert done.stderr.count("batchrun: ") == 1
        assert "xff.jsonl" in done.stderr


def without_root() -> None:
    """Root is like anybody from now on."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)


@pytest.mark.parametrize("way", ["output", "state", "inputs", "log-file", "api-key-file"])
def test_a_nul_in_a_run_file_is_named(tmp_path: Path, way: str):
    value = '["a\\u0000b"]' if way == "inputs" else '"a\\u0000b"'
    (tmp_path / "run.toml").write_text(f"{way} = {value}\n")
    inputs = [] if way == "inputs" else ["p.jsonl"]
    done = CliRunner().invoke(main, ["run", *inputs, *LOCAL, "--config", "run.toml"])
    assert (done.exit_code, "is not a path: " in done.output, "embedded null" in done.output) == (2, True, True)


@pytest.mark.parametrize("kind", ["fifo", "/dev/null"])
def test_a_state_file_that_is_a_device_or_a_pipe_is_refused_at_once(tmp_path: Path, kind: str):
    os.mkfifo(tmp_path / "fifo")
    for command in ("status", "resume", "verify"):
        done = CliRunner().invoke(main, [command, kind])
        assert (done.exit_code, "is a device or a pipe" in done.output) == (2, True), done.output


def test_what_is_there_is_seen_and_what_is_not_may_come(tmp_path: Path):
    (tmp_path / "dangling").symlink_to("nowhere")
    assert look_at(tmp_path, "PATH").st_mode
    for path in ("none", "none/none", "p.jsonl/x", "dangling", tmp_path / "none"):
        assert look_at(path, "PATH") is None
    with pytest.raises(InputError, match="INPUT is empty"):
        look_at("", "INPUT", InputError)
    with pytest.raises(UsageError, match="is not a path"):
        look_at("a\0b", "PATH")
