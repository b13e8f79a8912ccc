"""Which signals are caught, and which are left as whoever started the run has set them."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from batchrun.interrupts import CANCEL_SIGNAL, Wish, catching


@pytest.fixture
def hangup():
    before = signal.getsignal(signal.SIGHUP)
    yield lambda handler: signal.signal(signal.SIGHUP, handler)
    signal.signal(signal.SIGHUP, before)


async def wishes_after(number: signal.Signals) -> list[Wish]:
    told: list[Wish] = []
    with catching("drain", told.append):
        os.kill(os.getpid(), number)
        await asyncio.sleep(0.05)
    return told


async def test_a_hangup_detaches(hangup):
    hangup(signal.SIG_DFL)
    assert await wishes_after(signal.SIGHUP) == [Wish.DETACH]


async def test_under_nohup_a_hangup_is_ignored_and_stays_so(hangup):
    hangup(signal.SIG_IGN)
    assert await wishes_after(signal.SIGHUP) == []
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


async def test_a_cancel_that_comes_while_the_session_is_concluded_does_not_kill_it():
    before = signal.getsignal(CANCEL_SIGNAL)
    try:
        assert await wishes_after(CANCEL_SIGNAL) == [Wish.CANCEL]
        os.kill(os.getpid(), CANCEL_SIGNAL)
        assert await wishes_after(CANCEL_SIGNAL) == [Wish.CANCEL], "the next session hears it again"
    finally:
        signal.signal(CANCEL_SIGNAL, before)
