"""Takes what a model thought out of its text: its `<think>` blocks. Pure."""

from __future__ import annotations

from batchrun.results.text import Text

_BEGIN, _END = "<think>", "</think>"


def split_think(text: Text) -> Text:
    """A text with its `<think>` blocks moved to its reasoning; the same object if it has none.

    Each choice's text loses its blocks; the reasoning is that of the first choice, like that of `Text`.
    """
    if not any(each and (_END in each or _BEGIN in each) for each in text.texts):
        return text
    cut = [(None, each) if each is None else _cut(each) for each in text.texts]
    if not any(thought is not None for thought, _ in cut):
        return text
    rest = tuple(each for _, each in cut)
    reasoning = "\n\n".join(filter(None, (text.reasoning, cut[0][0]))) or None
    marks = text.marks
    if marks in ((), ("truncated",)) and not any(each and not each.isspace() for each in rest):
        marks = (*marks, "reasoning_only")
    return text._replace(texts=rest, reasoning=reasoning, marks=marks)


def without_think(text: str) -> str:
    """A text without its `<think>` blocks."""
    return _cut(text)[1]


def _cut(text: str) -> tuple[str | None, str]:
    """What was thought, None if there is no block; and the text without it."""
    begin, end = text.find(_BEGIN), text.find(_END)
    if end >= 0 and not 0 <= begin < end:
        # The chat templates of some models put the first tag into the prompt.
        thoughts, rest, at = [text[:end]], [""], end + len(_END)
    elif begin >= 0 and end < 0 and not text[:begin].strip():
        return text[begin + len(_BEGIN) :].strip(), ""  # cut off while it thought
    else:
        thoughts, rest, at = [], [], 0
    while (begin := text.find(_BEGIN, at)) >= 0 and (end := text.find(_END, begin)) >= 0:
        rest.append(text[at:begin])
        thoughts.append(text[begin + len(_BEGIN) : end])
        at = end + len(_END)
    if not rest:
        return None, text
    rest.append(text[at:])
    return "\n\n".join(filter(None, (thought.strip() for thought in thoughts))), "".join(rest).lstrip()
