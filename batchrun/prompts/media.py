"""Files that a request names: pictures, sounds and videos that are sent in its place.

    {"type": "image_url", "image_url": {"url": "cat.jpg"}}    its `url` becomes a data URL
    {"type": "input_audio", "input_audio": {"data": "a.wav"}} its `data` becomes base64, and `format` is added

`audio_url` and `video_url` are like `image_url`. A URL, a data URL and base64 are sent as they are. Only files whose
names end like those of pictures, sounds and videos are read, so that a line cannot ask for another file.
"""

from __future__ import annotations

import os
import re
import stat
from base64 import b64encode
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from batchrun.config import MAX_REQUEST_BYTES, InlineFiles
from batchrun.files.exactjson import dump
from batchrun.prompts.shapes import PROMPT_KEYS, LineError

_FIELDS = {"image_url": "image", "video_url": "video", "audio_url": "audio", "input_audio": "audio"}
"""Field -> what its file must be."""
_TYPES = {
    "image": "avif bmp gif heic jpeg jpg png tif tiff webp",
    "audio": "aac flac m4a mp3 oga ogg opus wav",
    "video": "avi m4v mkv mov mp4 mpeg mpg webm",
}
_SUFFIXES = {kind: frozenset(f".{suffix}" for suffix in suffixes.split()) for kind, suffixes in _TYPES.items()}
_MEDIA_TYPES = {
    "jpg": "jpeg",
    "tif": "tiff",
    "mp3": "mpeg",
    "m4a": "mp4",
    "oga": "ogg",
    "mpg": "mpeg",
    "m4v": "mp4",
} | {
    "mkv": "x-matroska",
    "mov": "quicktime",
    "avi": "x-msvideo",
}
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_FILE_SCHEME = re.compile("file:", re.IGNORECASE)
_MOST_PATH_CHARS = 4096
"""A longer text is base64."""
_CLOCK_MARGIN_S = 2.0
"""A file server's clock may differ by this much."""


class Place(NamedTuple):
    """A place in a request that names a file."""

    holder: dict[str, Any]
    key: str
    field: str
    text: str
    """The path, or the file:// URL."""


