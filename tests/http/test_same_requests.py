"""A line is the same as long as it asks for the same: how it is written, and what it carries, is no change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
import pytest

from batchrun.commands.verify import verify
from batchrun.errors import StateError
from batchrun.state.store import Store
from tests.support.rehearsal import rehearse, serving

if TYPE_CHECKING:
    from pathlib import Path

LINES = [
    {"prompt": f"Über die Zahl {n}", "max_tokens": 8, "metadata": {"made_at": 1}, **({"id": f"r{n}"} if n % 2 else {})}
    for n in range(12)
]


def plain(line: dict) -> bytes:
    return orjson.dumps(line)


def spaced(line: dict) -> bytes:
    return orjson.dumps(line, option=orjson.OPT_INDENT_2).replace(b"\n", b" ")


def other_order(line: dict) -> bytes:
    return orjson.dumps(dict(reversed(line.items())))


def escaped(line: dict) -> bytes:
    return orjson.dumps(line).replace("Ü".encode(), rb"\u00dc")


def stamped(line: dict) -> bytes:
    return orjson.dumps({**line, "metadata": {"made_at": 2}})


def write(folder: Path, lines: list[bytes], end: bytes = b"\n") -> None:
    (folder / "in.jsonl").write_bytes(b"".join(line + end for line in lines))


@pytest.mark.parametrize("written", [spaced, other_order, escaped, stamped])
async def test_the_same_requests_written_anew_are_the_same_rows(tmp_path: Path, written):
    write(tmp_path, [plain(line) for line in LINES[:6]])
    async with serving() as server:
        await rehearse(tmp_path, server.endpoint.base_url)
        write(tmp_path, [written(line) for line in LINES[:6]])
        assert verify(tmp_path / "out.jsonl.state").is_whole
        server.seen.clear()
        write(tmp_path, [written(line) for line in LINES])
        again = await rehearse(tmp_path, server.endpoint.base_url)
    assert server.seen["run"] == 6
    assert len(set(again.ids())) == len(again.results) == 12
    assert verify(tmp_path / "out.jsonl.state").is_whole
    said = [text for text in again.listener.messages if "carried" in text]
    assert bool(said) == (written is stamped)


@pytest.mark.parametrize("end", [b"\r\n", b"\n\n  \n", b"\n\xef\xbb\xbf"])
async def test_line_ends_blank_lines_and_byte_order_marks_are_no_change(tmp_path: Path, end: bytes):
    write(tmp_path, [plain(line) for line in LINES])
    async with serving() as server:
        await rehearse(tmp_path, server.endpoint.base_url)
        write(tmp_path, [plain(line) for line in LINES], end)
        server.seen.clear()
        await rehearse(tmp_path, server.endpoint.base_url)
    assert server.seen == {}
    assert verify(tmp_path / "out.jsonl.state").is_whole


async def test_what_only_the_carried_fields_of_lines_have_become_is_noted_by_verify(tmp_path: Path):
    write(tmp_path, [plain(line) for line in LINES])
    async with serving() as server:
        await rehearse(tmp_path, server.endpoint.base_url)
    write(tmp_path, [stamped(LINES[0]), *(plain(line) for line in LINES[1:])])
    found = verify(tmp_path / "out.jsonl.state")
    assert found.is_whole
    (note,) = [note for note in found.notes if "carried" in note]
    assert "changed: 1 (" in note


@pytest.mark.parametrize("change", [{"prompt": "another"}, {"max_tokens": 9}, {"temperature": 0}])
async def test_a_line_that_asks_for_something_else_is_refused_however_it_is_written(tmp_path: Path, change: dict):
    write(tmp_path, [plain(line) for line in LINES])
    async with serving() as server:
        await rehearse(tmp_path, server.endpoint.base_url)
        write(tmp_path, [spaced({**line, **(change if line.get("id") == "r3" else {})}) for line in LINES])
        assert not verify(tmp_path / "out.jsonl.state").is_whole
        with pytest.raises(StateError, match=r"in\.jsonl:4 \(id 'r3'\)"):
            await rehearse(tmp_path, server.endpoint.base_url)


async def test_ids_that_have_changed_places_are_not_the_same_lines(tmp_path: Path):
    write(tmp_path, [plain({"id": name, "prompt": f"about {name}"}) for name in "ab"])
    async with serving() as server:
        await rehearse(tmp_path, server.endpoint.base_url)
    write(tmp_path, [spaced({"id": name, "prompt": f"about {other}"}) for name, other in ("ab", "ba")])
    assert not verify(tmp_path / "out.jsonl.state").is_whole


async def test_a_line_without_a_row_is_found_in_an_input_that_was_written_anew(tmp_path: Path):
    write(tmp_path, [plain(line) for line in LINES[:6]])
    async with serving() as server:
        await rehearse(tmp_path, server.endpoint.base_url)
    write(tmp_path, [spaced(line) for line in LINES[:7]])
    (problem,) = verify(tmp_path / "out.jsonl.state").problems
    assert (problem.kind, problem.count, problem.first) == ("no_row", 1, [f"{tmp_path / 'in.jsonl'}:7"])


async def test_a_state_of_an_earlier_version_takes_a_line_by_its_bytes_alone(tmp_path: Path):
    write(tmp_path, [plain(line) for line in LINES])
    async with serving() as server:
        first = await rehearse(tmp_path, server.endpoint.base_url)
        forget_requests(first.summary.state)
        write(tmp_path, [plain(line) for line in reversed(LINES)])
        await rehearse(tmp_path, server.endpoint.base_url)
        forget_requests(first.summary.state)
        write(tmp_path, [spaced(line) for line in LINES])
        with pytest.raises(StateError, match="has changed since it was submitted"):
            await rehearse(tmp_path, server.endpoint.base_url)


def forget_requests(state: Path) -> None:
    with Store(state) as store, store.transaction() as db:
        db.execute("UPDATE rows SET digest = substr(digest, 1, 16)")


async def test_a_limit_that_comes_too_late_to_keep_rows_out_is_told(tmp_path: Path):
    write(tmp_path, [plain(line) for line in LINES])
    async with serving() as server:
        first = await rehearse(tmp_path, server.endpoint.base_url, limit=6)
        again = await rehearse(tmp_path, server.endpoint.base_url, limit=4)
    assert len(first.results) == len(again.results) == 6
    assert not any("--limit" in text for text in first.listener.messages)
    assert "--limit 4 removes no rows from a run that has begun: 6" in again.listener.messages
