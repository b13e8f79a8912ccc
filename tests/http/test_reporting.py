"""What a run came to, by variant."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from batchrun.cli.app import main
from batchrun.commands import report as reporting
from batchrun.config import GuardOptions, SweepOptions
from batchrun.display.text import columns_of
from batchrun.display.variants import Histogram, VariantReport, VariantTable, render
from batchrun.errors import StateError
from batchrun.state.store import Store
from tests.support.rehearsal import mixed_run, read_lines, rehearse, serving, write_lines
from tests.support.workers import Picky

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_run_without_a_sweep_is_one_line(tmp_path: Path):
    (only,) = reporting.read(await mixed_run(tmp_path)).variants
    assert (only.label, only.rows, only.succeeded, only.failed) == ("all", 12, 9, 3)
    assert only.failures == {"bad_request": 3}
    made = [record["usage"]["output_tokens"] for record in read_lines(tmp_path / "out.jsonl")]
    assert only.output_tokens.mean == pytest.approx(sum(made) / len(made))
    assert only.execution_ms.p50 <= only.execution_ms.p90 <= only.execution_ms.p99
    assert only.cost is None


async def test_variants_are_told_apart_and_their_samples_pooled(tmp_path: Path):
    write_lines(tmp_path, [{"id": f"q{n}", "prompt": f"{'bad' if n == 0 else 'good'} {n}"} for n in range(5)])
    sweep = SweepOptions((("temperature", (0, 0.5)), ("top_p", (0.9, 1))), repeat=3)
    async with serving(worker=Picky()) as server:
        await rehearse(tmp_path, server.endpoint.base_url, sweep=sweep, guards=GuardOptions(price_per_hour=3600.0))
    done = CliRunner().invoke(main, ["report", str(tmp_path / "out.jsonl.state"), "--json"])
    assert done.exit_code == 0
    variants = orjson.loads(done.stdout)["variants"]
    assert [variant["values"] for variant in variants] == [
        {"temperature": t, "top_p": p} for t in (0, 0.5) for p in (0.9, 1)
    ]
    for variant in variants:
        assert (variant["rows"], variant["succeeded"], variant["failed"]) == (15, 12, 3)
        assert set(variant["delay_ms"]) == {"p50", "p90", "p99"}
    shown = CliRunner().invoke(main, ["report", str(tmp_path / "out.jsonl.state")]).stdout
    assert "temperature=0.5 top_p=0.9" in shown
    assert max(map(len, shown.splitlines())) <= 100


async def test_the_parts_of_the_variants_add_up_to_the_cost_of_the_run(tmp_path: Path):
    write_lines(tmp_path, [{"id": f"q{n}", "prompt": f"good {n}"} for n in range(12)])
    sweep = SweepOptions((("temperature", (0, 0.5)),))
    async with serving(latency_s=0.2) as server:
        guards = GuardOptions(price_per_hour=3600.0)
        rehearsal = await rehearse(tmp_path, server.endpoint.base_url, sweep=sweep, guards=guards)
    variants = reporting.read(tmp_path / "out.jsonl.state").variants
    assert rehearsal.summary.cost is not None
    assert rehearsal.summary.cost.most > 0
    assert sum(variant.cost for variant in variants) == pytest.approx(rehearsal.summary.cost.most)
    assert variants[0].cost == pytest.approx(variants[1].cost, rel=0.5)


async def test_a_run_that_has_not_ended_is_reported_as_far_as_it_is(tmp_path: Path):
    write_lines(tmp_path, [{"id": f"q{n}", "prompt": f"good {n}"} for n in range(20)])
    sweep = SweepOptions((("temperature", (0, 0.5)),))
    async with serving() as server:
        await rehearse(tmp_path, server.endpoint.base_url, sweep=sweep, limit=10)
    with Store(tmp_path / "out.jsonl.state") as store, store.transaction() as db:
        db.execute("UPDATE rows SET state = 0 WHERE id = 'q4/temperature=0.5'")
    first, second = reporting.read(tmp_path / "out.jsonl.state").variants
    assert (first.rows, first.succeeded, second.rows, second.succeeded) == (5, 5, 5, 4)


async def test_a_variant_that_the_sweep_does_not_have_is_damage(tmp_path: Path):
    state = await mixed_run(tmp_path)
    with Store(state) as store, store.transaction() as db:
        db.execute("UPDATE rows SET variant = 7 WHERE row = 1")
    with pytest.raises(StateError, match="damaged: a row has variant 7"):
        reporting.read(state)


async def test_results_that_are_missing_are_named(tmp_path: Path):
    state = await mixed_run(tmp_path)
    (tmp_path / "out.jsonl").write_bytes(b"")
    with pytest.raises(StateError, match="results are missing"):
        reporting.read(state)


def test_of_many_variants_those_with_most_rows_are_shown():
    variants = [VariantReport(f"top_k={n}", {"top_k": n}, rows=n) for n in range(1, 1001)]
    shown = render(VariantTable("x", variants))
    assert "top_k=961 " in shown
    assert "top_k=960 " not in shown
    assert "not shown: 960;" in shown


@given(st.lists(st.integers(0, 10**7), min_size=1))
def test_percentiles_are_those_of_the_sorted_numbers_to_three_digits(numbers: list[int]):
    tally = Histogram()
    for number in numbers:
        tally.add(number)
    for share in (0.5, 0.9, 0.99):
        exact = sorted(numbers)[min(int(share * len(numbers)), len(numbers) - 1)]
        (found,) = tally.percentiles((share,))
        assert found <= exact <= found * 1.01


def test_wide_characters_leave_the_columns_of_a_table_in_line():
    variants = [VariantReport(label, {"system": label}, rows=1) for label in ("system=詳しく答えて", "system=brief")]
    lines = render(VariantTable("x", variants)).splitlines()
    assert {columns_of(line) for line in lines[:3]} == {columns_of(lines[0])}
