"""With `--skip-invalid` the good lines are run and the bad ones are in the error file; without it nothing is."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import orjson
import pytest

from batchrun.commands.verify import verify
from batchrun.config import GuardOptions, SweepOptions
from batchrun.errors import InputError
from batchrun.prompts.fields import Fields
from batchrun.prompts.shapes import LineError, parse_line
from batchrun.prompts.sweep import Sweep
from batchrun.runs.preview import preview
from tests.support.rehearsal import Listener, options_for, rehearse, serving
from tests.support.workers import Picky

if TYPE_CHECKING:
    from pathlib import Path

BAD = [
    b'{"prompt":"cut of',
    b'{"id":"r1","prompt":""}',
    b"5",
    b'{"prompt":"cut of',
    b'{"prompt":"x","stream":true}',
    b"null",
]


def write(folder: Path, *lines: bytes, good: int = 4) -> None:
    rows = [orjson.dumps({"id": f"r{n}", "prompt": f"question {n}"}) for n in range(good)]
    (folder / "in.jsonl").write_bytes(b"\n".join([*rows[:2], *lines, *rows[2:]]) + b"\n")


async def test_the_good_lines_are_run_and_the_bad_ones_are_in_the_error_file(tmp_path: Path):
    write(tmp_path, *BAD)
    async with serving() as server:
        done = await rehearse(tmp_path, server.endpoint.base_url, skip_invalid=True)
        assert server.seen["run"] == 4
        assert (done.summary.exit_code, done.summary.succeeded, done.summary.failed) == (3, 4, 6)
        assert [error["source"]["line"] for error in done.errors] == [3, 4, 5, 6, 7, 8]
        for error, line in zip(done.errors, BAD, strict=True):
            assert (error["status"], error["error"]["kind"], error["job"]) == ("INVALID", "invalid", None)
            assert error["error"]["raw"] == line.decode()
        assert verify(done.summary.state).is_whole
        again = await rehearse(tmp_path, server.endpoint.base_url, skip_invalid=True, retry=())
        assert (server.seen["run"], again.summary.failed, again.errors) == (4, 6, done.errors)


async def test_invalid_lines_are_not_tried_again_and_trip_no_guard(tmp_path: Path):
    write(tmp_path, *[b'{"id":"bad%d"}' % n for n in range(25)], b'{"id":"late","prompt":"bad one"}')
    async with serving(worker=Picky()) as server:
        first = await rehearse(tmp_path, server.endpoint.base_url, skip_invalid=True)
        assert (first.summary.failed, server.seen["run"]) == (26, 5)
    async with serving() as server:
        guards = GuardOptions(canary=5)
        again = await rehearse(tmp_path, server.endpoint.base_url, skip_invalid=True, retry=(), guards=guards)
        assert (again.summary.exit_code, again.summary.failed, server.seen["run"]) == (3, 25, 1)
    assert verify(again.summary.state).is_whole


@pytest.mark.parametrize("sweep", [SweepOptions(), SweepOptions((("temperature", (0, 1)),))])
async def test_of_lines_that_share_an_id_the_first_is_run_and_the_others_are_invalid(tmp_path: Path, sweep):
    doubled = [b'{"id":"r1","prompt":"other"}', b'{"id":"r1","prompt":"other"}', b'{"id":"r1","prompt":"third"}']
    write(tmp_path, *doubled)
    with pytest.raises(InputError, match="duplicate id"):
        await rehearse(tmp_path, "http://127.0.0.1:9/v2", sweep=sweep)
    async with serving() as server:
        done = await rehearse(tmp_path, server.endpoint.base_url, skip_invalid=True, sweep=sweep)
        rows = 4 * (2 if sweep.keys else 1)
        assert (done.summary.succeeded, done.summary.failed, server.seen["run"]) == (rows, 3, rows)
        assert [error["source"]["line"] for error in done.errors] == [3, 4, 5]
        assert {error["error"]["message"] for error in done.errors} == {'duplicate id "r1"'}
        assert [(error.get("variant"), error["request"]) for error in done.errors] == [
            (None, orjson.loads(line)) for line in doubled
        ], "a line that was never multiplied has the values of no variant"
        assert verify(done.summary.state).is_whole
        (tmp_path / "in.jsonl").write_bytes(doubled[2] + b"\n" + (tmp_path / "in.jsonl").read_bytes())
        again = await rehearse(tmp_path, server.endpoint.base_url, skip_invalid=True, sweep=sweep)
        assert (again.summary.succeeded, again.summary.failed, server.seen["run"]) == (rows, 4, rows)
    assert verify(done.summary.state).is_whole


@pytest.mark.parametrize("repeat", [1, 2])
async def test_a_limit_counts_an_invalid_line_as_one_row_in_a_run_and_in_a_dry_run(tmp_path: Path, repeat: int):
    (tmp_path / "in.jsonl").write_bytes(b'{"id":"bad"}\n' + b"".join(b'{"prompt":"%d"}\n' % n for n in range(5)))
    sweep = SweepOptions(repeat=repeat)
    options = options_for(tmp_path, sweep=sweep, skip_invalid=True, limit=4)
    shown = list(preview(options, io.BytesIO(), Listener(), Fields(options.request, Sweep(sweep))))
    async with serving() as server:
        done = await rehearse(tmp_path, server.endpoint.base_url, sweep=sweep, skip_invalid=True, limit=4)
        assert (done.summary.total, server.seen["run"], len(shown)) == (4, 3, 3)


async def test_an_invalid_line_is_as_invalid_when_its_error_file_is_run(tmp_path: Path):
    write(tmp_path, *BAD)
    async with serving() as server:
        await rehearse(tmp_path, server.endpoint.base_url, skip_invalid=True)
    for line in (tmp_path / "out.errors.jsonl").read_bytes().splitlines():
        with pytest.raises(LineError):
            parse_line(line)


async def test_lines_that_were_invalid_may_be_put_right_or_taken_out(tmp_path: Path):
    write(tmp_path, *BAD[:3])
    async with serving() as server:
        await rehearse(tmp_path, server.endpoint.base_url, skip_invalid=True)
        write(tmp_path, b'{"id":"mended","prompt":"cut off"}', BAD[2])
        done = await rehearse(tmp_path, server.endpoint.base_url, skip_invalid=True)
        assert (done.summary.succeeded, done.summary.failed, server.seen["run"]) == (5, 1, 5)
        assert verify(done.summary.state).is_whole
        write(tmp_path, b'{"id":"mended","prompt":"cut off"}')
        done = await rehearse(tmp_path, server.endpoint.base_url)
        assert (done.summary.exit_code, done.errors, server.seen["run"]) == (0, [], 5)
        assert verify(done.summary.state).is_whole


@pytest.mark.parametrize(
    "given", [{"dedupe": True}, {"format": "openai"}, {"sweep": SweepOptions((("seed", (1, 2)),), 2)}]
)
async def test_invalid_lines_are_told_apart_from_the_rows_of_any_run(tmp_path: Path, given: dict):
    write(tmp_path, *BAD)
    async with serving() as server:
        done = await rehearse(tmp_path, server.endpoint.base_url, skip_invalid=True, **given)
    assert (done.summary.exit_code, done.summary.failed, len(done.errors)) == (3, 6, 6)
    assert done.summary.succeeded == (16 if "sweep" in given else 4)
    assert verify(done.summary.state).is_whole


async def test_a_line_without_a_place_for_a_swept_value_is_skipped_too(tmp_path: Path):
    write(tmp_path, b'{"input":{"text":"a"}}')
    async with serving() as server:
        sweep = SweepOptions((("body.temperature", (0, 1)),))
        done = await rehearse(tmp_path, server.endpoint.base_url, skip_invalid=True, sweep=sweep)
    assert (done.summary.succeeded, done.summary.failed) == (0, 5)
    assert done.errors[2]["request"] == {"input": {"text": "a"}}


async def test_without_it_equal_reasons_are_told_once_with_their_number(tmp_path: Path):
    write(tmp_path, *BAD, *[b'{"prompt":"%s' % (b"x" * n) for n in range(1000)])
    with pytest.raises(InputError) as caught:
        await rehearse(tmp_path, "http://127.0.0.1:9/v2")
    lines = caught.value.message.splitlines()
    assert lines[0].endswith("in.jsonl:3: invalid JSON at column 18: unexpected end of data (and 1,001 more like this)")
    assert lines[-1] == "1,006 lines are invalid"
    assert len(lines) == 6
    assert "--skip-invalid" in caught.value.hint
    assert not (tmp_path / "out.jsonl.state").exists()
