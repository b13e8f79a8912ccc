"""The program in which a function of the user runs: one record per line on stdin, one verdict per line on stdout.

The function is that of `--check`, or one that scores answers.

It is started by its path and imports nothing of batchrun, so that it starts fast and the function's own imports find
what they would find without it. It ends when its stdin does, and by itself if a call takes far longer than it may.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_GRACE_S = 5.0
"""After the limit, the process that started this one ends it; if that is gone, this one ends itself a little later."""
_MOST_CHARS = 10_000
"""A longer reason is cut: nobody reads it, and it would have to be sent."""


class _NotFoundError(Exception):
    """The function cannot be found."""


def _find(name: str) -> Callable[[Any], Any]:
    place, _, attribute = name.rpartition(":")
    try:
        module = _load(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        found: Any = module
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError:
        raise _NotFoundError(f"{place} has no {attribute}") from None
    except BaseException as error:
        raise _NotFoundError(f"{place} cannot be imported: {_told(error)}") from error
    if not callable(found):
        raise _NotFoundError(f"{attribute} is not a function")
    return found  # type: ignore[no-any-return]


def _load(path: Path) -> Any:
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _told(error: BaseException) -> str:
    said = _text(error)
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _text(error: BaseException) -> str:
    try:
        return " ".join(str(error)[:_MOST_CHARS].split())
    except BaseException:  # noqa: BLE001 - it may be a class of the user's
        return ""


def _reason(function: Callable[[Any], Any], record: Any) -> str | None:
    """Why the function refuses a record; None if it accepts it."""
    try:
        said = function(record)
    except AssertionError as error:
        return _text(error) or "an assertion failed"
    except BaseException as error:  # noqa: BLE001 - whatever ends the function is its verdict
        return _told(error)
    if said is None or isinstance(said, str):
        return said and said[:_MOST_CHARS]
    if type(said).__name__ in ("bool", "bool_"):
        return None if said else ""
    return f"the check returned a value of type {type(said).__name__}; expected None, True, False or a text"


_NO_SCORE = {"value": None, "extracted": None}


def _score(function: Callable[[Any], Any], record: Any) -> dict[str, Any]:
    """The function's verdict on a record: a value, what it extracted, and a reason."""
    try:
        said = function(record)
        given: dict[str, Any] = said if isinstance(said, dict) else {"value": said}
        said, extracted, reason = (given.get(name) for name in ("value", "extracted", "reason"))
        if isinstance(said, str):
            return {**_NO_SCORE, "reason": "the function returned a text; expected a number from 0 to 1"}
        value = None if said is None else float(said)
        if value is None or 0 <= value <= 1:
            reason = "the function gave no score" if value is None and reason is None else reason
            return {"value": value, "extracted": extracted, "reason": None if reason is None else str(reason)}
        problem = f"the function returned {value:g}; expected a number from 0 to 1"
    except BaseException as error:  # noqa: BLE001 - whatever ends the function is reported
        problem = _told(error)
    return {**_NO_SCORE, "reason": problem}


def _serve(name: str, limit_s: float, *, scores: bool) -> None:
    records, verdicts = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    # Whatever the function reads or prints is no record and no verdict.
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)

    def say(verdict: dict[str, Any]) -> None:
        verdicts.write(json.dumps(verdict, default=str).encode() + b"\n")

    # A folder of the user gets no files of ours, and rules that were just edited are not mistaken for older ones.
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(Path.cwd()))
    try:
        function = _find(name)
    except _NotFoundError as error:
        say({"error": str(error)})
        return
    say({"ready": True})
    own = os.getpid()
    for line in records:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, limit_s + _GRACE_S)
        record = json.loads(line)
        verdict = _score(function, record) if scores else {"reason": _reason(function, record)}
        if os.getpid() != own:
            os._exit(0)  # a fork that came back from the function: only one process may answer
        say(verdict)
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    _serve(sys.argv[1], float(sys.argv[2]), scores=sys.argv[3:] == ["scorer"])
