"""The answers of a run are scored, and the report says how good its variants are."""

from __future__ import annotations

import csv
import json
from io import StringIO
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from batchrun.commands import report as reporting
from batchrun.commands import score as scoring
from batchrun.config import GuardOptions, SweepOptions
from batchrun.evaluation.scores_file import Score, read_scores
from tests.support.command import batchrun
from tests.support.rehearsal import read_lines, rehearse, serving, write_lines

if TYPE_CHECKING:
    from pathlib import Path

ECHO = ("-e", "local", "--worker", "echo", "-q")


def run(folder: Path, lines: list[Any], *options: str, code: int = 0) -> Path:
    write_lines(folder, lines)
    done = batchrun("run", "in.jsonl", *ECHO, "-o", "out.jsonl", *options, cwd=folder)
    assert done.returncode == code, done.stderr
    return folder / "out.jsonl.state"


def ask(text: str, reference: object = None, **metadata: object) -> dict[str, Any]:
    known = {} if reference is None else {"reference": reference}
    return {"id": text, "prompt": text, "max_tokens": 50, "metadata": {**known, **metadata}}


def scored(folder: Path, *arguments: str, code: int = 0) -> list[Score]:
    done = batchrun("score", "out.jsonl.state", "--with", *arguments, cwd=folder)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return [score for score in read_scores(folder / "out.scores.jsonl") if score.scorer == arguments[0]]


def refused(folder: Path, *arguments: str) -> str:
    """The one line that a refused command says, with its advice."""
    done = batchrun(*arguments, cwd=folder)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr.strip()


