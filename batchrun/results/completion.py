"""An answer as an OpenAI object: the worker's own where it gave one, else built from what it gave. Pure.

What a worker leaves out of its own object and a strict reader needs is added; a value that no strict reader takes is
put right. What came stays beside it in the record, so nothing is lost.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from batchrun.results.chunks import chunks_of, merge

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CHAT_ROUTE = "/v1/chat/completions"
COMPLETIONS_ROUTE = "/v1/completions"
_TEXT_REASONS = frozenset({"stop", "length", "content_filter"})
_CHAT_REASONS = _TEXT_REASONS | {"tool_calls", "function_call"}
_OTHER_REASONS = {"max_tokens": "length", "max_output_tokens": "length", "tool_use": "tool_calls"}
"""What some servers say; any other word means that the model stopped by itself, as far as OpenAI's words go."""
_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")


class Asked(NamedTuple):
    """What a request asked for."""

    route: str = CHAT_ROUTE
    model: str | None = None
    """None: it named none."""


class Body(NamedTuple):
    """The object for an answer."""

    value: dict[str, Any]
    added: list[str] | None
    """The fields of it that the worker's own object did not have; None: it is not the worker's own."""


def asked_of(request: Mapping[str, Any]) -> Asked:
    """What a job's `input` object asked for."""
    body, sampling = request.get("openai_input"), request.get("sampling_params")
    if isinstance(body, dict):
        route = request.get("openai_route")
        return Asked(route if isinstance(route, str) else CHAT_ROUTE, _model(body))
    route = COMPLETIONS_ROUTE if "prompt" in request and "messages" not in request else CHAT_ROUTE
    return Asked(route, _model(sampling) if isinstance(sampling, dict) else _model(request))


def _model(fields: Mapping[str, Any]) -> str | None:
    model = fields.get("model")
    return model if isinstance(model, str) else None


def body_of(record: Mapping[str, Any], asked: Callable[[], Asked]) -> Body:
    """The OpenAI object for the answer in a record of a results file.

    Args:
        record: As `result_line` makes it.
        asked: What its request asked for; called only when the answer alone does not tell.
    """
    output = record["output"]
    own = only_part(output)
    if own is not None:
        if _is_completion(own):
            return _completed(own, record, asked)
        if asked().route not in (CHAT_ROUTE, COMPLETIONS_ROUTE):
            return Body(own, [])
    chunks = chunks_of(output)
    if chunks and _is_completion(merged := merge(chunks)):
        return Body(_completed(merged, record, asked).value, None)
    return Body(_completed(_built(record, asked()), record, asked).value, None)


def only_part(output: Any) -> dict[str, Any] | None:
    """The object that an output is, or the only one in its list; None when it is anything else."""
    if isinstance(output, list) and len(output) == 1:
        output = output[0]
    return output if isinstance(output, dict) else None


def _is_completion(part: dict[str, Any]) -> bool:
    choices = part.get("choices")
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, dict) for choice in choices):
        return False
    return _is_chat(choices) or all(isinstance(choice.get("text"), str) for choice in choices)


def _is_chat(choices: list[dict[str, Any]]) -> bool:
    return all(isinstance(choice.get("message"), dict) for choice in choices)


def _completed(own: dict[str, Any], record: Mapping[str, Any], asked: Callable[[], Asked]) -> Body:
    """A completion with all that a strict reader needs; nothing that is well is changed."""
    is_chat = _is_chat(own["choices"])
    job = record["job"]
    body = dict(own)
    if not isinstance(own.get("id"), str):
        body["id"] = f"{'chatcmpl' if is_chat else 'cmpl'}-{job['id']}"
    if own.get("object") != (kind := "chat.completion" if is_chat else "text_completion"):
        body["object"] = kind
    if type(own.get("created")) is not int:
        body["created"] = _epoch_s(job["completed_at"])
    if not isinstance(own.get("model"), str):
        body["model"] = asked().model or job["endpoint"]
    choices = [_choice(choice, position, is_chat=is_chat) for position, choice in enumerate(own["choices"])]
    is_own = all(new is old for new, old in zip(choices, own["choices"], strict=True))
    if not is_own:
        body["choices"] = choices
    if not _is_usage(own.get("usage")):
        body["usage"] = _usage(record["usage"])
    added = [name for name in body if name not in own]
    is_own = is_own and all(body[name] is own[name] for name in own)
    return Body(body, added if is_own else None)


def _choice(choice: dict[str, Any], position: int, *, is_chat: bool) -> dict[str, Any]:
    """A choice as a strict reader takes it: itself if it is well."""
    changed: dict[str, Any] = {}
    if type(choice.get("index")) is not int:
        changed["index"] = position
    reason, known = choice.get("finish_reason"), _CHAT_REASONS if is_chat else _TEXT_REASONS
    if not isinstance(reason, str) or reason not in known:
        other = _OTHER_REASONS.get(reason, "stop") if isinstance(reason, str) else "stop"
        changed["finish_reason"] = other if other in known else "stop"
    if is_chat:
        message = choice["message"]
        if message.get("role") != "assistant":
            changed["message"] = {**message, "role": "assistant"}
        content = message.get("content")
        if content is not None and not isinstance(content, str):
            changed["message"] = {**message, "role": "assistant", "content": _content(content)}
    return {**choice, **changed} if changed else choice


def _content(content: Any) -> str:
    """A message's content that is no string: the texts of its parts, or what it is as JSON."""
    parts = content if isinstance(content, list) else []
    texts = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
    return "".join(texts) if texts else json.dumps(content, ensure_ascii=False)


def _built(record: Mapping[str, Any], asked: Asked) -> dict[str, Any]:
    """A completion from a record's texts; an answer without any text is given as JSON."""
    texts = record.get("texts") or [record["text"]]
    if texts == [None] and not _has_choices(record["output"]):
        texts = [json.dumps(record["output"], ensure_ascii=False)]
    is_chat = asked.route != COMPLETIONS_ROUTE
    choices = []
    for index, text in enumerate(texts):
        said = {"message": {"role": "assistant", "content": text or ""}} if is_chat else {"text": text or ""}
        choices.append({"index": index, **said, "logprobs": None, "finish_reason": record["finish_reason"]})
    # In OpenAI's order; what stands here as None is filled in.
    fields = dict.fromkeys(("id", "object", "created", "model"))
    return {**fields, "choices": choices, "usage": None}


def _has_choices(output: Any) -> bool:
    parts = output if isinstance(output, list) else [output]
    return any(isinstance(part, dict) and "choices" in part for part in parts)


def _is_usage(usage: Any) -> bool:
    return isinstance(usage, dict) and all(type(usage.get(name)) is int for name in _COUNTS)


def _usage(usage: Mapping[str, int | None]) -> dict[str, int]:
    """A record's usage in OpenAI's words. What the worker did not say is 0: readers add it up without a look."""
    used, made = usage["input_tokens"] or 0, usage["output_tokens"] or 0
    return dict(zip(_COUNTS, (used, made, used + made), strict=True))


def _epoch_s(iso: str | None) -> int:
    return 0 if iso is None else int(datetime.fromisoformat(iso).timestamp())