class MediaFiles:
    """The files that the lines of an input name.

    Args:
        allowed: Which files may be read.
        origin: The input; relative paths begin at its folder. For one that has none, such as stdin, they are refused.
        since: UTC epoch seconds: a file that is changed later is refused. None: none is.
    """

    def __init__(self, allowed: InlineFiles, origin: str, since: float | None = None) -> None:
        self._folder = Path(origin).parent if os.path.isabs(origin) else None  # noqa: PTH117 - a URL is no path
        self._is_confined = allowed == "in_folder"
        self._since = since

    def check(self, request: dict[str, Any]) -> None:
        """Check that the files of a request can be sent, without reading them.

        Raises:
            LineError: one cannot be read, or together they are larger than `/run` accepts.
        """
        places = places_of(request)
        if places:
            self._sizes(request, places)

    def inlined(self, request: dict[str, Any]) -> dict[str, Any]:
        """The request with the content of its files; itself if it names none.

        Raises:
            LineError: see `check`; or a file has changed.
        """
        if not places_of(request):
            return request
        request = deepcopy(request)
        places = places_of(request)
        self._sizes(request, places)
        for holder, key, field, text in places:
            path = self._path(field, text)
            try:
                data = b64encode(path.read_bytes()).decode()
            except OSError as error:
                raise LineError(f"`{field}`: {text}: {error.strerror}") from error
            suffix = path.suffix.lower().removeprefix(".")
            if field != "input_audio":
                holder[key] = f"data:{_FIELDS[field]}/{_MEDIA_TYPES.get(suffix, suffix)};base64,{data}"
            elif key == "data":
                holder.update({"data": data, "format": holder.get("format") or suffix})
            else:
                holder[key] = {"data": data, "format": suffix}
        return request

    def absolute(self, line: Any) -> Any:
        """The JSON value of a line, with absolute paths: it may be written to a file in another folder."""
        if not isinstance(line, dict):
            return line
        line = {key: deepcopy(value) if key in PROMPT_KEYS else value for key, value in line.items()}
        for holder, key, field, text in places_of({key: line[key] for key in PROMPT_KEYS & line.keys()}):
            if not text.startswith("file:/"):
                with suppress(LineError):  # raised for what is no path
                    holder[key] = str(self._located(field, text))
        return line

    def _sizes(self, request: dict[str, Any], places: list[Place]) -> None:
        size_bytes = len(dump({"input": request}))
        for place in places:
            path = self._path(place.field, place.text)
            status = _status(path, place)
            # The time of the content may lie in the future, as a camera's clock set it; that of the inode does not.
            changed = min(status.st_mtime, status.st_ctime)
            if self._since is not None and changed > self._since + _CLOCK_MARGIN_S:
                raise LineError(f"`{place.field}`: {place.text} has changed during the run")
            size_bytes += (status.st_size + 2) // 3 * 4
        if size_bytes > MAX_REQUEST_BYTES:
            raise LineError(
                f"the request has {size_bytes:,} bytes with its files, but /run accepts at most {MAX_REQUEST_BYTES:,}"
            )

    def _located(self, field: str, text: str) -> Path:
        """The path of a file, absolute if the input has a folder."""
        if is_file_url(text):
            try:
                parts = urlsplit(text)
            except ValueError as error:
                raise LineError(f"`{field}`: {text} is not a file:// URL") from error
            if parts.netloc not in ("", "localhost"):
                raise LineError(f"`{field}`: {text} is on another machine")
            text = unquote(parts.path)
        path = Path(text)
        if "\0" in text:
            raise LineError(f"`{field}`: the path has a NUL character")
        if not path.is_absolute():
            if self._folder is None:
                raise LineError(f"`{field}`: {text} is relative, but this input has no folder: give absolute paths")
            path = self._folder / path
        return path

    def _path(self, field: str, text: str) -> Path:
        """The path of a file that may be read."""
        path, kind = self._located(field, text), _FIELDS[field]
        if path.suffix.lower() not in _SUFFIXES[kind]:
            raise LineError(f"`{field}`: {text} does not have a suffix of {kind} files ({_TYPES[kind]})")
        if self._is_confined and (
            self._folder is None or not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self._folder))
        ):
            raise LineError(f"`{field}`: {text} is outside the watched folder, and is not sent")
        return path


def _status(path: Path, place: Place) -> os.stat_result:
    try:
        status = path.stat()
    except OSError as error:
        raise LineError(f"`{place.field}`: {path}: {os.strerror(error.errno or 0)}") from error
    if not stat.S_ISREG(status.st_mode):
        raise LineError(f"`{place.field}`: {path} is not a file")
    if not status.st_size:
        raise LineError(f"`{place.field}`: {path} is empty")
    if not os.access(path, os.R_OK):
        raise LineError(f"`{place.field}`: {path}: no permission to read it")
    return status


def places_of(request: dict[str, Any]) -> list[Place]:
    """The places in a request that name a file, in any depth."""
    found: list[Place] = []
    stack: list[Any] = [request]
    while stack:
        item = stack.pop()
        if type(item) is list:
            stack.extend(reversed(item))
        elif type(item) is dict:
            for name, value in item.items():
                if type(value) is list or (type(value) is dict and name not in _FIELDS):
                    stack.append(value)
                elif name in _FIELDS:
                    holder, key = item, name
                    if type(value) is dict:
                        holder, key = value, "data" if name == "input_audio" else "url"
                    text = holder.get(key)
                    if type(text) is str and _is_local(text, is_data=key == "data"):
                        found.append(Place(holder, key, name, text))
    return found


def is_file_url(text: str) -> bool:
    """Whether a text is a `file:` URL; the case of a scheme does not matter."""
    return _FILE_SCHEME.match(text) is not None


def _is_local(text: str, *, is_data: bool) -> bool:
    """Whether a text names a file of this machine; `is_data`: base64 is expected, in which there is no dot."""
    if is_file_url(text):
        return True
    if not text or len(text) > _MOST_PATH_CHARS or _SCHEME.match(text):
        return False
    return "." in text or not is_data
