"""Tables as inputs: the same rows make the same requests and ids in every form, and what is wrong is told by row."""

from __future__ import annotations

import bz2
import csv
import datetime as dt
import decimal
import gzip
import io
import json
import lzma
import tracemalloc
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchrun.errors import InputError
from batchrun.prompts.identity import derived_id
from batchrun.prompts.shapes import parse_line
from batchrun.prompts.sources import SourceKind, find_sources, iter_source, place_of

if TYPE_CHECKING:
    from pathlib import Path

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=30)
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=30)
ROWS = st.lists(
    st.fixed_dictionaries(
        {"prompt": WORDS},
        optional={
            "id": st.from_regex(r"[a-z][0-9]{1,8}", fullmatch=True),
            "max_tokens": st.integers(1, 2**70),
            "temperature": st.floats(0, 2),
            "ignore_eos": st.booleans(),
            "note": WORDS,
            "formula": st.just("=1+1"),
        },
    ),
    min_size=1,
    max_size=8,
)
COLUMNS = ["id", "prompt", "max_tokens", "temperature", "ignore_eos", "note", "formula"]


def read(path: Path) -> list[tuple[int, Any]]:
    """Each row of a file, with its number."""
    (source,) = find_sources([str(path)])
    return [(line.number, orjson.loads(line.raw)) for line in iter_source(source, io.BytesIO())]


def rows_of(path: Path) -> list[Any]:
    return [row for _, row in read(path)]


def made(path: Path) -> list[tuple]:
    """What a run makes of each row: its number, its id, its request, and what is carried."""
    (source,) = find_sources([str(path)])
    lines = [(line.number, parse_line(line.raw)) for line in iter_source(source, io.BytesIO())]
    return [(number, line.id or derived_id(line), line.request, line.carried) for number, line in lines]


def as_csv(rows: list[dict], **dialect: Any) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, COLUMNS, **dialect)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


@given(rows=ROWS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_same_rows_make_the_same_requests_and_ids_in_every_form(tmp_path: Path, rows: list[dict]):
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    (tmp_path / "r.jsonl").write_bytes(lines)
    (tmp_path / "r.csv").write_bytes(as_csv(rows))
    (tmp_path / "r.tsv").write_bytes(as_csv(rows, delimiter="\t"))
    (tmp_path / "quoted.csv").write_bytes(b"\xef\xbb\xbf" + as_csv(rows, delimiter=";", quoting=csv.QUOTE_ALL))
    (tmp_path / "r.json").write_text(json.dumps(rows))
    (tmp_path / "pretty.json").write_text(json.dumps(rows, indent=2, ensure_ascii=False))
    (tmp_path / "values.json.gz").write_bytes(
        gzip.compress("\n".join(json.dumps(row, indent=1) for row in rows).encode())
    )
    expected = made(tmp_path / "r.jsonl")
    for name in ("r.csv", "r.tsv", "quoted.csv", "r.json", "pretty.json", "values.json.gz"):
        assert made(tmp_path / name) == expected, name
    if all(row.get("max_tokens", 0) < 2**63 for row in rows):
        columns = {name: [row.get(name) for row in rows] for name in COLUMNS}
        pq.write_table(pa.table(columns), tmp_path / "r.parquet", row_group_size=3)
        assert made(tmp_path / "r.parquet") == expected


@given(cells=st.lists(st.lists(TEXT, min_size=3, max_size=3), min_size=1, max_size=6))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_in_the_cells_of_a_csv_comes_back_as_it_was(tmp_path: Path, cells: list[list[str]]):
    with (tmp_path / "r.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["a", "b", "c"], *cells])
    expected = [(at, row) for at, row in enumerate(cells, 1) if any(row)]
    assert [(number, [row.get(name, "") for name in "abc"]) for number, row in read(tmp_path / "r.csv")] == expected


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zst", zstandard.compress)],
)
def test_each_compression_is_read_and_one_that_is_cut_off_is_told(tmp_path: Path, suffix: str, pack):
    lines = b'{"prompt":"a"}\n' * 5000
    for name, data in (("r.jsonl", lines), ("r.csv", b"prompt\n" + b"a\n" * 5000)):
        path = tmp_path / f"{name}.{suffix}"
        path.write_bytes(pack(data[:100]) + pack(data[100:]))
        assert rows_of(path) == [{"prompt": "a"}] * 5000
        assert find_sources([str(path)])[0].kind is SourceKind.COPIED
        path.rename(tmp_path / "unnamed")
        if name == "r.jsonl":
            assert len(rows_of(tmp_path / "unnamed")) == 5000
        path.write_bytes(pack(data)[:-9])
        with pytest.raises(InputError, match=r"is not a complete \w+ file"):
            read(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file has no header"),
        (b"a,b\n1,2\n3\n", r"row 2 \(line 3\): 1 cell, but the header has 2 columns"),
        (b"a\n1,2\n", r"row 1 \(line 2\): 2 cells, but the header has 1 column"),
        (b'a,b\n"x\ny",2\n\n3,4,5\n', r"row 3 \(line 5\): 3 cells, but the header has 2 columns"),
        (b'a,b\n1,2\n3,"4\n5,6\n', r"row 2 \(line 3\): a quoted cell does not end"),
        (b'a,b\n1,"2"3\n', r"row 1 \(line 2\): .*expected after"),
        (b"a,b,a\n1,2,3\n", "columns 1 and 3 are both named `a`"),
        (b",b\n1,2\n", "column 1 has no name"),
        (b"a,b\nx,caf\xe9\n", r"line 2, character 6: byte 0xe9 is not UTF-8"),
        (b"a,b\r1,2\r3,4\r", "ends with CR only"),
        (b"PK\x03\x04rest", "a spreadsheet's workbook"),
    ],
)
def test_what_is_wrong_with_a_csv_is_told_with_its_row_and_its_line(tmp_path: Path, data: bytes, message: str):
    (tmp_path / "r.csv").write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path / "r.csv")
    assert caught.value.message.startswith(f"{tmp_path}/r.csv: ")


