"""Options of a run in a TOML file, through the command."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import click
import orjson
import pytest

from batchrun.cli.app import main
from batchrun.cli.run_file import ONLY_IN_RUN, read_run_file
from batchrun.errors import UsageError
from tests.support.command import batchrun, invoke

if TYPE_CHECKING:
    from pathlib import Path


def bodies(done: subprocess.CompletedProcess[str]) -> list[dict]:
    assert done.returncode == 0, done.stderr
    return [orjson.loads(line)["input"] for line in done.stdout.splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    return tmp_path


def test_the_options_of_a_file_are_those_of_the_run(folder: Path):
    (folder / "run.toml").write_text(
        'inputs = ["in.jsonl"]\nendpoint = "x"\nchat = true\nsystem = "Be brief."\nlimit = 1\nrepeat = 2\n'
        'deadline = "8h"\ndry-run = "all"\n[set]\nmax_tokens = 7\nstop = ["a,b"]\n[sweep]\ntemperature = [0, 0.5]\n'
    )
    found = bodies(batchrun("run", "--config", "run.toml", cwd=folder))
    assert found == [
        {
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"}],
            "sampling_params": {"temperature": 0, "seed": 1, "max_tokens": 7, "stop": ["a,b"]},
        }
    ]


def test_a_whole_run_leaves_its_files_where_the_file_says(folder: Path):
    (folder / "sub").mkdir()
    (folder / "sub" / "run.toml").write_text(
        'inputs = "../in.jsonl"\noutput = "results/"\nendpoint = "local"\nworker = "echo"\nquiet = true\n'
    )
    done = batchrun("run", "--config", "sub/run.toml", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert len((folder / "sub" / "results" / "in.results.jsonl").read_bytes().splitlines()) == 2


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(folder: Path):
    (folder / "run.toml").write_text('inputs = ["in.jsonl"]\nendpoint = "x"\nsystem = "file"\n')
    arguments = ("run", "--config", "run.toml", "--dry-run", "all")

    def system(*more: str, **environment: str) -> str:
        return bodies(batchrun(*arguments, *more, **environment, cwd=folder))[0]["messages"][0]["content"]

    assert system() == "file"
    assert system(BATCHRUN_SYSTEM="environment") == "environment"
    assert system("--system", "command", BATCHRUN_SYSTEM="environment") == "command"


def test_tables_within_a_sweep_are_paths(folder: Path):
    (folder / "in.jsonl").write_text('{"input": {"image": {"width": 1}}}\n')
    (folder / "run.toml").write_text(
        'inputs = ["in.jsonl"]\nendpoint = "x"\n[sweep.input]\nsteps = 4\n[sweep.input.image]\nwidth = [8, 9]\n'
    )
    found = bodies(batchrun("run", "--config", "run.toml", "--dry-run", "all", cwd=folder))
    assert found == [{"image": {"width": width}, "steps": 4} for width in (8, 9)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('inptus = ["in.jsonl"]', "'inptus' is not an option of `batchrun run`"),
        ("inptus = 1", "did you mean inputs?"),
        ("config = 'other.toml'", "'config' is not an option"),
        ("repeat = 2\nchat = yes", "--config run.toml: not valid TOML: Invalid value (at line 2, column 8)"),
        ("repeat = true", "repeat must be a single value, not True"),
        ("system = ['a']", "system must be a single value, not a list"),
        ("chat = 'yes'", "chat must be true or false, not 'yes'"),
        ("inputs = [1]", "inputs must be text or a list of texts"),
        ("only = {a = 1}", "only must not be a table"),
        ("max-retries = 1\nmax_retries = 2", "is given twice, in two spellings"),
        ("[set]\nseed = 1979-05-27", "cannot be sent as JSON"),
        ("[set]\nseed = inf", "cannot be sent as JSON"),
        ("repeat = 0", "--config run.toml: repeat: '0' is not a whole number from 1"),
        ("max-retries = 'many'", "--config run.toml: max-retries: 'many' is not a whole number from 0 to 1,000"),
        ("concurrency = 0", "--config run.toml: concurrency: '0' is neither auto nor a whole number"),
        ("ttl = nan", "--config run.toml: ttl: 'nan' is not a number from 10 to 604,800"),
        ("max-cost = inf\nprice-per-hour = 1", "max-cost: 'inf' is not a number above 0"),
        ("limit = 9223372036854775808", "limit: '9223372036854775808' is not a whole number"),
        ("limit = " + "9" * 5000, "not valid TOML"),
        ("x = " + "[" * 5000, "not valid TOML"),
        ("unconfirmed = 'ask'", "--config run.toml: unconfirmed: 'ask' is not one of 'resubmit', 'hold'"),
        ("sweep = ['temperature']", "--config run.toml: sweep: 'temperature' is not KEY=V1,V2"),
        ("deadline = '8'", "--config run.toml: deadline: '8' has no unit"),
        ("[sweep]\ntemprature = [1]", "no such sampling parameter"),
        ("[sweep]\ntemperature = []", "no value is given"),
    ],
)
def test_a_wrong_file_is_one_clear_line_and_exit_2(folder: Path, text: str, words: str):
    (folder / "run.toml").write_text(text)
    done = batchrun("run", "in.jsonl", "-e", "x", "--config", "run.toml", cwd=folder)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(folder.glob("*.state"))


def test_a_file_that_is_not_there_is_said_so(folder: Path):
    done = batchrun("run", "in.jsonl", "-e", "x", "--config", "none.toml", cwd=folder)
    assert (done.returncode, "--config none.toml: No such file" in done.stderr) == (2, True)


def test_every_option_of_run_may_stand_in_a_file(tmp_path: Path):
    command = main.commands["run"]
    for parameter in command.params:
        if parameter.name in ("config", "help"):
            continue
        longest = next((opt for opt in parameter.opts if opt.startswith("--")), str(parameter.name))
        is_flag = isinstance(parameter, click.Option) and parameter.is_flag
        value = "true" if is_flag else '["a"]' if parameter.multiple or parameter.nargs == -1 else '"a"'
        (tmp_path / "run.toml").write_text(f"{longest.removeprefix('--')} = {value}\n")
        assert parameter.name in read_run_file(tmp_path / "run.toml", command)
    (tmp_path / "run.toml").write_text("help = true\n")
    with pytest.raises(UsageError):
        read_run_file(tmp_path / "run.toml", command)


def test_a_file_without_inputs_leaves_them_to_the_command_line(folder: Path):
    (folder / "run.toml").write_text('inputs = []\nendpoint = "x"\n')
    assert len(bodies(batchrun("run", "in.jsonl", "--config", "run.toml", "--dry-run", "all", cwd=folder))) == 2
    done = batchrun("run", "--config", "run.toml", "--dry-run", cwd=folder)
    assert (done.returncode, "`batchrun run` needs INPUT..." in done.stderr) == (2, True)


def test_a_path_from_home_is_not_one_in_the_folder_of_the_file(folder: Path):
    (folder / "sub").mkdir()
    (folder / "sub" / "run.toml").write_text('inputs = ["~/in.jsonl"]\nendpoint = "x"\n')
    found = bodies(batchrun("run", "--config", "sub/run.toml", "--dry-run", "all", HOME=str(folder), cwd=folder))
    assert len(found) == 2


def test_a_watch_has_its_options_in_a_file_too(folder: Path):
    (folder / "conf").mkdir()
    (folder / "conf" / "watch.toml").write_text(
        'folder = ".."\noutput = "../out/"\nendpoint = "local"\nworker = "echo"\nuntil-empty = true\nsettle = "0.01s"\n'
    )
    done = batchrun("watch", "--config", "conf/watch.toml", "-q", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert (folder / "out" / "in.done").is_file()


def test_an_estimate_takes_the_file_of_its_run_unless_that_says_to_send_nothing(folder: Path):
    run, estimate = (set(_names_of(command)) for command in ("run", "estimate"))
    assert run - estimate == ONLY_IN_RUN | {"dry_run"}
    text = "inputs = ['in.jsonl']\nendpoint = 'x'\nconfirm = true\ndetach = true\nretry-failed = true\nrepair = true\n"
    (folder / "run.toml").write_text(f"{text}only = ['timed_out']\n")
    code, said = invoke("estimate", "--config", folder / "run.toml", "--pilot", 0)
    assert (code, "nothing was sent" in said) == (0, True), said
    (folder / "run.toml").write_text(f"{text}dry-run = true\n")
    code, said = invoke("estimate", "--config", folder / "run.toml", "--pilot", 0)
    assert (code, "'dry-run' is not an option of `batchrun estimate`" in said) == (2, True), said


def _names_of(command: str) -> list[str]:
    return [str(parameter.name) for parameter in main.commands[command].params]
