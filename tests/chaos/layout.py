"""How a run is set up: which inputs it has, how they are named in its command, and where its results go."""

from __future__ import annotations

import json
import os
from typing import Any


class Layout:
    """How a run is set up.

    Args:
        name: One of `LAYOUTS`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_piped = name in ("stdin", "two pipes")
        self.is_folder = name in ("folder", "this folder", "folder to folder")
        self.output = "out/" if name == "folder to folder" else "r.jsonl"
        at = "prompts/" if name in ("folder", "folder to folder") else ""
        end = ".jsonl.gz" if name == "gz" else ".jsonl"
        self.names = [f"{at}{stem}{end}" for stem in "abcdef"]
        """Of its inputs; the first ones are there from the beginning."""
        self.first = 1 if name in ("file", "gz", "stdin") else 2
        """How many those are."""

    def inputs(self) -> list[str]:
        """The inputs as they are named in the command."""
        if self.is_folder:
            return ["." if self.name == "this folder" else "prompts"]
        if self.is_piped:
            return ["-"] if self.name == "stdin" else ["/dev/fd/10", "/dev/fd/11"]
        return self.names[: self.first]


LAYOUTS = ("file", "gz", "two files", "folder", "this folder", "folder to folder", "stdin", "two pipes")


def as_lines(rows: list[dict[str, Any]]) -> bytes:
    """The rows as an input has them."""
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def pipe_of(data: bytes) -> int:
    """The end of a pipe from which this can be read, once."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    os.write(writer, data)
    os.close(writer)
    return reader