def report(folder: Path, *options: str) -> dict[str, Any]:
    done = batchrun("report", "out.jsonl.state", "--json", *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    return orjson.loads(done.stdout)


def two_variants(folder: Path) -> None:
    """Nine questions, six of them answered with yes; one variant says yes, the other no, twice each."""
    lines = [
        {
            "id": f"q{n}",
            "input": {"prompt": "?", "sampling_params": {"max_tokens": 9}},
            "metadata": {"reference": "yes" if n % 3 else "no", "topic": "even" if n % 2 == 0 else "odd"},
        }
        for n in range(9)
    ]
    run(folder, lines, "--sweep", "input.prompt=yes,no", "--repeat", "2")


def test_each_row_gets_a_score_in_the_order_of_the_input(tmp_path: Path):
    run(tmp_path, [ask("Paris", "paris"), ask("Rome", "Paris"), ask("Paris!", "Paris")])
    found = scored(tmp_path, "exact", "--normalize", "case,punctuation")
    assert found == [
        Score("Paris", "exact", 1.0, "paris", None),
        Score("Rome", "exact", 0.0, "rome", "expected 'paris'"),
        Score("Paris!", "exact", 1.0, "paris", None),
    ]


def test_a_scorer_replaces_its_own_scores_and_keeps_those_of_others(tmp_path: Path):
    run(tmp_path, [ask("so 42 it is", "42"), ask("41", "42")])
    assert [score.value for score in scored(tmp_path, "number")] == [1.0, 0.0]
    assert [score.value for score in scored(tmp_path, "exact")] == [0.0, 0.0]
    assert [score.value for score in scored(tmp_path, "number", "--tolerance", "1")] == [1.0, 1.0]
    assert [score.value for score in scored(tmp_path, "exact")] == [0.0, 0.0]
    assert len(read_lines(tmp_path / "out.scores.jsonl")) == 4


def test_a_row_that_cannot_be_scored_loses_no_other(tmp_path: Path):
    run(tmp_path, [ask("1", "1"), ask("2"), ask("3", "three"), ask("4", 4)])
    found = scored(tmp_path, "number", code=3)
    assert [score.value for score in found] == [1.0, None, None, 1.0]
    assert [score.reason for score in found[1:3]] == [
        "there is no metadata.reference",
        "metadata.reference is not a number: 'three'",
    ]


def test_failed_rows_count_as_wrong_if_asked_for(tmp_path: Path):
    lines = [ask("1", "1"), {**ask("2", "2"), "max_tokens": 0}]
    run(tmp_path, lines, code=3)
    assert [score.id for score in scored(tmp_path, "exact")] == ["1"]
    with_errors = scored(tmp_path, "exact", "--with-errors")
    assert [(score.id, score.value, score.reason) for score in with_errors] == [
        ("1", 1.0, None),
        ("2", 0.0, "failed: bad_request"),
    ]


def test_the_first_row_that_could_not_be_scored_and_the_next_step_are_stated(tmp_path: Path):
    run(tmp_path, [ask("1", "1"), ask("3", "three"), ask("4", "four")])
    done = batchrun("score", "out.jsonl.state", "--with", "number", cwd=tmp_path)
    assert done.returncode == 3
    assert done.stderr.splitlines()[1:] == [
        "rows that could not be scored: 2: metadata.reference is not a number (2)",
        "  the first: 3: metadata.reference is not a number: 'three'",
        "see them: batchrun report out.jsonl.state",
    ]


def test_a_function_scores_records_and_one_that_raises_hangs_or_dies_loses_no_other(tmp_path: Path):
    names = ("half", "dict", "true", "raise", "hang", "die", "none", "two", "text", "odd", "last")
    run(tmp_path, [ask(name) for name in names])
    (tmp_path / "grade.py").write_text(
        "import os, time\n"
        "def grade(record):\n"
        "    print('noise')\n"
        "    match record['text']:\n"
        "        case 'half': return 0.5\n"
        "        case 'dict': return {'value': 1, 'extracted': [1, 2], 'reason': 'fine'}\n"
        "        case 'true': return True\n"
        "        case 'raise': raise KeyError('gone')\n"
        "        case 'hang': time.sleep(600)\n"
        "        case 'die': os._exit(7)\n"
        "        case 'none': return None\n"
        "        case 'two': return 2\n"
        "        case 'text': return 'right'\n"
        "        case 'odd': return {'value': 1, 'extracted': {1j}, 'reason': 5}\n"
        "        case _: return 0\n"
    )
    found = scored(tmp_path, "py:grade.py:grade", "--timeout", "0.5", code=3)
    assert [score.id for score in found] == list(names)
    assert {score.id: (score.value, score.extracted, score.reason) for score in found} == {
        "half": (0.5, None, None),
        "dict": (1.0, [1, 2], "fine"),
        "true": (1.0, None, None),
        "raise": (None, None, "KeyError: 'gone'"),
        "hang": (None, None, "the scorer took longer than 0.5 s"),
        "die": (None, None, "the scorer's process ended with exit code 7"),
        "none": (None, None, "the function gave no score"),
        "two": (None, None, "the function returned 2; expected a number from 0 to 1"),
        "text": (None, None, "the function returned a text; expected a number from 0 to 1"),
        "odd": (1.0, "{1j}", "5"),
        "last": (0.0, None, None),
    }


def test_a_function_that_answers_for_no_row_is_given_up_before_all_have_timed_out(tmp_path: Path):
    run(tmp_path, [ask(str(n)) for n in range(30)])
    (tmp_path / "hangs.py").write_text("import os\n\n\ndef grade(record):\n    os._exit(7)\n")
    said = refused(tmp_path, "score", "out.jsonl.state", "--with", "py:hangs.py:grade")
    assert "py:hangs.py:grade gave no answer for the first 20 rows: the scorer's process ended with exit code 7" in said


def test_a_pattern_that_takes_forever_loses_no_other_row(tmp_path: Path):
    run(tmp_path, [ask("a" * 40 + "!"), ask("aaa")])
    found = scored(tmp_path, "regex:^(?:a+)+$", "--timeout", "0.5", code=3)
    assert [(score.value, score.reason) for score in found] == [
        (None, "the scorer took longer than 0.5 s"),
        (1.0, None),
    ]


def test_what_cannot_be_scored_at_all_is_one_line_and_leaves_older_scores(tmp_path: Path):
    run(tmp_path, [ask("1", {"a": 1}, answer="1"), ask("2", {"a": 2}, answer="2")])
    scored(tmp_path, "exact", "--reference", "metadata.answer")
    before = (tmp_path / "out.scores.jsonl").read_bytes()
    score = ("score", "out.jsonl.state", "--with")
    (tmp_path / "bad.py").write_text("def grade(record):\n    raise ValueError(record['id'])\n")
    (tmp_path / "slow.py").write_text("import time\n\n\ndef grade(record):\n    time.sleep(60)\n")
    for arguments, said in (
        (["exact", "--reference", "metadata.gold"], "exact can score none of the 2 rows; the first: there is no metad"),
        (
            ["number"],
            "number can score none of the 2 rows; the first: metadata.reference is not a number: \"{'a': 1}\"",
        ),
        (["py:bad.py:grade"], "py:bad.py:grade can score none of the 2 rows; the first: ValueError: 1"),
        (["py:bad.py:gone"], "--with py:bad.py:gone: bad.py has no gone"),
        (["py:none.py:grade"], "--with py:none.py:grade: none.py cannot be imported: FileNotFoundError"),
        (["py:bad.py"], "--with 'py:bad.py' names no function"),
        (["py:bad.py:grade"], "-> the function must take a record"),
        (["py:slow.py:grade", "--timeout", "0.1"], "-> give it more time with --timeout"),
        (["exact", "--timeout", "ten"], "--timeout: 'ten' is not a number"),
        (["blue"], "--with 'blue': there is no such scorer"),
        (["regex:["], "--with regex:'[': this is not a regular expression: unterminated character set at position 0"),
        (["exact", "--normalize", "accents"], "--normalize 'accents' is unknown"),
        (["number", "--tolerance", "-1"], "--tolerance '-1' is neither a number nor a percentage"),
    ):
        assert said in refused(tmp_path, *score, *arguments)
    assert (tmp_path / "out.scores.jsonl").read_bytes() == before
    assert {path.suffix for path in tmp_path.iterdir()} <= {
        ".jsonl",
        ".state",
        ".json",
        ".py",
        ".state-shm",
        ".state-wal",
    }


def test_a_state_file_without_results_is_one_line(tmp_path: Path):
    run(tmp_path, [{**ask("1", "1"), "max_tokens": 0}], code=3)
    assert "no row has a result yet" in refused(tmp_path, "score", "out.jsonl.state", "--with", "exact")
    assert "no such state file" in refused(tmp_path, "score", "none.state", "--with", "exact")
    assert not (tmp_path / "out.scores.jsonl").exists()


def test_a_file_that_is_not_a_scores_file_is_neither_read_nor_replaced(tmp_path: Path):
    run(tmp_path, [ask("1", "1")])
    for content in ("mine\n", '{"id": "1", "scorer": "exact", "value": 7, "extracted": null, "reason": null}\n'):
        (tmp_path / "out.scores.jsonl").write_text(content)
        for command in (("score", "out.jsonl.state", "--with", "exact"), ("report", "out.jsonl.state")):
            assert "out.scores.jsonl:1: this is not a line of a scores file" in refused(tmp_path, *command)
        assert (tmp_path / "out.scores.jsonl").read_text() == content


def test_the_scores_file_is_neither_an_input_nor_a_target(tmp_path: Path):
    run(tmp_path, [ask("1", "1")])
    scored(tmp_path, "exact")
    done = batchrun("run", ".", *ECHO, "-o", "again.jsonl", cwd=tmp_path)
    assert (done.returncode, len(read_lines(tmp_path / "again.jsonl"))) == (0, 1)
    (tmp_path / "out.scores.jsonl").unlink()
    export = ("export", "out.jsonl.state", "-o", "out.scores.jsonl")
    assert "a file of the run itself" in refused(tmp_path, *export)


def test_results_in_the_format_of_openai_are_scored_as_well(tmp_path: Path):
    body = {"model": "m", "messages": [{"role": "user", "content": "4"}], "max_tokens": 9}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    run(tmp_path, [{**line, "metadata": {"reference": 4}}])
    assert [score.value for score in scored(tmp_path, "number")] == [1.0]


def test_rows_of_several_inputs_with_one_id_keep_their_own_scores(tmp_path: Path):
    for name, reference in (("a", "1"), ("b", "2")):
        line = {"id": "same", "prompt": "1", "max_tokens": 9, "metadata": {"reference": reference, "of": name}}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(line) + "\n")
    assert batchrun("run", "a.jsonl", "b.jsonl", *ECHO, "-o", "out/", cwd=tmp_path).returncode == 0
    assert batchrun("score", "out", "--with", "exact", cwd=tmp_path).returncode == 0
    found = list(read_scores(tmp_path / "out" / "batchrun.scores.jsonl"))
    assert [(score.id, score.file, score.value) for score in found] == [
        ("same", "a.jsonl", 1.0),
        ("same", "b.jsonl", 0.0),
    ]
    done = batchrun("report", "out", "--json", "--by", "metadata.of", cwd=tmp_path)
    (quality,) = orjson.loads(done.stdout)["quality"]
    assert [(group["value"], group["variants"][0]["right"]) for group in quality["groups"]] == [("a", 1), ("b", 0)]


