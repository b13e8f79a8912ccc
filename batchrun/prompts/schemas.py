"""The schema that answers must fit: read from a file, or written in short as `name, age int, bio: one sentence`.

In the short form, fields are separated by commas, or by line ends. A field is a name, a type (`str` if none is given),
and after a colon what it means: a model reads that. It stands for an object that has all of these fields.
"""

from __future__ import annotations

import os
import re
from codecs import BOM_UTF8
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from batchrun.errors import UsageError
from batchrun.files.exactjson import dump, load

FORMAT_NAMES = frozenset({"response_format", "structured_outputs"})
"""The parameters by which a request may ask for a format of its own."""
_COMPLETION_ROUTES = ("/chat/completions", "/completions")
_RESPONSES_ROUTE = "/responses"
_TYPES: dict[str, dict[str, Any]] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "list": {"type": "array", "items": {"type": "string"}},
}
_NAME = re.compile(r"[^\s,:\"'{}\[\]]+")
_PATH = re.compile(r"[^\s,:]*/[^\s,:]*")
"""One word with a slash is rather the path of a file that is not there than the name of a field."""
_SHORT = "write it as 'name, age int, tags list, bio: one sentence', or give a .json file"


def read_schema(given: str | os.PathLike[str] | Mapping[str, Any] | type[Any]) -> dict[str, Any]:
    """The JSON schema that `--schema` stands for.

    Args:
        given: A path of a JSON file, a schema as JSON text or as a mapping, fields in the short form, or a model of
            pydantic.

    Raises:
        UsageError: the file cannot be read, or it is not a schema. Whether a schema is valid is not checked here.
    """
    if isinstance(given, type):
        if not hasattr(given, "model_json_schema"):
            raise UsageError(f"schema={given.__name__} is not a model of pydantic", "give one, or a JSON schema")
        given = given.model_json_schema()
    if isinstance(given, Mapping):
        return _as_schema("--schema", dump(dict(given)))
    if isinstance(given, os.PathLike):
        return _read(os.fspath(given))
    if not isinstance(given, str):
        raise UsageError(
            f"schema is of type {type(given).__name__}, not a schema", "give a dict, a model, a path, or text"
        )
    text = given.strip()
    if text.startswith(("{", "[")):
        return _as_schema("--schema", text.encode("utf-8", "surrogatepass"))
    if text.lower().endswith(".json") or _PATH.fullmatch(text) or _is_file(text):
        return _read(text)
    return _from_fields(text)


def _read(path: str) -> dict[str, Any]:
    try:
        return _as_schema(f"--schema {path}", Path(path).read_bytes())
    except OSError as error:
        raise UsageError(f"--schema {path}: {error.strerror}", "give the path of a JSON schema") from error


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        return False


def _as_schema(name: str, raw: bytes) -> dict[str, Any]:
    try:
        schema = load(raw.removeprefix(BOM_UTF8))
    except orjson.JSONDecodeError as error:
        raise UsageError(f"{name} is not JSON: {error}", 'give a JSON schema, such as {"type": "object"}') from error
    if not isinstance(schema, dict):
        raise UsageError(f"{name} is not a schema: expected an object", "a schema is an object: see json-schema.org")
    return schema


def _from_fields(text: str) -> dict[str, Any]:
    parts = text.split("\n") if "\n" in text else text.split(",")
    fields: dict[str, Any] = {}
    for part in filter(None, map(str.strip, parts)):
        head, _, meaning = part.partition(":")
        name, *kinds = head.split() or [""]
        if not _NAME.fullmatch(name) or len(kinds) > 1:
            raise UsageError(f"--schema: {part!r} is not a field", _SHORT)
        if kinds and kinds[0] not in _TYPES:
            raise UsageError(f"--schema: {part!r} has no known type", f"the types are {', '.join(_TYPES)}")
        if name in fields:
            raise UsageError(f"--schema: {name!r} is there twice", "remove one of them")
        fields[name] = dict(_TYPES[kinds[0] if kinds else "str"])
        if meaning.strip():
            fields[name]["description"] = meaning.strip()
    if not fields:
        raise UsageError("--schema is empty", _SHORT)
    return {"type": "object", "properties": fields, "required": list(fields)}


def asks_for_format(parameters: Mapping[str, Any]) -> bool:
    """Whether sampling parameters ask for a format of their own."""
    return not FORMAT_NAMES.isdisjoint(parameters)


def response_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The `response_format` by which vLLM and OpenAI's API are asked for answers that fit a schema."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def with_format(sampling: dict[str, Any], schema: Mapping[str, Any] | None) -> dict[str, Any]:
    """Sampling parameters that ask for answers that fit a schema, unless they ask for a format of their own."""
    if schema is None or asks_for_format(sampling):
        return sampling
    return {**sampling, "response_format": response_format(schema)}


def body_with_format(body: dict[str, Any], route: str, schema: Mapping[str, Any] | None) -> dict[str, Any]:
    """The same for the body of an OpenAI line; the bodies of routes that give no text are unchanged."""
    if schema is not None and route.endswith(_RESPONSES_ROUTE):
        text = body.get("text", {})
        if not isinstance(text, dict) or "format" in text:
            return body
        return {**body, "text": {**text, "format": {"type": "json_schema", "name": "answer", "schema": schema}}}
    return with_format(body, schema) if route.endswith(_COMPLETION_ROUTES) else body
