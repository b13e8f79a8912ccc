"""The bar of a run in a notebook."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from batchrun.display.printer import Printer
from batchrun.display.summary import Snapshot
from batchrun.display.text import visible


def in_notebook() -> bool:
    """Whether the program is a notebook. Nothing is imported for that."""
    module = sys.modules.get("IPython")
    shell = None if module is None else module.get_ipython()
    return type(shell).__name__ == "ZMQInteractiveShell"


def has_widgets() -> bool:
    """Whether a notebook can show a bar of its own; otherwise a line is written over."""
    return find_spec("ipywidgets") is not None


class NotebookObserver:
    """A notebook's own bar; messages are printed below it.

    Args:
        printer: Prints the messages.
        described: The count and the figures beside the bar.
    """

    def __init__(self, printer: Printer, described: Callable[[Snapshot], str]) -> None:
        self._printer = printer
        self._described = described
        self._bar: Any = None

    def begin(self, snapshot: Snapshot) -> None:
        """Show the bar, with the progress of earlier sessions."""
        from tqdm.notebook import tqdm  # noqa: PLC0415 - it needs IPython, which only a notebook has

        class Bar(tqdm):  # type: ignore[type-arg] # it is generic in its stubs alone
            monitor_interval = 0
            """No thread of tqdm's: it would outlive the run."""

        self._bar = Bar(total=snapshot.total, bar_format="{l_bar}{bar}| {desc}")
        self.update(snapshot)

    def update(self, snapshot: Snapshot) -> None:
        """Move the bar."""
        self._bar.total, self._bar.n = snapshot.total, snapshot.done
        self._bar.set_description_str(self._described(snapshot), refresh=False)
        self._bar.refresh()

    def message(self, text: str) -> None:
        """Print a line below the bar."""
        self._printer.write(f"{visible(text)}\n")

    def end(self, snapshot: Snapshot) -> None:
        """Leave the final bar."""
        self.update(snapshot)
        self._bar.close()
