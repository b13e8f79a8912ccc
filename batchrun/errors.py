"""Every exception of batchrun.

    BatchrunError                 exit 1
    ├── UsageError                exit 2: an option or a combination of options is wrong; nothing was sent
    │   ├── InputError            exit 2: an input file or a line of it is wrong
    │   └── StateError            exit 2: the state file cannot be used for this run
    ├── StoppedError              exit 4: the run stopped early; what is done is kept, resumable
    │   ├── RefusedError          exit 4: the API refuses the key or the endpoint
    │   └── OutputError           exit 4: results or state cannot be written
    ├── RunInterrupted            exit 130: a signal ended the run, resumable
    ├── IllegalMoveError          exit 1: a defect of ours: an event that a row's state does not allow
    └── CallError                 one API call failed; the scheduler decides what that means
        ├── ThrottledError        408, 429: not accepted, slow down
        ├── UnreachableError      the request surely did not reach the server
        ├── AmbiguousError        the server may have acted on it: timeout, reset, 5xx, broken answer
        │   ├── MismatchedError   the answer is that of another job
        │   └── TooLargeError     the answer is larger than any that the API gives
        ├── RejectedError         400, 413, 422: this request is wrong, others may pass
        ├── NotFoundError         404, 410
        └── DeniedError           401, 402, 403, 425, redirects: no request will pass

Each error says what happened (`message`), what to do about it (`hint`, may be empty) and which exit code it
means (`exit_code`). The two axes of a CallError are its class and whether the work may have been started.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

_SHOWN_CHARS = 60


class BatchrunError(Exception):
    """Anything that batchrun reports to a person.

    Args:
        message: What happened and where, one line.
        hint: What to do about it, one line; empty when there is nothing to add.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(BatchrunError):
    """An option, or a combination of options, is wrong. Nothing was sent."""

    exit_code = 2


class InputError(UsageError):
    """An input file, or a line of it, is wrong. Nothing was sent."""


class StateError(UsageError):
    """The state file cannot be used for this run: damaged, newer, locked, or of another run. Nothing was sent."""


class StoppedError(BatchrunError):
    """The run stopped before its end. What was committed is whole, and the same command goes on."""

    exit_code = 4


class RefusedError(StoppedError):
    """The API refuses the key, the account or the endpoint, so no request can succeed."""


class OutputError(StoppedError):
    """A results file or the state file cannot be written: disk full, read-only, gone."""


class RunInterrupted(BatchrunError):  # noqa: N818 - a signal is no error
    """A signal ended the run. The same command goes on."""

    exit_code = 130


class IllegalMoveError(BatchrunError):
    """An event came for a row whose state does not allow it: a defect of batchrun, never of the user."""


class CallError(BatchrunError):
    """One API call failed.

    Args:
        message: What the server or the transport said, as one line.
        http_status: The HTTP status of the answer; None when there was no answer.
        retry_after_s: The server's Retry-After in seconds, >= 0; None when it sent none.
        raw: The answer's body as it was sent; empty when there was none, then `raw` is the message.
        from_api: Whether the body is the API's own JSON, and not the page of an edge or a proxy before it.
        hint: What a person must do before any call succeeds, if the API has never answered; empty: it may pass.
    """

    def __init__(
        self,
        message: str,
        *,
        http_status: int | None = None,
        retry_after_s: float | None = None,
        raw: str = "",
        from_api: bool = False,
        hint: str = "",
    ) -> None:
        super().__init__(message, hint)
        self.from_api = from_api
        self.http_status = http_status
        self.retry_after_s = retry_after_s
        self.raw = raw or message

    def rewrite(self, change: Callable[[str], str]) -> None:
        """Change what it says, and what was sent."""
        self.message, self.raw = change(self.message), change(self.raw)
        self.args = (self.message,)


class ThrottledError(CallError):
    """408 or 429: the request was not accepted; the whole operation is to slow down."""


class UnreachableError(CallError):
    """The request surely did not reach the server: refused, no route, DNS or TLS failure."""


class AmbiguousError(CallError):
    """The server may have acted on the request: timeout, reset, 5xx, empty or broken answer."""


class MismatchedError(AmbiguousError):
    """The answer is that of another job: a cache, a proxy, or a response too many on a kept connection."""


class TooLargeError(AmbiguousError):
    """The answer is larger than any that the API gives. It was not read to its end."""


class RejectedError(CallError):
    """The API refuses this one request (400, 413, 422); others may pass."""


class NotFoundError(CallError):
    """404 or 410: an unknown job on /status and /cancel, an unknown endpoint elsewhere."""


class DeniedError(CallError):
    """401, 402, 403, 407, 425, a redirect, an endpoint without a queue: no request will pass, if the API says so."""


def shown(value: object) -> str:
    """A value for a message about it: its beginning, where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write integers of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
