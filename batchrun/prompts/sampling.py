"""The sampling parameters of vLLM, from `vllm_parameters.json`: which there are, for what, and of which type."""

from __future__ import annotations

import difflib
import re
from enum import StrEnum
from pathlib import Path
from typing import Any

import orjson

_DATA = orjson.loads(Path(__file__).with_name("vllm_parameters.json").read_bytes())

VLLM_VERSION: str = _DATA["vllm"]
"""The version whose parameters these are."""


class Kind(StrEnum):
    """What a request asks vLLM for."""

    PROMPT = "prompt"
    """A completion of a plain prompt."""
    MESSAGES = "messages"
    """An answer to chat messages."""


TYPES: dict[Kind, dict[str, str]] = {kind: {**_DATA["both"], **_DATA[kind.value]} for kind in Kind}
"""Parameter -> type of its value, for either kind of request."""
NO_MORE: dict[str, str] = _DATA["no_more"]
"""Parameters that earlier versions of vLLM took and this one ignores -> what to do instead."""
OTHER_NAMES: dict[str, str] = _DATA["other_names"]
"""What is no parameter of vLLM, but has one of another name -> that name, or what to do instead."""

SAMPLING_PARAMETERS = frozenset(TYPES[Kind.PROMPT]) | frozenset(TYPES[Kind.MESSAGES]) | frozenset(NO_MORE)
"""Fields beside `prompt` or `messages` that are sampling parameters; any other is carried to the result."""
BEFORE = SAMPLING_PARAMETERS - frozenset(_DATA["not_before"])
"""Those of them that the first reading knows; see `shapes.READING`."""
WHOLE_NUMBERS = frozenset(name for types in TYPES.values() for name, kind in types.items() if kind == "integer")

_FITTING: dict[str, tuple[type, ...]] = {
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "string": (str,),
    "array": (list,),
    "object": (dict,),
    "string or array": (str, list),
    "string or object": (str, dict),
    "any": (object,),
}
_WORDS = {
    "number": "number",
    "integer": "whole number",
    "boolean": "truth value (true or false)",
    "string": "text",
    "array": "list",
    "object": "object",
    "string or array": "text or list",
    "string or object": "text or object",
}
_NEAR = 0.85
"""The share of equal letters from which two names are near: `temprature` is, `request` is not to `request_id`."""
_MISSPELT_WORDS = frozenset({"temperature", "stop", "seed", "logprobs", "sampling_params"})
"""A dataset may use other names of one word in another form, such as `document` or `models`."""
_NEAR_NAMES = sorted(
    name
    for name in (SAMPLING_PARAMETERS - frozenset(NO_MORE)) | {"sampling_params"}
    if "_" in name or name in _MISSPELT_WORDS
)


def misfit(name: str, value: Any, kinds: tuple[Kind, ...] = tuple(Kind)) -> str:
    """What a parameter's value should have been, as a noun; empty when it fits, or the parameter is unknown.

    Which range is valid the worker knows. A null is never wrong.

    Args:
        name: Of the parameter.
        value: Its value.
        kinds: What it may be meant for; it fits when it fits one of them.
    """
    wanted = {TYPES[kind][name]: None for kind in kinds if name in TYPES[kind]}
    if value is None or not wanted or any(_fits(value, each) for each in wanted):
        return ""
    return " or ".join(_WORDS[each] for each in wanted)


def _fits(value: Any, wanted: str) -> bool:
    if isinstance(value, bool):
        return wanted in ("boolean", "any")
    if wanted == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _FITTING[wanted])


def meant(name: str) -> str:
    """What a name that is no parameter was probably meant to be, as advice; empty when it looks like none.

    `maxTokens` and `max-tokens` are as near as `max_token`.
    """
    if name in OTHER_NAMES:
        advice = OTHER_NAMES[name]
        return f"did you mean `{advice}`?" if advice in SAMPLING_PARAMETERS else advice
    plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().replace("-", "_")
    if plain.startswith("guided_"):
        return "say structured_outputs"
    plain = OTHER_NAMES.get(plain, plain)
    near = [plain] if plain in SAMPLING_PARAMETERS else difflib.get_close_matches(plain, _NEAR_NAMES, n=1, cutoff=_NEAR)
    # A slip of the finger is seldom in the first letter, and `n_tokens` is no `min_tokens`.
    return f"did you mean `{near[0]}`?" if near and near[0][0] == plain[:1] else ""
