"""What is asked when an answer was not valid: the same with another seed, and in a chat with the answer and its error.

Only the last answer is repeated, so a request does not grow with the number of tries. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchrun.results.text import extract
from batchrun.scheduler.failures import Failure
from batchrun.state.records import Amendment

_SEEDS_APART = 1_000_003
"""The seeds of `--repeat` and of hand-made variants are close to each other: those of further tries are not."""
_SEEDS = 2**31
_MOST_CHARS = 100_000
"""A longer answer is not repeated: the model would have to read it all."""


def asked_again(
    request: Mapping[str, Any] | None, known: Amendment | None, failure: Failure, output: Any, row: int
) -> Amendment:
    """How the request of a row differs from that of its line when it is asked again.

    Args:
        request: What was sent; None if its line has changed.
        known: How that differed from the request of its line; None if it did not.
        failure: Why the answer was refused; `raw` has its text.
        output: The output of the job.
        row: The row's number.
    """
    known = known or Amendment({})
    place, messages = _parts(request or {})
    seed = place.get("seed")
    base = seed if type(seed) is int else row
    turns: tuple[dict[str, Any], ...] = ()
    # A chat template may demand that roles alternate; and a text that was cut off would only be cut off again.
    is_whole = "truncated" not in extract(output).marks and 0 < len(failure.raw.strip()) <= _MOST_CHARS
    own = messages[: len(messages) - len(known.turns)]
    if is_whole and own and isinstance(own[-1], dict) and own[-1].get("role") in ("user", "tool"):
        said = f"Your answer is not valid: {failure.message}\nAnswer again, with that corrected, and nothing else."
        turns = ({"role": "assistant", "content": failure.raw}, {"role": "user", "content": said})
    return Amendment(known.override, turns, known.asks + 1, (base + _SEEDS_APART) % _SEEDS)


def _parts(request: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[Any]]:
    """The sampling parameters of a request, and its messages; each empty if it has none."""
    body = request.get("openai_input")
    inner = body if isinstance(body, dict) else request
    sampling = inner if inner is body else request.get("sampling_params")
    messages = inner.get("messages")
    return sampling if isinstance(sampling, dict) else {}, messages if isinstance(messages, list) else []
