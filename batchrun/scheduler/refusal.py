"""Decides when a refusal of the API is believed, and explains why the run then stops, with the remedy.

During a run, an error of an edge server is more likely than a key that becomes invalid or an endpoint that disappears.
So after good answers, a refusal (401, 403, 404, 425, a redirect) is believed only if it is the API's own JSON or if it
repeats. What only a person can fix (an untrusted certificate, an unknown host) stops a run that has had no good answer;
after one it counts as an outage.
"""

from __future__ import annotations

from batchrun.errors import CallError, RefusedError

_TIMES = 3
_SPAN_S = 10.0
"""A refusal that is not the API's own is believed if it came this often, over this time."""
_HEALTH = "health"
_PAYMENT_REQUIRED = 402


class Refusals:
    """The refusals of an endpoint, by operation."""

    def __init__(self) -> None:
        self.has_answered = False
        """Whether any operation has had a good answer."""
        self.answered_at = float("-inf")
        """When the last good answer came."""
        self._streaks: dict[str, tuple[float, int]] = {}
        """For each operation, since when it has been refused without a good answer in between, and how often."""

    def answered(self, operation: str, now: float) -> None:
        """An operation had a good answer."""
        self.has_answered, self.answered_at = True, now
        if self._streaks:
            self._streaks.pop(operation, None)

    def is_refused(self, operation: str) -> bool:
        """Whether an operation was refused when it was last answered."""
        return operation in self._streaks

    def forget(self) -> None:
        """The endpoint may have changed: what it refused before says nothing."""
        self._streaks.clear()

    def is_believed(self, operation: str, error: CallError, now: float) -> bool:
        """An operation was refused; returns whether to believe it.

        A refusal of `/health` counts for every operation. Missing credit is always believed: only the API reports it.
        """
        self._count(operation, now)
        if not self.has_answered or error.from_api or error.http_status == _PAYMENT_REQUIRED:
            return True
        streaks = [streak for name, streak in self._streaks.items() if name in (operation, _HEALTH)]
        lasted_s = now - min(since for since, _ in streaks)
        return sum(times for _, times in streaks) >= _TIMES and lasted_s >= _SPAN_S

    def is_lasting(self, operation: str, now: float) -> bool:
        """Something other than the API answered an operation; returns whether it was refused three times by now."""
        return self._count(operation, now) >= _TIMES

    def _count(self, operation: str, now: float) -> int:
        since, times = self._streaks.get(operation, (now, 0))
        self._streaks[operation] = (since, times + 1)
        return times + 1


def refusal(error: CallError) -> RefusedError:  # noqa: PLR0911 - one for each HTTP status
    """Why the run stops after a refused call, with the remedy."""
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
                "check --endpoint and --base-url: serverless queue endpoints are at https://api.runpod.ai/v2;"
                " api.runpod.io is another API",
            )
        case 400:
            return RefusedError(
                f"this is a load-balancing endpoint, which has no job queue ({error.message})",
                "use the ID of a queue-based endpoint: see the endpoint's type in the Runpod console, Serverless",
            )
        case 407:
            return RefusedError(
                f"the proxy asks for a password ({error.message})",
                "put it into HTTPS_PROXY (http://name:password@host:port), or unset the proxy variables",
            )
        case status:
            is_redirect = status is not None and 300 <= status < 400  # noqa: PLR2004 - the range of redirects
            hint = "; the key is not sent to the other address: if you trust it, start a new run with it" * is_redirect
            return RefusedError(f"the API refuses every request ({error.message})", f"check --base-url{hint}")
