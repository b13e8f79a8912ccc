"""`batchrun help`: finds and reads the guides that ship with the package.

A guide is a Markdown file: a title, an empty line, and a summary in one line.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from batchrun.errors import UsageError, shown

_GUIDES = Path(__file__).parents[1] / "guides"


def topics() -> dict[str, str]:
    """Topic -> the summary of its guide, in alphabetical order."""
    guides = sorted(_GUIDES.glob("*.md"))
    return {guide.stem: guide.read_text(encoding="utf-8").split("\n", 3)[2] for guide in guides}


def guide(topic: str) -> str:
    """The text of a guide, as Markdown.

    Raises:
        UsageError: there is no guide of that name.
    """
    known = topics()
    if topic not in known:
        found = get_close_matches(topic.lower(), known, n=1) or _about(topic, known)
        advice = f"try batchrun help {' or '.join(found)}" if found else "batchrun help lists the guides"
        raise UsageError(f"there is no guide {shown(topic)}: {advice}")
    return (_GUIDES / f"{topic}.md").read_text(encoding="utf-8")


def _about(word: str, known: Iterable[str]) -> list[str]:
    """The two guides that mention a word most often."""
    stem = word.lower().removesuffix("s")
    if not stem:
        return []
    counts = {topic: guide(topic).lower().count(stem) for topic in known if topic not in _GENERAL}
    return sorted(filter(counts.__getitem__, counts), key=lambda topic: -counts[topic])[:2]


_GENERAL = frozenset({"commands", "internals"})
"""Guides that mention nearly everything."""


def contents() -> str:
    """All topics, each with its summary, one a line."""
    known = topics()
    width = max(map(len, known))
    return "\n".join(f"  {topic:<{width}}  {summary}" for topic, summary in known.items())
