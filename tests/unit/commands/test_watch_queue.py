"""What comes next in a watched folder."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.commands.watch_queue import Entry, FileRecord, NoRecordError, Queue, Total

NOW = 1_000_000.0
SETTLE_S = 2.0


def entry(name: str, age_s: float = 60.0, size: int = 10) -> Entry:
    return Entry(name, size, round((NOW - age_s) * 1e9))


def record_of(known: Entry, **given) -> FileRecord:
    fields = {"sha256": "aa", "outcome": "finished", "exit_code": 0, **given}
    return FileRecord(known.shown, known.size_bytes, known.mtime_ns, **fields)


def look(*entries: Entry, records=(), begun=None, busy=(), now: float = NOW, queue: Queue | None = None):
    by_stem = {Entry(record.file, 0, 0).stem: record for record in records}
    return (queue or Queue(SETTLE_S)).look(entries, by_stem, begun or {}, busy, now)


def test_files_come_in_the_order_of_their_arrival_and_then_of_their_names():
    first, b, c = entry("z.jsonl", 90), entry("b.jsonl", 60), entry("c.jsonl", 60)
    assert look(c, b, first).ready == [first, b, c]


def test_what_was_cut_off_continues_before_all_else():
    old, cut_off = entry("old.jsonl", 900), entry("cut.jsonl", 60)
    assert look(old, cut_off, begun={"cut": "cut.jsonl"}).ready == [cut_off, old]


def test_a_file_that_has_lain_still_is_whole_at_once_and_a_new_one_when_it_has_settled():
    queue = Queue(SETTLE_S)
    renamed, new = entry("renamed.jsonl", 3.0), entry("new.jsonl", 0.5)
    seen = look(renamed, new, queue=queue)
    assert (seen.ready, seen.settling) == ([renamed], [new])
    assert look(new, queue=queue, now=NOW + 1.4).settling == [new]
    assert look(new, queue=queue, now=NOW + 1.6).ready == [new]


def test_a_file_from_a_clock_that_is_ahead_is_whole_when_it_has_been_watched_for_long_enough():
    queue, ahead = Queue(SETTLE_S), entry("ahead.jsonl", -3600)
    assert look(ahead, queue=queue).settling == [ahead]
    assert look(ahead, queue=queue, now=NOW + SETTLE_S).ready == [ahead]


def test_a_file_with_a_record_is_over_also_when_only_its_time_has_changed():
    queue, done = Queue(SETTLE_S), entry("a.jsonl")
    touched = done._replace(mtime_ns=done.mtime_ns + 1)
    assert look(done, records=[record_of(done)]).over == [done]
    assert look(touched, records=[record_of(done)], queue=queue).unclear == [touched]
    queue.compared(touched, is_same=True)
    assert look(touched, records=[record_of(done)], queue=queue).over == [touched]


@pytest.mark.parametrize(("outcome", "place"), [("finished", "changed"), ("refused", "ready"), ("stopped", "ready")])
def test_a_file_that_says_something_else_is_run_again_only_if_its_run_had_not_come_to_its_end(outcome, place):
    queue, was = Queue(SETTLE_S), entry("a.jsonl")
    now = entry("a.jsonl", 30, size=11)
    queue.look([now], {}, {}, (), NOW)
    queue.compared(now, is_same=False)
    assert getattr(look(now, records=[record_of(was, outcome=outcome)], queue=queue), place) == [now]


def test_of_two_files_with_the_same_results_the_first_that_was_run_or_came_keeps_them():
    plain, packed = entry("a.jsonl", 50), entry("a.jsonl.gz", 60)
    seen = look(plain, packed)
    assert (seen.ready, seen.clashing) == ([packed], [plain])
    seen = look(plain, packed, begun={"a": "a.jsonl"})
    assert (seen.ready, seen.clashing) == ([plain], [packed])
    seen = look(packed, records=[record_of(plain)])
    assert (seen.ready, seen.clashing) == ([], [packed])


def test_what_another_process_runs_is_waited_for():
    theirs = entry("a.jsonl")
    seen = look(theirs, begun={"a": "a.jsonl"}, busy={"a"})
    assert (seen.ready, seen.busy, seen.is_empty) == ([], [theirs], False)


names = st.sampled_from([f"{stem}.jsonl{packed}" for stem in "abcd" for packed in ("", ".gz")])
entries = st.lists(
    st.builds(entry, names, st.floats(-5, 100), st.integers(0, 3)), unique_by=lambda found: found.name, max_size=8
)


@given(entries, st.data())
def test_each_file_has_one_place_and_only_whole_ones_without_a_record_of_theirs_are_ready(found, data):
    known = {e.stem: data.draw(st.builds(record_of, st.builds(entry, st.just(e.name)))) for e in found[:3]}
    begun = {stem: f"{stem}.jsonl" for stem in data.draw(st.sets(st.sampled_from("abcd"))) - known.keys()}
    seen = Queue(SETTLE_S).look(found, known, begun, data.draw(st.sets(st.sampled_from("abcd"))), NOW)
    places = [seen.ready, seen.settling, seen.busy, seen.unclear, seen.over, seen.changed, seen.clashing]
    assert sorted(e for place in places for e in place) == sorted(found)
    assert all(NOW - e.mtime_ns / 1e9 >= SETTLE_S and e.stem not in known for e in seen.ready)
    assert len({e.stem for e in seen.ready}) == len(seen.ready)
    cut_off = [e.stem in begun for e in seen.ready]
    assert cut_off == sorted(cut_off, reverse=True)


pieces = st.lists(st.tuples(st.floats(0, SETTLE_S * 0.9), st.integers(1, 5)), min_size=1, max_size=5)


@given(st.dictionaries(names, st.tuples(st.floats(0, 10), pieces), max_size=4), st.floats(0.3, 1.5))
def test_each_file_is_taken_once_and_never_before_its_last_piece_is_written(written, look_every_s):
    """Files that are written piece by piece, with less than the settling time in between, by a virtual clock."""
    finals: dict[str, Entry] = {}
    steps: list[tuple[float, Entry]] = []
    for name, (begins_s, parts) in written.items():
        at_s, size = begins_s, 0
        for gap_s, length in parts:
            at_s, size = at_s + gap_s, size + length
            finals[name] = Entry(name, size, round((NOW + at_s) * 1e9))
            steps.append((at_s, finals[name]))
    steps.sort(key=lambda step: step[0])
    queue, records, taken, at_s = Queue(SETTLE_S), {}, [], 0.0
    for _ in range(200):
        now = {e.name: e for begun_s, e in steps if begun_s <= at_s}
        seen = queue.look(now.values(), records, {}, (), NOW + at_s)
        if seen.ready:
            taken.append(seen.ready[0])
            records[seen.ready[0].stem] = record_of(seen.ready[0])
        else:
            at_s += look_every_s
    assert all(e == finals[e.name] for e in taken)
    assert {e.stem for e in taken} == {e.stem for e in finals.values()}
    assert len(taken) == len({e.stem for e in taken})


def test_a_record_is_read_as_it_was_written():
    told = record_of(entry("ä\udcff.jsonl"), outcome="stopped", exit_code=4, reason="why", rows={"total": 3})
    back = FileRecord.from_json(told.to_json())
    assert back == told
    assert (back.file, back.suffix) == ("ä\\xff.jsonl", ".failed")


@pytest.mark.parametrize(
    "data", [None, [], {}, {"record_version": 2}, {**record_of(entry("a.jsonl")).to_json(), "input": {"file": "a"}}]
)
def test_what_is_no_record_is_not_taken_for_one(data):
    with pytest.raises(NoRecordError):
        FileRecord.from_json(data)


ALL_WELL = Total("finished", done=2, incomplete=0, failed=0, not_run=0, left=0, rows=10, succeeded=10)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({}, 0),
        ({"incomplete": 1}, 3),
        ({"incomplete": 1, "failed": 1}, 4),
        ({"not_run": 1}, 4),
        ({"outcome": "stopped"}, 4),
        ({"outcome": "interrupted", "failed": 1}, 130),
    ],
)
def test_the_exit_code_is_that_of_the_worst(change, code):
    assert replace(ALL_WELL, **change).exit_code == code
