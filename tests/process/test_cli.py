"""The command line as a user meets it: one clear line for each mistake, and its exit code."""

from __future__ import annotations

import asyncio
import base64
import gzip
import os
import shlex
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner

from batchrun.cli.app import main
from batchrun.commands.definitions import EMULATED, GROUPS, ROWS
from batchrun.state.reader import StateReader
from batchrun.state.store import Store
from tests.support.command import BATCHRUN, assert_one_clear_line, batchrun, invoke
from tests.support.fault_server import HEALTHY, KEY, Answer, FaultServer, Script, job, page
from tests.support.rehearsal import read_lines

pytestmark = pytest.mark.usefixtures("quiet_home")


def local(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return batchrun("run", *arguments, "-e", "local", "--worker", "echo", "--progress", "none", **environ)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["p.jsonl"], "no endpoint is given"),
        (["p.jsonl", "-e", "abc"], "no API key is set"),
        (["p.jsonl", "-e", "a/b c"], "is not an endpoint ID"),
        (["none.jsonl", "-e", "local"], "none.jsonl: no such file or folder"),
        (["p.jsonl", "p.jsonl", "-e", "local", "-o", "o.jsonl"], "p.jsonl is given twice"),
        (["p.jsonl", "-", "-e", "local"], "no --output is given"),
        (["-", "-e", "local"], "no --output is given"),
        (["p.jsonl", "-e", "local", "-o", "-"], "results cannot go to stdout"),
        (["p.jsonl", "-e", "local", "-o", "s3://bucket/r.jsonl"], "a run writes its results to this machine"),
        (["p.jsonl", "-e", "local", "-j", "0"], "'0' is neither auto nor a whole number from 1 to 1,000,000"),
        (["p.jsonl", "-e", "local", "--connections", "few"], "'few' is neither auto nor a whole number"),
        (["p.jsonl", "-e", "local", "--set", "temperature"], "is not KEY=VALUE"),
        (["p.jsonl", "-e", "local", "--max-cost", "5"], "--max-cost needs --price-per-hour"),
        (
            ["p.jsonl", "-e", "local", "--max-cost", "0", "--price-per-hour", "1"],
            "'0' is not a number above 0 and at most",
        ),
        (["p.jsonl", "-e", "local", "--deadline", "soon"], "'soon' is not a time above 0; give for example 8h, 90m"),
        (["p.jsonl", "-e", "local", "--deadline", "0h"], "is not a time above 0"),
        (["p.jsonl", "-e", "local", "--deadline", "8"], "'8' has no unit: give 8h, 8m or 8s"),
        (["p.jsonl", "-e", "abc", "--upstream", "http://x/v1"], "--upstream needs --endpoint local"),
        (["p.jsonl", "-e", "local", "--job-timeout", "1.2.3h"], "is not a time above 0"),
        (["p.jsonl", "-e", "local", "--job-timeout", ""], "is not a time above 0"),
        (["p.jsonl", "-e", "local", "--halt", "0"], "is not a number of failed rows (50), a percentage (10%) or off"),
        (
            ["p.jsonl", "-e", "local", "--halt", "101%"],
            "is not a number of failed rows (50), a percentage (10%) or off",
        ),
        (
            ["p.jsonl", "-e", "local", "--halt", "many"],
            "is not a number of failed rows (50), a percentage (10%) or off",
        ),
        (["p.jsonl", "-e", "local", "--canary", "-1"], "'-1' is not a whole number from 0"),
        (["p.jsonl", "-e", "local", "--on-interrupt", "panic"], "'panic' is not one of 'drain', 'leave', 'cancel'"),
        (["p.jsonl", "-e", "local", "--notify", "slack"], "--notify is not an http(s) URL"),
        (["p.jsonl", "-e", "local", "--execution-timeout", "1"], "'1' is not a number from 5 to 604,800"),
        (["p.jsonl", "-e", "local", "-j", "9" * 5000], "... is neither auto nor a whole number"),
        (["p.jsonl", "-e", "local", "--halt", "9" * 5000], "... is not a number of failed rows (50)"),
        (["p.jsonl", "-e", "local", "--halt", "nan%"], "'nan%' is not a number of failed rows (50)"),
        (["p.jsonl", "-e", "local", "--limit", str(2**63)], "is not a whole number from 1 to 2,147,483,647"),
        (["p.jsonl", "-e", "local", "--run-limit", "1" + "0" * 30], "is not a whole number from 0 to 1,000,000"),
        (["p.jsonl", "-e", "local", "--canary", "1" + "0" * 30], "is not a whole number from 0 to 2,147,483,647"),
        (["p.jsonl", "-e", "local", "--ttl", "nan"], "'nan' is not a number from 10 to 604,800"),
        (["p.jsonl", "-e", "local", "--execution-timeout", "inf"], "'inf' is not a number from 5 to 604,800"),
        (["p.jsonl", "-e", "local", "--max-cost", "nan", "--price-per-hour", "1"], "'nan' is not a number above 0"),
        (["p.jsonl", "-e", "local", "--price-per-hour", "inf"], "'inf' is not a number above 0 and at most 1,000,000"),
        (["p.jsonl", "-e", "local", "--deadline", "99999999d"], "'99999999d' is longer than 10 years"),
        (["p.jsonl", "-e", "local", "--set", f"x={'[' * 1000}{']' * 1000}"], "--set cannot be sent as JSON"),
        (["p.jsonl", "-e", "local", "--sweep", f"seed={'[' * 500}{']' * 500}"], "--sweep cannot be sent as JSON"),
        (["p.jsonl", "-e", "local", "--set", "x=\udcff"], "--set cannot be sent as JSON"),
        (["p.jsonl", "-e", "x", "--base-url", "http://[::1"], "--base-url has an invalid host or port"),
        (["p.jsonl", "-e", "x", "--base-url", "http://host:abc/v2"], "an invalid host or port"),
        (["p.jsonl", "-e", "x", "--base-url", "http://127.0.0.1:99999"], "an invalid host or port"),
        (["p.jsonl", "-e", "x", "--base-url", f"http://{'a' * 300}"], "an invalid host or port"),
        (["p.jsonl", "-e", "x", "--base-url", "http://me:pw@127.0.0.1/"], "--base-url contains a user or a password"),
        (
            ["p.jsonl", "-e", "x", "--base-url", "http://127.0.0.1/v2?a=b"],
            "--base-url must not have a query or a fragment",
        ),
        (["p.jsonl", "-e", "local", "--notify", "http://[::1"], "--notify has an invalid host or port"),
        (["p.jsonl", "-e", "local", "--upstream", "http://x:99999"], "--upstream has an invalid host or port"),
        (["p.jsonl", "-e", "local", "--only", "timed_out"], "--only needs --retry-failed"),
        (["p.jsonl", "-e", "local", "--retry-failed", "--only", "bad"], "--only bad: unknown kind of failure"),
        (["p.jsonl", "-e", "local", "--set", "stream=true"], "--set stream: streaming is not supported in batch runs"),
        (["p.jsonl", "-e", "local", "--system", "\udcff"], "--system is not valid UTF-8"),
        (["p.jsonl", "-e", "local", "--no-such-option"], "`batchrun run` has no option --no-such-option"),
        (["p.jsonl", "-e", "x", "--base-url", "ftp://x", "--api-key-file", "key"], "is not an http(s) URL"),
        (
            ["p.jsonl", "-e", "x", "--base-url", "https://x.api.runpod.ai"],
            "load-balancing endpoint, which has no queue",
        ),
        (["p.jsonl", "-e", "x", "--api-key-file", "nokey"], "--api-key-file nokey: No such file"),
        (["p.jsonl", "-e", "local", "--state", "."], ". cannot be the state file: it is a folder"),
        (
            ["p.jsonl", "-e", "local", "--state", "p.jsonl"],
            "p.jsonl cannot be both the state file and the input p.jsonl",
        ),
        (["p.jsonl", "-e", "local", "--model-file", "none.gguf"], "--model-file none.gguf: No such file"),
        (["p.jsonl", "-e", "local", "--log-file", "no/such/folder/log"], "--log-file no/such/folder/log"),
        (["empty.jsonl", "-e", "local"], "the input has no lines"),
    ],
)
def test_wrong_usage_is_exit_2_with_one_clear_line_and_nothing_left_behind(tmp_path: Path, arguments, words):
    (tmp_path / "key").write_text("rpa_KEY")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert_one_clear_line(batchrun("run", *arguments), 2, words)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(("name", "value"), [("TTL", "nan"), ("CONCURRENCY", "9" * 5000), ("LIMIT", str(2**63))])
