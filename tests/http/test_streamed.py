"""Workers that only stream: their output is asked for on `/stream`, and what broke off is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from batchrun.endpoint.protocol import JobAnswer, JobStatus, parse_stream
from batchrun.engine import streamed
from batchrun.engine.judging import partial_output
from batchrun.errors import AmbiguousError, NotFoundError
from batchrun.results.error_record import part_bytes
from tests.support.rehearsal import rehearse, serving, write_lines

if TYPE_CHECKING:
    from pathlib import Path

PIECES = [[{"text": "once "}, {"text": "upon "}], [{"text": "a time"}]]


class Streams:
    """Answers `/status` with one body, and drains a stream with each `/stream`, as Runpod does."""

    def __init__(
        self,
        ended: dict,
        pieces: list[list],
        *,
        faults: tuple[int, ...] = (),
        drains: bool = True,
        breaks_with: int | None = None,
        says: dict | None = None,
    ) -> None:
        self.ended = ended
        self.breaks_with = breaks_with
        self.says = says or {}
        self.pieces = pieces
        self.faults = list(faults)
        self.drains = drains
        self.turns: dict[str, int] = {}

    async def __call__(self, request: web.BaseRequest, operation: str) -> web.Response | None:
        job_id = request.path.rpartition("/")[2]
        if operation == "status":
            return web.json_response({"id": job_id, "executionTime": 4000, "delayTime": 10, **self.ended})
        if operation != "stream":
            return None
        if self.faults:
            return web.json_response({"error": "no"}, status=self.faults.pop(0))
        turn = self.turns.get(job_id, 0)
        self.turns[job_id] = turn + self.drains
        if self.breaks_with and turn:
            return web.json_response({"error": "no"}, status=self.breaks_with)
        new = self.pieces[turn] if turn < len(self.pieces) else []
        stream = [{"output": piece} for piece in new]
        return web.json_response({"status": self.ended["status"], "stream": stream, **self.says})


async def run(folder: Path, streams: Streams, **given):
    write_lines(folder, [{"id": "x", "input": {"topic": "rain"}}])
    async with serving(streams) as server:
        rehearsal = await rehearse(folder, server.endpoint.base_url, **given)
    return rehearsal, server.seen


async def test_the_output_of_a_generator_that_nobody_puts_together_is_the_result(tmp_path: Path):
    rehearsal, seen = await run(tmp_path, Streams({"status": "COMPLETED", "output": []}, PIECES))
    (record,) = rehearsal.results
    assert record["output"] == [{"text": "once "}, {"text": "upon "}, {"text": "a time"}]
    assert (record["status"], rehearsal.errors, seen["run"], seen["stream"]) == ("COMPLETED", [], 1, 3)
    assert rehearsal.summary.calls["stream"] == 3


@pytest.mark.parametrize(("pieces", "calls"), [([], 1), ([[None]], 2)])
@pytest.mark.parametrize("ended", [{"output": []}, {"output": None}, {}])
async def test_a_stream_that_brings_nothing_is_no_output(tmp_path: Path, ended: dict, pieces: list, calls: int):
    rehearsal, seen = await run(tmp_path, Streams({"status": "COMPLETED", **ended}, pieces))
    (error,) = rehearsal.errors
    assert error["error"]["kind"] == "no_output"
    assert "output" not in error
    assert (seen["run"], seen["stream"]) == (1, calls)


async def test_an_empty_list_is_a_result_where_outputs_are_not_inspected(tmp_path: Path):
    rehearsal, seen = await run(tmp_path, Streams({"status": "COMPLETED", "output": []}, PIECES), inspect_output=False)
    assert rehearsal.results[0]["output"] == []
    assert seen["stream"] == 0


@pytest.mark.parametrize("faults", [(429,), (500, 502), (429, 503, 500)])
async def test_a_stream_that_cannot_be_read_for_a_moment_is_asked_again(tmp_path: Path, faults: tuple[int, ...]):
    streams = Streams({"status": "COMPLETED", "output": []}, PIECES, faults=faults)
    rehearsal, seen = await run(tmp_path, streams)
    assert len(rehearsal.results[0]["output"]) == 3
    assert (seen["run"], seen["stream"]) == (1, 3 + len(faults))


@pytest.mark.parametrize("status", [400, 403, 404, 405])
async def test_an_endpoint_without_streams_neither_stops_the_run_nor_costs_a_retry(tmp_path: Path, status: int):
    streams = Streams({"status": "COMPLETED", "output": []}, PIECES, faults=(status,) * 9)
    rehearsal, seen = await run(tmp_path, streams)
    assert (rehearsal.errors[0]["error"]["kind"], rehearsal.summary.exit_code) == ("no_output", 3)
    assert (seen["run"], seen["stream"]) == (1, 1)


async def test_a_server_that_gives_everything_each_time_is_not_asked_for_ever(tmp_path: Path):
    rehearsal, _ = await run(tmp_path, Streams({"status": "COMPLETED", "output": []}, PIECES[:1], drains=False))
    assert rehearsal.results[0]["output"] == PIECES[0]


@pytest.mark.parametrize("status", [404, 403, 502])
async def test_a_stream_that_breaks_off_is_no_result_and_its_part_is_kept(
    tmp_path: Path, status: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(streamed, "_BACKOFF_BASE_S", 0.001)
    streams = Streams({"status": "COMPLETED", "output": []}, PIECES, breaks_with=status)
    rehearsal, seen = await run(tmp_path, streams)
    (error,) = rehearsal.errors
    assert (error["error"]["kind"], error["output"], seen["run"]) == ("no_output", PIECES[0], 1)
    assert "only part of its stream could be read" in error["error"]["message"]


async def test_the_part_of_a_failed_job_is_kept_where_its_stream_breaks_off(tmp_path: Path):
    streams = Streams({"status": "FAILED", "error": "boom"}, PIECES, breaks_with=404)
    rehearsal, _ = await run(tmp_path, streams, scheduler={"max_retries": 0})
    (error,) = rehearsal.errors
    assert (error["error"]["message"], error["output"]) == ("boom", PIECES[0])


async def test_a_model_may_say_the_same_piece_again_and_again(tmp_path: Path):
    streams = Streams({"status": "COMPLETED", "output": []}, [["a "], *[["ha "]] * 5, ["end"]])
    rehearsal, _ = await run(tmp_path, streams)
    assert rehearsal.results[0]["text"] == "a ha ha ha ha ha end"
    (tmp_path / "again").mkdir()
    rehearsal, _ = await run(tmp_path / "again", Streams({"status": "COMPLETED", "output": []}, [["0"]] * 7))
    assert rehearsal.results[0]["text"] == "0000000"


async def test_the_stream_of_another_job_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(streamed, "_BACKOFF_BASE_S", 0.001)
    streams = Streams({"status": "COMPLETED", "output": []}, PIECES, says={"id": "zzz-u1"})
    rehearsal, _ = await run(tmp_path, streams)
    (error,) = rehearsal.errors
    assert "the answer is the stream of another job" in error["error"]["message"]
    assert "output" not in error


async def test_an_error_among_the_pieces_fails_the_row_and_keeps_the_others(tmp_path: Path):
    pieces = [[{"text": "once "}], [{"error": {"message": "boom", "code": 400}}]]
    rehearsal, _ = await run(tmp_path, Streams({"status": "COMPLETED", "output": []}, pieces))
    (error,) = rehearsal.errors
    assert (error["error"]["kind"], error["error"]["message"]) == ("bad_request", "boom")
    assert error["output"] == [{"text": "once "}, {"error": {"message": "boom", "code": 400}}]


@pytest.mark.parametrize("ended", [{"status": "FAILED", "error": "boom"}, {"status": "TIMED_OUT"}])
async def test_what_a_job_had_put_out_before_it_failed_is_kept_in_the_error_record(tmp_path: Path, ended: dict):
    rehearsal, _ = await run(tmp_path, Streams(ended, PIECES), scheduler={"max_retries": 0})
    (error,) = rehearsal.errors
    assert error["status"] == ended["status"]
    assert error["output"] == [piece for pieces in PIECES for piece in pieces]
    async with serving() as server:
        again = await rehearse(tmp_path, server.endpoint.base_url, retry=())
    assert (again.ids(), again.errors) == (["x"], [])


async def test_a_job_that_failed_at_once_is_not_asked_for_a_stream(tmp_path: Path):
    _, seen = await run(tmp_path, Streams({"status": "FAILED", "error": "boom", "executionTime": 50}, PIECES))
    assert seen["stream"] == 0


async def test_an_output_beside_the_error_is_kept(tmp_path: Path):
    ended = {"status": "FAILED", "error": "invalid input: prompt missing", "output": {"error_code": "INVALID_INPUT"}}
    rehearsal, seen = await run(tmp_path, Streams(ended, PIECES))
    assert rehearsal.errors[0]["output"] == {"error_code": "INVALID_INPUT"}
    assert seen["stream"] == 0


async def test_rows_that_share_a_failed_job_share_what_it_has_put_out(tmp_path: Path):
    write_lines(tmp_path, [{"id": name, "input": {"topic": "rain"}} for name in "xy"])
    async with serving(Streams({"status": "FAILED", "error": "boom"}, PIECES)) as server:
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url, dedupe=True)
    assert [len(error["output"]) for error in rehearsal.errors] == [3, 3]


@pytest.mark.parametrize(
    ("body", "pieces", "status"),
    [
        (b'{"status": "IN_QUEUE", "stream": []}', [], JobStatus.IN_QUEUE),
        (
            b'{"status": "IN_PROGRESS", "stream": [{"output": {"index": 2, "word": "a"}}, {"output": null}]}',
            [{"index": 2, "word": "a"}, None],
            JobStatus.IN_PROGRESS,
        ),
        (b'[{"output": "a"}, {"output": "b"}]', ["a", "b"], None),
        (b'{"error": "Stream not supported", "status": "FAILED"}', [], JobStatus.FAILED),
        (b'{"status": "COMPLETED", "stream": null}', [], JobStatus.COMPLETED),
    ],
)
def test_every_known_shape_of_a_stream_is_read(body: bytes, pieces: list, status: JobStatus | None):
    assert parse_stream(200, {}, body) == (pieces, status)


@pytest.mark.parametrize("body", [b"", b"7", b'"text"', b"<html>", b'{"stream": 7}', b'{"stream": {"a": 1}}'])
def test_what_is_not_a_stream_is_ambiguous(body: bytes):
    with pytest.raises(AmbiguousError):
        parse_stream(200, {}, body)
    with pytest.raises(NotFoundError):
        parse_stream(404, {}, body)


def test_a_long_part_is_cut_and_says_so():
    kept = part_bytes(["x" * 1000] * 5000)
    assert len(kept) <= 1_000_000
    assert kept.endswith(b'pieces)"]')
    assert "cut" in part_bytes("y" * 2_000_000).decode()
    assert part_bytes({"a": 2**70, "b": "ü"}) == '{"a":1180591620717411303424,"b":"ü"}'.encode()


def test_an_error_alone_is_not_a_part():
    def part(status: JobStatus, output: object, error: object = None) -> object:
        return partial_output(JobAnswer("j", status, output=output, has_output=True, error=error))

    assert part(JobStatus.COMPLETED, [{"error": "boom"}]) is None
    assert part(JobStatus.COMPLETED, {"error": "boom"}) is None
    assert part(JobStatus.FAILED, {"error": "boom"}) is None
    assert part(JobStatus.FAILED, [], "boom") is None
    assert part(JobStatus.FAILED, ["once "], "boom") == ["once "]
