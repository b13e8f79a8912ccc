"""What becomes of the fields of the lines: which are sent, which are carried, and what is probably a mistake.

Lines of a file mostly have the same fields. They are looked at once for each set of names and types, and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from batchrun.config import RequestOptions
from batchrun.errors import InputError
from batchrun.prompts.sampling import (
    NO_MORE,
    SAMPLING_PARAMETERS,
    TYPES,
    VLLM_VERSION,
    Kind,
    meant,
    misfit,
)
from batchrun.prompts.shapes import LineError, Prompt, Shape, build_request
from batchrun.prompts.sweep import Sweep

_PROMPT, _MESSAGES, _OPENAI = Shape.PROMPT, Shape.MESSAGES, Shape.OPENAI  # as in `shapes`
_NOTHING: dict[str, Any] = {}
_MOST_SETS = 4096
"""Sets of fields that are remembered; where lines have names that nobody else has, each of them is looked at."""
_MOST_FINDINGS = 200
_SHOWN = 20
_ROUTES = {
    "/v1/chat/completions": Kind.MESSAGES,
    "/v1/chat/completions/batch": Kind.MESSAGES,
    "/v1/completions": Kind.PROMPT,
}
_NO_PARAMETERS = frozenset({"prompt", "messages", "stream", "stream_options"})
"""Fields of a body that are no sampling parameters, and no mistake."""
_OF_WORKER = frozenset(
    {"prompt", "messages", "sampling_params", "stream", "apply_chat_template", "use_openai_format"}
    | {"max_batch_size", "min_batch_size", "batch_size_growth_factor"}
)
"""Fields of an `input` object that worker-vllm knows, or has known, besides `openai_route` and `openai_input`."""
_COLUMNS = frozenset({"model", "n", "seed", "user", "priority", "documents", "suffix", "request_id", "session_id"})
"""Parameters whose names datasets, and other workers than vLLM's, have for things of their own."""


@dataclass(slots=True)
class Finding:
    """Something about a field, on some lines."""

    kind: str
    """`sent`, `carried` or `no_limit`; or a warning: `not_sent`, `ignored`, `wrong_type` or `no_max_tokens`."""
    field: str
    text: str
    file: str
    line: int
    """Where it is first, 1-based."""
    count: int = 0
    """Lines that have it."""

    @property
    def is_warning(self) -> bool:
        """Whether it is probably a mistake."""
        return self.kind not in ("sent", "carried", "no_limit")

    def __str__(self) -> str:
        level = "warning" if self.is_warning else "note"
        return f"{self.file}:{self.line}: {level}: {self.text} ({self.count:,} line{'s' * (self.count != 1)})"


@dataclass(slots=True)
class _Set:
    """Lines with the same names and types."""

    found: list[Finding]
    has_strange_type: bool
    """Whether each line must be looked at: a value may be wrong, or not, by what it is."""
    count: int = 0


