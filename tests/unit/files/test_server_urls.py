"""Settings."""

from __future__ import annotations

from batchrun.files.server_urls import without_user


def test_a_url_is_told_without_its_user():
    assert without_user("http://me:pw@host:1/v2") == "http://host:1/v2"
    assert without_user("https://host/v2/a@b") == "https://host/v2/a@b"
