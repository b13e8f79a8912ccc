"""Which signals are caught, and which are left as whoever started the run has set them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket

import pytest

from batchrun.engine.signals import CANCEL_SIGNAL, Leaving, Wish, cancellable, interruptible, wakeup_fd_kept

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, CANCEL_SIGNAL)


@pytest.fixture(autouse=True)
def kept():
    """The handlers of the tests' own process."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


async def wishes_after(*numbers: signal.Signals) -> list[Wish]:
    told: list[Wish] = []
    leaving = Leaving()
    with cancellable(leaving), interruptible(leaving, "drain"), leaving.heard_by(told.append):
        for number in numbers:
            os.kill(os.getpid(), number)
        await asyncio.sleep(0.05)
    return told


async def test_a_hangup_leaves():
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert await wishes_after(signal.SIGHUP) == [Wish.LEAVE]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_first_interrupt_does_what_was_chosen_and_the_second_leaves(number: signal.Signals):
    assert await wishes_after(number) == [Wish.DRAIN]
    assert await wishes_after(signal.SIGINT, number) == [Wish.DRAIN, Wish.LEAVE]


async def test_under_nohup_a_hangup_is_ignored_and_stays_so():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert await wishes_after(signal.SIGHUP) == []
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


async def test_a_cancel_is_heard_before_the_loop_and_harmless_after_it():
    told: list[Wish] = []
    leaving = Leaving()
    with cancellable(leaving):
        os.kill(os.getpid(), CANCEL_SIGNAL)
        with leaving.heard_by(told.append):
            await asyncio.sleep(0.05)
        assert told == [Wish.CANCEL]
        os.kill(os.getpid(), CANCEL_SIGNAL)
    assert told == [Wish.CANCEL]


async def test_each_handler_is_left_as_it_was_found():
    for handler in (signal.SIG_DFL, signal.SIG_IGN, lambda *_: None):
        for number in SIGNALS:
            signal.signal(number, handler)
        with cancellable(Leaving()), interruptible(Leaving(), "drain"):
            assert signal.getsignal(CANCEL_SIGNAL) is not handler
        assert [signal.getsignal(number) for number in SIGNALS] == [handler] * len(SIGNALS)


def test_a_handler_that_is_not_pythons_is_not_touched(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(signal, "getsignal", lambda _: None)
    monkeypatch.setattr(signal, "signal", lambda *_: pytest.fail("it could not be put back"))
    with cancellable(Leaving()), interruptible(Leaving(), "drain"):
        pass


def test_a_handler_that_the_program_sets_meanwhile_stays():
    def mine(*_: object) -> None:
        """The program's."""

    with interruptible(Leaving(), "drain"):
        signal.signal(signal.SIGTERM, mine)
    assert signal.getsignal(signal.SIGTERM) is mine
    with interruptible(Leaving(), "drain"):
        assert signal.getsignal(signal.SIGTERM) is not mine
    assert signal.getsignal(signal.SIGTERM) is mine


async def test_sessions_that_end_in_another_order_than_they_began_hear_what_they_should_and_leave_no_handler():
    before = signal.getsignal(CANCEL_SIGNAL)
    first, second = cancellable(one := Leaving()), cancellable(two := Leaving())
    told_one: list[Wish] = []
    told_two: list[Wish] = []
    with one.heard_by(told_one.append), two.heard_by(told_two.append):
        first.__enter__()
        second.__enter__()
        os.kill(os.getpid(), CANCEL_SIGNAL)
        first.__exit__(None, None, None)
        os.kill(os.getpid(), CANCEL_SIGNAL)
        second.__exit__(None, None, None)
        await asyncio.sleep(0.05)
    assert (len(told_one), len(told_two)) == (1, 2)
    assert signal.getsignal(CANCEL_SIGNAL) is before


def test_the_programs_wakeup_descriptor_is_put_back():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        before = signal.set_wakeup_fd(theirs.fileno())
        try:
            with wakeup_fd_kept():
                signal.set_wakeup_fd(-1)
            assert signal.set_wakeup_fd(before) == theirs.fileno()
        finally:
            signal.set_wakeup_fd(before)
