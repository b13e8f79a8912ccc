"""Where the files of a run are."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchrun.runs.locations import results_path


@pytest.mark.parametrize(
    ("name", "results"),
    [
        ("haikus.jsonl", "haikus.results.jsonl"),
        ("haikus.jsonl.gz", "haikus.results.jsonl"),
        ("reviews.csv", "reviews.results.jsonl"),
        ("reviews.parquet", "reviews.results.jsonl"),
    ],
)
def test_results_are_named_after_their_input_without_its_form(tmp_path: Path, name: str, results: str):
    assert results_path(tmp_path, name) == tmp_path / results


def test_a_run_that_was_begun_under_an_earlier_name_keeps_it(tmp_path: Path):
    (tmp_path / "lines.csv.results.jsonl").touch()
    assert results_path(tmp_path, "lines.csv") == tmp_path / "lines.csv.results.jsonl"
    (tmp_path / "lines.results.jsonl").touch()
    assert results_path(tmp_path, "lines.csv") == tmp_path / "lines.results.jsonl"
