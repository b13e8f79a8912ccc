"""A resume whose input has changed parses only new lines, and that changes nothing of what it comes to."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest

from batchrun.config import SweepOptions
from batchrun.errors import InputError, UsageError
from batchrun.prompts.sources import find_sources
from batchrun.runs import known_lines, validation
from batchrun.runs.intake import take_in
from batchrun.state.store import Store
from batchrun.state.stored_options import store_options
from tests.support.rehearsal import Listener, options_for

FILES = ("a.jsonl", "b.jsonl", "c.jsonl")
ROWS = "SELECT row, id, source, line, offset, length, hex(digest), variant, state, attempts, same_as FROM rows"
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "swept": {"sweep": SweepOptions((("temperature", (0, 0.7)),), 2)},
    "shard": {"shard": "1/2"},
    "folder": {"output_is_folder": True},
    "folder, swept": {"output_is_folder": True, "sweep": SweepOptions(repeat=2)},
    "with invalid lines": {"skip_invalid": True},
    "folder, with invalid lines": {"output_is_folder": True, "skip_invalid": True},
    "equal requests once": {"dedupe": True},
}


def new_line(random: Random, *, strange: bool) -> bytes:
    """A line with its own id, or without one; many ask for the same, and some are equal."""
    line: dict[str, Any] = {"prompt": f"question {random.randrange(12)}"}
    if random.random() < 0.4:
        line = {"id": f"row-{random.randrange(10 if strange else 10**9)}", **line}
    if random.random() < 0.3:
        line["metadata"] = random.randrange(3)
    if strange and random.random() < 0.2:
        return b'{"broken'
    return orjson.dumps(line)


def change(random: Random, files: list[list[bytes]], new: Callable[[], bytes]) -> None:
    """Insert, remove, replace, move, or write otherwise what one of the files has."""
    lines = random.choice(files)
    at = random.randrange(len(lines) + 1)
    match random.randrange(7):
        case 0:
            lines[at:at] = [new() for _ in range(random.randrange(1, 8))]
        case 1:
            lines += [new() for _ in range(random.randrange(1, 8))]
        case 2:
            del lines[at : at + random.randrange(1, 8)]
        case 3:
            random.choice(files).extend(lines[at : at + 4])
            del lines[at : at + 4]
        case 4:
            random.shuffle(lines)
        case 5:
            lines[at : at + 1] = [line.replace(b":", b" : ", 1) for line in lines[at : at + 1]]
        case _:
            random.shuffle(files)


def write(folder: Path, files: list[list[bytes]]) -> None:
    for name, lines in zip(FILES, files, strict=True):
        (folder / name).write_bytes(b"".join(line + b"\n" for line in lines))


def take(folder: Path, **given: object) -> object:
    """Take the files in; returns the rows, or why they are refused."""
    options = options_for(folder, inputs=tuple(str(folder / name) for name in FILES), **given)
    with Store(options.state) as store:
        try:
            merged = take_in(options, find_sources(options.inputs), store, Listener())
        except UsageError as error:
            return type(error), str(error)
        store_options(store, options)
        settings = [store.get_setting(name) for name in ("inputs", "whole_input", "format")]
        return merged, store.query(f"{ROWS} ORDER BY row"), store.query("SELECT * FROM failures"), settings


def submit_some(folder: Path, every: int) -> None:
    with Store(options_for(folder).state) as store, store.transaction() as db:
        db.execute("UPDATE rows SET attempts = 1, state = 3 WHERE state = 0 AND row % ? = 0", (every,))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("which", OPTIONS)
def test_what_is_recognized_is_as_if_it_were_parsed(tmp_path: Path, monkeypatch, which: str, seed: int):
    given = OPTIONS[which]
    random = Random(f"{which} {seed}")

    def new() -> bytes:
        return new_line(random, strange="skip_invalid" in given)

    files = [[new() for _ in range(30)] for _ in FILES]
    write(tmp_path, files)
    assert not isinstance(take(tmp_path, **given), UsageError)
    state, kept = options_for(tmp_path).state, tmp_path / "kept"
    for _ in range(6):
        submit_some(tmp_path, random.randrange(2, 60))
        shutil.copy(state, kept)
        for _ in range(random.randrange(1, 3)):
            change(random, files, new)
        write(tmp_path, files)
        found = []
        for held in (0, 3, 2048):
            monkeypatch.setattr(known_lines, "_HELD", held)
            shutil.copy(kept, state)
            found.append(take(tmp_path, **given))
        assert found[0] == found[1] == found[2]


def count_parsed(monkeypatch) -> list[bytes]:
    parsed: list[bytes] = []

    class Counting(validation.LineRules):
        def __init__(self, *given: object) -> None:
            super().__init__(*given)
            parse = self.parse
            self.parse = lambda raw: parsed.append(raw) or parse(raw)

    monkeypatch.setattr(validation, "LineRules", Counting)
    return parsed


@pytest.mark.parametrize("which", ["plain", "swept", "folder"])
@pytest.mark.parametrize("at", [0, 400, 700])
def test_only_new_lines_are_parsed_wherever_they_are(tmp_path: Path, monkeypatch, which: str, at: int):
    old = [orjson.dumps({"prompt": f"p{n}"} | ({"id": n} if n % 2 else {})) for n in range(700)]
    monkeypatch.setattr(known_lines, "_HELD", 100)
    write(tmp_path, [old, old[:0], old[:0]])
    take(tmp_path, **OPTIONS[which])
    new = [b'{"prompt": "new"}', b'"another"']
    write(tmp_path, [old[:at] + new + old[at:], old[:0], old[:0]])
    parsed = count_parsed(monkeypatch)
    merged, *_ = take(tmp_path, **OPTIONS[which])
    assert parsed == new
    assert merged.added == 2 * (4 if which == "swept" else 1)


def test_lines_behind_a_file_that_is_gone_are_recognized(tmp_path: Path, monkeypatch):
    files = [[b'"%d of %d"' % (n, of) for n in range(700)] for of in range(3)]
    monkeypatch.setattr(known_lines, "_HELD", 100)
    write(tmp_path, files)
    take(tmp_path)
    write(tmp_path, [files[0], [], files[2]])
    parsed = count_parsed(monkeypatch)
    merged, *_ = take(tmp_path)
    assert (merged.dropped, parsed) == (700, [])


def test_a_strict_resume_is_about_all_lines(tmp_path: Path):
    wrong = b'{"prompt": "p", "max_tokens": "5"}'
    write(tmp_path, [[wrong], [], []])
    take(tmp_path)
    write(tmp_path, [[wrong, b'{"prompt": "q", "max_tokens": 5}'], [], []])
    refused, words = take(tmp_path, strict=True)
    assert refused is InputError
    assert "a.jsonl:1" in words
    merged, *_ = take(tmp_path)
    assert merged.added == 1


def test_named_files_are_looked_at_again(tmp_path: Path):
    (tmp_path / "cat.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    line = b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "cat.png"}}]}]}'
    write(tmp_path, [[line], [], []])
    request = options_for(tmp_path).request
    given = {"request": type(request)(inline_files=1 << 20)}
    take(tmp_path, **given)
    (tmp_path / "cat.png").unlink()
    write(tmp_path, [[line, b'"new"'], [], []])
    refused, words = take(tmp_path, **given)
    assert refused is InputError
    assert "cat.png" in words


def test_a_resume_that_is_killed_at_any_statement_leaves_the_old_rows_or_the_new_ones(tmp_path: Path):
    old = [[b'"%d of %d"' % (n, of) for n in range(120)] for of in range(3)]
    write(tmp_path, old)
    take(tmp_path)
    options = options_for(tmp_path, inputs=tuple(str(tmp_path / name) for name in FILES))
    with Store(options.state) as store:
        before = store.query(f"{ROWS} ORDER BY row")
    write(tmp_path, [[*old[0][:50], b'"new"', *old[0][51:]], old[1][5:], old[2] + [b'"more"'] * 150])
    left: dict[bytes, Path] = {}

    def leave(_: str) -> None:
        """What a process that is killed now leaves on the disk."""
        log = options.state.with_name(options.state.name + "-wal")
        data = options.state.read_bytes() + (log.read_bytes() if log.exists() else b"")
        if data not in left:
            left[data] = folder = tmp_path / f"left-{len(left)}"
            folder.mkdir()
            for path in (options.state, log):
                if path.exists():
                    shutil.copy(path, folder)

    with Store(options.state) as store:
        with store.transaction() as db:
            db.execute("PRAGMA cache_size = 2")  # what is not committed yet is in the log, too
            db.set_trace_callback(leave)
        take_in(options, find_sources(options.inputs), store, Listener())
        db.set_trace_callback(None)
        after = store.query(f"{ROWS} ORDER BY row")
    assert after != before
    assert len(left) > 6
    states = []
    for folder in left.values():
        with Store(folder / options.state.name) as store:
            states.append(store.query(f"{ROWS} ORDER BY row"))
            take_in(options, find_sources(options.inputs), store, Listener())
            assert store.query(f"{ROWS} ORDER BY row") == after
    assert states == [before] * states.count(before) + [after] * states.count(after)
    assert states.count(before) * states.count(after) > 0