def test_a_wrong_number_in_the_environment_is_refused_by_name(monkeypatch, name: str, value: str):
    monkeypatch.setenv(f"BATCHRUN_{name}", value)
    said = CliRunner().invoke(main, ["run", "p.jsonl", "-e", "local"], prog_name="batchrun")
    assert said.exit_code == 2
    assert said.output.startswith(f"batchrun: --{name.lower()} from BATCHRUN_{name}: ")
    assert "  -> see batchrun run --help\n" in said.output


def test_wrong_usage_of_any_command_is_one_line_and_a_hint():
    for arguments, path in ((["--nonsense"], "batchrun"), (["nonsense"], "batchrun"), (["verify"], "batchrun verify")):
        said = CliRunner().invoke(main, arguments, prog_name="batchrun")
        assert said.exit_code == 2
        first, hint = said.output.splitlines()
        assert first.startswith("batchrun: ")
        assert hint == f"  -> see {path} --help"


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ([], "no command is given", "see batchrun --help; begin with `batchrun run`"),
        (["rum"], "there is no command 'rum'", "did you mean run? Or see batchrun --help"),
        (["run"], "`batchrun run` needs INPUT...", "see batchrun run --help"),
        (["resume", "p", "--set", "a=b"], "`batchrun resume` has no option --set", "see batchrun resume --help"),
        (["run", "p", "--ouput", "x"], "`batchrun run` has no option --ouput", "did you mean --output? Or see"),
        (["run", "p", "-o"], "-o needs a value", "see batchrun run --help"),
        (["run", "p", "--chat=1"], "--chat takes no value", "see batchrun run --help"),
        (["run", "p", "--format", "x"], "--format: 'x' is not one of 'auto', 'openai', 'batchrun'", "see batchrun run"),
        (["watch", "in"], "`batchrun watch` needs --output", "see batchrun watch --help"),
        (["status", "a", "b"], "`batchrun status`: got unexpected extra argument (b)", "see batchrun status --help"),
        (["run", "p", "-o", "x", "-o", "y"], "--output is given twice, but takes one value", "see batchrun run"),
    ],
)
def test_each_kind_of_wrong_usage_says_what_where_and_what_to_do(arguments: list[str], message: str, hint: str):
    said = CliRunner().invoke(main, arguments, prog_name="batchrun")
    assert said.exit_code == 2
    first, second = said.output.splitlines()
    assert first == f"batchrun: {message}"
    assert second.startswith(f"  -> {hint}")


