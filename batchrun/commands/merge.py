"""`batchrun merge`: puts the results of the shards of one input together, and proves that nothing is missing.

Each shard knows how many lines the whole input has, and the sum of their digests. The lines of all shards must add up
to the same.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from batchrun.commands.export import note_on, put, refuse_own_files
from batchrun.errors import StateError
from batchrun.prompts.shard import LineSum, Shard
from batchrun.results.reader import LinesByPosition
from batchrun.results.writer import errors_path, write_errors
from batchrun.runs.locations import refuse_other_forms
from batchrun.runs.ordering import find_positions
from batchrun.scheduler.states import RowState
from batchrun.state.positions import Positions
from batchrun.state.shared_ids import count_shared_ids
from batchrun.state.snapshot import StateSnapshot
from batchrun.state.stored_options import find_options

_SHARED_OPTIONS = {
    "endpoint": "--endpoint",
    "request": "--set, --default, --chat or --system",
    "sweep": "--sweep or --repeat",
    "format": "--format",
    "with_request": "--with-request",
    "split_think": "--split-think",
}
"""Field -> the options in which all shards must agree."""
_LISTED = 5


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What was merged."""

    target: str
    shards: int
    """The number that were merged."""
    of: int
    """The number that the input was divided into."""
    results: int
    failed: int
    unfinished: int
    """Rows of these shards that have not finished."""
    errors: Path | None
    """The error file; None if no row failed, or the results went to stdout."""
    shared_ids: int = 0
    """Ids that more than one written line has."""

    def __str__(self) -> str:
        rest = [f"{self.failed:,} failed" + (f" ({self.errors})" if self.errors else "")] if self.failed else []
        rest += [f"{self.unfinished:,} not finished"] if self.unfinished else []
        rest += [f"missing shards: {self.of - self.shards:,} of {self.of:,}"] if self.shards < self.of else []
        text = f"{self.results:,} results of {self.shards:,} shards merged into {self.target}"
        return (f"{text}; {', '.join(rest)}" if rest else text) + note_on(self.shared_ids)


def merge(states: Sequence[Path], target: Path | None, stdout: BinaryIO, *, partial: bool = False) -> MergeReport:
    """Write the results of all shards in input order.

    Args:
        states: The shards' state files, in any order.
        target: The file to write, replaced by a rename, with the failed rows beside it; None: results to `stdout`.
        stdout: Where the lines go if there is no target.
        partial: Merge what there is: shards may be missing, be limited to some of their lines, or be unfinished.

    Raises:
        StateError: the shards belong to different inputs, overlap or are incomplete; or a file cannot be read.
        UsageError: the target or its error file is a folder, a device, or a file of a shard; or it is named as a table.
        OutputError: the target cannot be written.
    """
    if target is not None:
        refuse_other_forms(target, "give -o results.jsonl; `batchrun export` makes a table of each shard")
    with ExitStack() as stack:
        stores = [stack.enter_context(StateSnapshot(state)) for state in states]
        shards = _refuse_mismatched(stores)
        counts = [store.counts() for store in stores]
        if not partial:
            _refuse_incomplete(stores, shards, counts)
        paths: dict[int, Path] = {}
        after = (0, 0)
        positions = stack.enter_context(Positions())
        for store, each in zip(stores, counts, strict=True):
            refuse_own_files(store, target, stdout)
            if target is not None:
                refuse_own_files(store, errors_path(target), stdout)
            paths |= {after[0] + output.output: store.lines_path(output) for output in store.outputs()}
            find_positions(store, positions, each[RowState.SUCCEEDED], after)
            after = (max(paths), after[1] + store.last_row())
        placed = stack.enter_context(LinesByPosition(paths))
        lines = (placed.read(at.output, at.result_offset, at.result_length) for at in positions)
        put(lines, target, stdout)
        errors = None
        if target is not None and write_errors(errors_path(target), _error_lines(stores)):
            errors = errors_path(target)
        return MergeReport(
            "stdout" if target is None else str(target),
            len(stores),
            shards[0].count,
            sum(each[RowState.SUCCEEDED] for each in counts),
            sum(each[RowState.FAILED] for each in counts),
            sum(map(_unfinished, counts)),
            errors,
            sum(map(count_shared_ids, stores)),
        )


