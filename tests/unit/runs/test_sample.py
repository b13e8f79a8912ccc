"""A stratified sample has whole questions, some of each stratum, and is the same each time."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from batchrun.runs.exported import Ended
from batchrun.runs.sample import Sample, allocated, draw
from batchrun.state.positions import Position


def ended(questions: int, rows_each: int = 1, sources: int = 1, rare_every: int = 1000) -> list[Ended]:
    found = []
    for number in range(questions):
        source = number * sources // questions
        for sample in range(rows_each):
            row = number * rows_each + sample + 1
            at = Position(source, number + 1, row, 1, 0, 1000, 0, 1000, b"", sample)
            found.append(Ended(at, "timeout" if number % rare_every == 7 and sample == 0 else None))
    return found


def drawn(rows: list[Ended], most_rows: int, most_bytes: int = 10**12) -> Sample:
    return draw(lambda: iter(rows), most_rows, most_bytes, Random(0))


def test_a_run_that_fits_is_whole():
    sample = drawn(ended(50, 4), 200)
    assert sample.is_whole
    assert (len(sample.rows), sample.questions, sample.total_questions) == (200, 50, 50)


def test_of_a_run_without_rows_nothing_is_drawn():
    assert drawn([], 10) == Sample(frozenset(), 0, 0, 0)


@pytest.mark.parametrize("rows_each", [1, 6])
def test_questions_are_drawn_with_all_their_rows(rows_each: int):
    rows = ended(3000, rows_each)
    sample = drawn(rows, 600)
    assert len(sample.rows) == 600
    of_question = Counter(each.row.line for each in rows if each.row.row in sample.rows)
    assert set(of_question.values()) == {rows_each}
    assert sample.questions == len(of_question)


def test_rare_failures_and_small_inputs_are_in_it():
    rows = [*ended(100_000), *(Ended(Position(9, n, 200_000 + n, 1, 0, 9, 0, 9, b"", 0), None) for n in range(1, 6))]
    sample = drawn(rows, 1000)
    chosen = [each for each in rows if each.row.row in sample.rows]
    assert len(chosen) == 1000
    assert sum(each.failure == "timeout" for each in chosen) >= 20
    assert sum(each.row.source == 9 for each in chosen) == 5


def test_all_parts_of_the_input_are_in_it_evenly():
    sample = drawn(ended(50_000, rare_every=10**9), 5000)
    tenths = Counter(row * 10 // 50_001 for row in sample.rows)
    assert all(400 < tenths[tenth] < 600 for tenth in range(10))


def test_the_same_run_has_the_same_sample():
    assert drawn(ended(9000), 700) == drawn(ended(9000), 700)


def test_long_rows_make_the_sample_smaller():
    assert len(drawn(ended(1000), 1000, most_bytes=200_000).rows) == 100


def test_with_thousands_of_inputs_kinds_of_failure_still_count():
    rows = ended(5000, sources=1000, rare_every=100)
    sample = drawn(rows, 100)
    assert len(sample.rows) == 100
    assert sum(each.failure is not None for each in rows if each.row.row in sample.rows) >= 20


def test_a_question_of_more_rows_than_wanted_is_shown_whole():
    assert len(drawn(ended(3, 100), 10).rows) == 100


@pytest.mark.parametrize(
    ("sizes", "most", "expected"),
    [
        ({"a": 100, "b": 100}, 50, {"a": 25, "b": 25}),
        ({"a": 1000, "b": 3}, 100, {"a": 97, "b": 3}),
        ({"a": 5, "b": 5, "c": 5}, 1, {"a": 1, "b": 0, "c": 0}),
        ({"a": 7}, 7, {"a": 7}),
    ],
)
def test_each_stratum_gets_some_and_the_rest_is_in_proportion(sizes: dict, most: int, expected: dict):
    assert allocated(sizes, most) == expected


def test_no_stratum_gets_more_than_it_has():
    random = Random(1)
    for _ in range(300):
        sizes = {name: random.randint(1, 200) for name in range(random.randint(1, 30))}
        most = random.randint(1, sum(sizes.values()))
        found = allocated(sizes, most)
        assert sum(found.values()) == most
        assert all(0 <= found[name] <= size for name, size in sizes.items())