def test_every_command_has_a_line_that_fits_80_columns():
    said = CliRunner().invoke(main, ["--help"], terminal_width=80).output
    assert "..." not in said.split("Commands:")[1].split("Exit codes:")[0]
    assert all(command.short_help for command in main.commands.values())


def test_the_options_of_a_run_are_under_headings_with_the_most_used_first():
    lines = CliRunner().invoke(main, ["run", "--help"]).output.splitlines()
    headings = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert headings == [f"{group}:" for group in GROUPS if group not in (ROWS, EMULATED)]
    firsts = [lines[lines.index(heading) + 1].split()[0].rstrip(",") for heading in headings]
    assert firsts == ["-e", "--set", "-j", "--max-retries", "--deadline", "--price-per-hour", "--worker", "--progress"]


def test_the_variables_of_options_that_are_called_otherwise_are_read():
    done = local("p.jsonl", "--dry-run", "all", BATCHRUN_OVERRIDE="max_tokens=3", BATCHRUN_DEFAULT="top_k=4")
    assert b'"max_tokens":3' in done.stdout.encode()
    assert b'"top_k":4' in done.stdout.encode()


def test_invalid_lines_are_listed_by_file_and_line(tmp_path: Path):
    (tmp_path / "bad.jsonl").write_text('{"prompt": 1}\n{"id": "a", "prompt": "x"}\nnonsense\n')
    done = local("bad.jsonl")
    assert_one_clear_line(done, 2, "bad.jsonl:1: `prompt` must be")
    assert "bad.jsonl:3: invalid JSON" in done.stderr
    assert "batchrun check bad.jsonl" in done.stderr


def test_results_go_beside_the_input_and_nothing_to_stdout(tmp_path: Path):
    done = local("p.jsonl")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert sorted(record["text"] for record in read_lines(tmp_path / "p.results.jsonl")) == ["x y", "z"]
    assert "finished: 2 of 2 rows succeeded" in done.stderr


