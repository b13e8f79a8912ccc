"""`batchrun run --dry-run`: prints the body of each submission, one per line, and sends nothing."""

from __future__ import annotations

from functools import partial
from typing import BinaryIO

from batchrun.config import RunOptions
from batchrun.display.summary import Observer, warn
from batchrun.display.text import visible_json
from batchrun.display.units import counted
from batchrun.endpoint.protocol import run_body
from batchrun.files.streams import stdin_bytes
from batchrun.prompts.fields import Fields
from batchrun.prompts.requests import build_request
from batchrun.prompts.sweep import Sweep
from batchrun.runs.preview import preview
from batchrun.runs.validation import RequestKeys


def dry_run(options: RunOptions, out: BinaryIO, observer: Observer) -> None:
    """Print what would be sent.

    Raises:
        InputError: an input cannot be read, or a line of it is invalid.
    """
    sweep = Sweep(options.sweep)
    if sweep.size > 1:
        observer.message(f"sweep: {sweep}: {sweep.size:,} rows per line")
    count = equal = 0
    key_of, seen = RequestKeys(options), set[bytes]()
    fields = Fields(options.request, sweep)
    for number, prompt in enumerate(preview(options, stdin_bytes(), observer, fields)):
        if options.dedupe:
            key = key_of(prompt, number % sweep.size)
            if key in seen:
                equal += 1
                continue
            seen.add(key)
        body = run_body(build_request(prompt, options.request), options.policy)
        out.write(visible_json(body).encode() + b"\n")
        count += 1
    out.flush()
    fields.tell_all(partial(warn, observer), strict=options.strict)
    urls = " and ".join(f"{options.base_url}/{endpoint}/run" for endpoint in options.endpoints)
    where = "the local endpoint" if options.is_local else urls
    more = f"; equal requests that would share their answers: {equal:,}" if equal else ""
    observer.message(f"dry run: {counted(count, 'row')} would be sent to {where}{more}; nothing was sent")
