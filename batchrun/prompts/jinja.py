"""Jinja templates, by minijinja, which is imported when the first one is compiled.

A template sees values only: nothing of Python, no files, no other templates.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from batchrun.errors import UsageError
from batchrun.files.exactjson import dump
from batchrun.prompts.shapes import LineError

_FUEL = 10_000_000
"""Steps of one rendering: a second of work, so a template that never ends is an error."""
_FUNCTIONS = frozenset({"namespace", "range"})
"""The functions of Jinja. In a template that calls none, its name is that of a column."""
_MOST_BITS = 127
"""minijinja rounds larger integers."""


class Texts:
    """The templates of a run.

    Raises:
        UsageError: minijinja is not installed.
    """

    def __init__(self) -> None:
        try:
            import minijinja
        except ImportError as error:
            raise UsageError("a template needs minijinja", "pip install 'runpod-batchrun[data]'") from error
        # minijinja writes each value as JSON into a template whose name ends in .json, and as text into others.
        strict: Any = "semi_strict"  # strict, but `{% if name %}` may ask for what is undefined; its stub lacks it
        self._environment = minijinja.Environment(undefined_behavior=strict, fuel=_FUEL)
        self._environment.add_filter("tojson", lambda value, indent=None: minijinja.safe(_to_json(value, indent)))
        self._environment.add_filter("truncate", _truncate)
        for name in self._environment.globals.keys() - _FUNCTIONS:
            self._environment.remove_global(name)
        self._error = minijinja.TemplateError
        self._count = 0
        self.names: set[str] = set()
        """The columns that they use."""

    def add(self, text: str, name: str, *, suffix: str = "") -> Callable[[dict[str, Any]], str]:
        """Compile a text.

        Args:
            text: The template.
            name: Its name in messages.
            suffix: `.json`, if each value is written as JSON.

        Returns:
            Renders it with the columns that it uses.

        Raises:
            UsageError: it is not a template.
        """
        environment, own_name = self._environment, f"{self._count}{suffix}"
        self._count += 1
        try:
            environment.add_template(own_name, text)
        except self._error as error:
            raise UsageError(_explained(error, name, text), "fix the template") from error
        called = {function for function in _FUNCTIONS if re.search(rf"\b{function}\s*\(", text)}
        names = environment.undeclared_variables_in_template(own_name) - called
        self.names |= names
        render_template = environment.render_template

        def render(context: dict[str, Any]) -> str:
            try:
                rendered: str = render_template(own_name, **context)
            except Exception as error:
                raise LineError(_explained(error, name, text, sorted(names - context.keys()))) from error
            return rendered

        return render


def _explained(error: Exception, name: str, text: str, absent: Iterable[str] = ()) -> str:
    """What is wrong with a template, and where; `absent` are the columns that it uses and the row lacks."""
    what = getattr(error, "detail", None) or _OWN_PLACE.sub("", getattr(error, "message", None) or str(error))
    if getattr(error, "kind", None) == _OUT_OF_FUEL:
        what = "it runs for too long"
    span = getattr(error, "range", None)
    start = None if span is None else span[0]
    if isinstance(error, _UndefinedError):
        for column in absent:
            found = re.search(rf"\b{re.escape(column)}\b", text)
            if found is not None:
                what, start = f"`{column}` is undefined", len(text[: found.start()].encode())
                break
    if start is None:
        return f"{name}: {what}"
    before = text.encode()[:start].decode(errors="replace")
    return f"{name}, line {before.count(chr(10)) + 1}, column {len(before) - before.rfind(chr(10))}: {what}"


_OUT_OF_FUEL = "OutOfFuel"
_OWN_PLACE = re.compile(r" \(in [^)]*\)")
"""Where minijinja says that an error is: it knows the template by another name."""


class _UndefinedError(Exception):
    """A filter was given something that is undefined."""


def _to_json(value: Any, indent: int | None) -> str:
    """The filter `tojson`. minijinja's own escapes the characters of HTML, and takes what is undefined for null."""
    if value is None:
        raise _UndefinedError("`tojson` of something that is undefined")
    if indent is None:
        return dump(value).decode()
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _truncate(
    text: Any,
    length: int = 255,
    killwords: bool = False,  # noqa: FBT001, FBT002 - as Jinja has it
    end: str = "...",
    leeway: int = 5,
) -> str:
    """The filter `truncate`, as in Jinja. minijinja's own takes only names: `truncate(length=200)`."""
    if type(text) is not str:
        if text is None:
            raise _UndefinedError("`truncate` of something that is undefined")
        raise ValueError("`truncate` of something that is no text")
    if length < len(end):
        raise ValueError(f"`truncate` to fewer characters ({length}) than its end has ({len(end)})")
    if len(text) <= length + leeway:
        return text
    kept = text[: length - len(end)]
    return (kept if killwords else kept.rsplit(" ", 1)[0]) + end


class _Object(dict[str, Any]):
    """An object for templates, which cannot change it, and write it as JSON."""

    def __getattribute__(self, name: str) -> Any:
        if name in _READING_METHODS or name.startswith("__"):
            return super().__getattribute__(name)
        raise AttributeError(f"an object has no method `{name}`")

    def __repr__(self) -> str:
        return dump(dict(self)).decode()

    __str__ = __repr__


class _List(list[Any]):
    """A list for templates, which cannot change it, and write it as JSON."""

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__"):
            return super().__getattribute__(name)
        raise AttributeError(f"a list has no method `{name}`")

    def __repr__(self) -> str:
        return dump(list(self)).decode()

    __str__ = __repr__


_READING_METHODS = frozenset({"keys", "values", "items", "get"})


def frozen(value: Any) -> Any:
    """A value for a template, which cannot change it; objects are without their nulls."""
    kind = type(value)
    if kind is dict:
        return _Object({key: frozen(item) for key, item in value.items() if item is not None})
    if kind is list:
        return _List(map(frozen, value))
    if kind is int and value.bit_length() > _MOST_BITS:
        return str(value)
    return value
