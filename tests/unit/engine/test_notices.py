"""Which obstacles are reported, and how."""

from __future__ import annotations

from batchrun.engine.notices import Notices


def said(notes: list[tuple[float, str]]) -> list[tuple[float, str]]:
    announcer = Notices()
    lines = ((at, announcer.look(note, at)) for at, note in notes)
    return [(at, line) for at, line in lines if line is not None]


def test_what_lasts_is_said_once_and_its_end_too():
    notes = [(float(at), "no network" if 10 <= at < 3610 else "") for at in range(3700)]
    assert said(notes) == [(15.0, "no network"), (3615.0, "continuing after 1 h 00 min")]


def test_what_is_over_at_once_is_not_said():
    notes = [(at / 10, "slow" if at % 100 < 20 else "") for at in range(3000)]
    assert said(notes) == []


def test_a_reason_that_changes_with_every_look_is_not_said_each_time():
    notes = [(float(at), f"HTTP 502, request {at}") for at in range(1000)]
    assert [at for at, _ in said(notes)] == [5.0, 305.0, 605.0, 905.0]


def test_a_short_gap_does_not_end_it():
    notes = [(float(at), "" if at in (100, 101) else "no network") for at in range(200)]
    assert said(notes) == [(5.0, "no network")]