def _prove(stores: Sequence[StateSnapshot], shards: Sequence[Shard]) -> None:
    """Refuse shards that are not the whole input: a shard, or some of its lines, are missing."""
    missing = sorted(set(range(1, shards[0].count + 1)) - {shard.index for shard in shards})
    if missing:
        raise StateError(_missing(missing), "give all of them; `merge --partial` merges what there is")
    whole = LineSum.from_json(stores[0].get_setting("whole_input"))
    found = LineSum()
    for store in stores:
        for digest in store.line_digests():
            found.add(digest)
    if found != whole:
        raise StateError(
            f"the shards are incomplete: they have {found.lines:,} lines, but the input has {whole.lines:,}",
            "if one was run with --limit, or started before the input changed, run it again",
        )


def _shards_of(stores: Sequence[StateSnapshot]) -> list[Shard]:
    """Which part of the input each state file holds.

    Raises:
        StateError: a state file holds no run, or its run is not a shard.
    """
    found = []
    for store in stores:
        options = find_options(store)
        if options is None:
            raise StateError(
                f"{store.path} holds no run yet: its start was interrupted", "run the command that started it again"
            )
        if options.shard is None:
            raise StateError(f"{store.path} is not a shard: it was run without --shard", "use `batchrun export`")
        found.append(Shard.parse(options.shard))
    return found


def _refuse_mismatched(stores: Sequence[StateSnapshot]) -> list[Shard]:
    """Refuse state files unless they are different shards of one input, with the same options."""
    for store in stores:
        store.refuse_damaged()
    shards = _shards_of(stores)
    first, first_options = stores[0], find_options(stores[0])
    by_index: dict[int, StateSnapshot] = {}
    for store, shard in zip(stores, shards, strict=True):
        if shard.count != shards[0].count:
            raise StateError(
                f"{store.path} is shard {shard}, but {first.path} is shard {shards[0]}",
                "give shards of the same division",
            )
        if shard.index in by_index:
            raise StateError(
                f"{by_index[shard.index].path} and {store.path} are both shard {shard}", "give each shard once"
            )
        by_index[shard.index] = store
        if LineSum.from_json(store.get_setting("whole_input")) != LineSum.from_json(first.get_setting("whole_input")):
            raise StateError(
                f"{store.path} and {first.path} are shards of different inputs", "give the shards of one input"
            )
        options = find_options(store)
        differing = [
            option for key, option in _SHARED_OPTIONS.items() if getattr(options, key) != getattr(first_options, key)
        ]
        if differing:
            raise StateError(
                f"{store.path} and {first.path} were run with different {' and '.join(differing)}",
                "run all shards with the same options",
            )
    return shards


def _unfinished(counts: dict[RowState, int]) -> int:
    """The number of rows that have not finished."""
    return sum(count for state, count in counts.items() if state.is_open or state is RowState.HELD)


def _refuse_incomplete(
    stores: Sequence[StateSnapshot], shards: Sequence[Shard], counts: Sequence[dict[RowState, int]]
) -> None:
    """Refuse shards that are incomplete or unfinished, or whose error file does not list all failed rows."""
    _prove(stores, shards)
    for store, each in zip(stores, counts, strict=True):
        if open_rows := _unfinished(each):
            raise StateError(
                f"{store.path}: rows not finished: {open_rows:,}",
                f"batchrun resume {shlex.quote(str(store.path))}, or merge what there is with --partial",
            )
        records = sum(1 for _ in _error_lines([store]))
        if records != each[RowState.FAILED]:
            raise StateError(
                f"{store.path}: failed rows: {each[RowState.FAILED]:,}, but records in its error file: {records:,}",
                f"rewrite it: batchrun resume {shlex.quote(str(store.path))}; or merge what there is with --partial",
            )


def _missing(indices: list[int]) -> str:
    more = f", ... ({len(indices):,} in all)" if len(indices) > _LISTED else ""
    return f"missing shards: {', '.join(map(str, indices[:_LISTED]))}{more}"


def _error_lines(stores: Sequence[StateSnapshot]) -> Iterator[bytes]:
    for store in stores:
        for output in store.outputs():
            path = errors_path(store.results_path(output))
            if path.exists():
                with path.open("rb") as file:
                    yield from file


def whole_shards(states: Sequence[Path]) -> str:
    """Prove that state files are all shards of one input; returns a line that says so.

    Raises:
        StateError: they overlap, belong to different inputs, or are incomplete.
    """
    with ExitStack() as stack:
        stores = [stack.enter_context(StateSnapshot(state)) for state in states]
        shards = _refuse_mismatched(stores)
        _prove(stores, shards)
        lines = LineSum.from_json(stores[0].get_setting("whole_input")).lines
    return f"together: {len(stores):,} shards; each of the {lines:,} input lines is in exactly one of them"
