"""Which signals are caught, and which are left as whoever started the run has set them."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from batchrun.interrupts import Wish, catching


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
