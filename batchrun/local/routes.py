"""The echo's answers on routes that do not complete a prompt, in the shapes of vLLM's API server."""

from __future__ import annotations

import struct
from base64 import b64encode
from collections.abc import Callable
from hashlib import shake_128
from typing import Any

from batchrun.local.workers import ModelCall, model_failure

_DIMENSIONS = 8
_MOST_DIMENSIONS = 8192


def other_answer(call: ModelCall, model: str) -> dict[str, Any]:
    """The answer on a route that does not complete a prompt.

    Raises:
        WorkerFailure: the echo does not support the route.
    """
    answer = _ANSWERS.get(call.route.removeprefix("/v1").removeprefix("/v2"))
    if answer is None:
        raise model_failure(404, f"the echo does not support the route {call.route}", "NotFoundError")
    return {"model": call.body.get("model", model), **answer(call.body)}


def _embeddings(body: dict[str, Any]) -> dict[str, Any]:
    texts = _texts(body.get("input", body.get("messages", "")))
    wanted = body.get("dimensions")
    count = wanted if isinstance(wanted, int) and 0 < wanted <= _MOST_DIMENSIONS else _DIMENSIONS
    is_base64 = body.get("encoding_format") == "base64"
    values = [_numbers(text, count) for text in texts]
    shown = [b64encode(struct.pack(f"<{count}f", *each)).decode() if is_base64 else each for each in values]
    return _listed("embedding", "embedding", shown, texts)


def _pooling(body: dict[str, Any]) -> dict[str, Any]:
    texts = _texts(body.get("input", body.get("messages", "")))
    return _listed("pooling", "data", [_numbers(text, _DIMENSIONS) for text in texts], texts)


def _score(body: dict[str, Any]) -> dict[str, Any]:
    first = _texts(body.get("text_1", body.get("queries", "")))
    second = _texts(body.get("text_2", body.get("documents", "")))
    return _listed("score", "score", [_numbers(text, 1)[0] for text in second], first + second)


def _rerank(body: dict[str, Any]) -> dict[str, Any]:
    documents = _texts(body.get("documents", []))
    scored = [(_numbers(text, 1)[0], index, text) for index, text in enumerate(documents)]
    results = [
        {"index": index, "document": {"text": text}, "relevance_score": score}
        for score, index, text in sorted(scored, reverse=True)
    ]
    return {"id": "rerank-echo", "results": results, "usage": {"total_tokens": _count(documents)}}


def _response(body: dict[str, Any]) -> dict[str, Any]:
    given = body.get("input", "")
    last = given[-1] if isinstance(given, list) and given else given
    content = last.get("content", "") if isinstance(last, dict) else last
    (said,) = _texts([content])
    used = _count([said])
    part = {"type": "output_text", "text": said, "annotations": []}
    message = {"type": "message", "id": "msg_echo", "role": "assistant", "status": "completed", "content": [part]}
    return {
        "id": "resp_echo",
        "object": "response",
        "created_at": 0,
        "status": "completed",
        "output": [message],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": used,
            "output_tokens": used,
            "total_tokens": 2 * used,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        },
    }


_ANSWERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "/embeddings": _embeddings,
    "/pooling": _pooling,
    "/score": _score,
    "/rerank": _rerank,
    "/responses": _response,
}


def _listed(kind: str, key: str, values: list[Any], texts: list[str]) -> dict[str, Any]:
    used = _count(texts)
    return {
        "id": f"{kind}-echo",
        "object": "list",
        "created": 0,
        "data": [{"index": index, "object": kind, key: value} for index, value in enumerate(values)],
        "usage": {"prompt_tokens": used, "total_tokens": used, "completion_tokens": 0},
    }


def _texts(given: Any) -> list[str]:
    """One text for each item of the input; a list of token numbers is one item."""
    if not isinstance(given, list) or (given and isinstance(given[0], int)):
        given = [given]
    return [each if isinstance(each, str) else str(each) for each in given]


def _count(texts: list[str]) -> int:
    return sum(len(text.split()) for text in texts)


def _numbers(text: str, count: int) -> list[float]:
    """Numbers from 0 to 1 that depend only on the text."""
    digest = shake_128(text.encode("utf-8", "surrogatepass")).digest(count)
    return [byte / 255 for byte in digest]
