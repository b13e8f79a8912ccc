"""What a vLLM worker says of jobs with several prompts, and what it should not say. It imports nothing of batchrun."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

Output = list[dict[str, Any]]
Spoil = Callable[[Output], Output]
"""Makes a wrong output of a right one."""

BATCH_ROUTE = "/v1/chat/completions/batch"


def _failure(http_status: int, body: dict[str, Any]) -> str:
    said = f"vLLM returned HTTP {http_status}: {json.dumps(body, separators=(',', ':'))}"
    return str({"message": said, "type": "worker_error", "code": None})


def _error(http_status: int, message: str, kind: str, param: str | None = None) -> str:
    return _failure(http_status, {"error": {"message": message, "type": kind, "param": param, "code": http_status}})


POISONED = _error(
    400,
    "This model's maximum context length is 1024 tokens. However, your prompt contains at least 1025 input tokens, "
    "which exceeds this limit even without any output tokens. Please reduce the length of the input prompt. "
    "(parameter=input_tokens, value=1025)",
    "BadRequestError",
    "input_tokens",
)
"""The recorded error of a job one of whose prompts is too long. It does not say which."""
NO_ROUTE = _failure(404, {"detail": "Not Found"})
"""The recorded error of a job on a route that the model server does not have."""
AFTER_THE_WORK = _error(500, "Internal server error", "InternalServerError")
"""The error of a job one of whose prompts failed while its answer was generated."""


def request_of(job_input: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The route and the body that a job asks for."""
    if "openai_input" in job_input:
        return job_input.get("openai_route", "/v1/chat/completions"), job_input["openai_input"]
    own = {key: job_input[key] for key in ("prompt", "messages") if key in job_input}
    route = "/v1/completions" if "prompt" in own else "/v1/chat/completions"
    return route, {**own, **job_input.get("sampling_params", {})}


def is_pack(job_input: dict[str, Any]) -> bool:
    """Whether a job is a list of prompts or of chats, be it of one."""
    route, body = request_of(job_input)
    return route == BATCH_ROUTE or isinstance(body.get("prompt"), list)


def prompts_of(job_input: dict[str, Any]) -> list[str]:
    """The prompts of a job; of a chat the last message."""
    route, body = request_of(job_input)
    if "prompt" in body:
        return body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
    chats = body["messages"] if route == BATCH_ROUTE else [body["messages"]]
    return [chat[-1]["content"] for chat in chats]


def right(job_input: dict[str, Any]) -> Output:
    """The output of a job as it should be: a choice for each prompt, which says `to` and the prompt again."""
    route, body = request_of(job_input)
    is_chat = route != "/v1/completions"
    choices = []
    for index, prompt in enumerate(prompts_of(job_input)):
        text = f"to {prompt}"
        said = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
        choices.append({"index": index, **said, "finish_reason": "stop", "token_ids": None})
    made = 2 * len(choices)
    return [
        {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{body.get('request_id', 'of-ours')}",
            "object": "chat.completion" if is_chat else "text_completion",
            "created": 0,
            "model": "m",
            "choices": choices,
            "usage": {"prompt_tokens": len(choices), "completion_tokens": made, "total_tokens": len(choices) + made},
        }
    ]


def _changed(change: Callable[[dict[str, Any], list[dict[str, Any]]], None]) -> Spoil:
    def spoil(output: Output) -> Output:
        changed = deepcopy(output)
        change(changed[0], changed[0]["choices"])
        return changed

    return spoil


def _repeat_index(_: dict[str, Any], choices: list[dict[str, Any]]) -> None:
    choices[-1]["index"] = 0


one_short = _changed(lambda _, choices: choices.pop())
"""The last choice is missing."""
one_more = _changed(lambda _, choices: choices.append({**choices[-1], "index": len(choices)}))
"""There is a choice that no prompt stands for."""
repeated = _changed(_repeat_index)
"""The last choice has the index of the first."""
shuffled = _changed(lambda _, choices: choices.reverse())
"""The choices are in another order, which is right: the index decides."""
of_another = _changed(lambda answer, _: answer.update(id="chatcmpl-somebody-else"))
"""The answer to another request."""
aborted = _changed(lambda _, choices: choices[-1].update(finish_reason="abort"))
"""The last choice was not finished."""
