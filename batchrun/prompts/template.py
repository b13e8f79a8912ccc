"""Renders a row of columns as the line that it stands for: its messages or prompt, its parameters, its metadata.

    {"stars": 5, "review": "..."}    {"messages": [{"role": "user", "content": "..."}], "metadata": {"stars": 5, ...}}

What a column holds is data, also if it looks like a template. A null column is one that is not there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from batchrun.config import TemplateOptions
from batchrun.errors import InputError, UsageError, shown
from batchrun.files.exactjson import load
from batchrun.prompts.jinja import Texts, frozen
from batchrun.prompts.sampling import COLUMN_NAMES, SAMPLING_PARAMETERS, expected_type
from batchrun.prompts.shapes import (
    PROMPT_KEYS,
    READING,
    LineError,
    Prompt,
    Shape,
    columns_of,
    id_in_column,
    load_line,
    own_id,
    read_messages,
    read_prompt,
    refuse_what_cannot_be_sent,
    unwrap_error_line,
)

_RENDERED_KEYS = PROMPT_KEYS | {"openai_input"}
_ROW = "row"
"""The name by which a template reaches all columns, also those whose names are not identifiers."""
_TAGS = ("{{", "{%", "{#")
_SURELY_SENDABLE_CHARS = 1_000_000
_IDS = ("id", "custom_id")


class Template:
    """The template of a run.

    Args:
        options: Its text, and what becomes of the columns.
        id_column: The column with the id of a row; None for `id` or `custom_id`.
        reading: The rules of the run; see `shapes.READING`.
    """

    def __init__(self, options: TemplateOptions, id_column: str | None = None, reading: int = READING) -> None:
        self._options = options
        self._id_column = id_column
        self._reading = reading
        self._files = dict(options.files)
        self._content: Callable[[dict[str, Any]], Any] | None = None
        self._names: tuple[str, ...] = ()
        self._parameters = frozenset[str]()
        self._not_metadata = frozenset(_IDS if id_column is None else ())
        self._unseen = set(options.columns or ())
        self._seen: dict[str, None] = {}

    def compile(self) -> None:
        """Compile the template; without this call, that happens with the first row.

        Raises:
            UsageError: it is not a template, or minijinja is not installed.
        """
        texts = Texts()
        options = self._options
        if options.messages is not None:
            name = self._named("--messages-file")
            self._content = _message_list(texts, options.messages, name)
        else:
            user = texts.add(options.prompt or "", self._named("--prompt-file", "--prompt"))
            system = None
            if options.system is not None:
                system = texts.add(options.system, self._named("--system-file", "--system"))
            self._content = _prompt(user) if options.raw else _messages(system, user)
        names = texts.names | ({options.image_column} if options.image_column is not None else set())
        if not names:
            text = options.prompt or options.messages or ""
            guess = re.search(r"(?<![{\\])\{(\w+)\}", text)
            example = guess[1] if guess else "column"
            raise UsageError(
                "the template uses no column, so all rows would ask the same",
                f"write the name of a column in double braces: {{{{ {example} }}}}",
            )
        self._names = tuple(sorted(names))
        self._parameters = (SAMPLING_PARAMETERS - COLUMN_NAMES - names) | {"sampling_params"}

    def _named(self, option: str, otherwise: str | None = None) -> str:
        """The name of a text in messages: its option, and the file that it was read from."""
        path = self._files.get(option)
        return f"{option} {path}" if path is not None else otherwise or option

    def __call__(self, raw: bytes) -> Prompt:
        """Parse a line with a row of columns.

        Raises:
            LineError: it is not a row, or the template cannot be rendered with it.
            UsageError: see `compile`.
        """
        row = load_line(raw)
        if type(row) is not dict:
            if type(row) is not str:
                raise LineError("expected an object with columns")
            row = {"prompt": row}
        if self._content is None:
            self.compile()
        row = self._unrendered(row)
        if self._unseen:
            self._unseen.difference_update(row)
            self._seen.update(dict.fromkeys(row))
        row_id = own_id(row, None) if self._id_column is None else id_in_column(row, self._id_column)
        line: dict[str, Any] = {} if row_id is None else {"id": row_id}
        key = "prompt" if self._options.raw else "messages"
        line[key] = self._rendered(row)
        excluded = self._not_metadata
        has_parameters = not self._parameters.isdisjoint(row)
        if has_parameters:
            parameters = [name for name in row if name in self._parameters and row[name] not in (None, "")]
            line.update({name: _parameter(name, row[name]) for name in parameters})
            excluded = excluded.union(parameters)
        if metadata := self._metadata(row, excluded):
            line["metadata"] = metadata
        shape, read = (Shape.PROMPT, read_prompt) if self._options.raw else (Shape.MESSAGES, read_messages)
        request, carried = read(line, self._reading)
        is_large = len(raw) > _SURELY_SENDABLE_CHARS or len(line[key]) > _SURELY_SENDABLE_CHARS
        if is_large or has_parameters or self._options.messages is not None:
            refuse_what_cannot_be_sent(request)
        return Prompt(row_id, shape, request, carried, line)

    def refuse_unseen(self) -> None:
        """Refuse `--columns` that no row had, after all rows.

        Raises:
            InputError: there are such.
        """
        if self._unseen and self._seen:
            names = ", ".join(f"`{name}`" for name in self._options.columns or () if name in self._unseen)
            listed = columns_of(dict.fromkeys(self._seen, True)).replace("the row has", "there are")
            raise InputError(f"--columns: no row has {names}", listed)

    def _unrendered(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row, or the one in a line of an error file that could not be rendered.

        Raises:
            LineError: it already says what is sent.
        """
        if not PROMPT_KEYS.isdisjoint(row) and _ROW not in self._names and all(row.get(n) is None for n in self._names):
            own = next(key for key in row if key in PROMPT_KEYS)
            raise LineError(
                f"the line has `{own}` of its own, and the template uses none of its columns: {columns_of(row)}",
                "run it without the template",
            )
        if "error" not in row:
            return row
        request: Any = unwrap_error_line(row)[1]
        if request is not row and (type(request) is not dict or not _RENDERED_KEYS.isdisjoint(request)):
            raise LineError(
                "a line of an error file, whose request is rendered already: run that file without the template"
            )
        found: dict[str, Any] = request
        return found

    def _rendered(self, row: dict[str, Any]) -> Any:
        context = {}
        for name in self._names:
            value = row.get(name)
            if value is not None:
                context[name] = value if type(value) is str else frozen(value)
        if _ROW in self._names and _ROW not in context:
            context[_ROW] = frozen(row)
        assert self._content is not None  # noqa: S101 - it was compiled
        try:
            content = self._content(context)
        except LineError as error:
            raise LineError(f"{error.message} ({columns_of(row)})", error.hint) from error
        if self._options.image_column is not None:
            _add_images(content, row, self._options.image_column)
        return content

    def _metadata(self, row: dict[str, Any], excluded: frozenset[str]) -> dict[str, Any]:
        """The columns that are carried. Those of a `metadata` object are carried as they are, not inside another."""
        columns = self._options.columns
        if columns is not None:
            found = {name: row[name] for name in columns if name in row}
        elif excluded.isdisjoint(row):
            found = row
        else:
            found = row.copy()
            for name in excluded & row.keys():
                del found[name]
        inner = found.get("metadata")
        if type(inner) is not dict:
            return found
        found = {name: value for name, value in found.items() if name != "metadata"}
        if not inner.keys().isdisjoint(found):
            name = next(name for name in inner if name in found)
            raise LineError(f"there is a column `{name}`, and a field `{name}` in `metadata`", "choose with --columns")
        return {**inner, **found}


