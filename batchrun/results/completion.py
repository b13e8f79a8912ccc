"""An answer as an OpenAI object: the worker's own if it returned one, else built from its output. Pure.

Fields that a strict reader needs and the worker left out are added; values that a strict reader rejects are corrected.
The record also keeps the output as received, so nothing is lost.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from math import inf
from typing import Any, NamedTuple

from batchrun.results.chunks import chunks_of, merge
from batchrun.results.text import Text, reason_of

CHAT_ROUTE = "/v1/chat/completions"
COMPLETIONS_ROUTE = "/v1/completions"
_OTHER_REASONS = {
    **dict.fromkeys(("max_tokens", "max_output_tokens"), "length"),
    **dict.fromkeys(("end_turn", "eos", "eos_token", "stop_sequence"), "stop"),
    **dict.fromkeys(("refusal", "safety"), "content_filter"),
    "tool_use": "tool_calls",
}
"""The words of some servers. Any other word is kept: `stop` would claim that the answer is complete."""
_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")


class RequestTarget(NamedTuple):
    """The route and the model of a request."""

    route: str = CHAT_ROUTE
    model: str | None = None
    """None if it named no model."""


class Body(NamedTuple):
    """The object for an answer."""

    value: dict[str, Any]
    added: list[str] | None
    """The fields that were added to the worker's own object; None if it is not the worker's own."""


def target_of(request: Mapping[str, Any]) -> RequestTarget:
    """The route and the model of a job's `input` object."""
    body, sampling = request.get("openai_input"), request.get("sampling_params")
    if isinstance(body, dict):
        route = request.get("openai_route")
        return RequestTarget(route if isinstance(route, str) else CHAT_ROUTE, _model(body))
    route = COMPLETIONS_ROUTE if "prompt" in request and "messages" not in request else CHAT_ROUTE
    return RequestTarget(route, _model(sampling) if isinstance(sampling, dict) else _model(request))


def most_tokens(request: Mapping[str, Any]) -> float | None:
    """How many tokens a job's `input` object allows for each choice.

    Infinite for a chat without a limit: vLLM then uses the rest of the context. None for the server's own default,
    which is 16 for completions (vLLM), or for a limit that is not understood.
    """
    body, sampling = request.get("openai_input"), request.get("sampling_params")
    fields = body if isinstance(body, dict) else sampling if isinstance(sampling, dict) else {}
    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        limit = fields.get(name)
        if limit is not None:
            return limit if type(limit) is int else None
    return inf if "messages" in request or "messages" in fields else None


def is_context_full(text: Text, most_tokens: float | None) -> bool:
    """Whether a text was cut off before it reached its token limit, because the model's context was full.

    False if some choices ended otherwise: the tokens of a single choice are unknown.
    """
    if most_tokens is None or text.output_tokens is None or set(text.finish_reasons) != {"length"}:
        return False
    return text.output_tokens < most_tokens * len(text.finish_reasons)


def _model(fields: Mapping[str, Any]) -> str | None:
    model = fields.get("model")
    return model if isinstance(model, str) else None


def body_of(record: Mapping[str, Any], target: Callable[[], RequestTarget]) -> Body:
    """The OpenAI object for the answer in a record of a results file.

    Args:
        record: As `result_line` makes it.
        target: Returns the route and model of its request; called only if the answer alone does not tell.
    """
    output = record["output"]
    own = only_part(output)
    if own is not None:
        if _is_completion(own):
            return _completed(own, record, target)
        if target().route not in (CHAT_ROUTE, COMPLETIONS_ROUTE):
            return Body(own, [])
    chunks = chunks_of(output)
    if chunks and _is_completion(merged := merge(chunks)):
        return Body(_completed(merged, record, target).value, None)
    return Body(_completed(_built(record, target()), record, target).value, None)


def only_part(output: Any) -> dict[str, Any] | None:
    """The output if it is an object, or the only object in its list; None if it is anything else."""
    if isinstance(output, list) and len(output) == 1:
        output = output[0]
    return output if isinstance(output, dict) else None


def model_of(output: Any) -> str | None:
    """The model that an answer names; None if it names none."""
    own = only_part(output)
    return next(filter(None, map(_model, chunks_of(output)[:1] if own is None else [own])), None)


def _is_completion(part: dict[str, Any]) -> bool:
    choices = part.get("choices")
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, dict) for choice in choices):
        return False
    return _is_chat(choices) or all(isinstance(choice.get("text"), str) for choice in choices)


def _is_chat(choices: list[dict[str, Any]]) -> bool:
    return all(isinstance(choice.get("message"), dict) for choice in choices)


def _completed(own: dict[str, Any], record: Mapping[str, Any], target: Callable[[], RequestTarget]) -> Body:
    """A completion with everything that a strict reader needs; valid values are unchanged."""
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
        body["model"] = target().model or job["endpoint"]
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
    """A choice that a strict reader accepts: the same object if it is valid already."""
    changed: dict[str, Any] = {}
    if type(choice.get("index")) is not int:
        changed["index"] = position
    said = choice.get("finish_reason")
    reason = reason_of(said)
    reason = "stop" if reason is None else _OTHER_REASONS.get(reason, reason)
    if reason != said:
        changed["finish_reason"] = reason
    if is_chat:
        message = choice["message"]
        if message.get("role") != "assistant":
            changed["message"] = {**message, "role": "assistant"}
        content = message.get("content")
        if content is not None and not isinstance(content, str):
            changed["message"] = {**message, "role": "assistant", "content": _content(content)}
    return {**choice, **changed} if changed else choice


def _content(content: Any) -> str:
    """The text of a message's content that is not a string: the texts of its parts, or the content as JSON."""
    parts = content if isinstance(content, list) else []
    texts = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
    return "".join(texts) if texts else json.dumps(content, ensure_ascii=False)


def _built(record: Mapping[str, Any], target: RequestTarget) -> dict[str, Any]:
    """A completion built from a record's texts; an answer without any text is shown as JSON."""
    texts = record.get("texts") or [record["text"]]
    if texts == [None] and not _has_choices(record["output"]):
        texts = [json.dumps(record["output"], ensure_ascii=False)]
    is_chat = target.route != COMPLETIONS_ROUTE
    reasons = record.get("finish_reasons") or [record["finish_reason"]] * len(texts)
    choices = []
    for index, text in enumerate(texts):
        said = {"message": {"role": "assistant", "content": text or ""}} if is_chat else {"text": text or ""}
        choices.append({"index": index, **said, "logprobs": None, "finish_reason": reasons[index]})
    # In OpenAI's order; the None values are filled in later.
    fields = dict.fromkeys(("id", "object", "created", "model"))
    return {**fields, "choices": choices, "usage": None}


def _has_choices(output: Any) -> bool:
    parts = output if isinstance(output, list) else [output]
    return any(isinstance(part, dict) and "choices" in part for part in parts)


def _is_usage(usage: Any) -> bool:
    return isinstance(usage, dict) and all(type(usage.get(name)) is int for name in _COUNTS)


def _usage(usage: Mapping[str, int | None]) -> dict[str, int]:
    """A record's usage with OpenAI's names. Unreported counts are 0: readers add them up without checking for null."""
    used, made = usage["input_tokens"] or 0, usage["output_tokens"] or 0
    return dict(zip(_COUNTS, (used, made, used + made), strict=True))


def _epoch_s(iso: str | None) -> int:
    return 0 if iso is None else int(datetime.fromisoformat(iso).timestamp())
