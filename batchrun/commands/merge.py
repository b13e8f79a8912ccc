"""The results of the shards of one input, put together, and the proof that nothing is missing.

The shards of an input know how many lines it has, and the sum of their digests. Their own lines must come to that sum.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from batchrun.commands.export import put, refuse_own_files, told_of
from batchrun.errors import StateError
from batchrun.prompts.shard import LineSum, Shard
from batchrun.results.reader import LinesByPosition
from batchrun.results.writer import errors_path, write_errors
from batchrun.runs.ordering import find_positions
from batchrun.scheduler.states import RowState
from batchrun.state.positions import Positions
from batchrun.state.shared_ids import count_shared_ids
from batchrun.state.snapshot import StateSnapshot
from batchrun.state.stored_options import find_options

_SAME = {
    "endpoint": "--endpoint",
    "request": "--set, --default, --chat or --system",
    "sweep": "--sweep or --repeat",
    "format": "--format",
}
"""Options in which shards agree, by the name of their field."""
_LISTED = 5


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What the shards come to."""

    target: str
    shards: int
    """Those that were merged."""
    of: int
    """Those that the input was divided into."""
    results: int
    failed: int
    unfinished: int
    """Rows of these shards that have not ended."""
    errors: Path | None
    """The failed rows; None when there are none, or nowhere to write them."""
    shared_ids: int = 0
    """Ids that several of the lines have."""

    def __str__(self) -> str:
        rest = [f"{self.failed:,} failed" + (f" ({self.errors})" if self.errors else "")] if self.failed else []
        rest += [f"{self.unfinished:,} have not ended"] if self.unfinished else []
        rest += [f"{self.of - self.shards:,} of {self.of:,} shards are missing"] if self.shards < self.of else []
        said = f"{self.results:,} results of {self.shards:,} shards merged into {self.target}"
        return (f"{said}; {', '.join(rest)}" if rest else said) + told_of(self.shared_ids)


def merge(states: Sequence[Path], target: Path | None, stdout: BinaryIO, *, partial: bool = False) -> MergeReport:
    """Write the results of all shards in input order.

    Args:
        states: The shards' state files, in any order.
        target: The file to write, whole by rename, with the failed rows beside it; None: results to `stdout`.
        stdout: Where the lines go without a target.
        partial: Take what there is: shards may be missing, limited to a few of their lines, and rows unfinished.

    Raises:
        StateError: the shards are not of one input, overlap, or are not whole; or a file of one cannot be read.
        UsageError: the target or its error file is a folder, a device, or a file of a shard.
        OutputError: the target cannot be written.
    """
    with ExitStack() as stack:
        stores = [stack.enter_context(StateSnapshot(state)) for state in states]
        shards = _refuse_strangers(stores)
        counts = [store.counts() for store in stores]
        if not partial:
            _refuse_partial(stores, shards, counts)
        paths: dict[int, Path] = {}
        after = (0, 0)
        positions = stack.enter_context(Positions())
        for store, each in zip(stores, counts, strict=True):
            refuse_own_files(store, target, stdout)
            if target is not None:
                refuse_own_files(store, errors_path(target), stdout)
            paths |= {after[0] + output.output: store.results_path(output) for output in store.outputs()}
            find_positions(store, positions, each[RowState.SUCCEEDED], after)
            after = (max(paths), after[1] + store.last_row())
        placed = stack.enter_context(LinesByPosition(paths))
        lines = (placed.read(at.output, at.offset, at.length) for at in positions)
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
    """Refuse shards that are not the whole of their input: some are missing, or lines of theirs are."""
    missing = sorted(set(range(1, shards[0].count + 1)) - {shard.index for shard in shards})
    if missing:
        raise StateError(_missing(missing), "give all of them; `merge` takes what there is with --partial")
    whole = LineSum.from_json(stores[0].get_setting("whole_input"))
    found = LineSum()
    for store in stores:
        for digest in store.line_digests():
            found.add(digest)
    if found != whole:
        raise StateError(
            f"the shards have {found.lines:,} lines, and the input has {whole.lines:,}: they are not whole",
            "was one of them run with --limit, or begun before the input was changed? Run it again",
        )


