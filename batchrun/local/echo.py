"""A worker without a model: answers immediately with the prompt itself, in worker-vllm's current shape."""

from __future__ import annotations

from typing import Any
from zlib import crc32

from batchrun.local.packs import split
from batchrun.local.routes import other_answer
from batchrun.local.shapes import answer, choice
from batchrun.local.workers import CHAT_ROUTE, COMPLETIONS_ROUTE, ModelCall, WorkerFailure, model_call, model_failure

_MODEL = "echo"
_UNLIMITED_TOKENS = 100_000_000
_VOCABULARY = 49_152
"""Number of tokens that have a number."""


class EchoWorker:
    """Returns the prompt; a word counts as a token. An input that is not a prompt is returned as `{"echo": input}`.

    Args:
        context: How many words a prompt and its answer may have together; a longer prompt is refused.
    """

    name = "echo"
    parallel = 8
    _context = _UNLIMITED_TOKENS  # of subclasses with an `__init__` of their own

    def __init__(self, context: int = _UNLIMITED_TOKENS) -> None:
        self._context = context

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
            WorkerFailure: vLLM would refuse the request, or the echo does not support the route.
        """
        call = model_call(request)
        if call is None:
            return {"echo": request}
        singles = split(call)
        if singles[0].route not in (CHAT_ROUTE, COMPLETIONS_ROUTE):
            return [other_answer(call, _MODEL)]
        return [_completion(call, singles, self._context)]


def _completion(call: ModelCall, singles: list[ModelCall], context: int) -> dict[str, Any]:
    """The answer to a request that consists of these single prompts or conversations."""
    body, is_chat = call.body, singles[0].route == CHAT_ROUTE
    most = body.get("max_completion_tokens") or body.get("max_tokens") or context
    given = body.get("n")
    copies = max(given, 1) if isinstance(given, int) else 1
    has_ids = bool(body.get("return_token_ids"))
    choices: list[dict[str, Any]] = []
    used = made = 0
    prompt_ids = None
    for single in singles:
        words = _prompt(single.body).split()
        if len(words) > context:
            raise _too_long(context)
        said = words[: min(most, context - len(words))]
        text = " ".join(said)
        ids, prompt_ids = (_ids(said), _ids(words)) if has_ids else (None, None)
        reason = "length" if len(words) > len(said) else "stop"
        message = {"content": text} if is_chat else text
        choices += [choice(message, reason, token_ids=ids, prompt_token_ids=prompt_ids) for _ in range(copies)]
        used += len(words)
        made += len(said) * copies
    return answer(
        call,
        choices,
        model=body.get("model", _MODEL),
        number="echo",
        created=0,
        tokens=(used, made),
        prompt_token_ids=prompt_ids if call.route == CHAT_ROUTE else None,
    )


def _too_long(context: int) -> WorkerFailure:
    message = (
        f"This model's maximum context length is {context} tokens. However, your prompt contains at least "
        f"{context + 1} input tokens, which exceeds this limit even without any output tokens. Please reduce the "
        f"length of the input prompt. (parameter=input_tokens, value={context + 1})"
    )
    return model_failure(400, message, param="input_tokens")


def _ids(words: list[str]) -> list[int]:
    """A number for each word that depends only on the word."""
    return [crc32(word.encode("utf-8", "surrogatepass")) % _VOCABULARY for word in words]


def _prompt(body: dict[str, Any]) -> str:
    """The text to return: the prompt, or the last message."""
    if "prompt" in body:
        prompt = body["prompt"]
        return " ".join(map(str, prompt)) if isinstance(prompt, list) else str(prompt)
    messages = body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else {}
    content = last.get("content", "") if isinstance(last, dict) else last
    if isinstance(content, list):
        content = " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content)
