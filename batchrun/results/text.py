"""Extracts the text of an answer, whichever worker produced it.

Known shapes: worker-vllm since 2.24 (OpenAI objects in a list), older versions (pieces of `tokens`, in one or several
batches), OpenAI objects without the list (Runpod's public endpoints), server-sent events as strings or parsed chunks,
the Responses and Messages APIs behind `openai_route`, the `text` lists of the worker of 2023, and the plain strings of
small handlers. Pure, and nothing here raises on any JSON value.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeGuard

from batchrun.files.event_stream import events, has_events, is_all_text
from batchrun.results.tool_calls import tool_calls_in

_MOST_TOKENS = 2**40
"""More than any model can read or write for one row."""

MARKS = ("truncated", "empty", "filtered", "reasoning_only", "tool_calls")
"""What may be notable about a successful answer: at most one of them, or `truncated` and one other."""

MARK_NAMES = dict(zip(MARKS, ("cut off", "empty", "filtered", "reasoning only", "tool calls"), strict=True))
"""Their names in messages."""
CONTEXT_FULL = "context_full"
"""Added to `truncated` if the context was full before `max_tokens` was reached. This depends on the request, so it is
counted only when the answer arrives."""

_LENGTH_REASONS = frozenset({"max_tokens", "max_output_tokens"})
"""The words of the Messages and the Responses API for `length`."""
_INPUT_KEYS = ("prompt_tokens", "input_tokens", "input")
_OUTPUT_KEYS = ("completion_tokens", "output_tokens", "output")
_INPUT_DETAILS = ("prompt_tokens_details", "input_tokens_details")
_OUTPUT_DETAILS = ("completion_tokens_details", "output_tokens_details")
_FILTER_REASONS = frozenset({"content_filter", "refusal"})
_BROKEN_REASONS = frozenset({"abort", "aborted", "cancelled", "error", "failed"})
"""The words of servers for a generation that they broke off: `abort` and `error` of vLLM, `abort` of SGLang."""


class Text(NamedTuple):
    """The text of an output, and what the worker says about it."""

    texts: tuple[str | None, ...] = ()
    """The text of each choice, in the order of their indices, None for a choice without; empty if no choice has any."""
    finish_reason: str | None = None
    """The finish reason of the first choice; None if not reported."""
    input_tokens: int | None = None
    """None if not reported."""
    output_tokens: int | None = None
    """None if not reported."""
    finish_reasons: tuple[str | None, ...] = ()
    """The finish reason of each choice, in the order of their indices; None where not reported."""
    marks: tuple[str, ...] = ()
    """Those of `MARKS` that apply."""
    reasoning: str | None = None
    """What the worker says that the model thought for the first choice; None if it says nothing."""
    tool_calls: list[Any] | None = None
    """The tool calls of the first choice, in the form of a chat's; None if there are none."""
    reasoning_tokens: int | None = None
    """How many of the output tokens were thought; None if not reported."""
    cached_tokens: int | None = None
    """How many of the input tokens came from a cache; None if not reported."""

    @property
    def text(self) -> str | None:
        """The first choice's text; None if there is none."""
        return self.texts[0] if self.texts else None


@dataclass(slots=True)
class AnswerTotals:
    """The tokens and marks of a session's answers, added up."""

    input: int = 0
    output: int = 0
    reported: bool = False
    marks: Counter[str] = field(default_factory=Counter)
    """The number of rows for each mark."""

    def add(self, used: int | None, made: int | None, marks: tuple[str, ...]) -> None:
        """Add the tokens of an answer, None if not reported, and its marks."""
        self.input += used or 0
        self.output += made or 0
        self.reported = self.reported or used is not None or made is not None
        for mark in marks:
            self.marks[mark] += 1


def extract(output: Any) -> Text:
    """The text, the finish reason and the token counts of a job's output."""
    if is_all_text(output):
        # Streams are split anywhere, so events are whole only after the pieces are joined.
        output = "".join(output)
    found = _Found()
    for part in output if isinstance(output, list) else (output,):
        found.add(part)
    return found.text()


def broken_off(output: Any) -> str | None:
    """The finish reason by which a server says that it broke off the generation; None if no choice has one."""
    if is_all_text(output):
        output = "".join(output)
    for part in output if isinstance(output, list) else (output,):
        if isinstance(part, dict):
            word = _broken_word(part)
        elif isinstance(part, list):
            word = next((said for chunk in part if isinstance(chunk, dict) and (said := _broken_word(chunk))), None)
        elif isinstance(part, str) and has_events(part) and any(f'"{word}"' in part for word in _BROKEN_REASONS):
            word = next((said for chunk in events(part) if (said := _broken_word(chunk))), None)
        else:
            continue
        if word:
            return word
    return None


