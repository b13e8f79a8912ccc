from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from batchrun.config import OperationLimit
from batchrun.local.limits import RateLimit


@given(st.integers(1, 6), st.lists(st.floats(0, 4), min_size=1, max_size=80))
def test_exactly_the_limit_is_admitted_in_any_ten_seconds(limit, gaps):
    rate, now, admitted = RateLimit(OperationLimit(limit, 0)), 0.0, []
    for gap in gaps:
        now += gap
        recent = sum(now - at <= 10.0 for at in admitted)
        wait_s = rate.admit(now)
        assert (wait_s is None) is (recent < limit)
        if wait_s is None:
            admitted.append(now)
        else:
            assert 0 <= wait_s <= 10.0


def test_so_many_at_once_and_no_more():
    rate = RateLimit(OperationLimit(0, 2))
    assert [rate.admit(0.0), rate.admit(0.0), rate.admit(0.0)] == [None, None, 0.0]
    rate.leave()
    assert rate.admit(0.0) is None
