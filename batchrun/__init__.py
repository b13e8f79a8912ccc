"""Run JSONL prompt files through a Runpod serverless queue endpoint, resumably.

From Python: `run` for a file or a list of requests, `stream` for requests that come one by one.
"""

TYPE_CHECKING = False  # the command `batchrun` hears signals some milliseconds earlier without the module typing
if TYPE_CHECKING:
    from typing import Any

    from batchrun.api.calls import Stream, run, stream
    from batchrun.display.summary import Summary
    from batchrun.errors import BatchrunError

__version__ = "0.1.0"

__all__ = ["BatchrunError", "Stream", "Summary", "__version__", "run", "stream"]

_PLACES = {
    "BatchrunError": "batchrun.errors",
    "Stream": "batchrun.api.calls",
    "Summary": "batchrun.display.summary",
    "run": "batchrun.api.calls",
    "stream": "batchrun.api.calls",
}


def __getattr__(name: str) -> "Any":
    """What the API offers, imported when it is asked for: `batchrun --help` needs none of it."""
    from importlib import import_module

    if name not in _PLACES:
        raise AttributeError(f"module 'batchrun' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
