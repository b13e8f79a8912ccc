"""Every exception of batchrun.

    BatchrunError                 exit 1
    ├── UsageError                exit 2: an option or a combination of options is wrong; nothing was sent
    │   ├── InputError            exit 2: an input file or a line of it is wrong
    │   └── StateError            exit 2: the state file cannot be used for this run
    ├── StoppedError              exit 4: the run stopped early; what is done is kept, resumable
    │   ├── RefusedError          exit 4: the API refuses the key or the endpoint
    │   └── OutputError           exit 4: results or state cannot be written
    ├── RunInterrupted            exit 130: a signal ended the run, resumable
    ├── IllegalMoveError          exit 1: a bug in batchrun: an event that the row's state does not allow
    └── CallError                 one API call failed; the scheduler decides what that means
        ├── ThrottledError        408, 429: not accepted, slow down
        ├── UnreachableError      the request certainly did not reach the server
        ├── AmbiguousError        the server may have acted on it: timeout, reset, 5xx, broken answer
        │   ├── MismatchedError   the answer belongs to another job
        │   └── TooLargeError     the answer is larger than any that the API sends
        ├── RejectedError         400, 413, 422: this request is wrong, others may pass
        ├── NotFoundError         404, 410
        └── DeniedError           401, 402, 403, 425, redirects: no request will succeed

Each error says what happened (`message`), what to do about it (`hint`, may be empty) and with which exit code the
command ends (`exit_code`). The class of a CallError tells whether the work may have been started.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

_SHOWN_CHARS = 60


class BatchrunError(Exception):
    """Any error that batchrun reports to the user.

    Args:
        message: What happened and where, as one line.
        hint: What to do about it, as one line; empty if there is nothing to add.
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
    """The run stopped before its end. What was committed is complete, and the same command resumes the run."""

    exit_code = 4


class RefusedError(StoppedError):
    """The API refuses the key, the account or the endpoint, so no request can succeed."""


class OutputError(StoppedError):
    """A results file or the state file cannot be written: disk full, read-only, gone."""


class RunInterrupted(BatchrunError):  # noqa: N818 - a signal is not an error
    """A signal ended the run. The same command resumes it."""

    exit_code = 130


class IllegalMoveError(BatchrunError):
    """A row received an event that its state does not allow: a bug in batchrun, never the user's mistake."""


class CallError(BatchrunError):
    """One API call failed.

    Args:
        message: What the server or the transport reported, as one line.
        http_status: The HTTP status of the answer; None if there was no answer.
        retry_after_s: The server's Retry-After in seconds, >= 0; None if it sent none.
        raw: The answer's body as received. If empty, the attribute `raw` is the message.
        from_api: Whether the body is the API's own JSON, not a page of an edge server or proxy in front of it.
        hint: What to fix before any call can succeed, if the API has never answered; empty if the error may pass.
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
        """Apply `change` to the message and to the raw body."""
        self.message, self.raw = change(self.message), change(self.raw)
        self.args = (self.message,)


class ThrottledError(CallError):
    """408 or 429: the request was not accepted; the whole operation must slow down."""


class UnreachableError(CallError):
    """The request certainly did not reach the server: refused, no route, DNS or TLS failure."""


class AmbiguousError(CallError):
    """The server may have acted on the request: timeout, reset, 5xx, empty or broken answer."""


class MismatchedError(AmbiguousError):
    """The answer belongs to another job: from a cache, a proxy, or a stray response on a reused connection."""


class TooLargeError(AmbiguousError):
    """The answer is larger than any that the API sends. It was not read to the end."""


class RejectedError(CallError):
    """The API refuses this one request (400, 413, 422); others may succeed."""


class NotFoundError(CallError):
    """404 or 410: an unknown job on /status and /cancel, an unknown endpoint elsewhere."""


class DeniedError(CallError):
    """401, 402, 403, 407, 425, a redirect, an endpoint without a queue: no request will succeed, if the API says so."""


def shown(value: object) -> str:
    """A value as it is shown in a message; long ones are cut off."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write integers of more than 4,300 digits
        return "a number with thousands of digits"
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