def _broken_word(part: dict[str, Any]) -> str | None:
    choices = part.get("choices")
    if isinstance(choices, list):
        for choice in choices:
            if not isinstance(choice, dict):
                continue
            reason = choice.get("finish_reason")
            if not isinstance(reason, str):
                reason = reason_of(reason)
            if reason in _BROKEN_REASONS:
                return reason
    elif part.get("object") == "response" and (reason := reason_of(part.get("status"))) in _BROKEN_REASONS:
        return reason
    return None


def reason_of(said: Any) -> str | None:
    """A finish reason, in OpenAI's words where they exist. SGLang returns an object with the reason in `type`."""
    if isinstance(said, dict):
        said = said.get("type")
    elif isinstance(said, list):
        said = next((each for each in said if isinstance(each, str)), None)
    if not isinstance(said, str):
        return None
    return "length" if said in _LENGTH_REASONS else said


class _Found:
    """Collects the text and the facts in the parts of an output."""

    __slots__ = (
        "cached_tokens",
        "called",
        "has_audio",
        "has_calls",
        "has_reasoning",
        "input_tokens",
        "is_answer",
        "output_tokens",
        "pieces",
        "reasoning",
        "reasoning_tokens",
        "reasons",
    )

    def __init__(self) -> None:
        self.pieces: dict[int, list[str]] = {}
        self.reasons: dict[int, str] = {}
        self.input_tokens: int | None = None
        self.output_tokens: int | None = None
        self.reasoning_tokens: int | None = None
        self.cached_tokens: int | None = None
        self.reasoning: list[str] = []
        self.called: list[dict[str, Any]] = []
        """The messages of the first choice that have tool calls."""
        self.is_answer = False
        """Whether it is a model's answer, so that it should have a text."""
        self.has_audio = False
        self.has_calls = False
        self.has_reasoning = False

    def text(self) -> Text:
        reasons_by_index = self.reasons
        texts, reasons = [], []
        for index, pieces in sorted(self.pieces.items()):
            texts.append("".join(pieces) if pieces else None)
            reasons.append(reasons_by_index.get(index))
        first = reasons_by_index.get(0) or next(iter(reasons_by_index.values()), None)
        shown = tuple(texts) if any(self.pieces.values()) else ()
        return Text(
            shown,
            first,
            self.input_tokens,
            self.output_tokens,
            tuple(reasons),
            self._marks(texts),
            "".join(self.reasoning) or None,
            (tool_calls_in(self.called) or None) if self.called else None,
            self.reasoning_tokens,
            self.cached_tokens,
        )

    def _marks(self, texts: list[str | None]) -> tuple[str, ...]:
        reasons = self.reasons.values()
        truncated = ("truncated",) if "length" in reasons else ()
        if not _FILTER_REASONS.isdisjoint(reasons):
            return (*truncated, "filtered")
        if self.has_calls:
            return (*truncated, "tool_calls")
        for text in texts:
            if text and not text.isspace():
                return truncated
        if self.has_audio or not (self.is_answer or texts):
            return truncated
        return (*truncated, "reasoning_only" if self.has_reasoning else "empty")

    def add(self, part: Any) -> None:
        if isinstance(part, dict):
            self._add_object(part)
        elif isinstance(part, str):
            if has_events(part):
                self._add_events(part)
            else:
                self.pieces.setdefault(0, []).append(part)
        elif isinstance(part, list):
            for chunk in part:
                if isinstance(chunk, dict):
                    self._add_object(chunk)

    def _add_object(self, part: dict[str, Any]) -> None:
        self._add_usage(part.get("usage"))
        choices = part.get("choices")
        if isinstance(choices, list):
            self.is_answer = True
            for position, choice in enumerate(choices):
                if isinstance(choice, dict):
                    self._add_choice(choice, position)
            return
        is_response = part.get("object") == "response"
        items = part.get("output") if is_response else None
        for item in items if isinstance(items, list) else (part,):
            if isinstance(item, dict):
                self._add_message(item, 0)
        self.is_answer = self.is_answer or is_response or (part.get("type") == "message" and "content" in part)
        self._add_plain(part)
        details = part.get("incomplete_details")
        reason = details.get("reason") if isinstance(details, dict) else part.get("stop_reason")
        self._finish(part.get("finish_reason") if reason is None else reason, 0)

    def _add_plain(self, part: dict[str, Any]) -> None:
        """Add the text of a custom handler."""
        for key in ("text", "generated_text", "output_text"):
            text = part.get(key)
            if isinstance(text, str):
                if not self.pieces:
                    self.pieces[0] = [text]
                return
            if isinstance(text, list) and text and all(isinstance(choice, str) for choice in text):
                self._add_texts(text)
                self._add_usage({"input_tokens": part.get("input_tokens"), "output_tokens": part.get("output_tokens")})
                return

    def _add_texts(self, texts: list[str]) -> None:
        """Add the texts of all choices, as the worker of 2023 returns them."""
        for index, text in enumerate(texts):
            pieces = self.pieces.setdefault(index, [])
            if len(pieces) == 1 and text.startswith(pieces[0]):
                pieces[0] = text  # each chunk of its streams repeats the text so far
            else:
                pieces.append(text)

    def _add_message(self, said: dict[str, Any], index: int) -> None:
        """Add a message, a part of one, or an item of the Responses API."""
        content = said.get("content")
        text = _content(content)
        if text is not None:
            self.pieces.setdefault(index, []).append(text)
        kinds = [said["type"]] if "type" in said else []
        if isinstance(content, list):
            kinds += [piece.get("type") for piece in content if isinstance(piece, dict)]
        has_calls = said.get("tool_calls") or said.get("function_call")
        reasoning = said.get("reasoning_content") or said.get("reasoning")
        if kinds:
            has_calls = has_calls or "tool_use" in kinds or "function_call" in kinds
            if "reasoning" in kinds or "thinking" in kinds:
                self.has_reasoning = True
                reasoning = reasoning or _thought(said)
        if has_calls:
            self.has_calls = True
            if index == 0:
                self.called.append(said)
        if reasoning:
            self.has_reasoning = True
            if index == 0 and isinstance(reasoning, str):
                self.reasoning.append(reasoning)
        if said.get("audio"):
            self.has_audio = True

    def _add_choice(self, choice: dict[str, Any], position: int) -> None:
        index = choice.get("index")
        index = index if isinstance(index, int) else position
        pieces = self.pieces.setdefault(index, [])
        for said in (choice.get("message"), choice.get("delta")):
            if isinstance(said, dict):
                self._add_message(said, index)
        text = choice.get("text")
        if isinstance(text, str):
            pieces.append(text)
        tokens = choice.get("tokens")
        if isinstance(tokens, list):
            pieces.extend(token for token in tokens if isinstance(token, str))
        self._finish(choice.get("finish_reason"), index)

    def _add_events(self, text: str) -> None:
        for chunk in events(text):
            self._add_object(chunk)

    def _add_usage(self, usage: Any) -> None:
        if isinstance(usage, dict):
            self.input_tokens = _largest(self.input_tokens, usage, _INPUT_KEYS)
            self.output_tokens = _largest(self.output_tokens, usage, _OUTPUT_KEYS)
            self.cached_tokens = _detail(self.cached_tokens, usage, _INPUT_DETAILS, "cached_tokens")
            self.reasoning_tokens = _detail(self.reasoning_tokens, usage, _OUTPUT_DETAILS, "reasoning_tokens")

    def _finish(self, said: Any, index: int) -> None:
        reason = reason_of(said)
        if reason is not None:
            self.reasons[index] = reason