def test_stdin_and_gzip_are_read_and_a_resumed_run_needs_neither_again(tmp_path: Path):
    (tmp_path / "g.jsonl.gz").write_bytes(gzip.compress(b'"from gzip"\n'))
    command = [*BATCHRUN, "run", "-", "g.jsonl.gz", "-e", "local", "--worker", "echo"]
    done = subprocess.run(
        [*command, "-o", "o.jsonl", "--limit", "1"], input=b'"from stdin"\n"more"\n', capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [record["text"] for record in read_lines(tmp_path / "o.jsonl")] == ["from stdin"]
    resumed = batchrun("resume", "o.jsonl.state", "--worker", "echo")
    assert resumed.returncode == 0, resumed.stderr
    assert len(read_lines(tmp_path / "o.jsonl")) == 1


def test_a_run_can_be_resumed_from_another_folder_and_after_being_moved(tmp_path: Path, monkeypatch):
    (tmp_path / "one").mkdir()
    assert local("p.jsonl", "-o", "one/out.jsonl", "--limit", "1").returncode == 0
    (tmp_path / "one").rename(tmp_path / "two")
    monkeypatch.chdir(tmp_path / "two")
    assert batchrun("resume", "out.jsonl.state", "--worker", "echo").returncode == 0
    assert len(read_lines(tmp_path / "two" / "out.jsonl")) == 1


def test_failed_rows_are_exit_3_and_the_error_file_is_input_again(tmp_path: Path):
    (tmp_path / "f.jsonl").write_text('{"id": "ok", "prompt": "x"}\n{"id": "no", "prompt": "y", "max_tokens": 0}\n')
    done = local("f.jsonl", "-o", "o.jsonl")
    assert done.returncode == 3
    assert "bad_request" in done.stderr
    assert "o.jsonl.state --failed --only bad_request --set KEY=VALUE" in done.stderr
    (error,) = read_lines(tmp_path / "o.errors.jsonl")
    assert error["request"] == {"id": "no", "prompt": "y", "max_tokens": 0}
    again = local("o.errors.jsonl", "-o", "again.jsonl", "--set", "max_tokens=5")
    assert again.returncode == 0, again.stderr
    assert [record["id"] for record in read_lines(tmp_path / "again.jsonl")] == ["no"]


def test_a_dry_run_prints_what_would_be_sent_and_sends_nothing(tmp_path: Path):
    done = batchrun("run", "p.jsonl", "-e", "abc", "--dry-run", "all", "--set", "temperature=0", "--ttl", "60")
    assert done.returncode == 0, done.stderr
    bodies = [orjson.loads(line) for line in done.stdout.splitlines()]
    assert bodies[0] == {"input": {"prompt": "x y", "sampling_params": {"temperature": 0}}, "policy": {"ttl": 60000}}
    assert "nothing was sent" in done.stderr
    assert not (tmp_path / "p.results.jsonl").exists()


def test_options_can_be_environment_variables(tmp_path: Path):
    done = batchrun(
        "run",
        "p.jsonl",
        BATCHRUN_OUTPUT="env.jsonl",
        RUNPOD_ENDPOINT_ID="local",
        BATCHRUN_WORKER="echo",
        BATCHRUN_PROGRESS="none",
        BATCHRUN_LIMIT="1",
    )
    assert done.returncode == 0, done.stderr
    assert len(read_lines(tmp_path / "env.jsonl")) == 1


def test_progress_as_json_is_one_object_a_line_on_stderr():
    done = batchrun("run", "p.jsonl", "-e", "local", "--worker", "echo", "--progress", "json")
    events = [orjson.loads(line) for line in done.stderr.splitlines()]
    assert events[0]["event"] == "begin"
    assert [event["event"] for event in events][-2:] == ["end", "summary"]
    assert (events[-2]["done"], events[-1]["exit_code"]) == (2, 0)


def test_the_log_says_what_was_done_and_why(tmp_path: Path):
    (tmp_path / "f.jsonl").write_text('{"id": "no", "prompt": "y", "max_tokens": 0}\n')
    done = local("f.jsonl", "-o", "o.jsonl", "--log-file", "log.txt")
    log = (tmp_path / "log.txt").read_text()
    assert "the endpoint answers" in log
    assert "row 1 failed: bad_request: max_tokens must be at least 1" in log
    assert "endpoint answers" not in done.stderr
    verbose = batchrun(
        "run", "f.jsonl", "-o", "v.jsonl", "-e", "local", "--worker", "echo", "--progress", "plain", "-v"
    )
    assert "row 1 failed: bad_request" in verbose.stderr


def test_the_log_is_closed_when_the_command_ends(tmp_path: Path):
    log = tmp_path / "log.txt"
    for more in ((), ("--dry-run",), ("--confirm",)):
        code, _ = invoke("run", "p.jsonl", "-e", "local", "--worker", "echo", "--log-file", log, *more)
        assert code == (2 if more == ("--confirm",) else 0)
    assert log.read_text()
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the listing itself
            assert fd.readlink() != log


async def test_quiet_says_why_a_first_contact_can_never_succeed_and_what_to_do():
    async with FaultServer({}, health=(page(200, "Sign in to the network"),)) as server:
        arguments = ("run", "p.jsonl", "-e", "abc", "--base-url", server.base_url, "-o", "o.jsonl", "-q")
        done = await asyncio.to_thread(batchrun, *arguments, RUNPOD_API_KEY=KEY)
    assert_one_clear_line(done, 4, "batchrun: the answer is not JSON: Sign in to the network\n  -> check --base-url, ")
    assert len(done.stderr.splitlines()) == 2


def test_a_proxy_that_is_none_is_refused_before_anything_is_written(tmp_path: Path):
    done = batchrun("run", "p.jsonl", "-e", "abc", RUNPOD_API_KEY=KEY, https_proxy="ftp://127.0.0.1:9")
    assert_one_clear_line(done, 2, "https_proxy is not the URL of a proxy")
    assert not list(tmp_path.glob("*.state*"))


def test_a_rehearsal_never_speaks_of_runpods_own_url(tmp_path: Path):
    done = batchrun("run", "p.jsonl", "-o", "o.jsonl", "-e", "local", "--worker", "echo", "--dry-run")
    assert "would be sent to the local endpoint" in done.stderr
    assert local("p.jsonl", "-o", "o.jsonl").returncode == 0
    for path in tmp_path.iterdir():
        assert b"api.runpod.ai" not in path.read_bytes(), path.name
    assert local("p.jsonl", "-o", "o.jsonl").returncode == 0


@pytest.mark.parametrize("command", ["status", "verify", "report", "resume", "cancel"])
def test_a_folder_that_is_no_state_file_is_one_clear_line(command: str):
    done = CliRunner().invoke(main, [command, "."])
    assert (done.exit_code, done.output.splitlines()[0]) == (2, "batchrun: . is a folder, not a state file")


def test_quiet_says_nothing_when_all_is_well_whatever_the_progress():
    for progress in ((), ("--progress", "json")):
        done = batchrun("run", "p.jsonl", "-e", "local", "--worker", "echo", "-q", *progress)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_missing_extra_is_one_line_and_the_echo_answers():
    code = "import sys; sys.modules['xllamacpp'] = None; from batchrun.cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "run", "p.jsonl", "-e", "local", "--progress", "plain"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sum("pip install" in line for line in done.stderr.splitlines()) == 1


def test_check_sums_the_input_up():
    done = batchrun("check", "p.jsonl")
    assert done.returncode == 0
    assert "2: 2 prompt" in done.stdout
    report = orjson.loads(batchrun("check", "p.jsonl", "--json").stdout)
    assert (report["rows"], report["with_id"], report["prompt_chars"]) == (2, 1, 4)
    assert report["largest_line_at"] == "p.jsonl:1"


def test_check_names_each_wrong_line_and_each_repeated_id(tmp_path: Path):
    (tmp_path / "bad.jsonl").write_text('{"id": "a", "prompt": "x"}\n\n{"id": "a", "prompt": "y"}\n[1]\n')
    done = batchrun("check", "p.jsonl", "bad.jsonl")
    assert done.returncode == 2
    assert "bad.jsonl:1: duplicate id 'a', first at p.jsonl:1" in done.stdout
    assert "bad.jsonl:4: expected an object or a string, found a list" in done.stdout


@pytest.mark.parametrize("command", ["status", "resume"])
@pytest.mark.parametrize("state", ["none.state", "p.jsonl", "."])
def test_a_wrong_state_file_is_exit_2_with_one_clear_line(command, state):
    done = batchrun(command, state)
    assert_one_clear_line(done, 2, state)


def test_a_state_file_without_a_run_says_so(tmp_path: Path):
    Store(tmp_path / "e.state").close()
    assert_one_clear_line(batchrun("resume", "e.state"), 2, "e.state holds no run")


def test_status_shows_a_finished_run():
    local("p.jsonl")
    done = batchrun("status", "p.results.jsonl.state")
    assert done.returncode == 0
    assert "not running" in done.stdout
    standing = orjson.loads(batchrun("status", "p.results.jsonl.state", "--json").stdout)
    assert (standing["total"], standing["succeeded"], standing["jobs"]) == (2, 2, [])


def test_an_output_that_cannot_be_written_is_exit_4_with_the_remedy(tmp_path: Path):
    (tmp_path / "file").write_text("")
    done = local("p.jsonl", "-o", "file/out.jsonl")
    assert_one_clear_line(done, 4, "file")


def test_a_disk_that_fills_stops_the_run_and_what_was_committed_is_whole(tmp_path: Path):
    (tmp_path / "many.jsonl").write_text("".join(f'{{"id": "r{n}", "prompt": "{"x" * 400}"}}\n' for n in range(800)))
    command = f"ulimit -f 700; exec {shlex.join(BATCHRUN)} run many.jsonl -o o.jsonl -e local --worker echo -q"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 4, done.stderr
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    before = (tmp_path / "o.jsonl").read_bytes()
    assert before.endswith(b"\n") or not before
    assert batchrun("run", "many.jsonl", "-o", "o.jsonl", "-e", "local", "--worker", "echo", "-q").returncode == 0
    ids = [record["id"] for record in read_lines(tmp_path / "o.jsonl")]
    assert len(ids) == len(set(ids)) == 800
    assert (tmp_path / "o.jsonl").read_bytes().startswith(before)


def commands(group=main, way=()) -> list[tuple[tuple[str, ...], object]]:
    return [((*way, name), command) for name, command in sorted(group.commands.items())]


@pytest.mark.parametrize(
    ("name", "command"), commands(), ids=lambda value: value[0] if isinstance(value, tuple) else ""
)
def test_every_command_and_option_has_help_and_an_example(name, command):
    said = CliRunner().invoke(main, [*name, "--help"])
    assert said.exit_code == 0
    assert "Examples:" in said.output
    assert f"batchrun {name[0]}" in said.output
    for parameter in command.params:
        if parameter.param_type_name == "option":
            assert parameter.help, f"{name[0]} {parameter.name}"


def test_help_needs_no_heavy_import():
    heavy = {"aiohttp", "asyncio", "tqdm", "orjson", "sqlite3"}
    code = f"import sys; from batchrun.cli.app import main; print(sorted(sys.modules.keys() & {heavy}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_commands_that_send_nothing_import_no_http_client():
    names = "brief_status cache check export listing merge quality report score show status status_watch verify view"
    code = (
        "import sys, importlib\n"
        f"for name in {names.split()}:\n    importlib.import_module(f'batchrun.commands.{{name}}')\n"
        "    assert 'aiohttp' not in sys.modules, name"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("8h", 28800.0),
        ("90m", 5400.0),
        ("1h30m", 5400.0),
        ("45s", 45.0),
        ("2d", 172800.0),
        ("1.5H", 5400.0),
    ],
)
def test_times_are_said_as_people_say_them(text: str, seconds: float):
    assert local("p.jsonl", "--deadline", text).returncode == 0
    with StateReader(Path("p.results.jsonl.state")) as store:
        assert store.get_setting("options")["guards"]["deadline_s"] == seconds


