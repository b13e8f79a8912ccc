"""Decides what to do next, and does nothing itself: no I/O, no clock, no global randomness.

The driver passes events to `Scheduler.handle`, executes what `Scheduler.commands` returns, and calls it again no later
than `Scheduler.next_wakeup` says. Times are seconds on one monotonic clock; `now` is always a parameter.
"""
