"""A worker without a model: answers immediately with the prompt itself, in worker-vllm's current shape."""

from __future__ import annotations

from typing import Any

from batchrun.local.routes import other_answer
from batchrun.local.workers import CHAT_ROUTE, COMPLETIONS_ROUTE, ModelCall, model_call

_MODEL = "echo"
_DEFAULT_MAX_TOKENS = 1_000_000


class EchoWorker:
    """Returns the prompt; a word counts as a token. An input that is not a prompt is returned as `{"echo": input}`."""

    name = "echo"
    parallel = 8

    async def start(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""

    async def run(self, request: dict[str, Any]) -> Any:
        """See `answer`."""
        return self.answer(request)

    def answer(self, request: dict[str, Any]) -> Any:
        """The output for a job's input.

        Raises:
            WorkerFailure: vLLM would refuse a sampling value, or the echo does not support the route.
        """
        call = model_call(request)
        if call is None:
            return {"echo": request}
        is_completion = call.route in (CHAT_ROUTE, COMPLETIONS_ROUTE)
        return [_completion(call) if is_completion else other_answer(call, _MODEL)]


def _completion(call: ModelCall) -> dict[str, Any]:
    body, is_chat = call.body, call.route == CHAT_ROUTE
    prompts = _prompts(body)
    most = body.get("max_completion_tokens") or body.get("max_tokens") or _DEFAULT_MAX_TOKENS
    copies = body.get("n") if isinstance(body.get("n"), int) else 1
    choices: list[dict[str, Any]] = []
    made = 0
    for prompt in prompts:
        words = prompt.split()
        said = " ".join(words[:most])
        for _ in range(max(copies or 1, 1)):
            made += min(len(words), most)
            choice: dict[str, Any] = {"index": len(choices)}
            choice |= {"message": {"role": "assistant", "content": said}} if is_chat else {"text": said}
            choice["finish_reason"] = "length" if len(words) > most else "stop"
            choices.append(choice)
    used = sum(len(prompt.split()) for prompt in prompts)
    return {
        "id": f"{'chatcmpl' if is_chat else 'cmpl'}-echo",
        "object": "chat.completion" if is_chat else "text_completion",
        "model": body.get("model", _MODEL),
        "choices": choices,
        "usage": {"prompt_tokens": used, "completion_tokens": made, "total_tokens": used + made},
    }


def _prompts(body: dict[str, Any]) -> list[str]:
    """The texts to return: each prompt, or the last message."""
    if "prompt" in body:
        prompt = body["prompt"]
        return [str(text) for text in prompt] if isinstance(prompt, list) else [str(prompt)]
    messages = body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else {}
    content = last.get("content", "") if isinstance(last, dict) else last
    if isinstance(content, list):
        content = " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return [str(content)]