def test_a_blank_row_is_counted_and_skipped_as_a_spreadsheet_numbers_it(tmp_path: Path):
    (tmp_path / "r.csv").write_bytes(b"id,prompt\na,x\n\n,\n,,,\nb,y\n")
    assert [number for number, _ in read(tmp_path / "r.csv")] == [1, 5]
    (source,) = find_sources([str(tmp_path / "r.csv")])
    assert place_of(source, 5) == f"{tmp_path}/r.csv: row 5 (line 6)"


def test_cells_are_text_but_for_parameters_and_objects(tmp_path: Path):
    row = {
        "id": "007",
        "prompt": "[1]",
        "price": "1.50",
        "max_tokens": "5.0",
        "temperature": "0.70",
        "seed": "12345678901234567890123",
        "stop": '["a","b"]',
        "ignore_eos": "TRUE",
        "metadata": '{"a":1}',
        "n": "many",
    }
    with (tmp_path / "r.csv").open("w", newline="") as file:
        csv.writer(file).writerows([row.keys(), row.values()])
    assert rows_of(tmp_path / "r.csv") == [
        {
            **row,
            "max_tokens": 5.0,
            "temperature": 0.7,
            "seed": pytest.approx(1.2345678901234568e22),  # what orjson reads: the line itself has each digit
            "stop": ["a", "b"],
            "ignore_eos": True,
            "metadata": {"a": 1},
        }
    ]
    (source,) = find_sources([str(tmp_path / "r.csv")])
    (line,) = iter_source(source, io.BytesIO())
    assert parse_line(line.raw).request["sampling_params"]["seed"] == 12345678901234567890123


def test_a_separator_may_be_told_or_be_a_semicolon(tmp_path: Path):
    for data in (b"sep=;\r\nid;prompt\r\na;x,y\r\n", b"id;prompt\na;x,y\n", b'"id";prompt\na;"x,y"\n'):
        (tmp_path / "r.csv").write_bytes(data)
        assert rows_of(tmp_path / "r.csv") == [{"id": "a", "prompt": "x,y"}]


def test_a_cell_of_ten_megabytes_is_read_and_the_limit_of_the_process_stays(tmp_path: Path):
    before = csv.field_size_limit()
    (tmp_path / "r.csv").write_bytes(b'prompt\n"' + b"x" * 9_999_999 + b'\n"\n')
    assert len(rows_of(tmp_path / "r.csv")[0]["prompt"]) == 10_000_000
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'[{"a":1},{"a":2}', r"row 2 \(line 1\): the array does not end"),
        (b'[{"a":1},\n{"a":', r"row 2 \(line 2\): invalid JSON on line 2"),
        (b'[{"a":1}\n{"a":2}]', r"row 1 \(line 2\): expected `,` or `\]`"),
        (b'[\n{"a":1},\n{\n"a":NaN}\n]', r"row 2 \(line 3\): invalid JSON on line \d: NaN is not a JSON value"),
        (b'[{"a":1}] [2]', "there is more after the array"),
        (b"[" * 100_000, "nested too deeply"),
        (b'[{"a":"\xff"}]', "r.json: byte 0xff before the first row is not UTF-8"),
    ],
)
def test_what_is_wrong_with_json_is_told_with_its_row_and_its_line(tmp_path: Path, data: bytes, message: str):
    (tmp_path / "r.json").write_bytes(data)
    with pytest.raises(InputError, match=message):
        read(tmp_path / "r.json")


