"""The JSON value in the text of an answer, and whether it fits a schema.

The value may be in a fenced block, and after a model's reasoning: models write both around it, whatever they are asked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from batchrun.errors import UsageError
from batchrun.files.exactjson import load

_FENCE = "```"
_BEGINS = frozenset('{["-0123456789tfn')
"""What JSON begins with."""
_END_OF_REASONING = "</think>"
_MOST_SHOWN = 3
"""Violations that a message names."""
_MOST_CHARS = 300
"""The most characters of a violation: it quotes the value."""
_LANGUAGE = re.compile(r"[a-z][\w.+-]*(?=[ \t]*\r?\n)|json", re.IGNORECASE)
"""What follows the fence of a block that names a language: on a line of its own, or right before the value."""
_PLAIN = re.compile(r"[A-Za-z_]\w*")


class NotJsonError(ValueError):
    """A text has no JSON value."""


def json_in(text: str) -> Any:
    """The JSON value of an answer.

    Raises:
        NotJsonError: it has none; says why.
    """
    pieces = [text] if text.lstrip()[:1] in _BEGINS else []  # a failed try takes longer than this look
    if not pieces or _FENCE in text or _END_OF_REASONING in text:
        pieces.append(_unwrapped(text))
    for piece in pieces:
        try:
            return load(piece.encode())
        except ValueError as error:  # includes text that is not UTF-8
            problem = error
    raise NotJsonError(_said(problem))


def _unwrapped(text: str) -> str:
    """What follows the reasoning, and of that the inside of the first fenced block."""
    _, _, rest = text.rpartition(_END_OF_REASONING)
    _, fence, block = rest.partition(_FENCE)
    if not fence:
        return rest
    # A string may contain a fence, but not at the beginning of a line.
    end = block.find(f"\n{_FENCE}")
    if end < 0:
        end = block.rfind(_FENCE)
    inside = block if end < 0 else block[:end]
    language = _LANGUAGE.match(inside)
    return inside[language.end() :] if language else inside


def _said(error: ValueError) -> str:
    if isinstance(error, orjson.JSONDecodeError):
        return f"{error.msg} at line {error.lineno}, column {error.colno}"
    return "it is not valid UTF-8"


class AnswerSchema:
    """A schema that answers must fit.

    Args:
        schema: The JSON schema.

    Raises:
        UsageError: it is not valid, refers to other files, or the library is missing.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._validator = _compiled(schema)

    def problem(self, text: str) -> str | None:
        """Why an answer does not fit, with the path of each value that does not; None if it fits."""
        try:
            value = json_in(text)
        except NotJsonError as error:
            return f"the answer is not JSON: {error}"
        try:
            if self._validator.is_valid(value):
                return None
            found = [_violation(each) for each in self._validator.iter_errors(value)]
        except (ValueError, RecursionError) as error:
            return f"the answer cannot be checked: {error}"
        more = f"; and {len(found) - _MOST_SHOWN:,} more" if len(found) > _MOST_SHOWN else ""
        return "; ".join(found[:_MOST_SHOWN]) + more


def _compiled(schema: Mapping[str, Any]) -> Any:
    try:
        from jsonschema_rs import validator_for
    except ImportError as error:
        raise UsageError("--schema needs jsonschema-rs", "pip install 'runpod-batchrun[data]'") from error
    try:
        return validator_for(dict(schema), retriever=_refuse_reference)
    except ValueError as error:
        reason, _, place = str(error).partition("\n")
        where = re.search(r"^On (instance\S*):$", place, re.MULTILINE)
        at = where[1].replace("instance", "$") if where else "$"
        raise UsageError(
            f"--schema is not a valid JSON schema, at {at}: {_clipped(reason)}", "fix the schema"
        ) from error


def _refuse_reference(uri: str) -> Any:
    raise ValueError(f"{uri} is not in the schema: copy it into its $defs")


def _violation(error: Any) -> str:
    place = "".join(
        f".{key}" if isinstance(key, str) and _PLAIN.fullmatch(key) else f"[{orjson.dumps(key).decode()}]"
        for key in error.instance_path
    )
    return f"${place}: {_clipped(error.message)}"


def _clipped(text: str) -> str:
    """A message on one line; in a long one, which quotes a long value, the middle is left out."""
    line = " ".join(text.split())
    half = _MOST_CHARS // 2
    return line if len(line) <= _MOST_CHARS else f"{line[:half]} … {line[-half:]}"
