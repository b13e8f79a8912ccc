"""Merges the chunks of a streamed chat completion or text completion into one object. Pure."""

from __future__ import annotations

from typing import Any

from batchrun.files.event_stream import events, is_all_text


def chunks_of(output: Any) -> list[dict[str, Any]]:
    """The chunks that an output consists of; empty if it is anything else.

    They may be server-sent events in strings that are split anywhere, lists of objects, or objects.
    """
    parts = output if isinstance(output, list) else [output]
    if is_all_text(parts):
        chunks = list(events("".join(parts)))
    else:
        chunks = []
        for part in parts:
            chunks += part if isinstance(part, list) else [part]
    return chunks if any(map(_has_choices, chunks)) and all(map(_is_chunk, chunks)) else []


class _Text(list[str]):
    """A text whose pieces are joined at the end: appending them one by one takes quadratic time."""


class _Calls(dict[Any, dict[str, Any]]):
    """Tool calls by their index."""


def merge(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """The answer in some chunks: texts and tool calls joined, the last usage, the first value of any other field."""
    whole: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    usage = None
    for chunk in chunks:
        for key, value in chunk.items():
            if key not in ("choices", "usage", "object") and value is not None:
                whole.setdefault(key, value)
        usage = chunk.get("usage") or usage
        for position, piece in enumerate(chunk.get("choices") or ()):
            index = piece.get("index")
            index = index if type(index) is int else position
            _add_piece(choices.setdefault(index, {"index": index}), piece)
    whole["choices"] = [_whole(choices[index]) for index in sorted(choices)]
    if usage is not None:
        whole["usage"] = usage
    return whole


def _whole(choice: dict[str, Any]) -> dict[str, Any]:
    """A choice with the pieces of each text joined."""
    whole = _joined(choice)
    if "message" in whole:
        whole["message"] = _joined(whole["message"])
    return whole


def _joined(fields: dict[str, Any]) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    for key, value in fields.items():
        if type(value) is _Text:
            whole[key] = "".join(value)
        elif type(value) is _Calls:
            whole[key] = [{**call, "function": _joined(call["function"])} for call in value.values()]
        else:
            whole[key] = value
    return whole


def _has_choices(chunk: Any) -> bool:
    return isinstance(chunk, dict) and bool(chunk.get("choices"))


def _is_chunk(chunk: Any) -> bool:
    """Whether it is a chunk of an answer; the last chunk may have usage and an empty list of choices."""
    if not isinstance(chunk, dict) or not isinstance(chunk.get("choices"), list):
        return False
    return all(
        isinstance(choice, dict)
        and "message" not in choice
        and (isinstance(choice.get("delta"), dict) or isinstance(choice.get("text"), str))
        for choice in chunk["choices"]
    )


def _add_piece(choice: dict[str, Any], piece: dict[str, Any]) -> None:
    for key, value in piece.items():
        if key == "delta" and isinstance(value, dict):
            _add_delta(choice.setdefault("message", {"role": "assistant", "content": None}), value)
        elif key == "text" and isinstance(value, str):
            choice.setdefault("text", _Text()).append(value)
        elif key == "logprobs" and isinstance(value, dict):
            _extend(choice.setdefault("logprobs", {}), value)
        elif key not in ("index", "delta", "text", "logprobs") and value is not None:
            choice[key] = value


def _add_delta(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for key, value in delta.items():
        known = message.get(key)
        if key == "tool_calls" and isinstance(value, list):
            if type(known) is not _Calls:
                known = message[key] = _Calls()
            _add_calls(known, value)
        elif key == "role":
            continue
        elif isinstance(value, str):
            if type(known) is not _Text:
                known = message[key] = _Text()
            known.append(value)
        elif value is not None:
            message[key] = value


def _add_calls(calls: _Calls, pieces: list[Any]) -> None:
    """Add pieces of tool calls: the first piece of a call has its id and name, the others more of its arguments."""
    for piece in pieces:
        if not isinstance(piece, dict):
            continue
        index, function = piece.get("index"), piece.get("function")
        place = index if isinstance(index, (int, str)) else None
        function = function if isinstance(function, dict) else {}
        known = calls.get(place)
        if known is None:
            given = {"name": "", "arguments": "", **{key: said for key, said in function.items() if said is not None}}
            kept = {key: value for key, value in piece.items() if value is not None}
            calls[place] = {"index": index, "id": "", "type": "function", **kept, "function": given}
            continue
        for key, value in function.items():
            if isinstance(value, str):
                said = known["function"].get(key)
                if type(said) is not _Text:
                    said = known["function"][key] = _Text([f"{said or ''}"])
                said.append(value)


def _extend(logprobs: dict[str, Any], more: dict[str, Any]) -> None:
    for key, value in more.items():
        known = logprobs.get(key)
        if isinstance(value, list) and isinstance(known, list):
            known += value
        else:
            logprobs[key] = list(value) if isinstance(value, list) else value
