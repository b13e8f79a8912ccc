"""The types of columns, their names, and the file forms: by rule, whatever the values."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.errors import UsageError
from batchrun.files.exactjson import load
from batchrun.results.cells import OWN_COLUMNS, CellFinder, Found, Row
from batchrun.results.chats import answered, messages_of, prompt_of
from batchrun.results.kinds import BOOL, FLOAT, INT, JSON, LONG, NONE, TEXT, Kind, common, json_text, kind_of, settled
from batchrun.results.parquet import ParquetFile
from batchrun.results.table_files import JSON_LINES, Form, form_of, write_table, write_table_to
from batchrun.results.tables import Columns, parse_columns

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab.", max_size=2), inner, max_size=3),
    max_leaves=6,
)


def row(value: Any, n: int = 0) -> Row:
    usage = {"input_tokens": 1, "output_tokens": 2}
    return Row({"id": f"r{n}", "status": "COMPLETED", "text": "t", "usage": usage, "metadata": {"v": value}})


def found_in(*groups: list[Row], chosen: tuple[str, ...] | None = None) -> list[Found]:
    finder = CellFinder(chosen)
    return [finder.find(group) for group in groups]


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        ([], NONE),
        ([None], NONE),
        ([True, None], BOOL),
        ([1, -(2**53)], INT),
        ([1, 2**53 + 1], LONG),
        ([2**63], JSON),
        ([-(2**63)], LONG),
        ([1, 0.5], FLOAT),
        ([2**53 + 1, 0.5], JSON),
        ([1, True], JSON),
        (["a", 1], JSON),
        ([[1], [0.5, None]], Kind("list", FLOAT)),
        ([[], None], Kind("list", NONE)),
        ([{"a": 1}, {"b": "x"}], Kind("object", None, (("a", INT), ("b", TEXT)))),
        ([[1], {"a": 1}], JSON),
    ],
)
def test_values_have_the_narrowest_type_that_holds_all(found: list[Any], kind: Kind):
    assert kind_of(found) == kind


def test_a_type_that_cannot_be_written_becomes_text():
    assert settled(NONE) == TEXT
    assert settled(kind_of([[]])) == Kind("list", TEXT)
    assert settled(kind_of([{}])) == JSON
    assert settled(kind_of([{"a": [1, "x"]}])) == JSON
    assert settled(kind_of([{str(n): 1 for n in range(201)}])) == JSON
    deep: Any = 1
    for _ in range(900):
        deep = [deep]
    assert settled(kind_of([deep])) == JSON
    assert load(json_text(deep).encode()) == deep


@given(st.lists(values, max_size=5), st.lists(values, max_size=5))
def test_the_type_of_two_groups_is_the_common_type_of_each(one: list[Any], other: list[Any]):
    assert canonical(settled(common(kind_of(one), kind_of(other)))) == canonical(settled(kind_of([*one, *other])))


def canonical(kind: Kind | None) -> Any:
    """A type, whatever the order of the fields in it."""
    return kind and (kind.name, canonical(kind.item), sorted((name, canonical(each)) for name, each in kind.fields))


@given(st.lists(values, min_size=1, max_size=6), st.integers(1, 3))
def test_each_value_comes_back_from_parquet_as_it_was_or_as_json(found: list[Any], at_once: int):
    rows = [row(value, n) for n, value in enumerate(found)]
    columns, out = Columns(("v",)), io.BytesIO()
    groups = found_in(*(rows[at : at + at_once] for at in range(0, len(rows), at_once)), chosen=("v",))
    for group in groups:
        columns.learn(group)
    (_, kind) = columns.schema()[0]
    file = ParquetFile(out, columns.schema())
    for group in groups:
        got = columns.learn(group)["v"]
        file.write([[None if v is None else json_text(v) for v in got] if kind is JSON else got])
    file.end()
    back = pq.read_table(pa.BufferReader(out.getvalue()))["v"].to_pylist()
    for was, now in zip(found, back, strict=True):
        assert same(was, load(now.encode()) if kind is JSON and now is not None else now), (was, now, kind)


def same(was: Any, now: Any) -> bool:
    """Whether a value came back: an absent field of an object is null."""
    if isinstance(was, dict) and isinstance(now, dict):
        return all(same(was.get(name), value) for name, value in now.items()) and was.keys() <= now.keys()
    if isinstance(was, list) and isinstance(now, list):
        return len(was) == len(now) and all(map(same, was, now))
    return was == now and isinstance(was, bool) == isinstance(now, bool)


def test_a_byte_that_changes_in_a_parquet_file_can_be_found():
    out = io.BytesIO()
    file = ParquetFile(out, [("text", TEXT)])
    file.write([["one answer"]])
    file.end()
    changed = out.getvalue().replace(b"one answer", b"two answer", 1)
    with pytest.raises(OSError, match="checksum"):
        pq.ParquetFile(io.BytesIO(changed), page_checksum_verification=True).read()


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("x", JSON_LINES),
        ("x.jsonl", JSON_LINES),
        ("x.NDJSON", JSON_LINES),
        ("a.b/x", JSON_LINES),
        ("x.json.gz", Form("json", ".gz")),
        ("x.v2.csv.zst", Form("csv", ".zst")),
        ("x.CSV", Form("csv")),
        ("x.parquet", Form("parquet")),
        ("x.gz", Form("jsonl", ".gz")),
    ],
)
def test_the_suffix_says_the_form(name: str, form: Form):
    assert form_of(Path(name)) == form


@pytest.mark.parametrize("name", ["x.txt", "x.parquet.gz", "x.xlsx.zst", "x.tsv", "results.2024"])
def test_any_other_suffix_is_refused(name: str):
    with pytest.raises(UsageError):
        form_of(Path(name))


def test_more_columns_than_a_table_has_are_refused_with_the_way_out(tmp_path: Path):
    rows = [Row({"id": f"r{n}", "metadata": {f"k{n}": 1}}) for n in range(1001)]
    with pytest.raises(UsageError, match="more than 1,000 fields") as caught:
        write_table(tmp_path / "x.csv", Form("csv"), Columns(), lambda: iter(found_in(rows)))
    assert "--columns" in caught.value.hint
    assert not list(tmp_path.iterdir())
    chosen = ("id", "metadata")
    found = found_in(rows, chosen=chosen)
    assert write_table(tmp_path / "x.csv", Form("csv"), Columns(chosen), lambda: iter(found)) == ["metadata"]


def test_a_name_with_dots_is_found_whole_or_as_a_path():
    chosen = ("a.b", "metadata.c.d", "output.1.x", "output.2.x")
    columns = Columns(chosen)
    record = {"id": "r", "a.b": 1, "metadata": {"c.d": 2}, "output": [{"x": 3}, {"x": 4}]}
    (found,) = found_in([Row(record)], chosen=chosen)
    assert columns.learn(found) == {"a.b": [1], "metadata.c.d": [2], "output.1.x": [4], "output.2.x": [None]}
    with pytest.raises(UsageError, match=r"no row has 'output.2.x'"):
        columns.refuse_unknown()


def test_a_name_of_ours_is_never_a_field_of_the_metadata():
    record = {"id": "r", "metadata": {"reasoning": "mine", "topic": "t"}}
    (found,) = found_in([Row(record)], chosen=("reasoning", "topic"))
    assert Columns(("reasoning", "topic")).learn(found) == {"reasoning": [None], "topic": ["t"]}


def test_lines_of_columns_may_go_to_a_stream_that_cannot_be_rewritten():
    class Once(io.RawIOBase):
        def __init__(self) -> None:
            self.said = b""

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            self.said += bytes(data)
            return len(data)

    out = Once()
    groups = found_in([row(1)], [row("x", 1)], chosen=("id", "v"))
    assert write_table_to(out, Columns(("id", "v")), lambda: iter(groups)) == ["v"]
    assert out.said == b'{"id":"r0","v":"1"}\n{"id":"r1","v":"\\"x\\""}\n'


@pytest.mark.parametrize("text", ["", "a,,b", "a,b,a", " , "])
def test_names_that_are_empty_or_twice_are_refused(text: str):
    with pytest.raises(UsageError):
        parse_columns(text)
    assert parse_columns(" id, text ") == ("id", "text")


USER = {"role": "user", "content": "q"}


@pytest.mark.parametrize(
    ("request_", "prompt", "messages"),
    [
        ({"prompt": "q"}, "q", [USER]),
        (
            {"messages": [USER, {"role": "assistant", "content": "a"}]},
            "q",
            [USER, {"role": "assistant", "content": "a"}],
        ),
        ({"openai_route": "/v1/x", "openai_input": {"messages": [USER]}}, "q", [USER]),
        ({"openai_route": "/v1/responses", "openai_input": {"input": "q"}}, "q", [USER]),
        ({"openai_route": "/v1/responses", "openai_input": {"input": [USER]}}, "q", [USER]),
        ({"openai_route": "/v1/embeddings", "openai_input": {"input": ["a", "b"]}}, ["a", "b"], None),
        ({"prompt": ["a", "b"]}, ["a", "b"], None),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "image_url"}]}]}, "q", ...),
        ({"image": "x"}, None, None),
        ({"messages": []}, None, None),
        ({"messages": "x", "prompt": 5}, None, None),
    ],
)
def test_what_was_asked_is_found_in_every_shape(request_: dict[str, Any], prompt: Any, messages: Any):
    assert prompt_of(request_) == prompt
    assert messages is ... or messages_of(request_) == messages


def test_a_chat_without_an_answer_is_no_line_for_training():
    assert answered({"prompt": "q"}, {"text": None}) is None
    assert answered({"prompt": "q"}, {"text": ""}) is None
    assert answered({"image": "x"}, {"text": "a"}) is None


def test_every_table_has_its_own_columns_even_without_rows():
    assert tuple(name for name, _ in Columns().schema()) == OWN_COLUMNS
