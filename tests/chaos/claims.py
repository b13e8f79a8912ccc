"""What a run owes its user, checked by its files, by what it says, and by what was counted at the endpoint."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from tests.chaos.endpoint import fails, text_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

DOCUMENTED = frozenset({0, 2, 3, 4, 130})
"""The exit codes of a command that was not killed; `verify` has 1 too."""


def assert_civil(code: int | None, said: str, arguments: list[str]) -> None:
    """An exit code that the README has, and no traceback."""
    shown = f"batchrun {' '.join(arguments)} exits with {code}:\n{said}"
    assert code is not None, f"it hangs: {shown}"
    assert "Traceback" not in said, shown
    assert code in (DOCUMENTED | {1} if arguments[0] == "verify" else DOCUMENTED), shown


def read_records(path: Path, *, torn: bool = False) -> list[dict[str, Any]]:
    """The records of a file of results or errors.

    Args:
        path: The file; one that is not there has none.
        torn: Whether its last line may be half of one: a run was killed, and none has come after it.
    """
    data = path.read_bytes() if path.is_file() else b""
    *whole, end = data.split(b"\n")
    assert torn or not end, f"{path.name} ends in half a line: {end[-80:]!r}"
    return [json.loads(line) for line in whole]


def assert_right(records: Iterable[dict[str, Any]], ids: dict[str, str]) -> Counter[str]:
    """Each result is there once, and says what its own prompt was answered; returns how many each prompt has.

    Args:
        records: Of the results files.
        ids: The prompt of each row that has an id of its own.
    """
    seen: Counter[str] = Counter()
    prompts: Counter[str] = Counter()
    for record in records:
        prompt = record["text"].removeprefix(text_of(""))
        assert record["text"] == text_of(prompt), record
        assert record["id"] not in ids or ids[record["id"]] == prompt, f"the answer to another row: {record}"
        seen[record["id"]] += 1
        prompts[prompt] += 1
    twice = [row for row, count in seen.items() if count > 1]
    assert not twice, f"more than one result: {twice}"
    return prompts


def assert_whole(results: list[dict[str, Any]], errors: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    """Every row has exactly one result or failure."""
    ids = {row["id"]: row["prompt"] for row in rows if "id" in row}
    answered = assert_right(results, ids)
    failed = Counter(record["request"]["prompt"] for record in errors)
    wanted = Counter(row["prompt"] for row in rows)
    assert answered == Counter({prompt: n for prompt, n in wanted.items() if not fails(prompt)}), "results"
    assert failed == Counter({prompt: n for prompt, n in wanted.items() if fails(prompt)}), "failures"


def assert_said(paid: Counter[str], rows: list[dict[str, Any]], counters: dict[str, int]) -> None:
    """No row was submitted more often than what the run owns up to.

    Args:
        paid: How often each prompt was submitted, as the endpoint has counted.
        rows: The rows of the run.
        counters: Of `status --json`.
    """
    wanted = Counter(row["prompt"] for row in rows)
    more = paid - wanted
    said = counters.get("unconfirmed", 0) + counters.get("retries", 0)
    assert more.total() <= said, f"paid for again in silence: {dict(more)}, said: {said}"
