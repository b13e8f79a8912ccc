"""What a command itself confirms of a run that is known from its state file."""

from __future__ import annotations

from batchrun import config
from batchrun.commands.session_arguments import CacheArguments, ConfirmArguments
from batchrun.errors import UsageError
from batchrun.files.server_urls import is_plain_http, without_user
from batchrun.runs.trust import GivenByCommand


def confirmed(given: ConfirmArguments, options: config.RunOptions) -> GivenByCommand:
    """What the command itself gives.

    Raises:
        UsageError: it gives another base URL.
    """
    return GivenByCommand(
        _confirms_base_url(given, options),
        paths=False,
        check=given.check is not None,
        cache=not isinstance(given, CacheArguments) or given.cache is not None,
    )


def _confirms_base_url(given: ConfirmArguments, options: config.RunOptions) -> bool:
    """Whether the command or the environment confirms the base URL of a run that is known from its state file.

    Raises:
        UsageError: the command gives another URL.
    """
    url = given.base_url
    if url is None:
        return False
    if url.rstrip("/") != options.base_url:
        if "base_url" not in given.from_environment:
            raise UsageError(
                f"--base-url {without_user(url)}: the run uses {without_user(options.base_url)}",
                "give that URL, or start a new run with another --output",
            )
        return False
    return given.insecure_http or not is_plain_http(url)
