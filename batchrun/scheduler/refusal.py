"""When a refusal of the API is believed, and why the run cannot go on then, with the remedy.

A key does not become wrong in the middle of a run, nor does an endpoint vanish, as often as an edge errs. So a refusal
(401, 403, 404, 425, a redirect) that comes after good answers is believed when it is the API's own, or when it repeats.
What only a person can fix (a certificate that is not trusted, a host that does not exist) refuses a run that has had no
good answer; to any other it is an outage.
"""

from __future__ import annotations

from batchrun.errors import CallError, RefusedError

_TIMES = 3
_SPAN_S = 10.0
"""So often, and for so long, an operation is refused before that is believed."""
_HEALTH = "health"
_PAYMENT_REQUIRED = 402


class Refusals:
    """The refusals of an endpoint, by operation."""

    def __init__(self) -> None:
        self.has_answered = False
        """Whether any operation had a good answer."""
        self._streaks: dict[str, tuple[float, int]] = {}
        """Since when an operation has been refused, and how often, with no good answer between."""

    def answered(self, operation: str) -> None:
        """An operation had a good answer."""
        self.has_answered = True
        if self._streaks:
            self._streaks.pop(operation, None)

    def is_believed(self, operation: str, error: CallError, now: float) -> bool:
        """An operation was refused; returns whether that is to be believed.

        A refusal of `/health` counts for every operation. That there is no credit only the API can say.
        """
        self._count(operation, now)
        if not self.has_answered or error.from_api or error.http_status == _PAYMENT_REQUIRED:
            return True
        streaks = [streak for name, streak in self._streaks.items() if name in (operation, _HEALTH)]
        lasted_s = now - min(since for since, _ in streaks)
        return sum(times for _, times in streaks) >= _TIMES and lasted_s >= _SPAN_S

    def is_lasting(self, operation: str, now: float) -> bool:
        """An operation was answered by something else than the API; returns whether it has been three times by now."""
        return self._count(operation, now) >= _TIMES

    def _count(self, operation: str, now: float) -> int:
        since, times = self._streaks.get(operation, (now, 0))
        self._streaks[operation] = (since, times + 1)
        return times + 1


def refusal(error: CallError) -> RefusedError:  # noqa: PLR0911 - one for each HTTP status
    """Why the run cannot go on after a refused call, with the remedy."""
    match error.http_status:
        case 401:
            return RefusedError(
                f"the API key is not accepted ({error.message})",
                "set RUNPOD_API_KEY to a valid key: Runpod console, Settings, API Keys",
            )
        case 402:
            return RefusedError(
                f"the account has no credit left ({error.message})", "add credit, then run the same command"
            )
        case 403:
            return RefusedError(
                f"the API key may not use this endpoint ({error.message})",
                "use a key with access to this endpoint, or check the endpoint ID",
            )
        case 404 | 410:
            return RefusedError(
                f"there is no such endpoint ({error.message})",
                "check --endpoint and --base-url: serverless queue endpoints live at https://api.runpod.ai/v2,"
                " api.runpod.io is another API",
            )
        case 400:
            return RefusedError(
                f"the endpoint balances load, and has no queue of jobs ({error.message})",
                "give the ID of a queue-based endpoint: Runpod console, Serverless, the endpoint's type",
            )
        case 407:
            return RefusedError(
                f"the proxy asks for a password ({error.message})",
                "put it into HTTPS_PROXY, http://name:password@host:port, or take the proxy out of the environment",
            )
        case status:
            is_redirect = status is not None and 300 <= status < 400  # noqa: PLR2004 - the range of redirects
            hint = "; the key is not sent on: if you trust the other address, give it in a new run" * is_redirect
            return RefusedError(f"the API refuses every request ({error.message})", f"check --base-url{hint}")