def test_the_report_says_which_variant_is_better_and_how_sure_that_is(tmp_path: Path):
    two_variants(tmp_path)
    scored(tmp_path, "exact")
    (quality,) = report(tmp_path)["quality"]
    yes, no = quality["whole"]["variants"]
    assert (yes["label"], yes["scored"], yes["right"], yes["score"]["questions"]) == ("input.prompt=yes", 18, 12, 9)
    assert (no["scored"], no["right"]) == (18, 6)
    # Of 1, 1, 0 three times: s = 0.5, standard error 1 / 6, t(8) = 2.306004.
    assert yes["score"] == pytest.approx(
        {"mean": 2 / 3, "low": 2 / 3 - 2.306004 / 6, "high": 1.0, "questions": 9}, abs=1e-6
    )
    assert [at["k"] for at in yes["pass_at"]] == [1, 2]
    assert yes["pass_at"][1]["estimate"]["mean"] == pytest.approx(2 / 3)
    assert (yes["majority"]["k"], yes["majority"]["estimate"]["mean"]) == (2, pytest.approx(2 / 3))
    (pair,) = quality["whole"]["comparisons"]
    assert (pair["better"], pair["other"]) == ("input.prompt=yes", "input.prompt=no")
    assert (pair["won"], pair["lost"], pair["tied"]) == (6, 3, 0)
    assert pair["difference"]["mean"] == pytest.approx(1 / 3)
    shown = batchrun("report", "out.jsonl.state", cwd=tmp_path).stdout
    assert "exact: input.prompt=yes scores 33.3 points more than input.prompt=no" in " ".join(shown.split())
    assert "but that may be due to chance (95% interval -43.5 to +100.0, 9 questions" in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 100