def test_a_resumed_run_keeps_its_guards_and_those_that_are_given_replace_them():
    first = local("p.jsonl", "--halt", "10%", "--price-per-hour", "2", "--max-cost", "5", "--limit", "1")
    assert first.returncode == 0, first.stderr
    assert "  cost " in first.stderr
    again = batchrun("resume", "p.results.jsonl.state", "--max-cost", "9", "--worker", "echo")
    assert again.returncode == 0, again.stderr
    with StateReader(Path("p.results.jsonl.state")) as store:
        guards = store.get_setting("options")["guards"]
    assert (guards["max_cost"], guards["price_per_hour"], guards["halt"]["share"]) == (9.0, 2.0, 0.1)
    assert "  cost  $" in batchrun("status", "p.results.jsonl.state").stdout


def test_a_notification_is_no_part_of_the_state_or_the_manifest():
    done = local("p.jsonl", "--notify", "http://127.0.0.1:9/T0KEN")
    assert done.returncode == 0
    for path in Path.cwd().glob("p.results*"):
        assert b"T0KEN" not in path.read_bytes(), path
    assert "T0KEN" not in done.stderr


def test_cancel_of_a_run_with_nothing_in_flight_does_nothing_and_says_so():
    local("p.jsonl")
    done = batchrun("cancel", "p.results.jsonl.state", "--progress", "none")
    assert done.returncode == 0
    assert "cancelled: 2 of 2 rows succeeded" in done.stderr


