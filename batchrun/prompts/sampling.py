"""vLLM's sampling parameters, from `vllm_parameters.json`: their names, their types, and what they apply to."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson

_DATA = orjson.loads(Path(__file__).with_name("vllm_parameters.json").read_bytes())

VLLM_VERSION: str = _DATA["vllm"]
"""The version of vLLM that has these parameters."""


class Kind(StrEnum):
    """What a request to vLLM is for."""

    PROMPT = "prompt"
    """A completion of a plain prompt."""
    MESSAGES = "messages"
    """An answer to chat messages."""


TYPES: dict[Kind, dict[str, str]] = {kind: {**_DATA["both"], **_DATA[kind.value]} for kind in Kind}
"""Parameter -> type of its value, for each kind of request."""
REMOVED: dict[str, str] = _DATA["removed"]
"""Parameters that earlier versions of vLLM had and this one ignores -> what to do instead."""
OTHER_NAMES: dict[str, str] = _DATA["other_names"]
"""Names that are not parameters of vLLM -> the parameter of that meaning, or what to do instead."""

SAMPLING_PARAMETERS = frozenset(TYPES[Kind.PROMPT]) | frozenset(TYPES[Kind.MESSAGES]) | frozenset(REMOVED)
"""Fields beside `prompt` or `messages` that are sampling parameters; any other is carried to the result."""
FIRST_PARAMETERS = SAMPLING_PARAMETERS - frozenset(_DATA["later"])
"""Those of them that the first reading knows; see `shapes.READING`."""
COLUMN_NAMES = frozenset({"model", "n", "seed", "user", "priority", "documents", "suffix", "request_id", "session_id"})
"""Parameters whose names datasets and other workers also use for things of their own."""
WHOLE_NUMBERS = frozenset(name for types in TYPES.values() for name, kind in types.items() if kind == "integer")

_GIVES_NO_TEXT = re.compile(r"/(embeddings|embed|score|rerank|rank|pooling|classify|tokenize|detokenize)$")
"""The routes that give the same answer each time."""
_NO_SEED = -1
"""vLLM treats this seed as no seed."""
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
    "number": "a number",
    "integer": "a whole number",
    "boolean": "true or false",
    "string": "a string",
    "array": "a list",
    "object": "an object",
    "string or array": "a string or a list",
    "string or object": "a string or an object",
}
_NEAR = 0.85
"""Names with this ratio of equal letters are similar: `temprature` to `temperature`, not `request` to `request_id`."""
_MISSPELT_WORDS = frozenset({"temperature", "stop", "seed", "logprobs", "sampling_params"})
"""The only names of one word that are suggested: fields such as `document` or `models` may be a dataset's own."""
_NEAR_NAMES = sorted(
    name
    for name in (SAMPLING_PARAMETERS - frozenset(REMOVED)) | {"sampling_params"}
    if "_" in name or name in _MISSPELT_WORDS
)


def expected_type(name: str, value: Any, kinds: tuple[Kind, ...] = tuple(Kind)) -> str:
    """What a parameter's value should be, such as `a whole number`; empty if it is, or if the parameter is unknown.

    Only types are checked: the valid range depends on the worker. A null is never wrong.

    Args:
        name: The parameter's name.
        value: Its value.
        kinds: The kinds of request that it may be meant for; it must fit one of them.
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


def is_sampled(request: Mapping[str, Any]) -> bool:
    """Whether another try may give another answer to a request: its temperature is not 0, and it has no seed.

    Without a temperature, vLLM uses that of the model's `generation_config`, or 1.
    """
    body, sampling = request.get("openai_input"), request.get("sampling_params")
    if isinstance(body, dict) and _GIVES_NO_TEXT.search(str(request.get("openai_route"))):
        return False
    fields = body if isinstance(body, dict) else sampling if isinstance(sampling, dict) else request
    temperature = fields.get("temperature")
    is_zero = isinstance(temperature, (int, float)) and not isinstance(temperature, bool) and temperature == 0
    seed = fields.get("seed")
    return not is_zero and (type(seed) is not int or seed == _NO_SEED)


@lru_cache(maxsize=4096)  # a sparse table has other columns in each row
def suggestion(name: str) -> str:
    """Advice on what a name that is not a parameter probably means; empty if it resembles none.

    `maxTokens` and `max-tokens` are recognized as well as `max_token`.
    """
    if name in OTHER_NAMES:
        advice = OTHER_NAMES[name]
        return f"did you mean `{advice}`?" if advice in SAMPLING_PARAMETERS else advice
    plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().replace("-", "_")
    if plain.startswith("guided_"):
        return "use structured_outputs"
    plain = OTHER_NAMES.get(plain, plain)
    near = [plain] if plain in SAMPLING_PARAMETERS else difflib.get_close_matches(plain, _NEAR_NAMES, n=1, cutoff=_NEAR)
    # A typo is seldom in the first letter, and `n_tokens` does not mean `min_tokens`.
    return f"did you mean `{near[0]}`?" if near and near[0][0] == plain[:1] else ""
