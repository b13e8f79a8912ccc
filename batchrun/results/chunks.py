"""Merges the chunks of a streamed chat completion or text completion into one object. Pure."""

from __future__ import annotations

from typing import Any

from batchrun.files.event_stream import events, is_all_text
from batchrun.results.tool_calls import Pieces, SplitCalls, joined


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
    whole = joined(choice)
    if "message" in whole:
        whole["message"] = joined(whole["message"])
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
            choice.setdefault("text", Pieces()).append(value)
        elif key == "logprobs" and isinstance(value, dict):
            _extend(choice.setdefault("logprobs", {}), value)
        elif key not in ("index", "delta", "text", "logprobs") and value is not None:
            choice[key] = value


def _add_delta(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for key, value in delta.items():
        known = message.get(key)
        if key == "tool_calls" and isinstance(value, list):
            if type(known) is not SplitCalls:
                known = message[key] = SplitCalls()
            known.add(value)
        elif key == "role":
            continue
        elif isinstance(value, str):
            if type(known) is not Pieces:
                known = message[key] = Pieces()
            known.append(value)
        elif value is not None:
            message[key] = value


def _extend(logprobs: dict[str, Any], more: dict[str, Any]) -> None:
    for key, value in more.items():
        known = logprobs.get(key)
        if isinstance(value, list) and isinstance(known, list):
            known += value
        else:
            logprobs[key] = list(value) if isinstance(value, list) else value