@pytest.mark.parametrize(("name", "words"), [("none.state", "there is no such state file"), ("p.jsonl", "")])
def test_cancel_of_what_is_no_state_file_is_refused(name: str, words: str):
    assert_one_clear_line(batchrun("cancel", name), 2, words)


HOSTILE = "a\x1b]0;pwned\x07\u202e.jsonl"


@pytest.mark.parametrize("command", ["check", "run", "typo"])
def test_control_sequences_in_names_reach_no_terminal(tmp_path: Path, command: str):
    (tmp_path / HOSTILE).write_text("{\n")
    if command == "run":
        done = local(HOSTILE, "-o", "o.jsonl")
    else:
        done = batchrun(command if command == "check" else f"\x1b]0;pwned\x07{command}", HOSTILE)
    assert done.returncode == 2
    assert "\x1b" not in done.stdout + done.stderr
    assert "\u202e" not in done.stdout + done.stderr
    assert r"\x1b]0;pwned\x07" in done.stdout + done.stderr


@pytest.mark.parametrize("encoding", ["iso8859-1", "ascii", "ascii:strict"])
def test_a_locale_that_cannot_show_a_name_or_a_message_is_no_traceback(tmp_path: Path, encoding: str):
    (tmp_path / "na\u00efve \u65e5.jsonl").write_text('{"id": "\U0001f600", "prompt": "x"}\n')
    ran = local("na\u00efve \u65e5.jsonl", "-o", "o \u65e5.jsonl", PYTHONIOENCODING=encoding)
    assert (ran.returncode, "Traceback" in ran.stderr) == (0, False), ran.stderr
    state = "o \u65e5.jsonl.state"
    for command in (["status", state], ["verify", state], ["report", state], ["check", "na\u00efve \u65e5.jsonl"]):
        in_locale = {**os.environ, "PYTHONIOENCODING": encoding}
        for more in ([], ["--json"]):
            call = [*BATCHRUN, *command, *more]
            done = subprocess.run(call, capture_output=True, check=False, env=in_locale)
            assert (done.returncode, done.stderr) == (0, b"")
            assert not more or orjson.loads(done.stdout)


