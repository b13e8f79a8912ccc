"""Read inputs from URLs, once and from beginning to end: https by itself, s3, gs, hf and others through fsspec.

Credentials are those that each library finds itself: an AWS profile, a Hugging Face token; for https, those in the URL.
"""

from __future__ import annotations

import http.client
import importlib
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, RawIOBase
from typing import Any, BinaryIO, NamedTuple, NoReturn, cast
from urllib.parse import unquote, urlsplit, urlunsplit

from batchrun.config import VERSION
from batchrun.errors import InputError
from batchrun.files.extras import needs_extra
from batchrun.files.urls import is_web, public_url, scheme_of, without_secrets

_DATA = "'runpod-batchrun[data]'"
_LIBRARIES = {
    "s3": ("s3fs", "s3fs"),
    "gs": ("gcsfs", "gcsfs"),
    "gcs": ("gcsfs", "gcsfs"),
    "az": ("adlfs", "adlfs"),
    "abfs": ("adlfs", "adlfs"),
    "hf": ("huggingface_hub", _DATA),
}
"""Scheme -> the library that fsspec reads it with, and what pip installs."""
_BLOCK_BYTES = 1 << 20
_SILENCE_S = 60.0
_TRIES = 4
"""How often a download is begun or continued."""


class Remote(NamedTuple):
    """An open remote file."""

    file: BinaryIO
    stamp: str
    """Its ETag, or its size and time; empty if the server tells neither."""


def refuse_unreadable_url(url: str) -> None:
    """Refuse a URL that cannot be read, before anything is sent there.

    Raises:
        InputError: its scheme is unknown, or it names no host or bucket.
    """
    scheme, shown = scheme_of(url), public_url(url)
    if scheme not in ("http", "https", *_LIBRARIES):
        raise InputError(
            f"{shown}: inputs cannot be read from {scheme}://", "use https://, s3://, gs:// or hf://, or download it"
        )
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname if is_web(url) else parts.netloc) and parts.port != 0
    except ValueError:
        has_host = False
    if not has_host or not url.isprintable() or " " in url.partition("?")[0].partition("://")[2].partition("/")[0]:
        raise InputError(f"{shown}: this is not a complete URL", "for example https://example.com/prompts.csv")


def expand_url(url: str) -> list[str]:
    """The URLs of the files that a URL with `*` or other wildcards stands for, in name order; none if there are none.

    Raises:
        InputError: the files cannot be listed.
    """
    with _told(url):
        found = _filesystem(url).glob(_known(url))
    return sorted(f"{scheme_of(url)}://{name}" for name in found)


def stamp_of(url: str) -> str:
    """The present stamp of a remote file, see `Remote`.

    Raises:
        InputError: it cannot be reached.
    """
    with _told(url):
        if not is_web(url):
            return _stamp(_filesystem(url).info(_known(url)))
        with _request(url) as answer:
            return _web_stamp(answer)


@contextmanager
def open_remote(url: str) -> Iterator[Remote]:
    """Open a remote file for reading from beginning to end.

    Raises:
        InputError: it cannot be reached or read; also while it is read, if it breaks off.
    """
    if is_web(url):
        with _told(url):
            raw = _WebFile(url)
        with BufferedReader(raw, _BLOCK_BYTES) as file:
            yield Remote(cast("BinaryIO", file), raw.stamp)
        return
    with _told(url):
        files = _filesystem(url)
        stamp = _stamp(files.info(_known(url)))
        opened = files.open(_known(url), "rb", block_size=4 * _BLOCK_BYTES, cache_type="readahead")
    with BufferedReader(_Told(opened, url), _BLOCK_BYTES) as file:
        yield Remote(cast("BinaryIO", file), stamp)


