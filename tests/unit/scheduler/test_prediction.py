from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.scheduler.prediction import Predictor


def taught(jobs: list[tuple[int, float, float, float]]) -> Predictor:
    """A predictor that learnt (place, submitted_at, delay_s, execution_s) jobs."""
    predictor = Predictor()
    for place, submitted_at, delay_s, execution_s in jobs:
        predictor.learn(place, submitted_at, delay_s=delay_s, execution_s=execution_s, age_s=delay_s + execution_s)
    return predictor


def test_nothing_is_predicted_before_something_is_learnt():
    assert Predictor().first_poll_at(0, 5.0) is None


def test_idle_workers_are_expected_to_start_a_job_at_its_submission():
    predictor = taught([(n, n * 0.1, 0.0, 2.0) for n in range(50)])
    assert predictor.first_poll_at(50, 100.0) == pytest.approx(102.0)


def test_a_queue_is_expected_to_be_served_in_order_at_its_pace():
    predictor = taught([(n, 0.0, n * 0.5, 2.0) for n in range(1, 60)])
    assert predictor.expected_start(100, 0.0) == pytest.approx(50.0)
    assert predictor.first_poll_at(100, 0.0) == pytest.approx(52.0)


def test_a_pause_in_the_submissions_is_not_taken_for_a_slow_queue():
    before = [(n, 0.0, n * 0.01, 0.2) for n in range(40)]
    after = [(n, 100.0, (n - 40) * 0.01, 0.2) for n in range(40, 60)]
    predictor = taught(before + after)
    assert predictor.expected_start(70, 100.0) == pytest.approx(100.3, abs=0.02)


def test_a_cold_start_is_not_expected_of_later_jobs():
    predictor = taught([(n, 0.0, 60.0 + n * 0.1, 1.0) for n in range(64)])
    assert predictor.first_poll_at(200, 90.0) == pytest.approx(91.0, abs=0.5)


def test_a_job_seen_in_the_queue_says_that_no_later_one_has_started():
    predictor = taught([(n, 0.0, 0.0, 3.0) for n in range(20)])
    predictor.saw_queued(30, 8.0)
    assert predictor.expected_start(40, 0.0) == 8.0
    assert predictor.expected_start(25, 0.0) < 8.0


def test_an_endpoint_that_reports_no_times_is_predicted_by_the_ages_of_its_jobs():
    predictor = Predictor()
    for place in range(20):
        predictor.learn(place, 0.0, delay_s=None, execution_s=None, age_s=4.0)
    assert predictor.first_poll_at(30, 10.0) == 14.0


@given(
    st.lists(st.tuples(st.integers(0, 500), st.floats(0, 1e5), st.floats(0, 1e4), st.floats(0, 1e4)), max_size=60),
    st.integers(0, 1000),
    st.floats(0, 1e5),
    st.floats(0, 1e5),
    st.integers(1, 40),
)
def test_a_further_poll_always_lies_ahead_and_a_first_one_never_before_the_submission(
    jobs, place, submitted_at, age_s, polls
):
    predictor = taught(jobs)
    first = predictor.first_poll_at(place, submitted_at)
    assert first is None or predictor.expected_start(place, submitted_at) >= submitted_at
    polled_at = submitted_at + age_s
    assert predictor.next_poll_at(place, submitted_at, polled_at, polls) > polled_at
    assert not jobs or predictor.next_poll_at(place, submitted_at, polled_at, polls, started_by=polled_at) > polled_at
    assert not jobs or predictor.last_poll_at(place, submitted_at, polled_at, started_by=polled_at) > polled_at


@given(st.lists(st.tuples(st.floats(0, 100), st.sampled_from((0.0, 1e-9, 2.0))), max_size=60), st.booleans())
def test_a_queue_has_a_pace_even_if_its_jobs_take_no_time(jobs, is_queue: bool):
    predictor = taught([(n, 0.0, delay_s, execution_s) for n, (delay_s, execution_s) in enumerate(jobs)])
    predictor.saw_started(len(jobs), 50.0, at_work=3, is_queue=is_queue)
    assert predictor.pace_s > 0 or not predictor.has_queue


def test_the_last_jobs_are_polled_soon_again_however_often_they_were():
    predictor = taught([(n, n * 0.1, 0.0, 0.2) for n in range(50)])
    assert predictor.next_poll_at(60, 100.0, 101.0, 9) == pytest.approx(101.64)
    assert predictor.last_poll_at(60, 100.0, 101.0, started_by=100.2) == pytest.approx(101.025)


def test_jobs_that_started_last_and_have_ended_are_not_taken_for_typical():
    """Of jobs of which every third takes 1 s and the others 10 s, all of the last three that have ended are short."""
    ended = sorted((n * 1.0 + (10.0 if n % 3 else 1.0), n) for n in range(100))
    jobs = [(n, n * 1.0, 0.0, 10.0 if n % 3 else 1.0) for at, n in ended if at <= 100.0]
    predictor = taught(jobs)
    assert predictor.first_poll_at(100, 100.0) == pytest.approx(110.0)


def test_a_start_that_is_known_is_better_than_one_that_is_extrapolated():
    predictor = taught([(n, 0.0, n * 0.5, 2.0) for n in range(1, 60)])
    assert predictor.first_poll_at(100, 0.0) == pytest.approx(52.0)
    assert predictor.first_poll_at(100, 40.0, started_by=40.2) == pytest.approx(42.1)
