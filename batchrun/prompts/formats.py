"""Recognize an input that is not JSON lines by how it begins, and name the command that converts it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import orjson

from batchrun.errors import InputError

_PACKED = {
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "zstdcat"),
    b"\xfd7zXZ\x00": ("compressed with xz", "xzcat"),
    b"BZh": ("compressed with bzip2", "bzcat"),
    b"\x04\x22\x4d\x18": ("compressed with LZ4", "lz4cat"),
    b"PK\x03\x04": ("a zip archive", "unzip -p"),
}
"""First bytes of a file -> what it is, and the command that unpacks it to stdout."""
_TABLES = {b"PAR1": ("a Parquet file", "parquet"), b"ARROW1": ("an Arrow file", "feather")}
_UTF_32 = (b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")
_UTF_16 = (b"\xff\xfe", b"\xfe\xff", b"{\x00", b"\x00{", b'"\x00', b'\x00"')
_HEADER = re.compile(r'[\w "./-]+(?:[,;\t][\w "./-]+)+')
# Not jq, which before 1.7 rounds integers beyond 53 bits.
_READ_ARRAY = "import json, sys; [print(json.dumps(row)) for row in json.load(sys.stdin)]"
_READ_VALUES = """\
import json, sys; text, at = sys.stdin.read().strip(), 0
while at < len(text):
    row, at = json.JSONDecoder().raw_decode(text, at); print(json.dumps(row))
    while text[at:at + 1].isspace(): at += 1"""
_READ_CSV = "import csv, json, sys; [print(json.dumps(row)) for row in csv.DictReader(sys.stdin{})]"


def refuse_other_format(path: str, first: bytes, *, is_alone: bool) -> None:
    """Refuse an input that as a whole is not JSON lines; a single invalid line is not found here.

    Args:
        path: The input.
        first: Its first line that is not blank, without surrounding white space.
        is_alone: Whether it has no other line.

    Raises:
        InputError: it has another format, which the message names.
    """
    found = _packed(path, first) or _encoded(path, first) or _structured(path, first, is_alone=is_alone)
    if found is not None:
        what, hint = found
        raise InputError(f"{path}: this is {what}, not JSON lines", hint)


def _packed(path: str, first: bytes) -> tuple[str, str] | None:
    for magic, (what, unpack) in _PACKED.items():
        if first.startswith(magic):
            return what, f"unpack it into a pipe: {unpack} {shlex.quote(path)} | batchrun run - -o results.jsonl ..."
    for magic, (what, kind) in _TABLES.items():
        if first.startswith(magic):
            to = f'to_json("{_converted_path(path)}", orient="records", lines=True)'
            return what, "convert it: python3 -c " + shlex.quote(f'import pandas; pandas.read_{kind}("{path}").{to}')
    return None


def _encoded(path: str, first: bytes) -> tuple[str, str] | None:
    for encoding, marks in (("UTF-32", _UTF_32), ("UTF-16", _UTF_16)):
        if first.startswith(marks):
            return f"text in {encoding}", _convert(path, f"iconv -f {encoding} -t UTF-8")
    return None


def _structured(path: str, first: bytes, *, is_alone: bool) -> tuple[str, str] | None:
    if first.startswith(b"[") and (is_alone or not _is_json(first)):
        return "a JSON array", _convert_by(path, _READ_ARRAY)
    if first == b"{":
        return "JSON with several lines for each value", _convert_by(path, _READ_VALUES)
    if _is_json(first):
        return None
    if b"\r" in first and _is_json(first.split(b"\r", 1)[0]):
        return "text whose lines end with CR only", _convert(path, r"tr '\r' '\n' <")
    if Path(path).suffix.lower() in (".csv", ".tsv") or _HEADER.fullmatch(first.decode(errors="replace")):
        delimiter = r"\t" if b"\t" in first else ";" if b"," not in first else ","
        read = _READ_CSV.format("" if delimiter == "," else f', delimiter="{delimiter}"')
        what = "tab-separated values" if delimiter == r"\t" else "CSV"
        return what, _convert_by(path, read)
    return None


def _is_json(text: bytes) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def _convert_by(path: str, program: str) -> str:
    return _convert(path, f"python3 -c {shlex.quote(program)} <")


def _convert(path: str, command: str) -> str:
    return f"convert it: {command} {shlex.quote(path)} > {shlex.quote(_converted_path(path))}"


def _converted_path(path: str) -> str:
    """A path for the converted file, beside the original."""
    new = str(Path("prompts" if path == "-" else path).with_suffix(".jsonl"))
    return new if new != path else str(Path(path).with_suffix(".utf8.jsonl"))
