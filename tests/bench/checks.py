"""What checking an answer costs."""

from __future__ import annotations

import json
import time

from batchrun.prompts.schemas import read_schema
from batchrun.results.structured import AnswerSchema
from tests.bench.figures import Asked, Figure, Figures

_ANSWERS = 100_000
_SCHEMA = "name, age int, height float, alive bool, tags list, bio: one sentence"


def schema(asked: Asked) -> Figures:
    """The time to find the value in an answer and to check it, for answers that are JSON and for fenced ones."""
    checked = AnswerSchema(read_schema(_SCHEMA))
    texts = [_answer(number) for number in range(_ANSWERS)]
    fenced = [f"Here it is:\n```json\n{text}\n```" for text in texts]
    return {
        "an answer that is JSON, microseconds": _each(checked, texts, asked.rounds),
        "an answer in a fenced block, microseconds": _each(checked, fenced, asked.rounds),
    }


def _answer(number: int) -> str:
    bio = f"Person {number} wrote the first programs and thought far ahead of the machines of the time."
    tags = ["mathematics", "engines", "poetry"]
    return json.dumps({"name": f"Ada {number}", "age": number, "height": 1.5, "alive": False, "tags": tags, "bio": bio})


def _each(checked: AnswerSchema, texts: list[str], rounds: int) -> Figure:
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        wrong = sum(checked.problem(text) is not None for text in texts)
        took.append((time.perf_counter() - began) / len(texts) * 1e6)
        assert not wrong
    return Figure(took, "<= 15")