def test_the_events_of_a_run_are_json_in_any_locale(tmp_path: Path):
    done = batchrun(
        *("run", "p.jsonl", "-e", "local", "--worker", "echo", "--progress", "json", "-o", "o \u65e5\x9b.jsonl"),
        PYTHONIOENCODING="ascii",
    )
    events = [orjson.loads(line) for line in done.stderr.splitlines()]
    assert events[-1]["results"] == [str(tmp_path / "o \u65e5\x9b.jsonl")]
    assert done.stderr.isascii()


@pytest.mark.parametrize("said", ["health", "run", "status"])
def test_a_server_that_repeats_the_key_gets_it_into_no_file_log_or_message(tmp_path: Path, said: str):
    basic = base64.b64encode(f"someone:{KEY}".encode()).decode()
    told = orjson.dumps({"error": f"Incorrect key {KEY}, {KEY[1:]}, {basic}"})
    repeated = Answer(told, 400 if said == "run" else 401)
    failed = job("FAILED", error=orjson.dumps({"error_message": f"no {KEY}, {basic}"}).decode(), workerId=f"w-{KEY}")
    script = Script(run=(repeated,)) if said == "run" else Script(status=(failed,))

    async def go() -> tuple[int, str]:
        async with FaultServer({"": script}, health=(repeated if said == "health" else HEALTHY,)) as server:
            command = ("run", "p.jsonl", "-e", "local-1", "--base-url", server.base_url, "-o", "o.jsonl", "-v")
            more = ("--log-file", "log.txt", "--progress", "plain", "--max-retries", "0", "--halt", "off")
            done = await asyncio.to_thread(batchrun, *command, *more, RUNPOD_API_KEY=KEY)
            return done.returncode, done.stdout + done.stderr

    code, shown = asyncio.run(go())
    assert code in (3, 4), shown
    assert "[redacted]" in shown
    written = [path for path in tmp_path.iterdir() if path.is_file()]
    assert {"log.txt", "o.manifest.json", "o.jsonl.state"} <= {path.name for path in written}
    for text in (shown, *(path.read_bytes().decode("utf-8", "replace") for path in written)):
        assert not any(part in text for part in (KEY[at : at + 12] for at in range(len(KEY) - 11)))
        assert basic[-12:-4] not in text