def test_numbers_in_json_stay_as_they_are_written(tmp_path: Path):
    (tmp_path / "r.json").write_bytes(b'[\n  {"a": 12345678901234567890123,\r\n   "b": 1.10, "c": "x\\ny"}\n]\n')
    (source,) = find_sources([str(tmp_path / "r.json")])
    (line,) = iter_source(source, io.BytesIO())
    assert line.raw == b'{"a": 12345678901234567890123,"b": 1.10, "c": "x\\ny"}'


def test_json_lines_stay_json_lines_whatever_their_name_is(tmp_path: Path):
    for name in ("r.json", "r.csv", "r.txt", "r"):
        (tmp_path / name).write_bytes(b'{"prompt":"' + b"x" * 100_000 + b'"}\n{"prompt":"b"}\n')
        assert find_sources([str(tmp_path / name)])[0].kind is SourceKind.FILE
        assert len(rows_of(tmp_path / name)) == 2


def test_an_array_streams(tmp_path: Path):
    item = b'{"prompt":"' + b"x" * 300_000 + b'"}'
    (tmp_path / "r.json").write_bytes(b"[" + b" ,\n".join([item] * 20) + b"]")
    assert [number for number, _ in read(tmp_path / "r.json")] == list(range(1, 21))


def test_a_place_in_json_is_right_after_large_values_and_much_white_space(tmp_path: Path):
    large = b'{"prompt":\n"' + b"x" * 1_000_000 + b'"},' + b"\n" * 1_000_000
    (tmp_path / "r.json").write_bytes(b"[" + large + b'{"a":1},\n' * 20_000 + b'{"b":\ny}]')
    with pytest.raises(InputError, match=r"row 20002 \(line 1020002\): invalid JSON on line 1020003: Expecting value"):
        read(tmp_path / "r.json")
    (tmp_path / "r.json").write_bytes(b"[" + large + b'{"a":1},\n' * 20_000 + b'{"b":2')
    with pytest.raises(InputError, match=r"row 20002 \(line 1020002\): invalid JSON on line 1020002"):
        read(tmp_path / "r.json")


def test_white_space_in_json_takes_no_memory(tmp_path: Path):
    with (tmp_path / "r.json").open("wb") as file:
        file.write(b"[")
        file.writelines([b" " * 1_000_000] * 100)
        file.write(b'{"a":1}]')
    tracemalloc.start()
    try:
        assert read(tmp_path / "r.json") == [(1, {"a": 1})]
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_a_row_that_is_too_large_for_a_line_is_told_as_a_row(tmp_path: Path):
    pq.write_table(pa.table({"prompt": ["a", "x" * (65 << 20)]}), tmp_path / "r.parquet")
    with pytest.raises(InputError, match=r"r\.parquet: row 2 is longer than 64 MiB$"):
        read(tmp_path / "r.parquet")


def test_a_hundred_thousand_columns_are_read(tmp_path: Path):
    names = ",".join(f"c{number}" for number in range(100_000))
    (tmp_path / "r.csv").write_text(f"{names}\n{names}\n")
    assert len(rows_of(tmp_path / "r.csv")[0]) == 100_000
    (tmp_path / "r.csv").write_text(f"{names},c7\n")
    with pytest.raises(InputError, match="columns 8 and 100001 are both named `c7`"):
        read(tmp_path / "r.csv")


