"""Checked answers on the command line: what a user sees, and one clear line for each mistake, with nothing sent."""

from __future__ import annotations

import json
from pathlib import Path

import orjson
import pytest

from tests.support.command import assert_one_clear_line, batchrun
from tests.support.rehearsal import read_lines

pytestmark = pytest.mark.usefixtures("quiet_home")

RULES = 'def short(record):\n    assert len(record["text"]) < 20, "too long"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rules.py").write_text(RULES)
    lines = [{"id": "a", "prompt": '{"n": 1}'}, {"id": "b", "prompt": '{"n": 1, "more": "than enough"}'}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def run(folder: Path, *options: str):
    return batchrun("run", "p.jsonl", "-e", "local", "--worker", "echo", "--progress", "none", *options, cwd=folder)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--schema", "n number"], "'n number' has no known type"),
        (["--schema", "none.json"], "none.json: No such file"),
        (["--schema", '{"type": "strin"}'], "is not a valid JSON schema"),
        (["--schema", "n", "--set", 'response_format={"type":"text"}'], "--set response_format contradicts --schema"),
        (["--reask", "1"], "--reask needs --schema, --check or --require-text"),
        (["--check", "rules"], "--check 'rules' names no function"),
        (["--check", "rules:none"], "--check rules:none: rules has no none"),
        (["--check", "no_rules:short"], "no_rules cannot be imported: ModuleNotFoundError"),
        (["--check", "no/rules.py:short"], "rules.py cannot be imported: FileNotFoundError"),
        (["--check", "rules:short", "--check-timeout", "0"], "'0' is not a number from 0.1"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_sent_or_written(folder: Path, options: list[str], words: str):
    assert_one_clear_line(run(folder, *options), 2, words)
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == ["p.jsonl", "rules.py"]


def test_the_summary_the_status_and_the_report_say_what_was_asked_again(folder: Path):
    done = run(folder, "--schema", "n int", "--check", "rules:short", "--max-retries", "0")
    assert done.returncode == 3
    assert "asked again 2 times, because an answer was not valid" in done.stderr
    assert "valid       1 after 1 try" in done.stderr
    (failed,) = read_lines(folder / "p.results.errors.jsonl")
    assert failed["error"]["message"] == "too long"
    said = batchrun("status", "p.results.jsonl.state", cwd=folder).stdout
    assert "asked again because an answer was not valid: 2" in said
    offer = batchrun("redo", "p.results.jsonl.state", "--failed", cwd=folder).stderr
    assert "jobs to pay for: 1, and up to 2 more for answers that are not valid" in offer
    other = run(folder, "--schema", "m int", "--check", "rules:short", "--max-retries", "0")
    assert_one_clear_line(other, 2, '(now --schema {"type":"object","properties":{"m":')
    assert "invalid_output" in said
    assert "invalid_output" in batchrun("report", "p.results.jsonl.state", cwd=folder).stdout
    assert batchrun("verify", "p.results.jsonl.state", cwd=folder).returncode == 0
    status = orjson.loads(batchrun("status", "--json", "p.results.jsonl.state", cwd=folder).stdout)
    assert status["counters"]["reasks"] == 2


def test_a_run_is_resumed_with_the_check_that_its_user_gives_again(folder: Path):
    first = run(folder, "--check", "rules:short")
    assert first.returncode == 3
    # Nothing proves the choice without an API key, so the hint names it.
    assert (
        f"retry the failed rows: batchrun resume {folder}/p.results.jsonl.state --check rules:short --re"
        in first.stderr
    )
    again = ("resume", "p.results.jsonl.state", "--retry-failed", "--only", "invalid_output", "--worker", "echo")
    refused = batchrun(*again, cwd=folder)
    assert_one_clear_line(refused, 2, "calls rules:short, and nothing proves that you chose it")
    assert "confirm it: --check rules:short" in refused.stderr
    (folder / "rules.py").write_text(RULES.replace("20", "50"))
    done = batchrun(*again, "--check", "rules:short", "--progress", "none", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert not (folder / "__pycache__").exists()


def test_a_dry_run_shows_what_the_schema_adds(folder: Path):
    done = run(folder, "--schema", "n int", "--dry-run", "all")
    first = orjson.loads(done.stdout.splitlines()[0])
    schema = first["input"]["sampling_params"]["response_format"]["json_schema"]["schema"]
    assert schema["properties"] == {"n": {"type": "integer"}}
