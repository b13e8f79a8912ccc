"""Speed, memory and nearness to the ideal, measured: `python -m tests.bench [--only NAME] [--json]`.

Each figure that compares clients is the median of ratios of runs that take turns, so that a machine whose speed
drifts cannot decide. Nothing here is asserted; the goals are printed beside the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from importlib.util import find_spec

from tests.bench import checks, exports, intake, packs, pages, queues, sizes, speed, tables, templates
from tests.bench.figures import Asked

FIGURES = {
    "speed": speed.speed,
    "constant": queues.constant,
    "exponential": queues.exponential,
    "lognormal": queues.lognormal,
    "limits": queues.limits,
    "memory": sizes.memory,
    "intake": intake.intake,
    "cpu": speed.cpu,
    "start-up": speed.start_up,
    "tables": tables.rates,
    "schema": checks.schema,
    "templates": templates.templates,
}
LONG = {
    "lognormal-wide": queues.lognormal_wide,
    "cold": queues.cold,
    "million": sizes.million,
    "million-tables": tables.memory,
    "exports": exports.exports,
    "packs": packs.packs,
    "pages": pages.pages,
}
"""Only when they are asked for: minutes each."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    every = {**FIGURES, **LONG}
    parser.add_argument("--only", choices=sorted(every), action="append", help="only this figure; repeatable")
    parser.add_argument("--full", action="store_true", help=f"also {', '.join(LONG)}, which take minutes")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each side (default 5)")
    given = parser.parse_args()
    asked = Asked(given.rounds)
    found = {}
    if not given.json:
        print(f"Python {sys.version.split()[0]}, {os.cpu_count()} cores, event loop {event_loop()}")
    for name in given.only or (every if given.full else FIGURES):
        began = time.monotonic()
        found[name] = every[name](asked)
        if not given.json:
            print(f"\n{name} ({time.monotonic() - began:.0f} s)")
            for words, figure in found[name].items():
                print(f"  {words:<50} {figure!s:<30} {figure.goal and f'goal {figure.goal}'}".rstrip(), flush=True)
    if given.json:
        print(json.dumps({name: {words: f.to_json() for words, f in part.items()} for name, part in found.items()}))


def event_loop() -> str:
    """The event loop that both sides use."""
    return "uvloop" if find_spec("uvloop") else "asyncio"


if __name__ == "__main__":
    main()
