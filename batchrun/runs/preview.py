"""The requests that a run would send, for `--dry-run`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import BinaryIO

from batchrun.config import RunOptions
from batchrun.display.summary import Observer
from batchrun.errors import BatchrunError, InputError
from batchrun.prompts.fields import Fields
from batchrun.prompts.identity import SeenIds, derived_id
from batchrun.prompts.line_rules import LineRules
from batchrun.prompts.shapes import READING, LineError, Prompt
from batchrun.prompts.shard import Shard
from batchrun.prompts.sources import Source, find_sources, iter_source, place_of
from batchrun.prompts.sweep import Sweep
from batchrun.state.reader import StateReader


def preview(options: RunOptions, stdin: BinaryIO, observer: Observer, fields: Fields) -> Iterator[Prompt]:
    """The prompts of the inputs in order, each with all of its variants, up to the limit; nothing is written.

    Args:
        options: The run's options.
        stdin: The stream that `-` stands for.
        observer: Receives messages for the user.
        fields: Collects how the fields of the lines are used.

    Raises:
        InputError: an input cannot be read, or a line of it is invalid.
    """
    shard = None if options.shard is None else Shard.parse(options.shard)
    sources = find_sources(options.inputs, tell=observer.message)
    reading = READING
    if options.state.is_file():
        with suppress(BatchrunError), StateReader(options.state) as store:
            reading = store.reading if store.sources() else READING
    tell = observer.message if options.skip_invalid else None
    sweep = Sweep(options.sweep, reading)
    rules = LineRules(options.request, reading)
    ids = SeenIds(by_file=options.output_is_folder)
    rows = _previewed(sources, sweep, shard, stdin, tell, fields=fields, rules=rules, ids=ids)
    return (row for row in islice(rows, options.limit) if row is not None)


def _previewed(
    sources: Sequence[Source],
    sweep: Sweep,
    shard: Shard | None,
    stdin: BinaryIO,
    tell: Callable[[str], None] | None,
    *,
    fields: Fields,
    rules: LineRules,
    ids: SeenIds,
) -> Iterator[Prompt | None]:
    """The rows; None for a skipped line, which also counts as a row."""
    for source in sources:
        media = rules.media(source.origin)
        for line in iter_source(source, stdin):
            try:
                prompt = rules.parse(line.raw)
                if media is not None:
                    media.check(prompt.request)
                ids.refuse_twice(prompt.id, source.path, line.number)
                if shard is not None and not shard.holds(prompt.id or derived_id(prompt)):
                    continue
                fields.add(prompt, source.path, line.number)
                yield from (sweep.apply(prompt, number) for number in range(sweep.size))
            except LineError as error:
                problem = f"{place_of(source, line.number)}: {error.message}"
                if tell is None:
                    raise InputError(problem, error.hint) from error
                tell(f"{problem}; the line is skipped")
                yield None
    rules.finish()
