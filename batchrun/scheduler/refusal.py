"""Why a run cannot go on after a call that the API refused, with the remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchrun.errors import RefusedError

if TYPE_CHECKING:
    from batchrun.errors import CallError


def refusal(error: CallError) -> RefusedError:
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
        case 407:
            return RefusedError(
                f"the proxy asks for a password ({error.message})",
                "put it into HTTPS_PROXY, http://name:password@host:port, or take the proxy out of the environment",
            )
        case status:
            is_redirect = status is not None and 300 <= status < 400  # noqa: PLR2004 - the range of redirects
            hint = "; the key is not sent on: if you trust the other address, give it in a new run" * is_redirect
            return RefusedError(f"the API refuses every request ({error.message})", f"check --base-url{hint}")
