from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from batchrun.endpoint.credentials import find_api_key
from batchrun.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

REMOTE = "https://api.runpod.ai/v2"


def config_toml(home: Path, text: str) -> dict[str, str]:
    (home / ".runpod").mkdir()
    (home / ".runpod" / "config.toml").write_text(text)
    return {"HOME": str(home)}


def test_a_key_file_wins_over_the_environment_and_that_over_runpods_own_file(tmp_path: Path):
    environ = config_toml(tmp_path, '[default]\napi_key = "from_config"\n')
    assert find_api_key(None, REMOTE, environ) == "from_config"
    environ["RUNPOD_API_KEY"] = "from_environment"
    assert find_api_key(None, REMOTE, environ) == "from_environment"
    key_file = tmp_path / "key"
    key_file.write_text("from_file\n")
    assert find_api_key(key_file, REMOTE, environ) == "from_file"


def test_without_a_key_the_message_says_where_to_get_one(tmp_path: Path):
    with pytest.raises(UsageError) as caught:
        find_api_key(None, REMOTE, {"HOME": str(tmp_path)})
    assert "RUNPOD_API_KEY" in caught.value.hint


@pytest.mark.parametrize("base_url", ["http://127.0.0.1:8000/v2", "http://localhost/v2", "http://[::1]:9/v2"])
def test_an_endpoint_on_this_machine_needs_no_key(tmp_path: Path, base_url: str):
    assert find_api_key(None, base_url, {"HOME": str(tmp_path)}) is None


@pytest.mark.parametrize("secret", ["two words", "line\nbreak", "schlüssel", ""])
def test_what_cannot_be_a_key_is_refused_without_being_shown(tmp_path: Path, secret: str):
    key_file = tmp_path / "key"
    key_file.write_text(secret)
    with pytest.raises(UsageError) as caught:
        find_api_key(key_file, REMOTE, {})
    assert not secret or secret not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    "text", ['"rpa_SECRET"', "'rpa_SECRET'", "RUNPOD_API_KEY=rpa_SECRET", "export KEY='rpa_SECRET'", "KEY=rpa_SECRET="]
)
def test_a_key_as_it_stands_in_an_env_file_is_refused_with_what_to_do(tmp_path: Path, text: str):
    key_file = tmp_path / ".env"
    key_file.write_text(f"{text}\n")
    for given, environ in ((key_file, {}), (None, {"RUNPOD_API_KEY": text})):
        with pytest.raises(UsageError, match="contains a key in quotes, or a line NAME=KEY") as caught:
            find_api_key(given, REMOTE, environ)
        assert "SECRET" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize("key", ["rpa_SECRET", "c2VjcmV0cw==", "c2VjcmV0cw=", "sk-a.b:c"])
def test_a_key_of_any_one_word_is_taken(key: str):
    assert find_api_key(None, REMOTE, {"RUNPOD_API_KEY": f" {key}\n"}) == key


@pytest.mark.parametrize("content", [None, b"\xff\xfe", "folder"])
def test_a_key_file_that_cannot_be_read_is_one_clear_line(tmp_path: Path, content):
    key_file = tmp_path / "key"
    if content == "folder":
        key_file.mkdir()
    elif content is not None:
        key_file.write_bytes(content)
    with pytest.raises(UsageError, match="--api-key-file"):
        find_api_key(key_file, REMOTE, {})


def test_a_broken_config_file_is_named(tmp_path: Path):
    with pytest.raises(UsageError, match=r"config\.toml is not valid TOML"):
        find_api_key(None, REMOTE, config_toml(tmp_path, "[default"))


def test_without_a_home_there_is_no_key_and_no_traceback(monkeypatch):
    def no_entry(_: int) -> None:
        raise KeyError

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", no_entry)
    with pytest.raises(UsageError, match="no API key is set"):
        find_api_key(None, REMOTE, {})
    assert find_api_key(None, "http://127.0.0.1:8000/v2", {}) is None


@pytest.mark.parametrize("home", ["", "a" * 5000, "\0", "/proc/self/environ"])
def test_a_home_that_cannot_be_looked_at_holds_no_key(home: str):
    assert find_api_key(None, "http://127.0.0.1:8000/v2", {"HOME": home}) is None
