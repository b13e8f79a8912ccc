"""batchrun in this process, with the CPU time counted that keeping its state costs.

`python -m tests.bench.keeping TOLD ARGUMENTS...` runs `batchrun ARGUMENTS...` and writes what it counted to TOLD.
"""

from __future__ import annotations

import functools
import json
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchrun.cli.app import main
from batchrun.results.writer import ResultsFile
from batchrun.state.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

_STORE = ("commit", "pending", "open_jobs", "counts", "counters", "percentiles", "set_setting", "get_setting")
spent_s = 0.0
began_s: list[float] = []
inside = threading.local()


def counted(call: Callable[..., Any]) -> Callable[..., Any]:
    """The call, with its thread's CPU time added up; calls inside it are part of it."""

    @functools.wraps(call)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        global spent_s  # noqa: PLW0603 - one number for the whole process
        if getattr(inside, "yes", False):
            return call(*arguments, **named)
        if not began_s:
            began_s.append(time.process_time())
        inside.yes = True
        before = time.thread_time()
        try:
            return call(*arguments, **named)
        finally:
            spent_s += time.thread_time() - before
            inside.yes = False

    return wrapped


if __name__ == "__main__":
    for name in _STORE:
        setattr(Store, name, counted(getattr(Store, name)))
    ResultsFile.sync = counted(ResultsFile.sync)  # type: ignore[method-assign]
    try:
        main(sys.argv[2:])
    finally:
        Path(sys.argv[1]).write_text(json.dumps({"state_s": spent_s, "cpu_s": time.process_time() - began_s[0]}))