def test_the_types_of_parquet_survive(tmp_path: Path):
    utc = dt.UTC
    moment = dt.datetime(2026, 1, 2, 3, 4, 5, 600000)  # noqa: DTZ001 - of a column without a zone
    table = pa.table(
        {
            "whole": pa.array([2**63 - 1, None], pa.int64()),
            "large": pa.array([2**64 - 1, 0], pa.uint64()),
            "half": pa.array([0.5, float("nan")]),
            "day": pa.array([dt.date(2026, 1, 2), None]),
            "at": pa.array([moment, None], pa.timestamp("ns")),
            "nano": pa.array([1767323045600000001, None], pa.timestamp("ns")),
            "time": pa.array([3600_000_000_001, None], pa.time64("ns")),
            "zoned": pa.array([moment.replace(tzinfo=utc), None], pa.timestamp("us", "UTC")),
            "price": pa.array([decimal.Decimal("12345678901234567890.10"), None]),
            "text": pa.array([b"caf\xc3\xa9", None], pa.binary()),
            "took": pa.array([dt.timedelta(seconds=1.5), None]),
            "tags": pa.array([["a", None], None]),
            "kind": pa.array(["x", None]).dictionary_encode(),
            "messages": pa.array(
                [
                    [
                        {"role": "user", "content": "hi", "name": None},
                        {"role": "assistant", "content": None, "name": "n"},
                    ],
                    None,
                ]
            ),
            "yes": pa.array([True, None]),
        }
    )
    pq.write_table(table, tmp_path / "r.parquet")
    first, second = rows_of(tmp_path / "r.parquet")
    assert second == {"large": 0}
    assert first == {
        "whole": 2**63 - 1,
        "large": 2**64 - 1,
        "half": 0.5,
        "day": "2026-01-02",
        "at": "2026-01-02T03:04:05.600000",
        "nano": "2026-01-02T03:04:05.600000001",
        "time": "01:00:00.000000001",
        "zoned": "2026-01-02T03:04:05.600000+00:00",
        "price": 12345678901234567890.10,
        "text": "café",
        "took": 1.5,
        "tags": ["a", None],
        "kind": "x",
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "name": "n"}],
        "yes": True,
    }


def test_a_picture_of_a_dataset_becomes_a_data_url_or_its_path(tmp_path: Path):
    png = b"\x89PNG\r\n\x1a\n\xff\x00"
    pictures = pa.array([{"bytes": png, "path": "a.png"}, {"bytes": None, "path": "b.png"}])
    pq.write_table(pa.table({"prompt": ["x", "y"], "image": pictures}), tmp_path / "r.parquet")
    images = [row["image"] for row in rows_of(tmp_path / "r.parquet")]
    assert images == ["data:image/png;base64,iVBORw0KGgr/AA==", "b.png"]
    pq.write_table(pa.table({"prompt": ["x"], "images": [pictures.to_pylist()]}), tmp_path / "s.parquet")
    assert [row["images"] for row in rows_of(tmp_path / "s.parquet")] == [images]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([b"\xff\xfe"]), "column `x` has bytes that are not UTF-8"),
        (pa.array([float("inf")]), "column `x` has infinite values"),
        (pa.array([[1.0, float("-inf")]]), "row 1, column `x`: infinite values"),
        (pa.array([{"y": float("inf")}]), "row 1, column `x`: infinite values"),
        (pa.array([[b"\xff"]]), "row 1, column `x`: bytes that are not UTF-8 text"),
    ],
)
def test_a_column_that_json_cannot_have_is_refused_by_name(tmp_path: Path, column: pa.Array, message: str):
    pq.write_table(pa.table({"prompt": ["a"], "x": column}), tmp_path / "r.parquet")
    with pytest.raises(InputError, match=message):
        read(tmp_path / "r.parquet")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_parquet_file_that_is_cut_off_is_one_clear_line(tmp_path: Path, keep: int):
    path = tmp_path / "r.parquet"
    pq.write_table(pa.table({"prompt": ["a"] * 100}), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"r.parquet is not a complete Parquet file: [^\n]+$"):
        read(path)


def test_a_byte_that_was_changed_in_a_parquet_file_with_checksums_is_found(tmp_path: Path):
    path = tmp_path / "r.parquet"
    plain = {"compression": "NONE", "use_dictionary": False, "write_statistics": False}
    pq.write_table(pa.table({"prompt": [f"number {n}" for n in range(100)]}), path, write_page_checksum=True, **plain)
    path.write_bytes(path.read_bytes().replace(b"number 77", b"number 97"))
    with pytest.raises(InputError, match=r"r.parquet is not a complete Parquet file: [^\n]*checksum"):
        read(path)


def test_parquet_is_known_by_its_first_bytes_and_may_be_compressed_as_a_whole(tmp_path: Path):
    pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / "r.parquet")
    data = (tmp_path / "r.parquet").read_bytes()
    (tmp_path / "blob").write_bytes(data)
    (tmp_path / "r.parquet.gz").write_bytes(gzip.compress(data))
    assert rows_of(tmp_path / "blob") == rows_of(tmp_path / "r.parquet.gz") == [{"prompt": "a"}]
