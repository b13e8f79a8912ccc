"""What scorers compare: the right answer of a row, and the answer in a text. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from decimal import Decimal
from typing import Any

from batchrun.files.exactjson import dump

NORMALIZATIONS = ("case", "space", "punctuation")
_NUMBER = re.compile(
    r"(?<!\w)(?:(?<!\))[-+\u2212][$€£]?)?(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+|(?=\.\d))(?:\.\d+)?(?:[eE][-+]?\d{1,3}(?!\d))?"
)
"""Not a digit within a word, such as H2O; a minus after a number or a bracket is a subtraction."""
_PLAIN_NUMBER = str.maketrans({"\u2212": "-", ",": None, "$": None, "€": None, "£": None})
_LETTER = r"(?:(?P<bare>[A-E])(?![\w'\u2019])|[(\[](?P<bracketed>[A-E])[)\]])"
_IS = r"(?:\s+(?:is|would\s+be|should\s+be|must\s+be)\b|\s*[:=>])"
_DECLARED = re.compile(
    rf"(?:answers?{_IS}?|(?:choice|option){_IS})[\s:]*"
    rf"(?:(?:definitely|probably|clearly|therefore|option|choice|letter)[\s:]+)?['\"\u201c\u2018]?{_LETTER}",
    re.IGNORECASE,
)
_CALLED_RIGHT = re.compile(
    r"(?<![\w'\u2019])[(\[]?([A-E])[)\]]?\s+is\s+(?:the\s+)?(?:(?:most|only)\s+)?(?:correct|right|best|appropriate)"
)
_BOXED = re.compile(r"\\boxed\s*\{\s*\(?([A-Ea-e])\)?[.:]?\s*\}")
_ALONE = re.compile(r"\A\W*([A-Ea-e])\W*\Z")
_FIRST = re.compile(r"[(\[]?([A-Ea-e])(?:[)\]]|[.:](?=\s|$))")
_BRACKETED = re.compile(r"[(\[]([A-E])[)\]]")
_BARE = re.compile(r"(?<![\w'\u2019])(?:A(?!\s+[a-z])|[B-E])(?![\w'\u2019])")
"""`A` is a word, too."""
_MARKUP = re.compile(r"\*+|__+|`+|\$+|\\[()\[\]]|\\(?:text|mathrm|mathbf|textbf)\s*(?=\{)")
_BRACES = re.compile(r"(?<!boxed)\{\s*\(?([A-Ea-e])\)?\s*\}")


def normalized(text: str, how: Collection[str]) -> str:
    """A text in the form that is compared, without white space around it.

    Args:
        text: Any text.
        how: Any of `NORMALIZATIONS`: upper case equals lower case; any white space is one space; punctuation is left
            out.
    """
    text = unicodedata.normalize("NFC", text)
    if "case" in how:
        text = text.casefold()
    if "punctuation" in how:
        text = "".join(char for char in text if not unicodedata.category(char).startswith("P"))
    return " ".join(text.split()) if "space" in how else text.strip()


def number_in(text: str) -> Decimal | None:
    """The last number in a text: `1,234.5`, `-$3` and `50%` are 1234.5, -3 and 50. None: there is none."""
    last = None
    for last in _NUMBER.finditer(text.replace("{,}", ",")):  # noqa: B007 - only the last match is used
        pass
    return None if last is None else Decimal(last[0].translate(_PLAIN_NUMBER))


def choice_in(text: str) -> str | None:
    """The letter, A to E, that a text chooses; None if it chooses none, or several without saying which.

    The first of these that the text has: the letter called the answer, the last one if there are several; a letter in a
    LaTeX box; a text that is only a letter; the letter called right; the only line that begins with a letter (`B.
    Paris`); the only letter in brackets; the only letter.
    """
    text = _BRACES.sub(r"\1", _MARKUP.sub("", text))
    declared = [letter for match in _DECLARED.finditer(text) if (letter := _declared(match))]
    for letters in (declared, _BOXED.findall(text), _ALONE.findall(text), _CALLED_RIGHT.findall(text)):
        if letters:
            return str(letters[-1]).upper()
    lines = [match[1] for line in text.splitlines() if (match := _FIRST.match(line.strip()))]
    for letters in (lines, _BRACKETED.findall(text), _BARE.findall(text)):
        if letters:
            found = {letter.upper() for letter in letters}
            return found.pop() if len(found) == 1 else None
    return None


def _declared(match: re.Match[str]) -> str | None:
    """The letter of a declaration, unless it is the article of what follows."""
    is_article = match["bare"] == "a" and re.match(r"\s+\w", match.string[match.end() :]) is not None
    return None if is_article else match["bare"] or match["bracketed"]


def as_text(reference: Any) -> str | None:
    """A reference that is a text, a number or a Boolean, as text; None for another type."""
    if isinstance(reference, str):
        return reference
    return dump(reference).decode() if isinstance(reference, (int, float)) else None


def as_number(reference: Any) -> Decimal | None:
    """A reference that is a number, or the last number in one that is a text; None if there is none."""
    if isinstance(reference, str):
        return number_in(reference)
    is_number = isinstance(reference, (int, float)) and not isinstance(reference, bool)
    return Decimal(str(reference)) if is_number else None


def as_choice(reference: Any) -> str | None:
    """A reference that is a letter from A to E, also as `(B)` or `B. Paris`; None if it is not one."""
    return choice_in(reference) if isinstance(reference, str) else None


def are_equal(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal: 1 and 1.0 are, 1 and true are not."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(are_equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(are_equal, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)