def _messages(
    system: Callable[[dict[str, Any]], str] | None, user: Callable[[dict[str, Any]], str]
) -> Callable[[dict[str, Any]], list[Any]]:
    def content(context: dict[str, Any]) -> list[Any]:
        asked = {"role": "user", "content": _not_blank(user(context))}
        text = "" if system is None else system(context)
        return [asked] if not text or text.isspace() else [{"role": "system", "content": text}, asked]

    return content


def _prompt(user: Callable[[dict[str, Any]], str]) -> Callable[[dict[str, Any]], str]:
    return lambda context: _not_blank(user(context))


def _not_blank(text: str) -> str:
    if not text or text.isspace():
        raise LineError("the template renders no text")
    return text


def _message_list(texts: Texts, text: str, name: str) -> Callable[[dict[str, Any]], list[Any]]:
    """Renders a list of messages.

    If the text itself is JSON, each string in it is a template, so that no column can change the structure.
    Otherwise it is one template, into which values are written as JSON.
    """
    try:
        value = load(text.encode())
    except ValueError:
        whole = texts.add(text, name, suffix=".json")
        return lambda context: _parsed(whole(context), name)
    if not isinstance(value, list) or not value:
        raise UsageError(f"{name} is not a list of messages", 'for example [{"role": "user", "content": "{{ text }}"}]')
    compiled = _compiled(texts, value, name)
    return lambda context: _filled(compiled, context)


