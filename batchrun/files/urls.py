"""Names of inputs: paths, patterns and URLs, and what of a URL may be written and shown."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qsl, unquote, urlsplit

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_REDACTED = re.compile(r"redacted(?:-[0-9a-f]{8})?")
_SIGNING = re.compile(
    r"x-(?:amz|goog)-.*|signature|expires|awsaccesskeyid|googleaccessid|key-pair-id|policy"
    r"|sig|se|st|sp|sv|sr|spr|skoid|sktid|skt|ske|sks|skv",
    re.IGNORECASE,
)
"""Parameters that S3, GCS, CloudFront and Azure add to sign a URL: they differ each time, and name no other file."""
_LEAST_SECRET_CHARS = 4
"""A shorter part of a URL is not looked for in messages: it would be found everywhere."""


def is_url(name: str) -> bool:
    """Whether the name of an input is a URL."""
    return _URL.match(name) is not None


def scheme_of(url: str) -> str:
    """The scheme of a URL, in lower case: `https`."""
    return url.partition("://")[0].lower()


def is_web(url: str) -> bool:
    """Whether a URL is read by HTTP."""
    return scheme_of(url) in ("http", "https")


def public_url(url: str) -> str:
    """A URL without user, password and fragment, and with a digest in place of its query; unchanged if it has none.

    The digest leaves out what signs a URL, so a file is recognized when its URL is signed again. A URL that is public
    already stays the same.
    """
    head, slashes, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    place = place.rpartition("@")[2]
    if not is_web(url):
        return f"{head}{slashes}{place}{slash}{path}"
    path, _, query = path.partition("#")[0].partition("?")
    if query and not _REDACTED.fullmatch(query):
        named = [(key, value) for key, value in parse_qsl(query, keep_blank_values=True) if not _SIGNING.fullmatch(key)]
        digest = hashlib.sha256(repr(sorted(named)).encode()).hexdigest()[:8]
        query = f"redacted-{digest}" if named else "redacted"
    return f"{head}{slashes}{place}{slash}{path}" + (f"?{query}" if query else "")


def is_redacted(url: str) -> bool:
    """Whether a URL once had a query that is not known any more, so that it cannot be read."""
    return is_web(url) and _REDACTED.fullmatch(url.partition("?")[2]) is not None


def is_pattern(name: str) -> bool:
    """Whether a name is a pattern such as `data/*.csv`, and not that of a file: a file may have any name.

    URLs of web pages are not patterns: a server has no list of its files.
    """
    if is_url(name):
        return not is_web(name) and glob.has_magic(name)
    return glob.has_magic(name) and not os.path.lexists(name)


def absolute_name(name: str) -> str:
    """The name of an input that is valid in any folder, and has no secrets: `-` and a URL are."""
    if name == "-" or is_url(name):
        return public_name(name)
    if is_pattern(name) and not os.path.isabs(name):  # noqa: PTH117 - a Path drops a slash at the end
        return os.path.join(glob.escape(os.getcwd()), name)  # noqa: PTH109, PTH118 - as above
    return str(Path(name).absolute())


def public_name(name: str) -> str:
    """The name of an input as it may be written and shown: a URL without its secrets, anything else unchanged."""
    return public_url(name) if is_url(name) else name


def file_name(url: str) -> str:
    """The name of the file that a URL leads to; empty if it names none."""
    path = url.partition("://")[2].partition("/")[2]
    return PurePosixPath(unquote(path.partition("#")[0].partition("?")[0]) if is_web(url) else path).name


def without_secrets(text: str, url: str) -> str:
    """A message of a library about a URL, without the secrets in the URL."""
    shown = public_url(url)
    if shown == url:
        return text
    text = text.replace(url, shown)
    parts = urlsplit(url)
    secrets = {parts.query, parts.netloc.rpartition("@")[0], parts.password or "", parts.username or ""}
    secrets |= {value for _, value in parse_qsl(parts.query)}
    for secret in sorted({form for part in secrets for form in (part, unquote(part))}, key=len, reverse=True):
        if len(secret) >= _LEAST_SECRET_CHARS:
            text = text.replace(secret, "[redacted]")
    return text


def is_table(path: str) -> bool:
    """Whether the file at a path or URL is taken for a table by its name: its rows have numbers, but are not lines."""
    return _TABLE.search(file_name(path) if is_url(path) else path) is not None


def place_in(path: str, number: int) -> str:
    """How a message names a line of an input, or a row of a table: `prompts.jsonl:3`, `reviews.csv: row 3`."""
    return f"{path}: row {number}" if is_table(path) else f"{path}:{number}"


_TABLE = re.compile(r"[^/]\.(?:csv|tsv|json|parquet)(?:\.(?:gz|bz2|xz|zst))?$", re.IGNORECASE)
