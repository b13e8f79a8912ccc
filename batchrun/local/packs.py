"""Requests with several prompts: the single requests that they stand for, and one answer made of theirs. Pure.

As in vLLM, one prompt that is refused fails the whole request before anything is generated, and the answer counts the
tokens of all prompts together.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

from batchrun.local.shapes import answer_id
from batchrun.local.workers import BATCH_ROUTE, CHAT_ROUTE, COMPLETIONS_ROUTE, ModelCall, invalid, model_failure

_IGNORED = ("tools", "tool_choice", "stream", "stream_options")
"""What the route for several chats ignores."""
_OF_ONE_CHAT = ("prompt_logprobs", "prompt_token_ids", "prompt_text")


def split(call: ModelCall) -> list[ModelCall]:
    """One request for each prompt or conversation; a request on another route is returned as it is.

    Raises:
        WorkerFailure: vLLM would refuse the request, for one of its prompts or for all; with vLLM's own error.
    """
    if call.route == COMPLETIONS_ROUTE:
        prompts = _prompts(call.body.get("prompt"))
        return [call] if prompts is None else [ModelCall(call.route, {**call.body, "prompt": each}) for each in prompts]
    if call.route == BATCH_ROUTE:
        shared = {key: value for key, value in call.body.items() if key not in _IGNORED}
        own = shared.get("request_id")
        names: Iterator[dict[str, str]] = ({} if own is None else {"request_id": f"{own}-{n}"} for n in count())
        parts = zip(_conversations(call.body), names, strict=False)
        return [ModelCall(CHAT_ROUTE, {**shared, **name, "messages": each}) for each, name in parts]
    if call.route == CHAT_ROUTE and isinstance(call.body.get("messages"), list):
        _refuse_no_messages(call.body["messages"], "body.messages")
    return [call]


def joined(call: ModelCall, answers: list[dict[str, Any]]) -> dict[str, Any]:
    """The answer to a request with several prompts: the choices of all in their order, and the sum of their usages.

    Args:
        call: The request before `split`.
        answers: One for each of its parts, in their order.
    """
    whole = dict(answers[0])
    choices = [choice for answer in answers for choice in answer["choices"]]
    whole["choices"] = [{**choice, "index": index} for index, choice in enumerate(choices)]
    whole["usage"] = _summed([answer.get("usage") for answer in answers])
    whole |= {key: None for key in _OF_ONE_CHAT if key in whole}
    if call.body.get("request_id") is not None:
        whole["id"] = answer_id(call, "")
    return whole


def _prompts(prompt: Any) -> list[Any] | None:
    """The prompts of a list; None for a single prompt, which may be given as token numbers."""
    if not prompt:
        message = "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)"
        raise model_failure(400, message, param="prompt")
    if isinstance(prompt, str) or _is_tokens(prompt):
        return None
    if not isinstance(prompt, list):
        raise invalid("string_type", "body.prompt", "Input should be a valid string", prompt)
    for index, each in enumerate(prompt):
        if not isinstance(each, str) and not _is_tokens(each):
            raise invalid("string_type", f"body.prompt.{index}", "Input should be a valid string", each)
        if not each:
            raise model_failure(400, "The decoder prompt cannot be empty")
    return prompt


def _is_tokens(prompt: Any) -> bool:
    return isinstance(prompt, list) and all(type(each) is int for each in prompt)


def _conversations(body: dict[str, Any]) -> list[list[Any]]:
    copies, given = body.get("n"), body.get("messages")
    if copies is not None and copies != 1:
        message = f"Batch chat completions do not support `n > 1`. Please set `n` to 1. (parameter=n, value={copies})"
        raise model_failure(400, message, param="n")
    if not isinstance(given, list) or not given:
        raise invalid("list_type", "body.messages", "Input should be a valid list", given)
    for index, each in enumerate(given):
        if not isinstance(each, list):
            raise invalid("list_type", f"body.messages.{index}", "Input should be a valid list", each)
    for index, each in enumerate(given):
        _refuse_no_messages(each, f"body.messages.{index}")
    return given


def _refuse_no_messages(messages: list[Any], place: str) -> None:
    for index, each in enumerate(messages):
        if not isinstance(each, dict):
            raise invalid("dict_type", f"{place}.{index}", "Input should be a valid dictionary", each)


def _summed(usages: list[Any]) -> Any:
    """The sum of numbers, field by field; None where they are not all given."""
    if all(isinstance(each, dict) for each in usages):
        return {key: _summed([each.get(key) for each in usages]) for key in usages[0]}
    return sum(usages) if all(type(each) is int for each in usages) else None
