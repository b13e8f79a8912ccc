"""Find the API key, and decide where it may be sent. It is never an option, and never written anywhere."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from batchrun.config import RunOptions
from batchrun.errors import UsageError
from batchrun.files.server_urls import is_loopback, is_plain_http

_WRAPPED = re.compile(r"""["'`]|^(export\s+)?[A-Za-z_]\w*=[^=]""")
"""As in a shell's `.env`. A key in base64 may end in `=`."""


def find_key(options: RunOptions, api_key: str | None = None, key_file: Path | None = None) -> str | None:
    """The API key of a run: `api_key` if it is given, else the one that `find_api_key` finds; None if none is sent.

    Raises:
        UsageError: there is none, or it is not a possible key.
    """
    if options.is_local:
        return None
    if api_key is not None:
        return checked(api_key, "api_key")
    return find_api_key(key_file, options.base_url)


def find_api_key(key_file: Path | None, base_url: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """The API key: from `key_file`, else from RUNPOD_API_KEY, else from Runpod's own `~/.runpod/config.toml`.

    Without a key, None is returned for an endpoint on this machine, which may not need one.

    Raises:
        UsageError: there is no key, or it is not a possible key. The message never contains it.
    """
    if key_file is not None:
        return checked(_read(key_file), str(key_file))
    if environ.get("RUNPOD_API_KEY", "").strip():
        return checked(environ["RUNPOD_API_KEY"], "RUNPOD_API_KEY")
    # Without a home folder, as in some containers, the tilde stays; a folder that may not be entered has no key for us.
    config = os.path.join(os.path.expanduser(environ.get("HOME", "~")), ".runpod", "config.toml")  # noqa: PTH111, PTH118
    key = _from_config(Path(config)) if os.path.isfile(config) else None  # noqa: PTH113
    if key:
        return checked(key, str(config))
    if is_loopback(base_url):
        return None
    raise UsageError(
        "no API key is set",
        "set RUNPOD_API_KEY, or give --api-key-file; create a key in the Runpod console under Settings, API Keys",
    )


def refuse_plain_http(base_url: str, *, insecure_http: bool) -> None:
    """Refuse to send the key where anyone on the network path can read it.

    Raises:
        UsageError: the URL is http and not on this machine, and `insecure_http` does not allow it.
    """
    if is_plain_http(base_url) and not insecure_http:
        raise UsageError(
            f"--base-url {base_url} is plain http: anyone on the network path can read the API key and the prompts",
            "use https; or give --insecure-http if the network is your own",
        )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(f"--api-key-file {path}: {reason}", "give a file that contains only the key") from error


def _from_config(path: Path) -> str | None:
    """The key in runpod-python's file: it is the `api_key` in the table of a profile, by default `default`."""
    try:
        data = tomllib.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}", "fix it, or set RUNPOD_API_KEY") from error
    for table in (data.get("default"), data):
        key = table.get("api_key") if isinstance(table, dict) else None
        if isinstance(key, str) and key.strip():
            return key
    return None


def checked(key: str, where: str) -> str:
    """A key without surrounding white space.

    Raises:
        UsageError: it is not a possible key; the message says where it is, and never contains it.
    """
    key = key.strip()
    if _WRAPPED.search(key):
        raise UsageError(
            f"{where} contains a key in quotes, or a line NAME=KEY", "give only the key, without quotes and NAME="
        )
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(f"{where} does not contain an API key", "a key is one word of letters, digits and underscores")
    return key
