"""Jobs of several rows: which rows may share one, its body, and each row's part of its answer. Pure.

A job carries a list of prompts for `/v1/completions`, or a list of conversations for `/v1/chat/completions/batch`
(vLLM since 0.19, behind worker-vllm since 2.24). vLLM answers with one choice for each prompt and sample, numbered
`index = prompt * n + sample`, and with the sum of the tokens only. One prompt that it refuses fails the whole request,
and it does not say which (observed with vLLM 0.32).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any, NamedTuple

from batchrun.config import PROMPTS_AT_ONCE, JobPolicy
from batchrun.endpoint.protocol import JobAnswer, JobStatus, PackPart, run_body
from batchrun.files.exactjson import dump

BATCH_ROUTE = "/v1/chat/completions/batch"
_COMPLETIONS = "/v1/completions"
_CHAT = "/v1/chat/completions"
_ALONE = frozenset(
    {"tools", "tool_choice", "functions", "function_call", "request_id", "use_beam_search", "prompt_embeds"}
)
"""Parameters that the batch route ignores or refuses, or that are a row's own."""
_ANSWER_BYTES = 4_000_000
"""The maximum size of an answer: a worker loses one that is too large."""
_TOKEN_BYTES = 6
_TOKEN_CHARS = 4
"""The usual length of a token of a prompt."""
_TOKEN_ID_BYTES = 7
_LOGPROB_BYTES = 100
_KINDS_MOST = 10_000
"""With more kinds of rows, hardly any would share a job."""
_KEY_BYTES = 16
_SIZE_CLASS_BITS = 3
"""Prompts whose sizes differ by more than this power of two do not share a job: the largest would hold up the rest."""
_OF_ONE_PROMPT = ("prompt_logprobs", "prompt_token_ids", "prompt_text")
"""Fields of a chat's answer that tell of one prompt, so of another row's."""
JOBS_AT_ONCE = 30
"""How many jobs a worker takes at once (MAX_CONCURRENCY of worker-vllm, by default)."""
_TIMEOUT_S = 600.0
"""Runpod's default for the execution timeout of a job."""


class Kind(NamedTuple):
    """A kind of rows that may share a job."""

    number: int = 0
    """0: the row has a job of its own."""
    most: int = 1
    """How many rows of this kind may share a job, because their answers come as one."""
    size_bytes: int = 0
    """The size of the row's prompt."""


ALONE = Kind()


class _Asked(NamedTuple):
    """What a request asks for, apart from its prompt."""

    route: str
    fields: dict[str, Any]
    prompt: Any
    samples: int


