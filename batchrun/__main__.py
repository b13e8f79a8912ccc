"""The command `batchrun`, and `python -m batchrun`.

Signals are caught before anything else is imported: Ctrl-C in the first second is no traceback, and process 1 of a
container hears only what it catches.
"""

# Loaded already: the module signal takes some milliseconds to make enums of its numbers.
import _signal as signal  # type: ignore[import-not-found]
import os
import sys

TYPE_CHECKING = False  # likewise: typing takes longer than all else here
if TYPE_CHECKING:
    from types import FrameType

_INTERRUPTED = 130
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def _leave(_number: int, _frame: "FrameType | None") -> None:
    """Leave at once: nothing has begun, or all is over."""
    os._exit(_INTERRUPTED)


def _interrupt(number: int, frame: "FrameType | None") -> None:
    """Interrupt what runs outside of a session, which catches the signals itself. The next signal leaves at once.

    An import is left at once: an exception in one of its callbacks would be printed, and lost.

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


def _heard_nowhere(lost: "sys.UnraisableHookArgs") -> None:
    """Leave at once when a signal came in a callback, of a weak reference say, whose exceptions are only printed."""
    if lost.exc_type is KeyboardInterrupt:
        os._exit(_INTERRUPTED)
    sys.__unraisablehook__(lost)


def main() -> None:
    """Run the command line; exits."""
    sys.unraisablehook = _heard_nowhere
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