async def test_a_right_answer_costs_its_part_of_what_the_variant_costs(tmp_path: Path):
    write_lines(tmp_path, [{**ask(text, "1"), "id": f"q{n}"} for n, text in enumerate("1111234")])
    async with serving(latency_s=0.05) as server:
        guards = GuardOptions(price_per_hour=3600.0)
        await rehearse(tmp_path, server.endpoint.base_url, sweep=SweepOptions(repeat=2), guards=guards)
    assert scoring.score(tmp_path / "out.jsonl.state", "exact").right == 8
    seen = reporting.read(tmp_path / "out.jsonl.state")
    (found,) = seen.quality[0].whole.variants
    assert seen.variants[0].cost
    assert found.cost_per_right == pytest.approx(seen.variants[0].cost / 8)


def test_the_questions_are_split_by_a_field(tmp_path: Path):
    two_variants(tmp_path)
    scored(tmp_path, "exact")
    (quality,) = report(tmp_path, "--by", "metadata.topic")["quality"]
    found = {
        group["value"]: [(each["label"][-2:], each["score"]["questions"], each["right"]) for each in group["variants"]]
        for group in quality["groups"]
    }
    assert found == {"even": [("es", 5, 6), ("no", 5, 4)], "odd": [("es", 4, 6), ("no", 4, 2)]}
    shown = batchrun("report", "out.jsonl.state", "--by", "metadata.topic", cwd=tmp_path).stdout
    assert "exact by metadata.topic" in shown
    assert "no record has this field" in refused(tmp_path, "report", "out.jsonl.state", "--by", "metadata.none")


