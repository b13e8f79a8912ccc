"""A cache gives an answer only to its own request, and refuses or survives files that are not as it left them."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from batchrun.commands.cache import inspect_cache
from batchrun.errors import StateError
from batchrun.state.answer_cache import AnswerCache, CacheBrokenError, CacheKey, CacheLockedError, StoredAnswer
from batchrun.state.cache_file import CACHE_VERSION, refuse_unusable_cache

if TYPE_CHECKING:
    from pathlib import Path

KEY = CacheKey("abc", 0, b'{"prompt":"p"}')
OTHER = CacheKey("abc", 0, b'{"prompt":"q"}')
DAY_MS = 86_400_000


def answer(key: CacheKey = KEY, output: bytes = b'"yes"', model: str = "", asked: str = "") -> StoredAnswer:
    return StoredAnswer(key, asked, model, b'{"id":"j1"}', output)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers.cache"


def change(path: Path, sql: str, *values: object) -> None:
    """What another program does to the file."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(sql, values)


def test_an_answer_is_found_again_and_only_by_the_same_request_endpoint_and_sample(path: Path):
    with AnswerCache(path) as cache:
        cache.add([answer()], 0)
        assert cache.find(KEY) == answer()
        for other in (OTHER, KEY._replace(endpoint="abx"), KEY._replace(sample=1), KEY._replace(request=b"{}")):
            assert cache.find(other) is None
    with AnswerCache(path) as cache:
        assert cache.find(KEY) == answer()


def test_a_row_with_the_same_digest_and_another_request_is_not_an_answer(path: Path):
    with AnswerCache(path) as cache:
        cache.add([answer()], 0)
        change(path, "UPDATE answers SET digest = ?", OTHER.digest)  # as if both requests had one digest
        assert cache.find(OTHER) is None
        cache.add([answer(OTHER, b'"no"')], 0)
        assert cache.find(OTHER) == answer(OTHER, b'"no"')


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE answers SET output = CAST('\"yet\"' AS BLOB)",
        "UPDATE answers SET output = '\"yes\"'",
        "UPDATE answers SET job = CAST('{}' AS BLOB)",
        "UPDATE answers SET seal = zeroblob(8)",
        "UPDATE answers SET request = 7",
        "UPDATE answers SET request = CAST(request AS TEXT)",
    ],
)
def test_an_answer_that_is_not_as_it_was_written_is_not_taken(path: Path, sql: str):
    with AnswerCache(path) as cache:
        cache.add([answer()], 0)
        change(path, sql)
        assert cache.find(KEY) is None


def test_the_answers_of_an_earlier_model_are_no_longer_reused(path: Path):
    with AnswerCache(path) as cache:
        assert cache.add([answer(model="small"), answer(OTHER, model="", output=b"2")], 0) == []
        newer = answer(CacheKey("abc", 0, b"{}"), model="large")
        elsewhere = answer(CacheKey("abx", 0, b"{}"), model="large")
        named = answer(CacheKey("abc", 0, b'{"model":"lora"}'), model="lora", asked="lora")
        assert cache.add([named, elsewhere, newer], 0) == [newer]
        assert cache.find(KEY) is None
        for each in (newer, elsewhere, named, answer(OTHER, output=b"2")):
            assert cache.find(each.key) == each


def test_a_later_answer_replaces_an_earlier_one(path: Path):
    with AnswerCache(path) as cache:
        cache.add([answer()], 0)
        cache.add([answer(output=b"2")], 1)
        assert cache.find(KEY) == answer(output=b"2")
    assert inspect_cache(path).answers == 1


def test_while_another_program_has_the_file_locked_answers_are_found_and_none_is_stored(path: Path):
    with AnswerCache(path) as cache, closing(sqlite3.connect(path, isolation_level=None)) as other:
        cache.add([answer()], 0)
        other.execute("BEGIN IMMEDIATE")
        cache._writer.execute("PRAGMA busy_timeout = 10")
        with pytest.raises(CacheLockedError):
            cache.add([answer(OTHER)], 0)
        assert cache.find(KEY) == answer()
        other.execute("ROLLBACK")
        cache.add([answer(OTHER)], 0)
        assert cache.find(OTHER) == answer(OTHER)


def test_a_file_that_becomes_damaged_says_so(path: Path):
    with AnswerCache(path) as cache:
        cache.add([answer(KEY._replace(sample=n)) for n in range(500)], 0)
    with AnswerCache(path) as cache:
        path.write_bytes(os.urandom(path.stat().st_size))
        with pytest.raises(CacheBrokenError):
            _ = [cache.find(KEY._replace(sample=n)) for n in range(500)]
        with pytest.raises(CacheBrokenError):
            cache.add([answer()], 0)


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000] + os.urandom(9000))


