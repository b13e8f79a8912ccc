"""The command `batchrun`, and `python -m batchrun`.

Signals are caught before anything else is imported: Ctrl-C in the first second prints no traceback, and process 1 of a
container receives only the signals that it catches.
"""

# `_signal` is already loaded; importing `signal` would take some milliseconds, because it builds enums.
import _signal as signal  # type: ignore[import-not-found]
import os
import sys

TYPE_CHECKING = False  # likewise: importing typing takes longer than everything else here
if TYPE_CHECKING:
    from types import FrameType

_INTERRUPTED = 130
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def _leave(_number: int, _frame: "FrameType | None") -> None:
    """Exit at once: nothing has begun, or everything is finished."""
    os._exit(_INTERRUPTED)


def _interrupt(number: int, frame: "FrameType | None") -> None:
    """Interrupt whatever runs outside a session; a session catches signals itself. The next signal exits at once.

    A signal during an import exits at once, too: an exception in one of its callbacks would only be printed.

    Raises:
        KeyboardInterrupt: always.
    """
    for other in _SIGNALS:
        if signal.getsignal(other) is _interrupt:
            signal.signal(other, _leave)
    above = frame
    while above is not None:
        if above.f_code.co_filename.startswith("<frozen importlib"):
            _leave(number, frame)
        above = above.f_back
    raise KeyboardInterrupt


def _unraisable(lost: "sys.UnraisableHookArgs") -> None:
    """Exit at once if a signal arrived in a callback whose exceptions are only printed, such as a weak reference's."""
    if lost.exc_type is KeyboardInterrupt:
        os._exit(_INTERRUPTED)
    sys.__unraisablehook__(lost)


def main() -> None:
    """Run the command line; exits."""
    sys.unraisablehook = _unraisable
    caught = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    for number in caught:
        signal.signal(number, _interrupt)
    try:
        from batchrun.cli.app import main as command

        command()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    finally:
        for number in caught:
            signal.signal(number, _leave)


if __name__ == "__main__":
    main()
