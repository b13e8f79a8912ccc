"""Collects the tool calls of an answer, in OpenAI's form: whole ones, and those that a stream has split. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any


class Pieces(list[str]):
    """A text whose pieces are joined at the end: appending them one by one takes quadratic time."""


class SplitCalls(dict[Any, dict[str, Any]]):
    """Tool calls by their index, from pieces."""

    def add(self, pieces: list[Any]) -> None:
        """Add pieces: the first piece of a call has its id and name, the others more of its arguments."""
        for piece in pieces:
            if not isinstance(piece, dict):
                continue
            index, function = piece.get("index"), piece.get("function")
            place = index if isinstance(index, (int, str)) else None
            function = function if isinstance(function, dict) else {}
            known = self.get(place)
            if known is None:
                named = {key: said for key, said in function.items() if said is not None}
                given = {"name": "", "arguments": "", **named}
                kept = {key: value for key, value in piece.items() if value is not None}
                self[place] = {"index": index, "id": "", "type": "function", **kept, "function": given}
                continue
            for key, value in function.items():
                if isinstance(value, str):
                    said = known["function"].get(key)
                    if type(said) is not Pieces:
                        said = known["function"][key] = Pieces([f"{said or ''}"])
                    said.append(value)

    def whole(self) -> list[dict[str, Any]]:
        """The calls with their pieces joined."""
        return [{**call, "function": joined(call["function"])} for call in self.values()]


def joined(fields: Mapping[str, Any]) -> dict[str, Any]:
    """An object with its split texts and calls joined."""
    whole: dict[str, Any] = {}
    for key, value in fields.items():
        if type(value) is Pieces:
            whole[key] = "".join(value)
        else:
            whole[key] = value.whole() if type(value) is SplitCalls else value
    return whole


def tool_calls_in(messages: Iterable[Mapping[str, Any]]) -> list[Any]:
    """The tool calls in the messages, deltas or items of one choice, in order.

    Those of a chat are as the worker sent them. Those of the Responses and the Messages API, and a `function_call` of
    old, get the form of a chat's.
    """
    found: list[Any] = []
    split = SplitCalls()
    for said in messages:
        calls = said.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            if isinstance(call, dict) and isinstance(call.get("index"), int):
                split.add([call])
            else:
                found.append(call)
        old = said.get("function_call")
        if isinstance(old, dict):
            split.add([{"index": "function_call", "function": old}])
        found += _items(said)
    for call in split.whole():
        found.append({key: value for key, value in call.items() if key != "index" and value != ""})
    return found


def _items(said: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    content = said.get("content")
    for item in (said, *(content if isinstance(content, list) else ())):
        kind = item.get("type") if isinstance(item, dict) else None
        if kind == "function_call":
            yield _call(item.get("call_id"), item.get("name"), item.get("arguments"))
        elif kind == "tool_use":
            yield _call(item.get("id"), item.get("name"), item.get("input"))


def _call(call_id: Any, name: Any, arguments: Any) -> dict[str, Any]:
    try:
        written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    except RecursionError:
        written = ""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": written}}
