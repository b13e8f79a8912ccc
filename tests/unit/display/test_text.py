"""What comes from outside is shown without anything that a terminal acts on."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.display.text import clipped, columns_of, fitted, visible, visible_json


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b]0;pwned\x07.jsonl", r"a\x1b]0;pwned\x07.jsonl"),
        ("photo\u202egpj.exe", r"photo\u202egpj.exe"),
        ("zero\u200bwidth\ufeff", r"zero\u200bwidth\ufeff"),
        ("over\rwritten", r"over\x0dwritten"),
        ("c1 \x9b31m and \x7f", r"c1 \x9b31m and \x7f"),
        ("not UTF-8: \udcff", r"not UTF-8: \udcff"),
        ("tag \U000e0041", r"tag \U000e0041"),
        ("naïve 日本 😀\tand\nmore", "naïve 日本 😀\tand\nmore"),
    ],
)
def test_what_a_terminal_would_act_on_is_shown_escaped(text: str, shown: str):
    assert visible(text) == shown


@given(st.text(), st.booleans())
def test_json_is_the_same_value_and_holds_nothing_for_a_terminal(text: str, ascii_only: bool):
    written = visible_json(orjson.dumps({"text": text}), ascii_only=ascii_only)
    assert orjson.loads(written) == {"text": text}
    assert visible(written) == written
    assert not ascii_only or written.isascii()


@pytest.mark.parametrize(
    ("text", "columns", "clip"),
    [("abc", 3, "a…"), ("日本語", 6, "…"), ("日", 2, "日"), ("e\u0301t", 2, "e\u0301t"), ("a\u200bb", 2, "a\u200bb")],
)
def test_a_wide_character_takes_two_columns_and_a_combining_one_none(text: str, columns: int, clip: str):
    assert (columns_of(text), clipped(text, 2)) == (columns, clip)
    for room in range(2, 9):
        assert columns_of(fitted(text, room)) == room
