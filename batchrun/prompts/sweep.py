"""Make several rows of one line: one for each combination of a sweep's values, and for each repeat.

A sweep is the product of the values of its keys, times the repeats. Its variants are numbered from 0. The values are
computed from the number, so that a million rows need no table. The rows of a line are next to each other in the run, so
that a run that stops early has run every variant on the same lines, except for the last one.

A key is `endpoint`, a sampling parameter, or a path with dots: `body.` leads into an OpenAI line's body, any other path
into the `input` object. A value replaces the line's own, in its request and in the line itself, so that a line of an
error file makes the same request again.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from hashlib import blake2b
from math import prod
from typing import Any, NamedTuple

import orjson

from batchrun.config import SweepOptions
from batchrun.errors import UsageError
from batchrun.errors import shown as quoted
from batchrun.files.exactjson import dump
from batchrun.prompts.sampling import SAMPLING_PARAMETERS, expected_type, suggestion
from batchrun.prompts.shapes import READING, LineError, Prompt, Shape

MAX_ROWS = 10_000_000
"""More rows in one run are a mistake: at the documented limits they would take more than a day to submit."""
ENDPOINT = "endpoint"
REPEAT = "repeat"
"""The key of the sample's number, 1-based, in a record's `variant`."""
_MAX_SHOWN_CHARS = 40
_NUMBERS = frozenset(
    "temperature top_p min_p presence_penalty frequency_penalty repetition_penalty length_penalty".split()  # noqa: SIM905
)
_WHOLE_NUMBERS = frozenset(
    "n best_of top_k max_tokens max_completion_tokens min_tokens seed logprobs top_logprobs prompt_logprobs".split()  # noqa: SIM905
)


class Variant(NamedTuple):
    """One combination of a sweep's values."""

    number: int
    values: dict[str, Any]
    """Key -> value, in the order of the keys; with the sample's number under `repeat` if there are several samples."""
    suffix: str
    """Appended to the id of its line: `/temperature=0.7/2`; empty for the only variant of a run."""


class Sweep:
    """The variants of a run.

    Args:
        options: Keys with their values, and repeats.
        reading: The rules by which lines become requests: by the first, a null parameter is sent; later, it is omitted.

    Raises:
        UsageError: a key is unknown, has no values, or has the same value twice; or a value does not fit its key.
    """

    def __init__(self, options: SweepOptions, reading: int = READING) -> None:
        for key, values in options.keys:
            _refuse_wrong_key(key, values)
        self._keys = options.keys
        self.repeat = options.repeat
        """Samples of each combination of values."""
        self._sends_null = reading == 1
        self.size = prod(len(values) for _, values in options.keys) * options.repeat
        """Rows of each line; 1 without a sweep."""
        if self.size > MAX_ROWS:
            raise UsageError(
                f"--sweep and --repeat make {self.size:,} rows of each line, but a run has at most {MAX_ROWS:,}",
                "sweep over fewer values",
            )
        later = False
        self._stride = options.repeat
        for key, values in options.keys:
            self._stride *= len(values) if later else 1
            later = later or key == ENDPOINT
        self.variant = lru_cache(4096)(self._variant)
        """The variant of a number below `size`."""

    def __bool__(self) -> bool:
        """Whether any row differs from its line."""
        return bool(self._keys) or self.repeat > 1

    def _variant(self, number: int) -> Variant:
        rest, sample = divmod(number, self.repeat)
        values: dict[str, Any] = {}
        for key, choices in reversed(self._keys):
            rest, index = divmod(rest, len(choices))
            values[key] = choices[index]
        values = dict(reversed(values.items()))
        suffix = "".join(f"/{key}={shown(value)}" for key, value in values.items())
        if self.repeat > 1:
            values[REPEAT] = sample + 1
            suffix += f"/{sample + 1}"
        return Variant(number, values, suffix)

    @property
    def endpoint_stride(self) -> int:
        """How many consecutive variants have the same endpoint: its index is number // stride % endpoints."""
        return self._stride

    def apply(self, prompt: Prompt, number: int) -> Prompt:
        """One of a line's variants.

        Raises:
            LineError: a key does not apply to the line.
        """
        if not self:
            return prompt
        variant = self.variant(number)
        for key, value in variant.values.items():
            if key == REPEAT:
                prompt = _with_seed(prompt, value)
            elif key != ENDPOINT:
                if "." in key:
                    prompt = _with_path(prompt, key, value)
                else:
                    prompt = with_parameter(prompt, key, value)
                    if value is None and not self._sends_null:
                        prompt = _without_parameter(prompt, key)
        return replace(prompt, id=None if prompt.id is None else prompt.id + variant.suffix)

    def values_of(self, key: str) -> tuple[Any, ...]:
        """The values of a key; empty if the sweep does not have it."""
        return next((values for name, values in self._keys if name == key), ())

    def __str__(self) -> str:
        """The matrix in readable form: `temperature (0, 0.7) x 3 samples`."""
        parts = [f"{key} ({', '.join(shown(value) for value in values)})" for key, values in self._keys]
        return " x ".join([*parts, f"{self.repeat} samples"] if self.repeat > 1 else parts)


