"""The model server's answers on the routes that complete prompts, with every field that vLLM gives. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from batchrun.local.workers import COMPLETIONS_ROUTE, ModelCall

_MESSAGE = {
    "role": "assistant",
    "content": None,
    "refusal": None,
    "annotations": None,
    "audio": None,
    "function_call": None,
    "reasoning": None,
}
_OF_CHATS = {"prompt_logprobs": None, "prompt_token_ids": None, "prompt_text": None}
_LAST = {"kv_transfer_params": None, "ec_transfer_params": None, "metrics": None}


def choice(
    said: str | Mapping[str, Any],
    finish_reason: str | None,
    *,
    logprobs: Any = None,
    stop_reason: Any = None,
    token_ids: Sequence[int] | None = None,
    prompt_token_ids: Sequence[int] | None = None,
) -> dict[str, Any]:
    """One choice of an answer.

    Args:
        said: The text of a completion; or the message of a chat, as far as its fields are not null.
        finish_reason: Why the model stopped.
        logprobs: As the model server gives them.
        stop_reason: The stop text or token that was met.
        token_ids: Numbers of the tokens, if the request asked for them.
        prompt_token_ids: Those of the prompt; in a chat they are not part of a choice.
    """
    if isinstance(said, str):
        return {
            "index": 0,
            "text": said,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
            "stop_reason": stop_reason,
            "token_ids": token_ids,
            "prompt_logprobs": None,
            "prompt_token_ids": prompt_token_ids,
            "routed_experts": None,
        }
    return {
        "index": 0,
        "message": {**_MESSAGE, **said},
        "logprobs": logprobs,
        "finish_reason": finish_reason,
        "stop_reason": stop_reason,
        "token_ids": token_ids,
        "routed_experts": None,
    }


def answer(
    call: ModelCall,
    choices: list[dict[str, Any]],
    *,
    model: str,
    number: str,
    created: int,
    tokens: tuple[int, int],
    prompt_token_ids: Sequence[int] | None = None,
) -> dict[str, Any]:
    """The answer to a request.

    Args:
        call: The request.
        choices: Made by `choice`; they are numbered here.
        model: Name of the model.
        number: Ends the answer's `id`, unless the request has a `request_id`.
        created: Seconds since the epoch.
        tokens: How many the prompts had, and how many were made.
        prompt_token_ids: Numbers of the tokens of a single chat, if the request asked for them.
    """
    is_chat = call.route != COMPLETIONS_ROUTE
    used, made = tokens
    for index, each in enumerate(choices):
        each["index"] = index
    return {
        "id": answer_id(call, number),
        "object": "chat.completion" if is_chat else "text_completion",
        "created": created,
        "model": model,
        "choices": choices,
        "service_tier": None,
        "system_fingerprint": None,
        "usage": {
            "prompt_tokens": used,
            "total_tokens": used + made,
            "completion_tokens": made,
            "prompt_tokens_details": None,
            "completion_tokens_details": None,
        },
        **({**_OF_CHATS, "prompt_token_ids": prompt_token_ids} if is_chat else {}),
        **_LAST,
    }


def answer_id(call: ModelCall, number: str) -> str:
    """The `id` of an answer: it ends in the request's own `request_id`, or else in `number`."""
    own = call.body.get("request_id")
    return f"{'cmpl' if call.route == COMPLETIONS_ROUTE else 'chatcmpl'}-{number if own is None else own}"
