from __future__ import annotations

from collections import deque
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from batchrun.config import OperationLimit
from batchrun.scheduler.pacing import TROUBLE_THRESHOLD, Pacer


def test_a_full_burst_may_leave_at_once_and_the_next_ten_seconds_after_its_answers():
    pacer = Pacer(OperationLimit(5, 0), Random(0))
    assert pacer.ready(0.0) == 5
    for _ in range(5):
        pacer.start(0.0)
    assert pacer.ready(0.0) == 0
    assert pacer.next_at(0.0) is None, "only an answer gives a place back"
    for _ in range(5):
        pacer.succeed(0.1)
    assert pacer.ready(10.1) == 0
    assert pacer.next_at(5.0) == 10.12
    assert pacer.ready(10.12) == 5


@given(st.integers(1, 8), st.integers(0, 4), st.lists(st.tuples(st.floats(0, 3), st.floats(0, 2), st.floats(0, 2))))
def test_no_ten_seconds_at_the_server_see_more_than_the_limit(limit, concurrent, steps):
    pacer = Pacer(OperationLimit(limit, concurrent), Random(0))
    now, arrivals, answers = 0.0, deque(), []
    for gap, there, back in steps:
        now += gap
        for at in sorted(a for a in answers if a <= now):
            pacer.succeed(at)
        answers = [a for a in answers if a > now]
        for _ in range(pacer.ready(now)):
            pacer.start(now)
            arrivals.append(now + there)
            answers.append(now + there + back)
        assert not concurrent or len(answers) <= concurrent
    for start in arrivals:
        assert sum(start <= at <= start + 10.0 for at in arrivals) <= limit


def test_one_burst_of_429s_is_one_episode_and_honours_retry_after():
    pacer = Pacer(OperationLimit(100, 0), Random(0))
    for _ in range(10):
        pacer.start(0.0)
    for _ in range(10):
        pacer.throttle(0.2, sent_at=0.0, retry_after_s=3.0)
    assert pacer.trouble == 1
    assert pacer.ready(3.1) == 0
    assert pacer.ready(3.2) == 1, "one at a time after trouble"


def test_after_a_429_requests_are_spaced_and_the_rate_grows_back():
    pacer = Pacer(OperationLimit(100, 0), Random(0))
    pacer.start(0.0)
    pacer.throttle(0.0, sent_at=0.0, retry_after_s=None)
    now = pacer.next_at(0.0)
    pacer.start(now)
    pacer.succeed(now)
    assert pacer.ready(now + 0.05) == 0
    assert pacer.ready(now + 0.14) == 1
    for _ in range(8):
        now += 11.0
        pacer.start(now)
        pacer.succeed(now)
    assert pacer.ready(now + 11.0) > 1


def test_single_failures_do_not_stop_the_operation_but_an_outage_does():
    pacer = Pacer(OperationLimit(0, 0), Random(0))
    for _ in range(TROUBLE_THRESHOLD - 1):
        pacer.start(0.0)
        pacer.fail(1.0, sent_at=0.0)
    assert pacer.ready(1.0) > 1
    pacer.start(1.0)
    pacer.fail(1.0, sent_at=1.0)
    assert pacer.ready(1.0) == 0
    assert pacer.ready(pacer.next_at(1.0)) == 1


def test_an_operation_recovers_slowly_after_an_outage():
    pacer = Pacer(OperationLimit(0, 64), Random(0))
    for _ in range(64):
        pacer.start(0.0)
    for _ in range(64):
        pacer.fail(5.0, sent_at=0.0)
    now = pacer.next_at(5.0)
    sizes = []
    for _ in range(6):
        sizes.append(pacer.ready(now))
        for _ in range(sizes[-1]):
            pacer.start(now)
        for _ in range(sizes[-1]):
            pacer.succeed(now + 0.1)
        now += 0.1
    assert sizes == [1, 2, 4, 8, 16, 32]


def test_an_operation_without_a_known_limit_finds_its_own():
    pacer = Pacer(OperationLimit(0, 0), Random(0))
    for _ in range(40):
        pacer.start(0.0)
    pacer.throttle(0.1, sent_at=0.0, retry_after_s=None)
    for _ in range(39):
        pacer.succeed(0.1)
    now, most = 1.0, 0
    for _ in range(8):
        most = pacer.ready(now)
        for _ in range(most):
            pacer.start(now)
        for _ in range(most):
            pacer.succeed(now)
        now += 1.0
    assert 19 <= most <= 60, "doubling only up to half of what was under way"
