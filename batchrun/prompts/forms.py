"""The forms of an input file: JSON lines or a table, packed or not; recognized by its name and its first bytes."""

from __future__ import annotations

from codecs import BOM_UTF8
from enum import StrEnum
from pathlib import PurePath

from batchrun.prompts.formats import is_json


class Form(StrEnum):
    """How the rows of a file are written."""

    LINES = "JSON lines"
    CSV = "CSV"
    TSV = "TSV"
    JSON = "JSON"
    """An array of objects, or objects one after another over several lines."""
    PARQUET = "Parquet"


class Packing(StrEnum):
    """How a file is compressed."""

    GZIP = "gzip"
    BZIP2 = "bzip2"
    XZ = "xz"
    ZSTD = "zstd"


_PACKED_SUFFIXES = {".gz": Packing.GZIP, ".bz2": Packing.BZIP2, ".xz": Packing.XZ, ".zst": Packing.ZSTD}
_MAGIC = {
    b"\x1f\x8b": Packing.GZIP,
    b"BZh": Packing.BZIP2,
    b"\xfd7zXZ\x00": Packing.XZ,
    b"\x28\xb5\x2f\xfd": Packing.ZSTD,
}
_PARQUET_MAGIC = b"PAR1"
_SUFFIXES = {
    ".jsonl": Form.LINES,
    ".csv": Form.CSV,
    ".tsv": Form.TSV,
    ".json": Form.JSON,
    ".parquet": Form.PARQUET,
}
FIRST_SUFFIXES = (".jsonl", ".jsonl.gz")
"""The files that a folder of prompts has always meant."""


def packing_of(name: str, begin: bytes) -> Packing | None:
    """How a file is compressed, by its first bytes, else by its name; None if it is not."""
    for magic, packing in _MAGIC.items():
        if begin.startswith(magic):
            return packing
    return _PACKED_SUFFIXES.get(PurePath(name).suffix.lower())


def form_of(name: str, begin: bytes) -> Form:
    """The form of a file: by its suffix, unless it begins as another one.

    Args:
        name: Its name, with or without the suffix of its packing.
        begin: How it begins, unpacked; for a `.json` file at least its first line, if that is not too long.
    """
    if begin.startswith(_PARQUET_MAGIC):
        return Form.PARQUET
    form = _SUFFIXES.get(PurePath(unpacked_name(name)).suffix.lower(), Form.LINES)
    if form in (Form.CSV, Form.TSV, Form.JSON):
        first = begin.removeprefix(BOM_UTF8).lstrip()
        if first.startswith(b"{" if form is not Form.JSON else (b"{", b'"')) and is_json(first.partition(b"\n")[0]):
            return Form.LINES
        if form is Form.JSON and not first.startswith((b"[", b"{")):
            return Form.LINES
    return form


def is_input_name(name: str) -> bool:
    """Whether a file of this name has a known form."""
    return PurePath(unpacked_name(name)).suffix.lower() in _SUFFIXES


def unpacked_name(name: str) -> str:
    """A name without the suffix of its packing: `reviews.csv` for `reviews.csv.gz`."""
    suffix = PurePath(name).suffix
    return name[: -len(suffix)] if suffix.lower() in _PACKED_SUFFIXES else name


def stem_of(name: str) -> str:
    """A name without its suffixes: `haikus` for `haikus.jsonl.gz`, `reviews` for `reviews.csv`.

    `.json` stays, as in the names of all results that were ever made from such a file.
    """
    bare = name if PurePath(name).suffix in _UPPER_STAYS else unpacked_name(name)
    suffix = PurePath(bare).suffix
    is_known = suffix == ".jsonl" or suffix.lower() in (".csv", ".tsv", ".parquet")
    return bare[: -len(suffix)] if is_known else bare


_UPPER_STAYS = (".GZ", ".Gz", ".gZ")
"""They have always stayed in the names of results, as has `.JSONL`."""
