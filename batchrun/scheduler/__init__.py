"""What is to be done next, decided without doing it: no I/O, no clock, no global randomness.

The driver feeds what happened to `Scheduler.handle`, carries out what `Scheduler.commands` returns, and comes back
at `Scheduler.next_wakeup` at the latest. Times are seconds of one monotonic clock; `now` is always a parameter.
"""
