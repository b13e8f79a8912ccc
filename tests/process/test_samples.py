"""Each sample is run through the command line, as samples/README.md says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from batchrun.local.smollm2 import missing
from tests.support.command import batchrun
from tests.support.places import SAMPLES
from tests.support.rehearsal import read_lines


def run(name: str, folder: Path, *more: str, timeout_s: float = 100) -> list[dict]:
    output = folder / "out.jsonl"
    done = batchrun(
        "run", str(SAMPLES / name), "-e", "local", "-o", str(output), "--progress", "none", *more, timeout_s=timeout_s
    )
    assert done.returncode == 0, done.stderr
    return read_lines(output)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("haikus.jsonl", 6),
        ("prompts.jsonl", 5),
        ("openai-batch.jsonl", 3),
        ("custom-worker.jsonl", 3),
        ("evaluation.jsonl", 12),
        ("arithmetic.jsonl", 20),
    ],
)
def test_each_sample_runs_with_the_echo(tmp_path: Path, name: str, rows: int):
    records = run(name, tmp_path, "--worker", "echo")
    assert len({record["id"] for record in records}) == rows


@pytest.mark.timeout(300)
@pytest.mark.skipif(missing(None) is not None, reason="the extra `local` is not installed")
def test_haikus_are_written_by_a_real_model(tmp_path: Path):
    records = run("haikus.jsonl", tmp_path, timeout_s=280)
    assert {record["metadata"]["topic"] for record in records} >= {"rain", "snow"}
    assert all(record["text"].strip() and record["usage"]["output_tokens"] > 0 for record in records)


@pytest.mark.timeout(300)
@pytest.mark.skipif(missing(None) is not None, reason="the extra `local` is not installed")
def test_an_openai_batch_file_is_answered_by_a_real_model(tmp_path: Path):
    records = run("openai-batch.jsonl", tmp_path, timeout_s=280)
    assert {record["response"]["body"]["object"] for record in records} == {"chat.completion", "text_completion"}


def test_evaluation_results_carry_their_references(tmp_path: Path):
    records = run("evaluation.jsonl", tmp_path, "--worker", "echo")
    assert all(record["metadata"]["reference"] for record in records)


def test_the_stream_gives_an_answer_to_each_question_and_the_same_again(tmp_path: Path):
    command = [sys.executable, str(SAMPLES / "stream.py"), str(tmp_path), "echo"]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=True, timeout=60) for _ in range(2))
    assert first.stdout == second.stdout
    assert first.stdout.count(" squared: ") == 12
    assert len(read_lines(tmp_path / "squares.results.jsonl")) == 12


def test_all_samples_are_valid_and_described():
    assert batchrun("check", str(SAMPLES)).returncode == 0
    described = (SAMPLES / "README.md").read_text()
    kinds = ("*.jsonl", "*.py", "*.sh", "*.toml", "*.yaml", "*.service", "*.csv", "*.json")
    for sample in (path for kind in kinds for path in SAMPLES.glob(kind)):
        if not sample.name.endswith((".results.jsonl", ".errors.jsonl", ".manifest.json")):
            assert sample.name in described, sample.name
