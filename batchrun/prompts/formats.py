"""Recognize an input that cannot be read as it is by how it begins, and say what to do."""

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
"""First bytes of a file -> what it is, and the command that unpacks it to stdout. A file is unpacked, a pipe is not."""
_TABLES = {b"ARROW1": "an Arrow file", b"PAR1": "a Parquet file"}
_WORKBOOKS = (".xlsx", ".ods", ".numbers")
_UTF_32 = (b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")
_UTF_16 = (b"\xff\xfe", b"\xfe\xff", b"{\x00", b"\x00{", b'"\x00', b'\x00"')
_HEADER = re.compile(r'[\w "./-]+(?:[,;\t][\w "./-]+)+')
CONVERT_TO_UTF_8 = "convert a file in Latin-1 or cp1252 with: iconv -f CP1252 -t UTF-8 FILE"
_KINDS = "files are read by their suffix: .jsonl, .csv, .tsv, .json, .parquet, also with .gz, .bz2, .xz or .zst"


def refuse_other_format(path: str, first: bytes, *, is_alone: bool) -> None:
    """Refuse an input that is read as JSON lines but as a whole is not; a single invalid line is not found here.

    Args:
        path: The input.
        first: Its first line that is not blank, without surrounding white space.
        is_alone: Whether it has no other line.

    Raises:
        InputError: it has another format, which the message names.
    """
    _refuse(path, _binary(path, first) or _structured(path, first, is_alone=is_alone), "JSON lines")


def refuse_binary(path: str, begin: bytes) -> None:
    """Refuse a table that is not text in UTF-8 at all.

    Args:
        path: The input.
        begin: Its first bytes, or its first line.

    Raises:
        InputError: it is something else, which the message names.
    """
    _refuse(path, _binary(path, begin), "text in UTF-8")


def _refuse(path: str, found: tuple[str, str] | None, expected: str) -> None:
    if found is not None:
        what, hint = found
        raise InputError(f"{path}: this is {what}, not {expected}", hint)


def not_utf8(raw: bytes) -> str | None:
    """The first column of a line that is not UTF-8, and what to do; None if all of it is UTF-8."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        column = len(raw[: error.start].decode()) + 1
        return f"{column}: byte 0x{raw[error.start]:02x} is not UTF-8; {CONVERT_TO_UTF_8}"
    return None


def _binary(path: str, first: bytes) -> tuple[str, str] | None:
    if first.startswith(b"PK\x03\x04") and Path(path).suffix.lower() in (*_WORKBOOKS, ".csv"):
        return "a spreadsheet's workbook", "save it as CSV in UTF-8, and give that file"
    for magic, (what, unpack) in _PACKED.items():
        if first.startswith(magic):
            return what, f"unpack it into a pipe: {unpack} {shlex.quote(path)} | batchrun run - -o results.jsonl ..."
    for magic, what in _TABLES.items():
        if first.startswith(magic):
            return what, _named(path, ".parquet")
    if first.lstrip()[:20].lower().startswith((b"<!doctype html", b"<html")):
        return "a web page", "perhaps one to log in: give the address of the file itself"
    return _encoded(path, first)


def _encoded(path: str, first: bytes) -> tuple[str, str] | None:
    for encoding, marks in (("UTF-32", _UTF_32), ("UTF-16", _UTF_16)):
        if first.startswith(marks):
            return f"text in {encoding}", _convert(path, f"iconv -f {encoding} -t UTF-8")
    return None


def _structured(path: str, first: bytes, *, is_alone: bool) -> tuple[str, str] | None:
    if first.startswith(b"[") and (is_alone or not is_json(first)):
        return "a JSON array", _named(path, ".json")
    if first == b"{":
        return "JSON with several lines for each value", _named(path, ".json")
    if is_json(first):
        return None
    if b"\r" in first and is_json(first.split(b"\r", 1)[0]):
        return "text whose lines end with CR only", _convert(path, r"tr '\r' '\n' <")
    if _HEADER.fullmatch(first.decode(errors="replace")):
        is_tabbed = b"\t" in first
        return "tab-separated values" if is_tabbed else "CSV", _named(path, ".tsv" if is_tabbed else ".csv")
    return None


def is_json(text: bytes) -> bool:
    """Whether a text is one JSON value."""
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def _named(path: str, suffix: str) -> str:
    if path == "-":
        return f"write it to a file whose name ends in {suffix}, and give that file"
    if Path(path).suffix.lower() == suffix:
        return _KINDS
    return f"give it a name that ends in {suffix}; {_KINDS}"


def _convert(path: str, command: str) -> str:
    return f"convert it: {command} {shlex.quote(path)} > {shlex.quote(_converted_path(path))}"


def _converted_path(path: str) -> str:
    """A path for the converted file, beside the original."""
    given = Path("prompts.jsonl" if path == "-" else path)
    suffix = given.suffix if given.suffix.lower() in (".csv", ".tsv", ".json") else ".jsonl"
    new = str(given.with_suffix(suffix))
    return new if new != path else str(given.with_suffix(f".utf8{suffix}"))