class Fields:
    """Collects what becomes of the fields of lines.

    Args:
        request: How a line becomes a request.
        sweep: The variants of each line; the first stands for all.
    """

    def __init__(self, request: RequestOptions, sweep: Sweep) -> None:
        self._request = request
        self._sweep = sweep
        self._is_chat = request.chat or request.system is not None
        self._sets: dict[tuple[Any, ...], _Set] = {}
        self._found: dict[tuple[str, str, str], Finding] = {}

    def add(self, prompt: Prompt, file: str, line: int) -> None:
        """Count a line.

        Args:
            prompt: The line as it was understood.
            file: Where it stands.
            line: Likewise, 1-based.
        """
        request, shape = prompt.request, prompt.shape
        if shape is _PROMPT or shape is _MESSAGES:
            sampling = request.get("sampling_params", _NOTHING)
            key = (*prompt.carried, *request, *sampling, *map(type, sampling.values()))
            if self._is_chat:
                key += (type(request.get("prompt")),)
        elif shape is _OPENAI:
            body = request["openai_input"]
            key = (*prompt.carried, request["openai_route"], *body, *map(type, body.values()))
        else:
            key = self._other_key(prompt)
        known = self._sets.get(key)
        if known is None:
            known = self._look_at(prompt, file, line)
            if len(self._sets) < _MOST_SETS:
                self._sets[key] = known
            else:
                for finding in known.found:
                    finding.count += 1
        known.count += 1
        if known.has_strange_type:
            for name, wanted in self._misfits(prompt):
                self._find("wrong_type", name, f"`{name}` is no {wanted}", file, line).count += 1

    def _other_key(self, prompt: Prompt) -> tuple[Any, ...]:
        """Of an `input` object, which may be any worker's."""
        request = prompt.request
        body = request.get("openai_input")
        if type(body) is dict:
            return (*prompt.carried, None, str(request.get("openai_route")), *body, *map(type, body.values()))
        sampling = request.get("sampling_params")
        inner = sampling if type(sampling) is dict else _NOTHING
        return (*prompt.carried, None, *request, *map(type, request.values()), *inner, *map(type, inner.values()))

    def findings(self) -> list[Finding]:
        """What was found, warnings first; the counts are those of all lines so far."""
        for known in self._sets.values():
            for finding in known.found:
                finding.count += known.count
            known.count = 0
        return sorted(self._found.values(), key=lambda finding: not finding.is_warning)

    def tell_all(self, tell: Callable[[str], None], *, strict: bool) -> None:
        """Say what was found, in few lines: all that is sent in one, and no end of columns in a note.

        Args:
            tell: Shows a line.
            strict: Whether what is probably a mistake is one.

        Raises:
            InputError: it is, and there are some.
        """
        findings = self.findings()
        wrong = [str(finding) for finding in findings if finding.is_warning]
        if strict and wrong:
            raise InputError("\n".join(wrong), "fix the lines or the options, or leave --strict out")
        told = [str(finding) for finding in findings if finding.kind != "sent"]
        for line in told[:_SHOWN]:
            tell(line)
        if len(told) > _SHOWN:
            tell(f"... and {len(told) - _SHOWN:,} more: batchrun check shows them")
        sent = [f"{finding.field} ({finding.count:,})" for finding in findings if finding.kind == "sent"]
        if sent:
            tell(f"sent as parameters: {', '.join(sent)}")

    def _find(self, kind: str, field: str, text: str, file: str, line: int) -> Finding:
        if len(self._found) >= _MOST_FINDINGS and (kind, field, text) not in self._found:
            kind, field, text = "carried", "...", "further fields, with names of many kinds"
        return self._found.setdefault((kind, field, text), Finding(kind, field, text, file, line))

    def _built(self, prompt: Prompt) -> dict[str, Any]:
        try:
            return build_request(self._sweep.apply(prompt, 0), self._request)
        except LineError:
            return prompt.request  # it is told elsewhere that the sweep does not fit

    def _look_at(self, prompt: Prompt, file: str, line: int) -> _Set:
        request = self._built(prompt)
        told = {(name, kind): text for name, kind, text in self._told(prompt, request)}
        strange = any(True for _ in self._misfits(prompt, by_type=True))
        return _Set([self._find(kind, name, text, file, line) for (name, kind), text in told.items()], strange)

    def _misfits(self, prompt: Prompt, *, by_type: bool = False) -> Iterator[tuple[str, str]]:
        """The parameters whose values do not fit, or may not by their types, and what they should be."""
        kind, parameters = _parameters(self._built(prompt))
        if kind is None:
            return
        for name, value in parameters.items():
            if wanted := misfit(name, 0.5 if by_type and isinstance(value, float) else value, (kind,)):
                yield name, wanted

    def _told(self, prompt: Prompt, request: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
        kind, parameters = _parameters(request)
        if prompt.shape is Shape.PROMPT or prompt.shape is Shape.MESSAGES:
            for name in prompt.request.get("sampling_params", {}):
                yield name, "sent", f"`{name}` is sent as a parameter"
        for name in prompt.carried:
            if name != "metadata":
                yield (name, *_carried(name, prompt.shape))
        if prompt.shape is Shape.INPUT and "openai_input" not in request:
            yield from _beside(request)
        if kind is None:
            return
        for name, value in parameters.items():
            if value is not None and (text := _ignored(name, kind)):
                yield name, "ignored", text
        yield from _without_limit(prompt.shape, kind, request, parameters)


def _parameters(request: dict[str, Any]) -> tuple[Kind | None, dict[str, Any]]:
    """What a request asks vLLM for, and its parameters; None when it is for another worker or another route."""
    if "openai_input" in request or "openai_route" in request:
        kind, parameters = _ROUTES.get(str(request.get("openai_route"))), request.get("openai_input")
    else:
        kind = Kind.MESSAGES if "messages" in request else Kind.PROMPT if "prompt" in request else None
        parameters = request.get("sampling_params", {})
    return (kind, parameters) if isinstance(parameters, dict) else (None, {})


def _carried(name: str, shape: Shape) -> tuple[str, str]:
    """The kind and the text of what is said of a field that is not sent."""
    if name in SAMPLING_PARAMETERS and shape in (Shape.INPUT, Shape.OPENAI) and name not in _COLUMNS:
        place = "body" if shape is Shape.OPENAI else "input"
        return "not_sent", f"`{name}` stands beside `{place}` and is not sent: put it into it"
    if name in SAMPLING_PARAMETERS and shape in (Shape.PROMPT, Shape.MESSAGES):
        return "not_sent", f"`{name}` is not sent: this run began when it was not known as a parameter"
    if name not in SAMPLING_PARAMETERS and (advice := meant(name)):
        return "not_sent", f"`{name}` is carried to the result, not sent: {advice}"
    return "carried", f"`{name}` is carried to the result, not sent"


def _beside(request: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Parameters beside the prompt of an `input` object. Other workers may look there; with them nothing is wrong."""
    beside = request.keys() - _OF_WORKER
    is_vllm = "sampling_params" in request or "messages" in request
    if "prompt" in request and not is_vllm:
        is_vllm = not beside <= _COLUMNS and all(name in SAMPLING_PARAMETERS or meant(name) for name in beside)
    for name in request if is_vllm else ():
        if name in beside and name in SAMPLING_PARAMETERS:
            text = "stands beside the prompt of an `input` object, where worker-vllm does not look"
            yield name, "not_sent", f"`{name}` {text}: put it into `sampling_params`"
        elif name in beside and (advice := meant(name)):
            yield name, "not_sent", f"worker-vllm does not look at `{name}` in an `input` object: {advice}"


def _ignored(name: str, kind: Kind) -> str:
    """Why vLLM ignores a parameter that is sent; empty when it takes it."""
    if name in TYPES[kind] or name in _NO_PARAMETERS:
        return ""
    if name in NO_MORE:
        return f"vLLM {VLLM_VERSION} ignores `{name}`: {NO_MORE[name]}"
    if name == "max_completion_tokens":
        return f"vLLM ignores `{name}` on a plain prompt: say max_tokens, or send messages (--chat)"
    if name in SAMPLING_PARAMETERS:
        return f"vLLM ignores `{name}` " + (
            "on a plain prompt: it is for messages (--chat)" if kind is Kind.PROMPT else "on messages"
        )
    advice = meant(name)
    return f"`{name}` is no parameter of vLLM {VLLM_VERSION}, which ignores it" + (f": {advice}" if advice else "")


def _without_limit(
    shape: Shape, kind: Kind, request: dict[str, Any], parameters: dict[str, Any]
) -> Iterator[tuple[str, str, str]]:
    if parameters.get("max_tokens") is not None:
        return
    if kind is Kind.MESSAGES:
        if parameters.get("max_completion_tokens") is None:
            text = "an answer may fill the context, and worker-vllm before 2.24 ends it after 100 tokens"
            yield "max_tokens", "no_limit", f"no `max_tokens`: {text}"
        return
    text = "no `max_tokens`: vLLM ends an answer after 16 tokens; --default max_tokens=N allows more"
    # Any worker may take a `prompt`, an image generator too.
    is_vllm = shape is not Shape.INPUT or "sampling_params" in request or "openai_input" in request
    yield "max_tokens", "no_max_tokens" if is_vllm else "no_limit", text
