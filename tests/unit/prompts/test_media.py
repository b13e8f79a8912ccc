"""The files that a line names are sent in its place, and nothing else of the machine is."""

from __future__ import annotations

import os
import time
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any

import pytest

from batchrun.prompts.media import MediaFiles
from batchrun.prompts.shapes import LineError

if TYPE_CHECKING:
    from pathlib import Path

PNG = b"\x89PNG\r\n\x1a\n picture"
DATA = f"data:image/png;base64,{b64encode(PNG).decode()}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for name in ("in/a.png", "in/b c.JPG", "in/v.mp4", "in/s.wav", "outside.png", "in/empty.png", "in/secret.txt"):
        (tmp_path / name).write_bytes(b"" if "empty" in name else PNG)
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "outside.png")
    (tmp_path / "in" / "folder.png").mkdir()
    return tmp_path


def files(folder: Path, allowed: Any = "anywhere", since: float | None = None) -> MediaFiles:
    return MediaFiles(allowed, str(folder / "in" / "in.jsonl"), since)


def picture(url: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}


def sent(found: dict[str, Any]) -> str:
    return found["messages"][0]["content"][0]["image_url"]["url"]


def test_a_path_becomes_a_data_url_and_the_request_of_the_line_stays(folder: Path):
    media = files(folder)
    for path in (
        "a.png",
        "./a.png",
        str(folder / "in" / "a.png"),
        f"file://{folder}/in/a.png",
        f"FILE://{folder}/in/a.png",
        "../outside.png",
    ):
        request = picture(path)
        media.check(request)
        assert sent(media.inlined(request)) == DATA
        assert request == picture(path)
    assert sent(media.inlined(picture(f"file://{folder}/in/b%20c.JPG"))).startswith("data:image/jpeg;base64,")


@pytest.mark.parametrize(
    "url", ["https://example.org/a.png", "http://x/a.png", DATA, "s3://bucket/a.png", "data:image/png,x", "x" * 5000]
)
def test_a_url_is_sent_as_it_is(folder: Path, url: str):
    request = picture(url)
    files(folder).check(request)
    assert files(folder).inlined(request) is request


def test_each_kind_of_file_is_found_wherever_it_is(folder: Path):
    encoded = b64encode(PNG).decode()
    request = {
        "openai_route": "/v1/chat/completions",
        "openai_input": {
            "messages": [
                {"role": "user", "content": [{"type": "input_image", "image_url": "a.png"}]},
                {"role": "user", "content": [{"type": "video_url", "video_url": {"url": "v.mp4"}}]},
                {"role": "user", "content": [{"type": "audio_url", "audio_url": {"url": "s.wav"}}]},
                {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "s.wav"}}]},
                {"role": "user", "content": [{"type": "input_audio", "input_audio": "s.wav"}]},
                {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": encoded}}]},
            ]
        },
        "input": {"image_url": "a.png"},
    }
    files(folder).check(request)
    found = files(folder).inlined(request)
    parts = [message["content"][0] for message in found["openai_input"]["messages"]]
    assert (parts[0]["image_url"], found["input"]["image_url"]) == (DATA, DATA)
    assert parts[1]["video_url"]["url"] == f"data:video/mp4;base64,{encoded}"
    assert parts[2]["audio_url"]["url"] == f"data:audio/wav;base64,{encoded}"
    assert parts[3]["input_audio"] == parts[4]["input_audio"] == {"data": encoded, "format": "wav"}
    assert parts[5]["input_audio"] == {"data": encoded}
    assert b64decode(parts[3]["input_audio"]["data"]) == PNG


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("gone.png", "gone.png: No such file or directory"),
        ("empty.png", "is empty"),
        ("folder.png", "is not a file"),
        ("secret.txt", "does not have a suffix of image files"),
        ("/etc/passwd", "does not have a suffix of image files"),
        ("v.mp4", "does not have a suffix of image files"),
        ("file://elsewhere/a.png", "is on another machine"),
        ("a\0.png", "NUL character"),
        ("file://[/a.png", "is not a file:// URL"),
    ],
)
def test_a_file_that_cannot_be_sent_says_why(folder: Path, url: str, words: str):
    for attempt in (files(folder).check, files(folder).inlined):
        with pytest.raises(LineError, match=words):
            attempt(picture(url))


def test_a_file_that_may_not_be_read_is_refused(folder: Path):
    if os.geteuid() == 0:
        pytest.skip("root may read every file")
    (folder / "in" / "a.png").chmod(0)
    with pytest.raises(LineError, match="no permission to read it"):
        files(folder).check(picture("a.png"))


def test_in_a_watched_folder_only_its_own_files_are_read(folder: Path):
    confined = files(folder, "in_folder")
    assert sent(confined.inlined(picture("a.png"))) == DATA
    for url in ("../outside.png", str(folder / "outside.png"), "link.png", f"file://{folder}/outside.png"):
        for attempt in (confined.check, confined.inlined):
            with pytest.raises(LineError, match="outside the watched folder"):
                attempt(picture(url))


def test_an_input_without_a_folder_has_only_absolute_paths(folder: Path):
    for origin in ("-", "pipe:1", "https://example.org/in.jsonl"):
        media = MediaFiles("anywhere", origin)
        assert sent(media.inlined(picture(str(folder / "in" / "a.png")))) == DATA
        with pytest.raises(LineError, match="give absolute paths"):
            media.check(picture("a.png"))


def test_files_that_are_too_large_together_are_refused_without_being_read(folder: Path):
    with (folder / "in" / "a.png").open("r+b") as file:
        file.truncate(4_000_000)
    two = {"messages": [*picture("a.png")["messages"], *picture("a.png")["messages"]]}
    files(folder).check(picture("a.png"))
    with pytest.raises(
        LineError, match=r"has 10,6\d\d,\d\d\d bytes with its files, but /run accepts at most 10,000,000"
    ):
        files(folder).check(two)


def test_a_file_that_has_changed_since_the_session_began_is_refused(folder: Path):
    now = time.time()
    assert sent(files(folder, since=now).inlined(picture("a.png"))) == DATA
    with pytest.raises(LineError, match=r"a\.png has changed during the run"):
        files(folder, since=now - 60).inlined(picture("a.png"))


def test_a_file_whose_time_lies_in_the_future_has_not_changed_for_that(folder: Path):
    now = time.time()
    os.utime(folder / "in" / "a.png", (now + 10**6, now + 10**6))
    assert sent(files(folder, since=now).inlined(picture("a.png"))) == DATA
    with pytest.raises(LineError, match=r"a\.png has changed during the run"):
        files(folder, since=now - 60).inlined(picture("a.png"))