def test_the_table_is_written_as_csv(tmp_path: Path):
    two_variants(tmp_path)
    done = batchrun("report", "out.jsonl.state", "--csv", cwd=tmp_path)
    plain = list(csv.DictReader(StringIO(done.stdout)))
    assert [(line["variant"], line["input.prompt"], line["rows"]) for line in plain] == [
        ("input.prompt=yes", "yes", "18"),
        ("input.prompt=no", "no", "18"),
    ]
    scored(tmp_path, "exact")
    done = batchrun("report", "out.jsonl.state", "--csv", "--by", "metadata.topic", cwd=tmp_path)
    lines = list(csv.DictReader(StringIO(done.stdout)))
    assert [(line["scorer"], line["metadata.topic"], line["right"]) for line in lines[:3]] == [
        ("exact", "", "12"),
        ("exact", "even", "6"),
        ("exact", "odd", "6"),
    ]
    assert float(lines[0]["pass@2"]) == pytest.approx(2 / 3)
    assert "both --json and --csv" in refused(tmp_path, "report", "out.jsonl.state", "--csv", "--json")


def test_scores_cannot_be_split_before_there_are_any(tmp_path: Path):
    run(tmp_path, [ask("1", "1", topic="a")])
    said = refused(tmp_path, "report", "out.jsonl.state", "--by", "metadata.topic")
    assert "--by metadata.topic splits scores, but the run has none" in said
    assert "quality" not in report(tmp_path)


def test_scores_that_are_older_than_results_are_reported(tmp_path: Path):
    run(tmp_path, [ask("1", "1"), ask("2", "2")])
    scored(tmp_path, "exact")
    assert report(tmp_path)["scores_are_outdated"] is False
    again = ("redo", "out.jsonl.state", "--where", "id=2", "--yes", "-q")
    assert batchrun(*again, cwd=tmp_path).returncode == 0
    assert report(tmp_path)["scores_are_outdated"] is True
    scored(tmp_path, "exact")
    assert report(tmp_path)["scores_are_outdated"] is False


def test_results_that_have_no_score_yet_are_counted(tmp_path: Path):
    run(tmp_path, [ask("1", "1"), ask("2", "2"), ask("3", "3")], "--limit", "1")
    scored(tmp_path, "exact")
    assert "without a score" not in batchrun("report", "out.jsonl.state", cwd=tmp_path).stdout
    assert batchrun("run", "in.jsonl", *ECHO, "-o", "out.jsonl", cwd=tmp_path).returncode == 0
    assert "results without a score: 2; score again" in batchrun("report", "out.jsonl.state", cwd=tmp_path).stdout


def test_the_shares_of_notable_answers_are_stated(tmp_path: Path):
    run(tmp_path, [{**ask(f"one two three {n}"), "max_tokens": 2 if n == 0 else 50} for n in range(4)])
    (variant,) = report(tmp_path)["variants"]
    assert (variant["truncated"], variant["shares"]["truncated"], variant["shares"]["empty"]) == (1, 0.25, 0.0)
    assert "1 (25.0%)" in batchrun("report", "out.jsonl.state", cwd=tmp_path).stdout


def test_equal_samples_are_warned_about_before_they_are_paid_for(tmp_path: Path):
    write_lines(tmp_path, [{**ask("1"), "temperature": 0}])
    dry = batchrun("run", "in.jsonl", *ECHO[:-1], "-o", "out.jsonl", "--repeat", "3", "--dry-run", cwd=tmp_path)
    assert "warning: with `temperature` 0, the 3 samples of --repeat are the same" in dry.stderr
    strict = ("run", "in.jsonl", *ECHO, "-o", "out.jsonl", "--repeat", "3", "--strict")
    assert "the 3 samples of --repeat are the same" in refused(tmp_path, *strict)
