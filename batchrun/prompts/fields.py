"""Report what happens to the fields of the lines: which are sent, which are carried, and which are probably mistakes.

Most lines of a file have the same fields. So each set of names and types is examined once, and its lines are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from batchrun.config import RequestOptions
from batchrun.errors import InputError
from batchrun.files.urls import place_in
from batchrun.prompts.media import is_file_url, places_of
from batchrun.prompts.requests import build_request
from batchrun.prompts.sampling import (
    COLUMN_NAMES,
    REMOVED,
    SAMPLING_PARAMETERS,
    TYPES,
    VLLM_VERSION,
    Kind,
    expected_type,
    suggestion,
)
from batchrun.prompts.shapes import LineError, Prompt, Shape
from batchrun.prompts.sweep import Sweep

_PROMPT, _MESSAGES, _OPENAI = Shape.PROMPT, Shape.MESSAGES, Shape.OPENAI  # as in `shapes`
_NOTHING: dict[str, Any] = {}
_MOST_SETS = 4096
"""The most sets of fields that are remembered; a line with any other set is examined by itself."""
_MOST_FINDINGS = 200
_SHOWN = 20
_ROUTES = {
    "/v1/chat/completions": Kind.MESSAGES,
    "/v1/chat/completions/batch": Kind.MESSAGES,
    "/v1/completions": Kind.PROMPT,
}
_NO_PARAMETERS = frozenset({"prompt", "messages", "stream", "stream_options"})
"""Fields of a body that are neither sampling parameters nor mistakes."""
_OF_WORKER = frozenset(
    {"prompt", "messages", "sampling_params", "stream", "apply_chat_template", "use_openai_format"}
    | {"max_batch_size", "min_batch_size", "batch_size_growth_factor"}
)
"""Fields of an `input` object that worker-vllm knows or once knew, besides `openai_route` and `openai_input`."""


@dataclass(slots=True)
class Finding:
    """An observation about a field, with the number of lines that it applies to."""

    kind: str
    """`sent`, `carried` or `no_limit`; or a warning: `not_sent`, `ignored`, `wrong_type`, `path`, `no_max_tokens` or
    `same_samples`."""
    field: str
    text: str
    file: str
    line: int
    """The first of these lines, 1-based."""
    count: int = 0
    """The number of these lines."""

    @property
    def is_warning(self) -> bool:
        """Whether it is probably a mistake."""
        return self.kind not in ("sent", "carried", "no_limit")

    def __str__(self) -> str:
        level = "warning" if self.is_warning else "note"
        return f"{place_in(self.file, self.line)}: {level}: {self.text} ({self.count:,} line{'s' * (self.count != 1)})"


@dataclass(slots=True)
class _Set:
    """The lines that have the same names and types."""

    found: list[Finding]
    has_strange_type: bool
    """Whether each line must be examined, because it depends on the value whether its type is wrong."""
    count: int = 0


class Fields:
    """Collects findings about the fields of lines.

    Args:
        request: How a line becomes a request.
        sweep: The variants of each line; only the first is examined.
    """

    def __init__(self, request: RequestOptions, sweep: Sweep) -> None:
        self._request = request
        self._sweep = sweep
        self._is_chat = request.chat or request.system is not None
        self._sends_paths = not request.inline_files
        self._sets: dict[tuple[Any, ...], _Set] = {}
        self._found: dict[tuple[str, str, str], Finding] = {}

    def add(self, prompt: Prompt, file: str, line: int) -> None:
        """Count a line.

        Args:
            prompt: The parsed line.
            file: The line's file.
            line: The line's number, 1-based.
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
        key += (self._has_same_samples(prompt),)
        known = self._sets.get(key)
        if known is None:
            known = self._examine(prompt, file, line)
            if len(self._sets) < _MOST_SETS:
                self._sets[key] = known
            else:
                for finding in known.found:
                    finding.count += 1
        known.count += 1
        if known.has_strange_type:
            for name, wanted in self._wrong_types(prompt):
                self._find("wrong_type", name, f"`{name}` is not {wanted}", file, line).count += 1

        if self._sends_paths and shape is not _PROMPT and _has_parts(request):
            for name in {place.field for place in places_of(request) if not is_file_url(place.text)}:
                text = f"`{name}` is the path of a file, and is sent as it is: --inline-files sends the content"
                self._find("path", name, text, file, line).count += 1

    def _other_key(self, prompt: Prompt) -> tuple[Any, ...]:
        """The key of a line with an `input` object, which may be for any worker."""
        request = prompt.request
        body = request.get("openai_input")
        if type(body) is dict:
            return (*prompt.carried, None, str(request.get("openai_route")), *body, *map(type, body.values()))
        sampling = request.get("sampling_params")
        inner = sampling if type(sampling) is dict else _NOTHING
        return (*prompt.carried, None, *request, *map(type, request.values()), *inner, *map(type, inner.values()))

    def _has_same_samples(self, prompt: Prompt) -> bool:
        """Whether several samples of a line are sent with temperature 0."""
        if self._sweep.repeat == 1:
            return False
        kind, parameters = _parameters(prompt.request)
        name, given = "temperature", self._request
        own = parameters.get(name, given.default.get(name))
        swept = self._sweep.values_of(name) or (own,)
        found = (given.override[name],) if name in given.override else swept
        return kind is not None and any(value == 0 and not isinstance(value, bool) for value in found)

    def findings(self) -> list[Finding]:
        """The findings, warnings first; the counts include all lines so far."""
        for known in self._sets.values():
            for finding in known.found:
                finding.count += known.count
            known.count = 0
        return sorted(self._found.values(), key=lambda finding: not finding.is_warning)

    def tell_all(self, tell: Callable[[str], None], *, strict: bool) -> None:
        """Report the findings in few lines: all that are sent in one line, and at most 20 of the others.

        Args:
            tell: Shows a line.
            strict: Whether probable mistakes are errors.

        Raises:
            InputError: they are errors, and there are some.
        """
        findings = self.findings()
        wrong = [str(finding) for finding in findings if finding.is_warning]
        if strict and wrong:
            raise InputError("\n".join(wrong), "fix the lines or the options, or omit --strict")
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
            kind, field, text = "carried", "...", "further fields with many different names"
        return self._found.setdefault((kind, field, text), Finding(kind, field, text, file, line))

    def _built(self, prompt: Prompt) -> dict[str, Any]:
        try:
            return build_request(self._sweep.apply(prompt, 0), self._request)
        except LineError:
            return prompt.request  # that the sweep does not fit is reported elsewhere

    def _examine(self, prompt: Prompt, file: str, line: int) -> _Set:
        request = self._built(prompt)
        told = {(name, kind): text for name, kind, text in self._describe(prompt, request)}
        strange = any(True for _ in self._wrong_types(prompt, by_type=True))
        return _Set([self._find(kind, name, text, file, line) for (name, kind), text in told.items()], strange)

    def _wrong_types(self, prompt: Prompt, *, by_type: bool = False) -> Iterator[tuple[str, str]]:
        """Each parameter with a value of a wrong type (`by_type`: of a possibly wrong one), and what it should be."""
        kind, parameters = _parameters(self._built(prompt))
        if kind is None:
            return
        for name, value in parameters.items():
            if wanted := expected_type(name, 0.5 if by_type and isinstance(value, float) else value, (kind,)):
                yield name, wanted

    def _describe(self, prompt: Prompt, request: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
        kind, parameters = _parameters(request)
        if prompt.shape is Shape.PROMPT or prompt.shape is Shape.MESSAGES:
            for name in prompt.request.get("sampling_params", {}):
                yield name, "sent", f"`{name}` is sent as a parameter"
        for name in prompt.carried:
            if name != "metadata":
                yield (name, *_describe_unsent(name, prompt.shape))
        if prompt.shape is Shape.INPUT and "openai_input" not in request:
            yield from _misplaced(request)
        if kind is None:
            return
        for name, value in parameters.items():
            if value is not None and (text := _why_ignored(name, kind)):
                yield name, "ignored", text
        yield from _without_limit(prompt.shape, kind, request, parameters)
        if self._has_same_samples(prompt):
            text = f"the {self._sweep.repeat:,} samples of --repeat are the same, or nearly so, and each is paid for"
            yield "temperature", "same_samples", f"with `temperature` 0, {text}"


def _has_parts(request: dict[str, Any]) -> bool:
    """Whether a message of a chat has parts, such as pictures."""
    messages = request.get("openai_input", request)
    messages = messages.get("messages") if type(messages) is dict else None
    return type(messages) is list and any(type(each) is dict and type(each.get("content")) is list for each in messages)


def _parameters(request: dict[str, Any]) -> tuple[Kind | None, dict[str, Any]]:
    """The kind of a request to vLLM, and its parameters; None for another worker or another route."""
    if "openai_input" in request or "openai_route" in request:
        kind, parameters = _ROUTES.get(str(request.get("openai_route"))), request.get("openai_input")
    else:
        kind = Kind.MESSAGES if "messages" in request else Kind.PROMPT if "prompt" in request else None
        parameters = request.get("sampling_params", {})
    return (kind, parameters) if isinstance(parameters, dict) else (None, {})


def _describe_unsent(name: str, shape: Shape) -> tuple[str, str]:
    """The kind and the text of the finding about a field that is not sent."""
    if name in SAMPLING_PARAMETERS and shape in (Shape.INPUT, Shape.OPENAI) and name not in COLUMN_NAMES:
        place = "body" if shape is Shape.OPENAI else "input"
        return "not_sent", f"`{name}` is beside `{place}` and is not sent: move it into `{place}`"
    if name in SAMPLING_PARAMETERS and shape in (Shape.PROMPT, Shape.MESSAGES):
        return "not_sent", f"`{name}` is not sent: the version that started this run did not know this parameter"
    if name not in SAMPLING_PARAMETERS and (advice := suggestion(name)):
        return "not_sent", f"`{name}` is carried to the result, not sent: {advice}"
    return "carried", f"`{name}` is carried to the result, not sent"


def _misplaced(request: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Parameters beside the prompt of an `input` object: worker-vllm ignores them, but other workers may read them."""
    beside = request.keys() - _OF_WORKER
    is_vllm = "sampling_params" in request or "messages" in request
    if "prompt" in request and not is_vllm:
        is_vllm = not beside <= COLUMN_NAMES and all(name in SAMPLING_PARAMETERS or suggestion(name) for name in beside)
    for name in request if is_vllm else ():
        if name in beside and name in SAMPLING_PARAMETERS:
            text = "is beside the prompt of an `input` object, where worker-vllm ignores it"
            yield name, "not_sent", f"`{name}` {text}: move it into `sampling_params`"
        elif name in beside and (advice := suggestion(name)):
            yield name, "not_sent", f"worker-vllm ignores `{name}` in an `input` object: {advice}"


def _why_ignored(name: str, kind: Kind) -> str:
    """Why vLLM ignores a parameter that is sent; empty if it does not."""
    if name in TYPES[kind] or name in _NO_PARAMETERS:
        return ""
    if name in REMOVED:
        return f"vLLM {VLLM_VERSION} ignores `{name}`: {REMOVED[name]}"
    if name == "max_completion_tokens":
        return f"vLLM ignores `{name}` for a plain prompt: use max_tokens, or send messages (--chat)"
    if name in SAMPLING_PARAMETERS:
        return f"vLLM ignores `{name}` " + (
            "for a plain prompt: it applies to messages (--chat)" if kind is Kind.PROMPT else "for messages"
        )
    advice = suggestion(name)
    return f"`{name}` is not a parameter of vLLM {VLLM_VERSION}, which ignores it" + (f": {advice}" if advice else "")


def _without_limit(
    shape: Shape, kind: Kind, request: dict[str, Any], parameters: dict[str, Any]
) -> Iterator[tuple[str, str, str]]:
    if parameters.get("max_tokens") is not None:
        return
    if kind is Kind.MESSAGES:
        if parameters.get("max_completion_tokens") is None:
            text = "an answer may fill the context, and worker-vllm before 2.24 stops it after 100 tokens"
            yield "max_tokens", "no_limit", f"no `max_tokens`: {text}"
        return
    text = "no `max_tokens`: vLLM stops an answer after 16 tokens; --default max_tokens=N allows more"
    # A `prompt` may be for any worker, such as an image generator.
    is_vllm = shape is not Shape.INPUT or "sampling_params" in request or "openai_input" in request
    yield "max_tokens", "no_max_tokens" if is_vllm else "no_limit", text