def _compiled(texts: Texts, value: Any, name: str) -> Any:
    """A JSON value with functions in the places of the strings that are templates."""
    if isinstance(value, dict):
        if name_of_field := next((key for key in value if any(tag in key for tag in _TAGS)), None):
            raise UsageError(f"{name}: the name {shown(name_of_field)} is a template", "only values can be templates")
        return {key: _compiled(texts, item, name) for key, item in value.items()}
    if isinstance(value, list):
        return [_compiled(texts, item, name) for item in value]
    if isinstance(value, str) and any(tag in value for tag in _TAGS):
        return texts.add(value, f"{name}, in {shown(value)}")
    return value


def _filled(value: Any, context: dict[str, Any]) -> Any:
    if type(value) is dict:
        return {key: _filled(item, context) for key, item in value.items()}
    if type(value) is list:
        return [_filled(item, context) for item in value]
    return value(context) if callable(value) else value


def _parsed(rendered: str, name: str) -> list[Any]:
    try:
        messages = load(rendered.encode())
    except orjson.JSONDecodeError as error:
        around = rendered[max(error.pos - 30, 0) : error.pos + 10]
        raise LineError(
            f"{name} does not render a JSON list: {error.msg}, near {around!r}; values are written as JSON, so put no"
            " quotes around them"
        ) from error
    if not isinstance(messages, list):
        raise LineError(f"{name} does not render a JSON list of messages")
    return messages


def _add_images(messages: list[Any], row: Mapping[str, Any], column: str) -> None:
    """Add the pictures of a column to the last message of the user."""
    value = row.get(column)
    pictures = value if isinstance(value, list) else [value]
    if not pictures or not all(isinstance(each, str) and each for each in pictures):
        if value is None:
            raise LineError(f"--image-column: `{column}` is absent or empty: {columns_of(row)}")
        raise LineError(f"--image-column: `{column}` must have a path or URL, or a list of them")
    message = next((each for each in reversed(messages) if isinstance(each, dict) and each.get("role") == "user"), None)
    if message is None:
        raise LineError("--image-column: there is no message of the user to which the picture can be added")
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    message["content"] = [*parts, *({"type": "image_url", "image_url": {"url": each}} for each in pictures)]


def _parameter(name: str, value: Any) -> Any:
    """A parameter's value. A table may have text only: text that should be a number or a list is read as JSON."""
    if isinstance(value, str) and expected_type(name, value):
        try:
            read = load(value.encode())
        except ValueError:
            return value
        return value if expected_type(name, read) else read
    return value
