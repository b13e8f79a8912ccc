"""An input that is not JSON lines is named for what it is, with the command that makes JSON lines of it."""

from __future__ import annotations

import bz2
import io
import lzma
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


INPUTS = {
    "array.json": (b'[\n{"id":"1","prompt":"one"},\n{"id":"2","prompt":"two"}\n]\n', "a JSON array", "python3"),
    "one-line.json": (b'[{"id":"1","prompt":"one"},{"id":"2","prompt":"two"}]', "a JSON array", "python3"),
    "pretty.json": (
        b'{\n  "id": "1",\n  "prompt": "one"\n}\n{\n  "id": "2",\n  "prompt": "two"\n}',
        "several lines",
        "python3",
    ),
    "powershell.jsonl": (LINES.decode().encode("utf-16"), "UTF-16", "iconv"),
    "utf-32.jsonl": (LINES.decode().encode("utf-32"), "UTF-32", "iconv"),
    "p.jsonl.xz": (lzma.compress(LINES), "xz", "xzcat"),
    "p.jsonl.bz2": (bz2.compress(LINES), "bzip2", "bzcat"),
    "p.zip": (zipped(), "a zip archive", "unzip"),
    "p.jsonl.zst": (b"\x28\xb5\x2f\xfd\x04\x00", "zstd", "-"),
    "p.parquet": (b"PAR1\x15\x04\x15", "a Parquet file", "-"),
    "p.csv": (b"id,prompt\n1,one\n2,two\n", "CSV", "python3"),
    "excel.csv": (b"\xef\xbb\xbfid;prompt\r\n1;one\r\n2;two\r\n", "CSV", "python3"),
    "p.tsv": (b"id\tprompt\n1\tone\n2\ttwo\n", "tab-separated", "python3"),
    "mac.jsonl": (LINES.replace(b"\n", b"\r"), "CR only", "tr"),
}


@pytest.mark.parametrize("name", INPUTS)
def test_what_is_not_json_lines_is_named_and_its_command_converts_it(tmp_path: Path, monkeypatch, name: str):
    monkeypatch.chdir(tmp_path)
    data, what, tool = INPUTS[name]
    Path(name).write_bytes(data)
    with pytest.raises(InputError) as caught:
        list(iter_source(find_sources([name])[0], io.BytesIO()))
    assert caught.value.message.startswith(f"{name}: this is ")
    assert what in caught.value.message
    if shutil.which(tool) is None:
        return
    command = caught.value.hint.split(": ", 1)[1].split(" | batchrun")[0]
    done = subprocess.run(["sh", "-c", command], capture_output=True, check=True)
    converted = done.stdout or Path(command.rsplit("> ", 1)[1]).read_bytes()
    ids = [parse_line(line).id for line in converted.splitlines()]
    assert ids == (["1", "2"] if name != "excel.csv" else [None, None])


@pytest.mark.parametrize(
    "data", ['[{"id": %d, "prompt": "a"}]', '{\n"id": %d,\n"prompt": "a"\n}\n\n\n{\n"prompt": "b"}']
)
def test_the_command_that_converts_json_changes_no_integer(tmp_path: Path, monkeypatch, data: str):
    monkeypatch.chdir(tmp_path)
    Path("p.json").write_text(data % 12345678901234567890123)
    with pytest.raises(InputError) as caught:
        list(iter_source(find_sources(["p.json"])[0], io.BytesIO()))
    subprocess.run(["sh", "-c", caught.value.hint.split(": ", 1)[1]], check=True)
    assert parse_line(Path("p.jsonl").read_bytes().splitlines()[0]).id == "12345678901234567890123"


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
