"""`batchrun report`: figures by variant, from the state file and the results, even while the run is in progress."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path

from batchrun.commands.quality import are_outdated, read_quality
from batchrun.config import RunOptions
from batchrun.display.variants import EndpointReport, Histogram, VariantReport, VariantTable
from batchrun.errors import StateError
from batchrun.evaluation.quality import VariantInfo
from batchrun.prompts.sweep import REPEAT, Sweep, shown
from batchrun.results.reader import read_groups, size_of
from batchrun.results.record import CACHED, read_record, result_digest
from batchrun.runs.spending import cost_so_far, costs_by_endpoint
from batchrun.runs.work import endpoint_work
from batchrun.scheduler.states import RowState
from batchrun.state import figures
from batchrun.state.shared_ids import stored_ids
from batchrun.state.snapshot import StateSnapshot
from batchrun.state.stored_options import read_options


def read(state: Path, by: str | None = None) -> VariantTable:
    """Read the figures of a run so far, by variant.

    Args:
        state: The state file.
        by: The path of a field by which scores are split; None: they are not.

    Raises:
        StateError: there is no such state file, it holds no run, or a file cannot be read.
        UsageError: scores cannot be split by this field.
    """
    with StateSnapshot(state) as store:
        store.refuse_damaged()
        options = read_options(store)
        repeat = options.sweep.repeat
        variants = _variants(options)
        last = figures.last_variant(store)
        if last // repeat >= len(variants):
            raise StateError(
                f"{state}: the state file is damaged: a row has variant {last}, which does not exist",
                "restore it from a copy",
            )
        for number, row_state, count in figures.rows_by_variant(store, repeat):
            variant = variants[number]
            variant.rows += count
            variant.succeeded += count if row_state == RowState.SUCCEEDED else 0
            variant.failed += count if row_state == RowState.FAILED else 0
        for number, kind, count in figures.failures_by_variant(store, repeat):
            variants[number].failures[kind] = count
        _add_times(store, variants, repeat)
        _add_cost(store, variants, options)
        _add_answers(store, variants, repeat)
        endpoints = _endpoints(store, options)
        named = {number: VariantInfo(each.label, each.values, each.cost) for number, each in enumerate(variants)}
        quality = read_quality(store, state, named, repeat, by)
        is_outdated = bool(quality) and are_outdated(store, state)
    found = [variant for variant in variants if variant.rows or len(variants) == 1]
    return VariantTable(str(state), found, endpoints, quality, is_outdated)


def _endpoints(store: StateSnapshot, options: RunOptions) -> list[EndpointReport]:
    work = endpoint_work(store, options)
    if not work:
        return []
    costs: list[float | None] = [None] * len(work)
    if options.guards.have_price:
        costs = [cost.most for cost in costs_by_endpoint(store, store.counts(), store.counters(), options)]
    histograms: defaultdict[int, Histogram] = defaultdict(Histogram)
    for number, value, count in figures.times_by_endpoint(store):
        histograms[number].add(value, count)
    return [
        EndpointReport(**asdict(each), execution_ms=histograms[number].times(), cost=costs[number])
        for number, each in enumerate(work)
    ]


def _variants(options: RunOptions) -> list[VariantReport]:
    sweep, found = Sweep(options.sweep), []
    for number in range(0, sweep.size, options.sweep.repeat):
        values = {key: value for key, value in sweep.variant(number).values.items() if key != REPEAT}
        label = " ".join(f"{key}={shown(value)}" for key, value in values.items())
        found.append(VariantReport(label or "all", values))
    return found


def _add_times(store: StateSnapshot, variants: list[VariantReport], repeat: int) -> None:
    columns: tuple[figures.TimeColumn, ...] = ("delay_ms", "execution_ms")
    for column in columns:
        histograms: defaultdict[int, Histogram] = defaultdict(Histogram)
        for number, value, count in figures.times_by_variant(store, column, repeat):
            histograms[number].add(value, count)
        for number, histogram in histograms.items():
            setattr(variants[number], column, histogram.times())


def _add_cost(store: StateSnapshot, variants: list[VariantReport], options: RunOptions) -> None:
    cost = cost_so_far(store, store.counts(), store.counters(), options)
    worked = figures.execution_by_variant(store, options.sweep.repeat)
    total_ms = sum(worked.values())
    if cost is not None and total_ms:
        for number, variant in enumerate(variants):
            variant.cost = cost.most * worked.get(number, 0) / total_ms


def _add_answers(store: StateSnapshot, variants: list[VariantReport], repeat: int) -> None:
    """Read all committed results once."""
    input_tokens: defaultdict[int, Histogram] = defaultdict(Histogram)
    output_tokens: defaultdict[int, Histogram] = defaultdict(Histogram)
    marked: Counter[tuple[int, str]] = Counter()
    for output in store.outputs():
        path = store.lines_path(output)
        if size_of(path) < output.committed_bytes:
            raise StateError(
                f"{path} is shorter than the state file says: results are missing", "restore the complete file"
            )
        for group in read_groups(path, end=output.committed_bytes):
            found = [(record, line.raw) for line in group if (record := read_record(line.raw)) is not None]
            ids = stored_ids(store, output.output, [(record.id, raw) for record, raw in found], result_digest)
            numbers = store.variants(ids) if len(variants) > 1 else {}
            for row_id, (record, _) in zip(ids, found, strict=True):
                number = numbers.get(row_id, 0) // repeat
                if record.input_tokens is not None:
                    input_tokens[number].add(record.input_tokens)
                if record.output_tokens is not None:
                    output_tokens[number].add(record.output_tokens)
                marked.update((number, mark) for mark in record.marks)
                marked[number, CACHED] += record.counts_as_cached
    for (number, mark), count in marked.items():
        setattr(variants[number], mark, count)
    for number, histogram in input_tokens.items():
        variants[number].input_tokens = histogram.tokens()
    for number, histogram in output_tokens.items():
        variants[number].output_tokens = histogram.tokens()