def is_token_count(value: Any) -> TypeGuard[int]:
    """Whether a value is a plausible number of tokens: the sum over millions of rows must fit into the state file."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_TOKENS


def _largest(known: int | None, usage: dict[str, Any], keys: tuple[str, ...]) -> int | None:
    """The largest count: usage is cumulative over the parts of an output."""
    for key in keys:
        if key in usage and is_token_count(count := usage[key]):
            return count if known is None else max(known, count)
    return known


def _detail(known: int | None, usage: dict[str, Any], keys: tuple[str, ...], name: str) -> int | None:
    for key in keys:
        if isinstance(details := usage.get(key), dict):
            return _largest(known, details, (name,))
    return known


def _thought(said: dict[str, Any]) -> str:
    """The text of a reasoning item of the Responses API, or of the thinking parts of the Messages API."""
    content, summary = said.get("content"), said.get("summary")
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    if said.get("type") == "reasoning":
        parts = parts or [part for part in summary if isinstance(part, dict)] if isinstance(summary, list) else parts
        texts = [part.get("text") for part in parts]
    else:
        texts = [part.get("thinking") for part in parts if part.get("type") == "thinking"]
    return "\n\n".join(text for text in texts if isinstance(text, str))


def _content(content: Any) -> str | None:
    """The text of a message's content, which is a string or a list of parts; None if there is none."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    texts = [
        part["text"]
        for part in content
        if isinstance(part, dict) and isinstance(part.get("text"), str) and part.get("type") != "reasoning_text"
    ]
    return "".join(texts) if texts else None
