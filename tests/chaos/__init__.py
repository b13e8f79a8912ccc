"""What the world does to a run: power that fails, processes that are killed, disks that fill up, answers that lie.

Nothing here knows how batchrun is built. It is talked to as its users do, by the command line and the files that the
README documents; what was paid for is counted at the endpoint.

- `endpoint`: a queue endpoint on loopback that counts the jobs it is given, and misbehaves when it is told to.
- `processes`: real processes of batchrun that are forked, so that a start costs no import.
- `disk`, `disk.c`: every change to a folder as it happens, and the states that a loss of power may leave of it.
- `test_power_loss`: a run is started again from each of those states.
- `claims`: what a run owes its user.
- `layout`, `place`, `test_machine`: a run that people work on in any order, checked after each step (Hypothesis).

`BATCHRUN_CHAOS=N` makes the tests look at N times as much; see the tests for what that means there.
"""
