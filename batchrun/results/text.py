"""The text of an answer, whatever worker gave it.

Known shapes: worker-vllm since 2.24 (OpenAI objects in a list), before (pieces of `tokens`, in one or several
batches), OpenAI objects without the list (Runpod's public endpoints), server-sent events as strings or parsed
chunks, the Responses and Messages APIs behind `openai_route`, and the plain strings of small handlers. Pure, and
nothing here raises on any JSON value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST_TOKENS = 2**40
"""More than any model can have read or written for one row."""


class Text(NamedTuple):
    """What an output says."""

    texts: tuple[str | None, ...] = ()
    """The text of each choice, in the order of their indices, None for one without; empty when none has any."""
    finish_reason: str | None = None
    """Of the first choice; None when the worker does not say."""
    input_tokens: int | None = None
    output_tokens: int | None = None
    """None when the worker does not say."""

    @property
    def text(self) -> str | None:
        """The first choice's text; None when there is none."""
        return self.texts[0] if self.texts else None


def extract(output: Any) -> Text:
    """The text, the finish reason and the token counts of a job's output."""
    if isinstance(output, list) and output and all(isinstance(part, str) for part in output):
        # Streams are cut into pieces at any byte, so events are whole only when the pieces are joined again.
        joined = "".join(output)
        output = joined if len(output) == 1 or _has_events(joined) else None
    found = _Found()
    for part in output if isinstance(output, list) else (output,):
        found.add(part)
    return found.text()


def _has_events(text: str) -> bool:
    return text.startswith(("data:", "event:"))


def events(text: str) -> Iterator[dict[str, Any]]:
    """The objects in the data of server-sent events; what is no event is passed over."""
    # Not splitlines: a line separator within a JSON string ends no line of an event.
    for line in text.split("\n"):
        if line.startswith("data:") and not line.endswith("[DONE]"):
            try:
                chunk = orjson.loads(line[len("data:") :])
            except orjson.JSONDecodeError:
                continue
            if isinstance(chunk, dict):
                yield chunk


class _Found:
    """What the parts of an output have said so far."""

    __slots__ = ("finish_reason", "input_tokens", "output_tokens", "pieces")

    def __init__(self) -> None:
        self.pieces: dict[int, list[str]] = {}
        self.finish_reason: str | None = None
        self.input_tokens: int | None = None
        self.output_tokens: int | None = None

    def text(self) -> Text:
        if not any(self.pieces.values()):
            self.pieces.clear()
        in_order = (self.pieces[index] for index in sorted(self.pieces))
        texts = tuple("".join(pieces) if pieces else None for pieces in in_order)
        return Text(texts, self.finish_reason, self.input_tokens, self.output_tokens)

    def add(self, part: Any) -> None:
        if isinstance(part, dict):
            self._add_object(part)
        elif isinstance(part, str):
            if _has_events(part):
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
            for position, choice in enumerate(choices):
                if isinstance(choice, dict):
                    self._add_choice(choice, position)
            return
        items = part.get("output") if part.get("object") == "response" else None
        for item in items if isinstance(items, list) else (part,):
            text = _content(item.get("content")) if isinstance(item, dict) else None
            if text is not None:
                self.pieces.setdefault(0, []).append(text)
        if not self.pieces:
            for key in ("text", "generated_text", "output_text"):
                if isinstance(part.get(key), str):
                    self.pieces[0] = [part[key]]
                    break
        details = part.get("incomplete_details")
        self._finish(details.get("reason") if isinstance(details, dict) else part.get("stop_reason"), 0)

    def _add_choice(self, choice: dict[str, Any], position: int) -> None:
        index = choice.get("index")
        index = index if isinstance(index, int) else position
        pieces = self.pieces.setdefault(index, [])
        for said in (choice.get("message"), choice.get("delta")):
            text = _content(said.get("content")) if isinstance(said, dict) else None
            if text is not None:
                pieces.append(text)
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
            self.input_tokens = _largest(self.input_tokens, usage, "prompt_tokens", "input_tokens", "input")
            self.output_tokens = _largest(self.output_tokens, usage, "completion_tokens", "output_tokens", "output")

    def _finish(self, reason: Any, index: int) -> None:
        if isinstance(reason, str) and (self.finish_reason is None or index == 0):
            self.finish_reason = "length" if reason in ("max_tokens", "max_output_tokens") else reason


def is_token_count(value: Any) -> TypeGuard[int]:
    """Whether a number of tokens is one: their sum over millions of rows has to fit into the state file."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_TOKENS


def _largest(known: int | None, usage: dict[str, Any], *keys: str) -> int | None:
    """Usage is cumulative over the parts of one output, so the largest is the whole."""
    for key in keys:
        count = usage.get(key)
        if is_token_count(count):
            return count if known is None else max(known, count)
    return known


def _content(content: Any) -> str | None:
    """A message's content: a string, or a list of parts of which some have text."""
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
