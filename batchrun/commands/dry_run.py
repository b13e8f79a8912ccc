"""`batchrun run --dry-run`: shows what would be sent, and sends nothing."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, BinaryIO

import orjson

from batchrun.config import DryRun, RunOptions
from batchrun.display.summary import Observer, warn
from batchrun.display.text import visible_json
from batchrun.display.units import counted
from batchrun.endpoint.protocol import run_body
from batchrun.files.exactjson import dump, load
from batchrun.files.streams import stdin_bytes
from batchrun.prompts.fields import Fields
from batchrun.prompts.requests import build_request, prompt_chars
from batchrun.prompts.sweep import Sweep
from batchrun.runs.pack_plan import PackPlan
from batchrun.runs.preview import preview
from batchrun.runs.validation import RequestKeys

_FIRST = 3
CHARS_PER_TOKEN = 4
"""For English; only a rule of thumb."""


class Planned:
    """The requests that a run would send, to iterate over once; with `--dedupe`, equal ones once.

    Args:
        options: The run's options.
        observer: Receives messages.
    """

    def __init__(self, options: RunOptions, observer: Observer) -> None:
        self._options = options
        self._observer = observer
        self.sweep = Sweep(options.sweep)
        self.fields = Fields(options.request, self.sweep)
        """The fields of the requests so far."""
        self.count = self.equal = self.chars = 0
        """The requests so far, those left out, and the characters of their text."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        options = self._options
        key_of, seen = RequestKeys(options), set[bytes]()
        for number, prompt in enumerate(preview(options, stdin_bytes(), self._observer, self.fields)):
            if options.dedupe:
                key = key_of(prompt, number % self.sweep.size)
                if key in seen:
                    self.equal += 1
                    continue
                seen.add(key)
            request = build_request(prompt, options.request)
            self.chars += prompt_chars(request)
            yield request
            self.count += 1


def dry_run(options: RunOptions, out: BinaryIO, observer: Observer, wanted: DryRun) -> None:
    """Show what would be sent.

    Args:
        options: The run's options.
        out: Receives the request bodies, as JSON.
        observer: Receives the counts.
        wanted: How many requests are written, indented; or all, one a line.

    Raises:
        InputError: an input cannot be read, or a line of it is invalid.
    """
    every, first = wanted == "all", wanted if isinstance(wanted, int) else _FIRST
    planned = Planned(options, observer)
    if planned.sweep.size > 1:
        observer.message(f"sweep: {planned.sweep}: {planned.sweep.size:,} rows per line")
    plan = None if options.scheduler.pack == 1 else PackPlan(options)
    for request in planned:
        if plan is not None:
            plan.add(request)
        if every or planned.count < first:
            body = run_body(request, options.policy)
            shown = body if every else dump(load(body), orjson.OPT_INDENT_2)
            out.write(visible_json(shown).encode() + b"\n")
    out.flush()
    count, equal, chars = planned.count, planned.equal, planned.chars
    planned.fields.tell_all(partial(warn, observer), strict=options.strict)
    urls = " and ".join(f"{options.base_url}/{endpoint}/run" for endpoint in options.endpoints)
    where = "the local endpoint" if options.is_local else urls
    more = f"; equal requests that would share their answers: {equal:,}" if equal else ""
    if not every and count > first:
        observer.message(f"the first {first:,} of {count:,} requests are shown: --dry-run all prints all")
    if plan is not None:
        observer.message(plan.message())
    observer.message(
        f"text of all prompts: {counted(chars, 'character')}, about {counted(chars // CHARS_PER_TOKEN, 'token')}"
    )
    observer.message(f"dry run: {counted(count, 'row')} would be sent to {where}{more}; nothing was sent")