class Packing:
    """Jobs of up to `rows_per_job` rows, see `Transport`.

    A job of one row is the same as without packing.

    Args:
        policy: The policy of each job.
        rows_per_job: The most rows of one job, 1 to 64.
        tag: Begins the request ids of the run's jobs.
    """

    def __init__(self, policy: JobPolicy, rows_per_job: int, tag: str) -> None:
        self._policy = policy
        self.rows_per_job = rows_per_job
        self._tag = tag
        self._kinds: dict[bytes, tuple[int, int]] = {}
        """The number of a kind, and how many of its rows may share a job."""
        self.has_alike = False
        """Whether any two rows so far may share a job."""

    def kind(self, request: Mapping[str, Any]) -> Kind:
        """See `Transport.kind`."""
        asked = None if self.rows_per_job == 1 else _asked(request)
        if asked is None:
            return ALONE
        size_bytes = len(dump(asked.prompt))
        size_class = size_bytes.bit_length() // _SIZE_CLASS_BITS
        # Objects in parameters stay as they are: the order of a schema's properties is that of the answer.
        key = blake2b(dump([asked.route, size_class, sorted(asked.fields.items())]), digest_size=_KEY_BYTES).digest()
        known = self._kinds.get(key)
        if known is None:
            known = len(self._kinds) + 1, _most_rows(asked, 1 << _SIZE_CLASS_BITS * (size_class + 1))
            if known[0] > _KINDS_MOST or known[1] == 1:
                return ALONE
            self._kinds[key] = known
        else:
            self.has_alike = True
        return Kind(*known, size_bytes)

    def body(self, requests: Sequence[Mapping[str, Any]], job: int) -> bytes:
        """See `Transport.body`."""
        if len(requests) == 1:
            return run_body(requests[0], self._policy)
        first = _asked(requests[0])
        assert first is not None  # noqa: S101 - otherwise the row is alone
        key = "messages" if first.route == BATCH_ROUTE else "prompt"
        prompts = [request.get("openai_input", request)[key] for request in requests]
        request_id = self._request_id(job, len(requests), first.samples)
        body = {**first.fields, key: prompts, "request_id": request_id}
        return run_body({"openai_route": first.route, "openai_input": body}, self._policy_for(len(requests)))

    def _policy_for(self, rows: int) -> JobPolicy:
        waves = -(-rows * JOBS_AT_ONCE // PROMPTS_AT_ONCE)
        if self._policy.execution_timeout_s is not None or waves == 1:
            return self._policy
        return replace(self._policy, execution_timeout_s=_TIMEOUT_S * waves)

    def _request_id(self, job: int, rows: int, samples: int) -> str:
        return f"{self._tag}-{job}-{rows}x{samples}"

    def split(self, answer: JobAnswer, rows: int, job: int) -> list[JobAnswer] | str:
        """See `Transport.split`."""
        if rows == 1:
            return [answer]
        if answer.status is not JobStatus.COMPLETED:
            return ""
        output = answer.output
        whole = output[0] if isinstance(output, list) and len(output) == 1 else output
        choices = whole.get("choices") if isinstance(whole, dict) else None
        if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
            return f"the answer of a job of {rows} rows has no choices"
        samples, rest = divmod(len(choices), rows)
        by_index = {choice.get("index"): choice for choice in choices if type(choice.get("index")) is int}
        if rest or not samples or by_index.keys() != set(range(len(choices))):
            return f"the answer of a job of {rows} rows has {len(choices)} choices, or their numbers are wrong"
        said = whole.get("id")
        if not isinstance(said, str) or not said.endswith(f"-{self._request_id(job, rows, samples)}"):
            return f"the answer of a job of {rows} rows is not for this job: it does not repeat its request_id"
        return _parts(answer, whole, [by_index[index] for index in range(len(choices))], rows)


def _asked(request: Mapping[str, Any]) -> _Asked | None:
    """What a request asks for; None if it must have a job of its own."""
    route, fields = _of_openai(request) if "openai_input" in request else _of_worker(request)
    key = _PROMPT_KEYS.get(route)
    prompt = None if key is None else fields.get(key)
    samples = fields.get("n", 1)
    if not isinstance(prompt, list if route == _CHAT else str) or not prompt or type(samples) is not int:
        return None
    if not _ALONE.isdisjoint(fields) or fields.get("stream") or samples < 1 or (route == _CHAT and samples > 1):
        return None
    others = {name: value for name, value in fields.items() if name != key}
    return _Asked(BATCH_ROUTE if route == _CHAT else _COMPLETIONS, others, prompt, samples)


def why_alone(request: Mapping[str, Any]) -> str:
    """Why a row must have a job of its own, to follow "rows"; for one whose kind is `ALONE`."""
    route, fields = _of_openai(request) if "openai_input" in request else _of_worker(request)
    key = _PROMPT_KEYS.get(route)
    if key is None or fields.get(key) is None:
        return "that are neither chats nor completions"
    if own := next((name for name in fields if name in _ALONE), None):
        return f"with {own}"
    if fields.get("stream"):
        return "with stream"
    if _asked(request) is None:
        samples = fields.get("n", 1)
        is_one = type(samples) is int and samples == 1
        return "whose prompt is not a single one" if is_one else f"with n={samples!r}"
    has_limit = any(type(fields.get(name)) is int for name in ("max_tokens", "max_completion_tokens"))
    return "whose answers may be too large for one job" if has_limit else "without max_tokens"


_PROMPT_KEYS = {_COMPLETIONS: "prompt", _CHAT: "messages"}


def _of_openai(request: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    route, fields = request.get("openai_route"), request["openai_input"]
    if len(request) == 2 and isinstance(route, str) and isinstance(fields, dict):  # noqa: PLR2004 - and nothing else
        return route, fields
    return "", {}


def _of_worker(request: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The route and the body that worker-vllm makes of its own form of a request."""
    route = _CHAT if "messages" in request else _COMPLETIONS
    key, sampling = _PROMPT_KEYS[route], request.get("sampling_params", {})
    is_plain = request.keys() <= {key, "sampling_params"} and isinstance(sampling, dict) and key not in sampling
    return (route, {**sampling, key: request.get(key)}) if is_plain else ("", {})


def _most_rows(asked: _Asked, prompt_bytes: int) -> int:
    """How many rows may be in one answer; 1 if the size of an answer is unknown.

    Args:
        asked: What each of them asks for.
        prompt_bytes: No prompt is larger.
    """
    fields = asked.fields
    limit = fields.get("max_completion_tokens") if asked.route == BATCH_ROUTE else None
    limit = fields.get("max_tokens") if limit is None else limit
    if type(limit) is not int or limit < 1:
        return 1
    token_bytes = _TOKEN_ID_BYTES * bool(fields.get("return_token_ids"))
    of_prompt = prompt_bytes * (token_bytes + _LOGPROB_BYTES * _count(fields, "prompt_logprobs")) // _TOKEN_CHARS
    if fields.get("echo"):
        of_prompt += prompt_bytes
    logprobs = max(_count(fields, "logprobs"), _count(fields, "top_logprobs"))
    token_bytes += _TOKEN_BYTES + _LOGPROB_BYTES * logprobs
    return max(_ANSWER_BYTES // ((limit * token_bytes + of_prompt) * asked.samples), 1)


def _count(fields: Mapping[str, Any], name: str) -> int:
    """A number of log probabilities; true is one."""
    value = fields.get(name)
    return max(value, 0) if isinstance(value, int) else 0


_MOST_TOKENS = 2**40


def _parts(answer: JobAnswer, whole: dict[str, Any], choices: list[dict[str, Any]], rows: int) -> list[JobAnswer]:
    """The answer of each row, as if it had a job of its own."""
    samples = len(choices) // rows
    held, rest = divmod(answer.held_bytes, rows)
    used, made = _tokens(whole.get("usage"))
    whole |= {name: None for name in _OF_ONE_PROMPT if name in whole}
    id_, status, delay_ms, execution_ms = answer.id, answer.status, answer.delay_ms, answer.execution_ms
    is_list = isinstance(answer.output, list)
    parts = []
    for number in range(rows):
        own = [{**choice, "index": i} for i, choice in enumerate(choices[number * samples : (number + 1) * samples])]
        body = {**whole, "id": f"{whole['id']}-{number}", "choices": own, "usage": _usage(own)}
        output = [body] if is_list else body
        part = JobAnswer(id_, status, delay_ms, execution_ms, answer.worker_id, answer.retries, output, True)
        part.held_bytes = held + (rest if number == 0 else 0)
        part.pack = PackPart(rows, number, used, made)
        parts.append(part)
    return parts


def _tokens(usage: Any) -> tuple[int | None, int | None]:
    """The tokens of all rows that the worker reports; None if it does not."""
    found = usage if isinstance(usage, dict) else {}
    used, made = (
        count if type(count := found.get(name)) is int and 0 <= count <= _MOST_TOKENS else None
        for name in ("prompt_tokens", "completion_tokens")
    )
    return used, made


def _usage(choices: Sequence[Mapping[str, Any]]) -> dict[str, int] | None:
    """The tokens of a row's choices; None if the worker does not give the tokens themselves."""
    made = [choice.get("token_ids") for choice in choices]
    if not all(isinstance(each, list) for each in made):
        return None
    usage = {"completion_tokens": sum(len(each) for each in made if each is not None)}
    used = choices[0].get("prompt_token_ids")
    if isinstance(used, list):
        usage = {"prompt_tokens": len(used), **usage, "total_tokens": len(used) + usage["completion_tokens"]}
    return usage
