"""`batchrun run --dry-run`: shows what would be sent, and sends nothing."""

from __future__ import annotations

from functools import partial
from typing import BinaryIO

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
_CHARS_PER_TOKEN = 4


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
    sweep = Sweep(options.sweep)
    if sweep.size > 1:
        observer.message(f"sweep: {sweep}: {sweep.size:,} rows per line")
    count = equal = chars = 0
    key_of, seen = RequestKeys(options), set[bytes]()
    fields = Fields(options.request, sweep)
    plan = None if options.scheduler.pack == 1 else PackPlan(options)
    for number, prompt in enumerate(preview(options, stdin_bytes(), observer, fields)):
        if options.dedupe:
            key = key_of(prompt, number % sweep.size)
            if key in seen:
                equal += 1
                continue
            seen.add(key)
        request = build_request(prompt, options.request)
        if every or count < first:
            body = run_body(request, options.policy)
            shown = body if every else dump(load(body), orjson.OPT_INDENT_2)
            out.write(visible_json(shown).encode() + b"\n")
        chars += prompt_chars(request)
        if plan is not None:
            plan.add(request)
        count += 1
    out.flush()
    fields.tell_all(partial(warn, observer), strict=options.strict)
    urls = " and ".join(f"{options.base_url}/{endpoint}/run" for endpoint in options.endpoints)
    where = "the local endpoint" if options.is_local else urls
    more = f"; equal requests that would share their answers: {equal:,}" if equal else ""
    if not every and count > first:
        observer.message(f"the first {first:,} of {count:,} requests are shown: --dry-run all prints all")
    if plan is not None:
        observer.message(plan.told())
    observer.message(
        f"text of all prompts: {counted(chars, 'character')}, about {counted(chars // _CHARS_PER_TOKEN, 'token')}"
    )
    observer.message(f"dry run: {counted(count, 'row')} would be sent to {where}{more}; nothing was sent")
