"""An input that cannot be read as it is is named for what it is, with what to do about it."""

from __future__ import annotations

import io
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from batchrun.errors import InputError
from batchrun.prompts.shapes import LineError, parse_line
from batchrun.prompts.sources import find_sources, iter_source

LINES = b'{"id":"1","prompt":"one"}\n{"id":"2","prompt":"two"}\n'


def zipped() -> bytes:
    with zipfile.ZipFile(whole := io.BytesIO(), "w") as archive:
        archive.writestr("p.jsonl", LINES)
    return whole.getvalue()


ARRAY = b'[\n{"id":"1","prompt":"one"},\n{"id":"2","prompt":"two"}\n]\n'
CSV = b"id,prompt\n1,one\n2,two\n"
REFUSED = {
    "array.jsonl": (ARRAY, "a JSON array", ".json"),
    "one-line.txt": (b'[{"id":"1","prompt":"one"},{"id":"2","prompt":"two"}]', "a JSON array", ".json"),
    "pretty.jsonl": (b'{\n  "id": "1",\n  "prompt": "one"\n}\n', "several lines", ".json"),
    "table.jsonl": (CSV, "CSV", ".csv"),
    "excel.txt": (b"\xef\xbb\xbfid;prompt\r\n1;one\r\n2;two\r\n", "CSV", ".csv"),
    "table": (b"id\tprompt\n1\tone\n2\ttwo\n", "tab-separated", ".tsv"),
    "-": (CSV, "CSV", ".csv"),
}
CONVERTED = {
    "powershell.jsonl": (LINES.decode().encode("utf-16"), "UTF-16", "iconv"),
    "excel.csv": (CSV.decode().encode("utf-16"), "UTF-16", "iconv"),
    "utf-32.jsonl": (LINES.decode().encode("utf-32"), "UTF-32", "iconv"),
    "array.json": (ARRAY.decode().encode("utf-16"), "UTF-16", "iconv"),
    "p.zip": (zipped(), "a zip archive", "unzip"),
    "mac.jsonl": (LINES.replace(b"\n", b"\r"), "CR only", "tr"),
}


def read(name: str, data: bytes = b"") -> list[bytes]:
    return [line.raw for line in iter_source(find_sources([name])[0], io.BytesIO(data))]


@pytest.mark.parametrize("name", REFUSED)
def test_a_table_in_a_file_that_is_named_otherwise_is_named_and_its_suffix_is_told(
    tmp_path: Path, monkeypatch, name: str
):
    monkeypatch.chdir(tmp_path)
    data, what, suffix = REFUSED[name]
    if name != "-":
        Path(name).write_bytes(data)
    with pytest.raises(InputError) as caught:
        read(name, data)
    assert caught.value.message.startswith(f"{name}: this is ")
    assert what in caught.value.message
    assert f"ends in {suffix}" in caught.value.hint
    Path(f"x{suffix}").write_bytes(data)
    assert next(parse_line(line).id for line in read(f"x{suffix}")) == "1"


@pytest.mark.parametrize("name", CONVERTED)
def test_what_cannot_be_read_is_named_and_its_command_converts_it(tmp_path: Path, monkeypatch, name: str):
    monkeypatch.chdir(tmp_path)
    data, what, tool = CONVERTED[name]
    Path(name).write_bytes(data)
    with pytest.raises(InputError) as caught:
        read(name)
    assert caught.value.message.startswith(f"{name}: this is ")
    assert what in caught.value.message
    if shutil.which(tool) is None:
        return
    command = caught.value.hint.split(": ", 1)[1].split(" | batchrun")[0]
    done = subprocess.run(["sh", "-c", command], capture_output=True, check=True)
    made = Path("unpacked.jsonl" if done.stdout else command.rsplit("> ", 1)[1])
    if done.stdout:
        made.write_bytes(done.stdout)
    assert [parse_line(line).id for line in read(str(made))] == ["1", "2"]


@pytest.mark.parametrize("name", ["page.csv", "page.json", "page.jsonl", "page.tsv"])
def test_a_web_page_is_named(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(b"<!DOCTYPE html>\n<html><body>Log in</body></html>\n")
    with pytest.raises(InputError, match="this is a web page, not"):
        read(str(tmp_path / name))


def test_what_is_piped_is_named_too(tmp_path: Path):
    with pytest.raises(InputError, match=r"^-: this is a zip archive"):
        list(iter_source(find_sources(["-"])[0], io.BytesIO(zipped())))


def test_a_wrong_line_does_not_make_another_format_of_json_lines(tmp_path: Path):
    for first in (b"[1, 2]\n", b'{"prompt": "cut of\n', b"Hello, world and more!\n"):
        (tmp_path / "p.jsonl").write_bytes(first + LINES)
        assert len(list(iter_source(find_sources([str(tmp_path / "p.jsonl")])[0], io.BytesIO()))) == 3


@pytest.mark.parametrize(
    ("raw", "column"), [(b'{"prompt":"caf\xe9"}', 15), ('{"prompt":"äöü'.encode() + b'\xff"}', 15)]
)
def test_a_byte_that_is_not_utf8_is_told_with_its_column(raw: bytes, column: int):
    with pytest.raises(LineError, match=rf"column {column}: byte 0x\w\w is not UTF-8"):
        parse_line(raw)