def warned(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in (done.stderr + done.stdout).splitlines() if ": warning: " in line]


def test_what_is_probably_a_mistake_is_said_by_check_a_dry_run_and_a_run_and_strict_refuses_it(tmp_path: Path):
    (tmp_path / "t.jsonl").write_text('{"id": "a", "prompt": "x", "max_tokens": 3, "topic": "y", "temprature": 0.1}\n')
    warning = (
        "t.jsonl:1: warning: `temprature` is carried to the result, not sent: did you mean `temperature`? (1 line)"
    )
    for done in (batchrun("check", "t.jsonl"), local("t.jsonl", "--dry-run"), local("t.jsonl", "-o", "o.jsonl")):
        assert (done.returncode, warned(done)) == (0, [warning])
        assert "`topic` is carried to the result" in done.stderr + done.stdout
    for done in (
        batchrun("check", "t.jsonl", "--strict"),
        local("t.jsonl", "--dry-run", "--strict"),
        local("t.jsonl", "-o", "q.jsonl", "--strict"),
    ):
        assert (done.returncode, len(warned(done))) == (2, 1)
    assert not (tmp_path / "q.jsonl.state").exists()
    found = orjson.loads(batchrun("check", "t.jsonl", "--json").stdout)["findings"]
    assert [(each["kind"], each["field"], each["count"]) for each in found if each["is_warning"]] == [
        ("not_sent", "temprature", 1)
    ]


def test_check_takes_the_options_that_change_what_is_sent(tmp_path: Path):
    assert warned(batchrun("check", "p.jsonl"))
    assert not warned(batchrun("check", "p.jsonl", "--default", "max_tokens=5", "--strict"))
    assert batchrun("check", "p.jsonl", "--sweep", "input.steps=1,2").returncode == 2


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("temprature=0.5", "did you mean `temperature`?"),
        ("max_new_tokens=512", "did you mean `max_tokens`?"),
        ("temperature=0,7", "is not a number"),
        ("ignore_eos=True", "is not true or false"),
        ("chat_template_kwargs={'enable_thinking': False}", "is not an object"),
    ],
)
def test_set_default_and_sweep_refuse_the_same_names_and_values(option: str, words: str):
    for name in ("--set", "--default", "--sweep"):
        value = option if name != "--sweep" else option.replace("0,7", '"0,7"')
        done = local("p.jsonl", "--dry-run", name, value)
        assert (done.returncode, words in done.stderr) == (2, True), done.stderr


def test_a_parameter_that_is_not_known_yet_can_be_sent_all_the_same():
    done = local("p.jsonl", "--dry-run", "all", "--set", "sampling_params.brand_new=1", "--set", "max_tokens=3")
    assert orjson.loads(done.stdout.splitlines()[0])["input"]["sampling_params"] == {"brand_new": 1, "max_tokens": 3}
    assert any("`brand_new` is not a parameter of vLLM" in line for line in warned(done))


def test_a_run_that_began_with_an_unknown_parameter_is_gone_on_with_by_the_same_command():
    asked = ("p.jsonl", "-o", "o.jsonl", "--limit", "1")
    assert local(*asked, "--set", "sampling_params.brand_new=1").returncode == 0
    assert local(*asked, "--set", "brand_new=1").returncode == 0


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (("run", "p.jsonl", "-e", "local", "-j", "1", "--concurrency", "2"), "--concurrency"),
        (("run", "p.jsonl", "-e", "local", "-o", "a", "--output=b"), "--output"),
        (("export", "x.state", "-o", "a", "-o", "b"), "--output"),
        (("run", "p.jsonl", "-e", "local", "--set", "n=1", "--set", "n=2"), "'n'"),
    ],
)
def test_an_option_of_one_value_that_is_given_twice_is_refused(command: tuple[str, ...], option: str):
    done = batchrun(*command)
    assert done.returncode == 2
    assert f"{option} is given twice" in done.stderr


def test_an_option_that_may_be_repeated_and_a_flag_may_be():
    done = local("p.jsonl", "-o", "o.jsonl", "--set", "n=1", "--set", "max_tokens=3", "-v", "-v")
    assert done.returncode == 0, done.stderr