def cut_off(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def of_a_newer_version(path: Path) -> None:
    change(path, f"PRAGMA user_version = {CACHE_VERSION + 1}")


def of_another_program(path: Path) -> None:
    path.unlink()
    change(path, "CREATE TABLE notes (text)")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (damaged, "is damaged"),
        (cut_off, "is damaged"),
        (lambda path: path.write_bytes(b'{"prompt": "p"}\n'), "is not a cache of batchrun"),
        (of_a_newer_version, "was written by a newer batchrun"),
        (of_another_program, "is not a cache of batchrun"),
        (lambda path: (path.unlink(), path.mkdir()), "is a folder"),
        (lambda path: change(path, "DROP TABLE served"), "is damaged"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_and_left_alone(path: Path, spoil, said: str):
    with AnswerCache(path) as cache:
        cache.add([answer(KEY._replace(sample=n)) for n in range(500)], 0)
    spoil(path)
    before = path.read_bytes() if path.is_file() else None
    for use in (refuse_unusable_cache, AnswerCache, inspect_cache):
        with pytest.raises(StateError, match=said):
            use(path)
    assert before is None or path.read_bytes() == before


def test_an_empty_file_is_a_new_cache_and_a_missing_folder_is_not_made(path: Path):
    path.touch()
    with AnswerCache(path) as cache:
        assert cache.find(KEY) is None
    with pytest.raises(StateError, match="its folder does not exist"):
        AnswerCache(path.parent / "no" / "answers.cache")
    with pytest.raises(StateError, match="there is no such cache"):
        inspect_cache(path.parent / "other")


def test_only_its_owner_can_read_it(path: Path):
    AnswerCache(path).close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_old_answers_are_pruned_and_the_file_gets_smaller_while_a_run_uses_it(path: Path):
    with AnswerCache(path) as cache:
        for n in range(40):
            cache.add([answer(KEY._replace(sample=n), b"x" * 50_000, model="m")], n * DAY_MS)
        seen = inspect_cache(path)
        assert (seen.answers, seen.oldest_at) == (40, "1970-01-01T00:00:00.000Z")
        assert [(each.endpoint, each.model, each.answers) for each in seen.endpoints] == [("abc", "m", 40)]
        assert seen.size_bytes > 2_000_000
        seen = inspect_cache(path, older_than_s=29 * 86_400, now=39 * 86_400.0)
        assert (seen.removed, seen.answers, seen.oldest_at) == (10, 30, "1970-01-11T00:00:00.000Z")
        seen = inspect_cache(path, max_size_bytes=1_000_000)
        assert seen.size_bytes <= 1_000_000
        assert 15 <= seen.answers <= 19
        assert path.stat().st_size <= 1_000_000
        assert cache.find(KEY._replace(sample=39)) is not None
        assert cache.find(KEY._replace(sample=0)) is None
        cache.add([answer()], 40 * DAY_MS)
        assert cache.find(KEY) == answer()


def test_looking_at_a_cache_leaves_the_locks_of_a_run_in_the_same_process_alone(path: Path):
    with AnswerCache(path) as cache:
        cache.add([answer()], 0)
    with AnswerCache(path) as cache:
        assert cache.find(KEY)
        inspect_cache(path)
        # The last process that closes the file removes its log; this one is not the last.
        subprocess.run([sys.executable, "-c", _READ, path], check=True)
        cache.add([answer(OTHER, b'"no"')], 0)
        with AnswerCache(path) as other:
            assert other.find(OTHER) == answer(OTHER, b'"no"')
        assert path.with_name(f"{path.name}-wal").exists()


_READ = (
    "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('SELECT * FROM answers').fetchall(); db.close()"
)


def test_a_file_that_was_cut_off_is_refused_and_one_whose_log_has_the_rest_is_not_also_through_a_link(path: Path):
    link = path.with_name("link")
    link.symlink_to(path)
    with AnswerCache(path) as cache:
        cache.add([answer(output=b'"%s"' % (b"x" * 20_000))], 0)
        with closing(sqlite3.connect(path)) as db:
            db.execute("PRAGMA wal_checkpoint")
        os.truncate(path, path.stat().st_size - 10)  # as when a checkpoint is cut off
        refuse_unusable_cache(path)
        refuse_unusable_cache(link)
