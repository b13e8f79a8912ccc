"""The chat in a request: its messages, what its user said last, and both with the answer appended. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def messages_of(request: Mapping[str, Any]) -> list[Any] | None:
    """The messages of a job's `input` object; a prompt counts as one of the user. None if it has neither."""
    body = request.get("openai_input")
    fields = body if isinstance(body, dict) else request
    messages = fields.get("messages")
    if isinstance(messages, list) and messages:
        return messages
    said = fields.get("prompt") if messages is None else None
    if said is None and body is not None:
        said = fields.get("input")  # of the Responses API, or of one that makes no text
    if isinstance(said, str):
        return [{"role": "user", "content": said}]
    is_chat = isinstance(said, list) and said and all(isinstance(each, dict) and "role" in each for each in said)
    return said if is_chat else None


def prompt_of(request: Mapping[str, Any]) -> Any:
    """The text of the user's last message, or the prompt; None if there is none."""
    if "messages" not in request and isinstance(prompt := request.get("prompt"), str):
        return prompt
    for message in reversed(messages_of(request) or ()):
        if isinstance(message, dict) and message.get("role") == "user":
            return _text(message.get("content"))
    body = request.get("openai_input")
    fields = body if isinstance(body, dict) else request
    prompt = fields.get("prompt", fields.get("input"))
    return prompt if isinstance(prompt, list) else None


def answered(request: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The chat of a request and its answer, as a line for fine-tuning; None if there is no chat or no answer.

    It has the answer's tool calls, and then the request's `tools`, too.
    """
    messages, text, calls = messages_of(request), record.get("text"), record.get("tool_calls")
    if messages is None or not (text or calls):
        return None
    answer: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        answer["tool_calls"] = calls
    line: dict[str, Any] = {"messages": [*messages, answer]}
    body, sampling = request.get("openai_input"), request.get("sampling_params")
    for fields in (body, sampling, request):
        if isinstance(fields, dict) and isinstance(fields.get("tools"), list):
            line["tools"] = fields["tools"]
            break
    return line


def _text(content: Any) -> str | None:
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        return "\n".join(text for text in texts if isinstance(text, str)) or None
    return content if isinstance(content, str) else None
