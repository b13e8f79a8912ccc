"""`batchrun status --watch`: shows the status of a run until no process drives it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import orjson

from batchrun.commands.brief_status import BriefStatusReader
from batchrun.display.brief_status import BriefStatus
from batchrun.display.screen import screen
from batchrun.display.terminal import Terminal, can_redraw, has_blocks

_EVERY_S = 1.0
_ELSEWHERE_EVERY_S = 30.0
"""Between two screens if they do not replace each other, as in a file."""
_COLUMNS = 79


def watch(state: Path, show: Callable[[str | bytes], None], *, every_s: float | None, as_json: bool) -> None:
    """Show the status of a run until no process drives it; on a terminal in one place, otherwise one after another.

    Args:
        state: The state file.
        show: Prints text, or a line of JSON.
        every_s: Seconds between two screens; None: 1 on a terminal, else 30.
        as_json: Whether to print JSON objects instead.

    Raises:
        StateError, OutputError: the state file cannot be read.
        KeyboardInterrupt: the user has pressed Ctrl-C. The run is not affected.
    """
    reader = BriefStatusReader(state)
    status = reader.read()
    try:
        with ExitStack() as stack:
            terminal = None
            if can_redraw() and not as_json and status.process:
                terminal = Terminal()
                stack.enter_context(terminal.taken())
            wait_s = every_s or (_ELSEWHERE_EVERY_S if terminal is None else _EVERY_S)
            while status.process:
                if terminal is None:
                    show(_text(status, as_json=as_json))
                    if not as_json:
                        show("")
                else:
                    columns, lines = terminal.size()
                    terminal.draw(screen(status, time.time(), columns, lines, ascii_only=not has_blocks()))
                time.sleep(wait_s)
                status = reader.read()
    except KeyboardInterrupt:
        if terminal is not None:
            show(_text(status, as_json=False))  # the last screen stays visible
        raise
    show(_text(status, as_json=as_json))


def _text(status: BriefStatus, *, as_json: bool) -> str | bytes:
    if as_json:
        return orjson.dumps(status.to_json())
    return "\n".join(line.text for line in screen(status, time.time(), _COLUMNS, ascii_only=not has_blocks()))
