"""Build the request of a row: that of its line, with the options of the run and what was amended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from batchrun.config import RequestOptions
from batchrun.prompts.schemas import body_with_format, with_format
from batchrun.prompts.shapes import Prompt, Shape


def changes_requests(options: RequestOptions) -> bool:
    """Whether `build_request` makes a request other than that of its line, of some line."""
    return bool(options.override or options.default or options.chat or options.system or options.schema is not None)


def build_request(prompt: Prompt, options: RequestOptions) -> dict[str, Any]:
    """The `input` object to send: the line's request with the options applied.

    `--set` and `--default` go to the sampling parameters, or into the body of an OpenAI line. An `input` object gets
    them only if it is for vLLM, that is, if it has `prompt` or `messages`: other workers may not expect sampling
    parameters. `--chat` and `--system` do not change `input` objects. `--schema` asks for its format in the same
    places, unless the request asks for one of its own.
    """
    if not changes_requests(options):
        return prompt.request
    request = dict(prompt.request)
    match prompt.shape:
        case Shape.PROMPT:
            if (options.chat or options.system) and isinstance(request["prompt"], str):
                request = {"messages": [{"role": "user", "content": request.pop("prompt")}], **request}
                request["messages"] = _with_system(request["messages"], options.system)
        case Shape.MESSAGES:
            request["messages"] = _with_system(request["messages"], options.system)
        case Shape.OPENAI:
            body = {**options.default, **request["openai_input"], **options.override}
            if isinstance(body.get("messages"), list):
                body["messages"] = _with_system(body["messages"], options.system)
            request["openai_input"] = body_with_format(body, request["openai_route"], options.schema)
            return request
        case Shape.INPUT:
            if "prompt" not in request and "messages" not in request:
                return request
    own = request.get("sampling_params")
    if own is not None and not isinstance(own, dict):
        return request  # an `input` object may be for any worker, which may use this name for something else
    sampling = with_format({**options.default, **(own or {}), **options.override}, options.schema)
    if sampling:
        request["sampling_params"] = sampling
    return request


def with_turns(request: dict[str, Any], turns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A request with further messages after its own; a request without messages is returned unchanged."""
    if not turns:
        return request
    inner = request.get("openai_input", request)
    if not isinstance(inner, dict) or not isinstance(inner.get("messages"), list):
        return request
    inner = {**inner, "messages": [*inner["messages"], *turns]}
    return {**request, "openai_input": inner} if "openai_input" in request else inner


def prompt_chars(value: Any) -> int:
    """The number of characters of text in a request, without keys and media: an estimate of what the model reads."""
    total, stack = 0, [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, dict):
            stack.extend(v for k, v in item.items() if k not in _NO_TEXT_KEYS)
        elif isinstance(item, list):
            stack.extend(item)
    return total


_NO_TEXT_KEYS = frozenset(
    {"role", "type", "image_url", "input_audio", "audio_url", "video_url", "openai_route", "sampling_params", "model"}
)


def _with_system(messages: list[Any], system: str | None) -> list[Any]:
    first = messages[0] if messages else None
    if system is None or (isinstance(first, dict) and first.get("role") in ("system", "developer")):
        return messages
    return [{"role": "system", "content": system}, *messages]
