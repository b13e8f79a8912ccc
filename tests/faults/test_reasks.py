"""A run whose rows are asked again dies at every call to the disk: what was asked and how often is never forgotten."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import pytest

from batchrun.config import RequestOptions
from batchrun.prompts.schemas import read_schema
from batchrun.scheduler.states import RowState
from batchrun.state.amendments import Amendments
from batchrun.state.store import Store
from tests.support.claims import assert_adds_up
from tests.support.crashes import Doom, Nights, after_every, at_random
from tests.support.rehearsal import read_lines, write_lines
from tests.support.workers import LOST, Answering

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 16
REASKS = 2
BAD_LUCK = ("platform", "unconfirmed")
"""Why a row may fail whose answers are right in the end: it was lost too often."""


class Learner(Answering):
    """Answers by what it is told of its last answer: wrongly twice, then rightly, and to some never rightly.

    So an answer that fits proves that each request before it was made of the answer before that.
    """

    def __init__(self) -> None:
        super().__init__(self._learn)
        self.jobs = 0

    def _learn(self, request: dict[str, Any]) -> Any:
        self.jobs += 1
        if self.jobs % 7 == 0:
            return LOST
        asked, *turns = [message["content"] for message in request["messages"]]
        tries = int(turns[0].rpartition(" ")[2]) + 1 if turns else 1
        right = tries == REASKS + 1 and "never" not in asked
        return f'{{"text": "{asked}"}}' if right else f"wrong {tries}"


class Learning(Nights):
    """A run that asks its rows again."""

    worker = Learner

    def __init__(self, folder: Path, copies: int = 1) -> None:
        super().__init__(folder, copies)
        scheduler = replace(self.options.scheduler, reask=REASKS)
        self.options = replace(
            self.options, scheduler=scheduler, request=RequestOptions(schema=read_schema("text")), ordered=False
        )
        lines = [
            {"id": f"r{n}", "messages": [{"role": "user", "content": self.prompt_of(n)}], "metadata": n}
            for n in range(ROWS)
        ]
        write_lines(folder, lines)

    def prompt_of(self, number: int) -> str:
        number %= self.different
        return f"{'never' if number % 11 == 5 else 'p'} {number}"

    def prompts_of(self, body: dict) -> list[str]:
        return [body["input"]["messages"][0]["content"]]

    def assert_whole(self) -> None:
        with Store(self.options.state) as store:
            rows = store.query(
                "SELECT r.id, r.row, r.retries, r.unconfirmed, f.kind, r.same_as FROM rows r"
                " LEFT JOIN failures f ON f.row = r.row ORDER BY r.row"
            )
            assert not any(store.counts()[state] for state in RowState if state.is_open)
            amendments = Amendments(store)
            asks = {row_id: amendments.get(row) for row_id, row, *_ in rows}
        results = read_lines(self.options.output)
        assert len(results) == len({record["id"] for record in results})
        said: Counter[str] = Counter()
        for row_id, _, retries, unconfirmed, kind, same_as in rows:
            prompt = self.prompt_of(int(row_id[1:]))
            assert kind in ("invalid_output", *BAD_LUCK) if "never" in prompt else kind in (None, *BAD_LUCK)
            if same_as is None:
                amendment = asks[row_id]
                refused = 0 if amendment is None else amendment.asks
                assert refused == REASKS or (kind in BAD_LUCK and refused < REASKS), "each is counted once"
                said[prompt] += refused + retries + unconfirmed
        for record in results:
            assert record["parsed"] == {"text": self.prompt_of(record["metadata"])}
        for record in read_lines(self.folder / "out.errors.jsonl"):
            assert record["error"]["kind"] in BAD_LUCK or record["error"]["raw"] == f"wrong {REASKS + 1}"
        for prompt, more in said.items():
            assert self.submitted[prompt] <= 1 + more, f"{prompt} was paid for without saying so"
        assert_adds_up(self.options.state)


@pytest.mark.parametrize("calls", [pytest.param(12, marks=pytest.mark.slow), 17, 29])
async def test_a_run_that_dies_after_every_kth_call_to_the_disk_forgets_no_answer(tmp_path: Path, calls: int):
    nights = Learning(tmp_path)
    await nights.until_it_is_over(after_every(calls))
    nights.assert_whole()
    assert nights.crashes > 0


@pytest.mark.parametrize("seed", range(4))
async def test_a_run_that_dies_at_random_calls_and_requests_forgets_no_answer(tmp_path: Path, seed: int):
    nights = Learning(tmp_path)
    await nights.until_it_is_over(at_random(seed))
    nights.assert_whole()
    assert nights.crashes > 0


@pytest.mark.parametrize("calls", range(8, 33, 6))
async def test_rows_that_share_a_job_share_its_tries_wherever_the_run_dies(tmp_path: Path, calls: int):
    nights = Learning(tmp_path, copies=5)
    await nights.until_it_is_over(chain([Doom(calls, 10**9)] * 2, at_random(calls)))
    nights.assert_whole()
    assert nights.crashes > 0