def shown(value: Any) -> str:
    """A value as part of an id: short, printable, and different for different values."""
    text = _text(value)
    if text and len(text) <= _MAX_SHOWN_CHARS and text.isprintable():
        return text
    return "~" + blake2b(dump(value, orjson.OPT_SORT_KEYS), digest_size=6).hexdigest()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else dump(value, orjson.OPT_SORT_KEYS).decode()


def _refuse_wrong_key(key: str, values: tuple[Any, ...]) -> None:
    if "." in key:
        if not all(key.split(".")):
            raise UsageError(f"--sweep {key}: a name between the dots is empty", "for example input.image.width")
    elif key == "stream":
        raise UsageError("--sweep stream: streaming is not supported in batch runs", "remove it")
    elif key != ENDPOINT and key not in SAMPLING_PARAMETERS:
        paths = f"for a field of an OpenAI line's body use body.{key}, for one of an `input` object input.{key}"
        raise UsageError(f"--sweep {key}: there is no such sampling parameter", _advice(suggestion(key), paths))
    if not values:
        raise UsageError(f"--sweep {key}: no value is given", f"for example --sweep {key}=0,0.5")
    texts = [shown(value) for value in values]
    twice = next((text for index, text in enumerate(texts) if text in texts[:index]), None)
    if twice is not None:
        raise UsageError(f"--sweep {key}: {twice} is given twice", "for several samples of a value, use --repeat")
    for value in values:
        if (value is not None or key == ENDPOINT) and (wanted := _expected_type(key, value)):
            raise UsageError(
                f"--sweep {key}: {quoted(_text(value))} is not {wanted}",
                "put a value that contains a comma into a JSON list",
            )


def _advice(guess: str, otherwise: str) -> str:
    return f"{guess}{' Or: ' if guess.endswith('?') else '; ' if guess else ''}{otherwise}"


def refuse_wrong_parameter(option: str, key: str, value: Any) -> None:
    """Refuse a parameter that vLLM would ignore or refuse, for a new run.

    Raises:
        UsageError: vLLM has no such parameter, or its value has the wrong type.
    """
    if key not in SAMPLING_PARAMETERS:
        anyway = f"{option} sampling_params.{key}=... sends it anyway"
        raise UsageError(f"{option} {key}: there is no such sampling parameter", _advice(suggestion(key), anyway))
    if wanted := expected_type(key, value):
        raise UsageError(
            f"{option} {key}: {quoted(_text(value))} is not {wanted}", "a value is read as JSON if possible"
        )