class _WebFile(RawIOBase):
    """A file that is downloaded; a broken connection is continued if the server can do so for the same content."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self._tries = 1
        self._at = 0
        self._answer = _request(url)
        self.stamp = _web_stamp(self._answer)
        length = self._answer.headers.get("Content-Length")
        self._length = None if length is None else int(length)
        etag = self._answer.headers.get("ETag", "")
        self._etag = etag if etag and not etag.startswith("W/") else ""

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any, /) -> int:
        with _told(self._url):
            while True:
                try:
                    count: int = self._answer.readinto(into)
                    if count or self._length is None or self._at >= self._length:
                        self._at += count
                        return count
                    raise _CutOffError(f"the download ended after {self._at:,} of {self._length:,} bytes")
                except (OSError, http.client.HTTPException) as error:
                    self._answer.close()
                    if self._tries >= _TRIES or not self._etag:
                        raise
                    self._continue(error)

    def _continue(self, error: Exception) -> None:
        self._tries += 1
        answer = _request(self._url, {"Range": f"bytes={self._at}-", "If-Range": self._etag})
        if answer.status != http.client.PARTIAL_CONTENT or answer.headers.get("ETag") != self._etag:
            answer.close()
            raise error
        self._answer = answer

    def close(self) -> None:
        self._answer.close()
        super().close()


class _CutOffError(OSError):
    """A download ended too early."""


class _Told(RawIOBase):
    """A file of fsspec whose faults are errors of the input."""

    def __init__(self, file: Any, url: str) -> None:
        super().__init__()
        self._file = file
        self._url = url

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any, /) -> int:
        with _told(self._url):
            return int(self._file.readinto(into))

    def close(self) -> None:
        self._file.close()
        super().close()


def _request(url: str, headers: dict[str, str] | None = None) -> Any:
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    bare = urlunsplit((parts.scheme, place, parts.path or "/", parts.query, ""))
    request = urllib.request.Request(  # noqa: S310 - http and https alone come here
        bare, headers={"User-Agent": f"batchrun/{VERSION}", "Accept-Encoding": "identity", **(headers or {})}
    )
    if parts.username:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        # Not sent on to a host that the answer may redirect to.
        request.add_unredirected_header("Authorization", f"Basic {b64encode(user.encode()).decode()}")
    return urllib.request.urlopen(request, timeout=_SILENCE_S)  # noqa: S310 - as above


def _web_stamp(answer: Any) -> str:
    headers = answer.headers
    if headers.get("ETag"):
        return f"etag {headers['ETag']}"
    if headers.get("Last-Modified"):
        return f"{headers.get('Content-Length', '')} bytes, {headers['Last-Modified']}"
    return ""


def _stamp(info: dict[str, Any]) -> str:
    for key in ("ETag", "etag", "md5Hash", "blob_id"):
        if info.get(key):
            return f"etag {info[key]}"
    time = next((info[key] for key in ("LastModified", "last_modified", "mtime", "updated") if info.get(key)), "")
    return f"{info.get('size', '')} bytes, {time}" if time else ""


def _known(url: str) -> str:
    """The URL with its scheme in small letters, as the libraries know it."""
    return f"{scheme_of(url)}://{url.partition('://')[2]}"


def _filesystem(url: str) -> Any:
    module, install = _LIBRARIES[scheme_of(url)]
    with needs_extra(f"{public_url(url)} is read through fsspec", _DATA, InputError):
        import fsspec
    with needs_extra(f"{public_url(url)} is on {scheme_of(url)}://", install, InputError):
        importlib.import_module(module)
    return fsspec.filesystem(scheme_of(url), skip_instance_cache=True, use_listings_cache=False)


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Turn whatever a library raises into an InputError: each has exceptions of its own.

    Raises:
        InputError: it raised one.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - botocore, aiohttp, requests, httpx and gcsfs share no class
        _refuse(url, error)


def _refuse(url: str, error: Exception) -> NoReturn:
    shown, name = public_url(url), type(error).__name__
    reason = without_secrets(" ".join(str(error).split()) or name, url)
    status = getattr(error, "code", None) or getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        reason = " ".join(f"HTTP {error.code} {error.reason}".split())
    elif isinstance(error, urllib.error.URLError):
        reason = without_secrets(str(error.reason), url)
    is_denied = status in (401, 403) or isinstance(error, PermissionError) or "redentials" in name + reason
    if is_denied or name == "GatedRepoError":
        hint = _KEYS.get(scheme_of(url), "check the credentials")
    elif status in (404, 410) or isinstance(error, FileNotFoundError) or "NoSuchBucket" in reason:
        reason = reason if isinstance(error, urllib.error.HTTPError) else "there is no such file, or no such bucket"
        hint = "check the URL"
    elif isinstance(error, (_CutOffError, http.client.IncompleteRead)):
        hint = "give the same command again"
    else:
        hint = "check the URL and the network, then give the same command again"
    raise InputError(f"{shown}: {reason}", hint) from error


_KEYS = {
    "s3": "give credentials as for the aws command: AWS_PROFILE, or `aws configure`",
    "gs": "give credentials as for gcloud: `gcloud auth application-default login`",
    "hf": "give a token as for the hf command: HF_TOKEN, or `hf auth login`",
    "https": "the server refuses: check the URL, which may have expired",
    "http": "the server refuses: check the URL, which may have expired",
}
