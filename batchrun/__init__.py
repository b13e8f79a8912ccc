"""Run prompt files and tables through a Runpod serverless queue endpoint, resumably.

From Python: `run` for files, tables and lists of requests, `stream` for requests that arrive one at a time; `check`,
`estimate`, `status`, `verify`, `score`, `report`, `view`, `export`, `merge`, `redo`, `tune`, `stop` and `cancel` like
the commands; `load` for results.
"""

TYPE_CHECKING = False  # not importing typing lets the command `batchrun` catch signals some milliseconds earlier
if TYPE_CHECKING:
    from batchrun.api.calls import Stream, run, stream
    from batchrun.api.commands import (
        check,
        estimate,
        export,
        merge,
        redo,
        report,
        score,
        status,
        verify,
        view,
    )
    from batchrun.api.loaded import Results, Summary, load
    from batchrun.api.steering import cancel, stop, tune
    from batchrun.config import VERSION as __version__  # noqa: N811 - its usual name
    from batchrun.errors import BatchrunError, InputError, OutputError, StateError, StoppedError, UsageError

__all__ = [
    "BatchrunError",
    "InputError",
    "OutputError",
    "Results",
    "StateError",
    "StoppedError",
    "Stream",
    "Summary",
    "UsageError",
    "__version__",
    "cancel",
    "check",
    "estimate",
    "export",
    "load",
    "merge",
    "redo",
    "report",
    "run",
    "score",
    "status",
    "stop",
    "stream",
    "tune",
    "verify",
    "view",
]

_MODULES = {
    "BatchrunError": "batchrun.errors",
    "InputError": "batchrun.errors",
    "OutputError": "batchrun.errors",
    "StateError": "batchrun.errors",
    "StoppedError": "batchrun.errors",
    "Stream": "batchrun.api.calls",
    "Results": "batchrun.api.loaded",
    "Summary": "batchrun.api.loaded",
    "UsageError": "batchrun.errors",
    "__version__": "batchrun.config",
    "cancel": "batchrun.api.steering",
    "estimate": "batchrun.api.commands",
    "check": "batchrun.api.commands",
    "export": "batchrun.api.commands",
    "load": "batchrun.api.loaded",
    "merge": "batchrun.api.commands",
    "redo": "batchrun.api.commands",
    "report": "batchrun.api.commands",
    "run": "batchrun.api.calls",
    "score": "batchrun.api.commands",
    "stop": "batchrun.api.steering",
    "status": "batchrun.api.commands",
    "tune": "batchrun.api.steering",
    "stream": "batchrun.api.calls",
    "view": "batchrun.api.commands",
    "verify": "batchrun.api.commands",
}


if not TYPE_CHECKING:  # otherwise a type checker would accept any name as part of the API

    def __getattr__(name: str) -> object:
        """Import a name of the API when it is first used: `batchrun --help` needs none of them."""
        from importlib import import_module

        if name not in _MODULES:
            raise AttributeError(f"module 'batchrun' has no attribute {name!r}")
        return getattr(import_module(_MODULES[name]), "VERSION" if name == "__version__" else name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
