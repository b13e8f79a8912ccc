from __future__ import annotations

import orjson
from hypothesis import given
from hypothesis import strategies as st

from batchrun.prompts.shapes import parse_line
from batchrun.results.error_record import error_line
from batchrun.results.record import JobInfo, iso_time, read_record, result_line
from batchrun.results.text import Text

JOB = JobInfo("j-u1", "abc", 2, 31.0, 1437.5, "w", 1_767_225_600.0, 1_767_225_602.25)


def line(**fields) -> dict:
    given_ = {"row_id": "haiku-1", "text": Text(("hi",), "stop", 9, 23), "output": [1], "carried": {}, "job": JOB}
    return orjson.loads(result_line(**{**given_, "file": "haikus.jsonl", "line": 1, **fields}))


def test_a_result_has_the_documented_fields_in_their_order():
    record = line(carried={"metadata": {"topic": "rain"}, "note": 1})
    assert record == {
        "id": "haiku-1",
        "status": "COMPLETED",
        "text": "hi",
        "finish_reason": "stop",
        "usage": {"input_tokens": 9, "output_tokens": 23},
        "output": [1],
        "metadata": {"topic": "rain"},
        "note": 1,
        "source": {"file": "haikus.jsonl", "line": 1},
        "job": {
            "id": "j-u1",
            "endpoint": "abc",
            "attempts": 2,
            "delay_ms": 31,
            "execution_ms": 1437.5,
            "worker_id": "w",
            "submitted_at": "2026-01-01T00:00:00.000Z",
            "completed_at": "2026-01-01T00:00:02.250Z",
        },
    }
    assert list(record)[:6] == ["id", "status", "text", "finish_reason", "usage", "output"]


def test_several_texts_are_all_there():
    assert line(text=Text(("a", "b")))["texts"] == ["a", "b"]
    assert "texts" not in line(text=Text(("a",)))
    assert line(text=Text())["text"] is None


def test_a_carried_field_with_our_name_is_kept_apart():
    record = line(carried={"status": "theirs", "output": 0, "mine": 1})
    assert (record["status"], record["mine"]) == ("COMPLETED", 1)
    assert record["carried"] == {"status": "theirs", "output": 0}


def test_a_possible_duplicate_is_marked():
    assert line(possible_duplicate=True)["job"]["possible_duplicate"] is True
    assert "possible_duplicate" not in line()["job"]


def test_an_output_that_is_nested_deeper_than_the_fast_writer_goes_is_written_all_the_same():
    deep = orjson.loads(b"[" * 600 + b"]" * 600)
    assert line(output=deep)["output"] == deep


def test_one_output_that_no_writer_can_take_does_not_end_the_run():
    deepest = orjson.loads(b"[" * 1024 + b"]" * 1024)
    record = line(output=deepest, text=Text(("kept",)))
    assert (record["text"], record["output"]) == ("kept", "nested too deeply to be written as JSON")


def test_an_error_line_is_valid_input_for_the_same_row():
    request = {"id": "x", "prompt": "hi", "metadata": {"a": 1}}
    raw = error_line(
        row_id="x", status="FAILED", kind="platform", message="m", raw="r", request=request, file="f", line=3, job=JOB
    )
    assert raw.endswith(b"\n")
    again = parse_line(raw)
    assert (again.id, again.request, again.carried) == ("x", {"prompt": "hi"}, {"metadata": {"a": 1}})


def test_a_result_line_is_read_back_and_others_are_not():
    raw = result_line(row_id="x", text=Text(("hi",), "length", 1, 2), output=1, carried={}, file="f", line=1, job=JOB)
    found = read_record(raw)
    assert (found.id, found.delay_ms, found.execution_ms, found.finish_reason) == ("x", 31, 1437.5, "length")
    assert (found.input_tokens, found.output_tokens) == (1, 2)
    for other in (b"", b"{}", b"[]", b"nonsense", b'{"id": "x"}', b'{"id": "x", "status": "COMPLETED"}'):
        assert read_record(other) is None


def test_a_time_just_below_a_second_does_not_jump_by_one():
    assert iso_time(1_767_225_601.9999998) == "2026-01-01T00:00:02.000Z"


@given(st.integers(0, 4_000_000_000_000))
def test_times_keep_their_milliseconds(epoch_ms):
    text = iso_time(epoch_ms / 1000)
    assert text.endswith("Z")
    assert abs(int(text[-4:-1]) - epoch_ms % 1000) in (0, 1, 999)


def test_no_character_of_an_answer_ends_a_line_for_any_reader():
    said = "a\u2028b\u2029c\u0085d"
    job = JobInfo(said, "e", 1, None, None, None, None, None)
    for raw in (
        result_line(row_id=said, text=Text((said,)), output=said, carried={said: said}, file=said, line=1, job=job),
        error_line(
            row_id=said,
            status="FAILED",
            kind="platform",
            message=said,
            raw=said,
            request=said,
            file=said,
            line=1,
            job=job,
        ),
    ):
        assert len(raw.decode().splitlines()) == 1
        assert orjson.loads(raw)["source"]["file"] == said
