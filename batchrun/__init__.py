"""Run JSONL prompt files through a Runpod serverless queue endpoint, resumably.

From Python: `run` for a file or a list of requests, `stream` for requests that come one by one.
"""

TYPE_CHECKING = False  # the command `batchrun` hears signals some milliseconds earlier without the module typing
if TYPE_CHECKING:
    from batchrun.api.calls import Stream, run, stream
    from batchrun.config import VERSION as __version__  # noqa: N811 - its usual name
    from batchrun.display.summary import Summary
    from batchrun.errors import BatchrunError, InputError, StoppedError, UsageError

__all__ = [
    "BatchrunError",
    "InputError",
    "StoppedError",
    "Stream",
    "Summary",
    "UsageError",
    "__version__",
    "run",
    "stream",
]

_PLACES = {
    "BatchrunError": "batchrun.errors",
    "InputError": "batchrun.errors",
    "StoppedError": "batchrun.errors",
    "Stream": "batchrun.api.calls",
    "Summary": "batchrun.display.summary",
    "UsageError": "batchrun.errors",
    "__version__": "batchrun.config",
    "run": "batchrun.api.calls",
    "stream": "batchrun.api.calls",
}


if not TYPE_CHECKING:  # else a type checker would take any name for one of the API

    def __getattr__(name: str) -> object:
        """What the API offers, imported when it is asked for: `batchrun --help` needs none of it."""
        from importlib import import_module

        if name not in _PLACES:
            raise AttributeError(f"module 'batchrun' has no attribute {name!r}")
        return getattr(import_module(_PLACES[name]), "VERSION" if name == "__version__" else name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