def _expected_type(key: str, value: Any) -> str:
    """What a value should be; empty if it may be valid. Only types are checked: the range depends on the worker."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if key in _NUMBERS and not is_number:
        return "a number"
    if key == "logprobs" and isinstance(value, bool):
        return ""  # valid for messages
    if key in _WHOLE_NUMBERS and not (is_number and isinstance(value, int)):
        return "a whole number"
    if key == "model" and not (isinstance(value, str) and value):
        return "the name of a model"
    if key == ENDPOINT and not (isinstance(value, str) and value.replace("-", "").replace("_", "").isalnum()):
        return "an endpoint ID"
    return ""


def with_parameter(prompt: Prompt, key: str, value: Any) -> Prompt:
    """The line with a sampling parameter, in the place that its shape has for them."""
    request = dict(prompt.request)
    line: dict[str, Any] = dict(prompt.line) if isinstance(prompt.line, dict) else {"prompt": prompt.line}
    match prompt.shape:
        case Shape.OPENAI:
            request["openai_input"] = line["body"] = {**request["openai_input"], key: value}
        case Shape.INPUT:
            own = request.get("sampling_params", {})
            if not ("prompt" in request or "messages" in request) or not isinstance(own, dict):
                raise LineError(f"--sweep {key}: the `input` object has no sampling parameters; try input.{key}")
            request["sampling_params"] = {**own, key: value}
            line["input"] = request
        case _:
            request["sampling_params"] = {**request.get("sampling_params", {}), key: value}
            own = line.get("sampling_params")
            if isinstance(own, dict) and key in own:
                line["sampling_params"] = {**own, key: value}
                line.pop(key, None)
            elif key not in SAMPLING_PARAMETERS:  # beside the prompt, it would be another field
                line["sampling_params"] = {**(own or {}), key: value}
            else:
                line[key] = value
    return replace(prompt, request=request, line=line)


def _without_parameter(prompt: Prompt, key: str) -> Prompt:
    """The line without a sampling parameter that it has."""
    request, line = dict(prompt.request), dict(prompt.line)
    place = "openai_input" if prompt.shape is Shape.OPENAI else "sampling_params"
    request[place] = {name: value for name, value in request[place].items() if name != key}
    if not request[place] and prompt.shape is not Shape.OPENAI:
        del request[place]
    if prompt.shape is Shape.OPENAI:
        line["body"] = request[place]
    elif prompt.shape is Shape.INPUT:
        line["input"] = request
    elif isinstance(own := line.get(place), dict):
        line[place] = {name: value for name, value in own.items() if name != key}
    line.pop(key, None)
    return replace(prompt, request=request, line=line)


def _with_path(prompt: Prompt, path: str, value: Any) -> Prompt:
    """The line with a field at any depth of its body or its `input` object."""
    first, *rest = path.split(".")
    if first == "body" and prompt.shape is Shape.OPENAI:
        body = _placed(prompt.request["openai_input"], rest, value, path)
        return replace(prompt, request={**prompt.request, "openai_input": body}, line={**prompt.line, "body": body})
    if prompt.shape is not Shape.INPUT or first == "body":
        needed = "an OpenAI line" if first == "body" else "a line with an `input` object"
        raise LineError(f"--sweep {path}: this key needs {needed}")
    request = _placed(prompt.request, rest if first == "input" else [first, *rest], value, path)
    return replace(prompt, request=request, line={**prompt.line, "input": request})


def _placed(value: Any, names: list[str], new: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise LineError(f"--sweep {path}: the value around `{names[0]}` is not an object")
    name, *rest = names
    return {**value, name: _placed(value.get(name, {}), rest, new, path) if rest else new}


def _with_seed(prompt: Prompt, sample: int) -> Prompt:
    """The line with the sample's number as its seed, unless it has a seed, or is an `input` object not for vLLM."""
    match prompt.shape:
        case Shape.OPENAI:
            has_seed = "seed" in prompt.request["openai_input"]
        case Shape.INPUT if "prompt" not in prompt.request and "messages" not in prompt.request:
            has_seed = True
        case _:
            own = prompt.request.get("sampling_params")
            has_seed = own is not None and (not isinstance(own, dict) or "seed" in own)
    return prompt if has_seed else with_parameter(prompt, "seed", sample)