def _shards_of(stores: Sequence[StateSnapshot]) -> list[Shard]:
    """Which part of the input each state file holds.

    Raises:
        StateError: one holds no run, or a run that is no shard.
    """
    found = []
    for store in stores:
        options = find_options(store)
        if options is None:
            raise StateError(f"{store.path} holds no run yet", "its start was cut off: give the same command again")
        if options.shard is None:
            raise StateError(f"{store.path} is not that of a shard", "it was run without --shard: `batchrun export` it")
        found.append(Shard.parse(options.shard))
    return found


def _refuse_strangers(stores: Sequence[StateSnapshot]) -> list[Shard]:
    """Refuse state files that are not different shards of one input under the same options."""
    for store in stores:
        store.refuse_damaged()
    shards = _shards_of(stores)
    first, first_options = stores[0], find_options(stores[0])
    by_index: dict[int, StateSnapshot] = {}
    for store, shard in zip(stores, shards, strict=True):
        if shard.count != shards[0].count:
            raise StateError(
                f"{store.path} is shard {shard}, and {first.path} is {shards[0]}", "give shards of one division"
            )
        if shard.index in by_index:
            raise StateError(
                f"{by_index[shard.index].path} and {store.path} are both shard {shard}", "give each shard once"
            )
        by_index[shard.index] = store
        if LineSum.from_json(store.get_setting("whole_input")) != LineSum.from_json(first.get_setting("whole_input")):
            raise StateError(
                f"{store.path} and {first.path} are shards of different inputs", "each has to see the same lines"
            )
        options = find_options(store)
        differing = [option for key, option in _SAME.items() if getattr(options, key) != getattr(first_options, key)]
        if differing:
            raise StateError(
                f"{store.path} and {first.path} were run with different {' and '.join(differing)}",
                "their results are no answer to one question",
            )
    return shards


def _unfinished(counts: dict[RowState, int]) -> int:
    """Rows that have not ended."""
    return sum(count for state, count in counts.items() if state.is_open or state is RowState.HELD)


def _refuse_partial(
    stores: Sequence[StateSnapshot], shards: Sequence[Shard], counts: Sequence[dict[RowState, int]]
) -> None:
    """Refuse shards that are not whole, have rows left, or have failed rows that no error file tells of."""
    _prove(stores, shards)
    for store, each in zip(stores, counts, strict=True):
        if open_rows := _unfinished(each):
            raise StateError(
                f"{store.path} has {open_rows:,} rows that have not ended",
                f"batchrun resume {shlex.quote(str(store.path))}, or merge what there is with --partial",
            )
        told = sum(1 for _ in _error_lines([store]))
        if told != each[RowState.FAILED]:
            raise StateError(
                f"{store.path} has {each[RowState.FAILED]:,} rows that failed, and its error file has {told:,}",
                f"batchrun resume {shlex.quote(str(store.path))} writes it anew; or merge what there is with --partial",
            )


def _missing(indices: list[int]) -> str:
    listed = ", ".join(map(str, indices[:_LISTED])) + (", ..." if len(indices) > _LISTED else "")
    return f"{len(indices):,} {'shard is' if len(indices) == 1 else 'shards are'} missing: {listed}"


def _error_lines(stores: Sequence[StateSnapshot]) -> Iterator[bytes]:
    for store in stores:
        for output in store.outputs():
            path = errors_path(store.results_path(output))
            if path.exists():
                with path.open("rb") as file:
                    yield from file


def whole_shards(states: Sequence[Path]) -> str:
    """What the state files of shards prove together, as a line for people.

    Raises:
        StateError: they overlap, are not of one input, or are not whole.
    """
    with ExitStack() as stack:
        stores = [stack.enter_context(StateSnapshot(state)) for state in states]
        shards = _refuse_strangers(stores)
        _prove(stores, shards)
        lines = LineSum.from_json(stores[0].get_setting("whole_input")).lines
    return f"together: {len(stores):,} shards, each of the {lines:,} lines of the input is in one of them"
