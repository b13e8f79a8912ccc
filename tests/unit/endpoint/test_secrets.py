"""What comes from outside is shown without secrets."""

from __future__ import annotations

import base64
import json
import time
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.display.text import visible
from batchrun.endpoint.secrets import MARK, Secrets, url_secrets

KEY = "rpa_REPRO_SECRET_0123456789"
KEYS = st.text(st.sampled_from("abcdefXYZ0123456789_-+/."), min_size=12, max_size=60)
ENCODINGS = (
    lambda data: base64.b64encode(data).decode(),
    lambda data: base64.urlsafe_b64encode(data).decode(),
    lambda data: quote(data.decode("utf-8", "replace"), safe=""),
    lambda data: json.dumps(data.decode("utf-8", "replace")),
    lambda data: data.decode("utf-8", "replace"),
)


def parts(text: str, chars: int = 12) -> set[str]:
    return {text[at : at + chars] for at in range(len(text) - chars + 1)}


@given(st.data(), KEYS, st.text(max_size=40), st.text(max_size=40))
def test_no_part_of_a_key_of_12_characters_is_left_in_any_text(data, key: str, ahead: str, behind: str):
    start = data.draw(st.integers(0, len(key)))
    stop = data.draw(st.integers(start, len(key)))
    pieces = [ahead, key[start:stop], behind, key, key[stop:], ahead]
    text = "".join(data.draw(st.permutations(pieces)))
    assert not parts(key) & parts(Secrets(key).hide(text))


@given(KEYS, st.text(max_size=20), st.text(max_size=20), st.sampled_from(ENCODINGS))
def test_an_encoded_key_cannot_be_decoded_from_what_is_left(key: str, ahead: str, behind: str, encode):
    text = encode(f"{ahead}{key}{behind}".encode("utf-8", "replace"))
    hidden = Secrets(key).hide(text)
    left = hidden.split(MARK)
    assert len(left) > 1
    stable = {encode(key.encode())}
    assert not any(form in part for form in stable for part in left if len(form) >= 16)


@pytest.mark.parametrize("user", ["", "u", "us", "user", "someone"])
def test_the_key_of_a_basic_authorization_is_hidden_at_every_alignment(user: str):
    sent = base64.b64encode(f"{user}:{KEY}".encode()).decode()
    hidden = Secrets(KEY).hide(f"you sent Basic {sent}, which is wrong")
    assert hidden.startswith("you sent Basic ")
    assert hidden.endswith(", which is wrong")
    assert len(hidden) < len("you sent Basic , which is wrong") + len(MARK) + len(user) * 2 + 6


def test_a_short_secret_is_hidden_as_a_word_and_not_within_others():
    assert Secrets("pw").hide("http://me:pw@proxy, pwned, pw") == f"http://me:{MARK}@proxy, pwned, {MARK}"
    assert Secrets(None, "").hide("nothing is secret") == "nothing is secret"


def test_the_password_of_a_url_is_secret_as_it_stands_and_decoded():
    secrets = Secrets(*url_secrets("http://me:p%40ss-word@proxy.example:3128"))
    assert secrets.hide("p@ss-word p%40ss-word") == f"{MARK} {MARK}"
    assert base64.b64encode(b"me:p@ss-word").decode() not in secrets.hide(
        f"Basic {base64.b64encode(b'me:p@ss-word').decode()}"
    )
    assert url_secrets("http://proxy:3128") == url_secrets(None) == url_secrets("http://[") == ()


@given(st.text(max_size=200))
def test_a_text_without_a_secret_is_as_it_was(text: str):
    assert Secrets(KEY).hide(text) == text


HOSTILE = {
    "nothing of it": "a" * 1_000_000,
    "the key again and again": KEY * 37_037,
    "its blocks, which are no parts": "".join(KEY[at : at + 6] + "#" for at in range(0, 20, 6)) * 35_000,
    "parts but for one character": f"{KEY[:11]}." * 83_333,
    "its first character": KEY[0] * 1_000_000,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_megabyte_of_hostile_text_costs_no_more_than_any_other(kind: str):
    secrets, text = Secrets(KEY, "pw"), HOSTILE[kind]

    def seconds(sized: str) -> float:
        best = float("inf")
        for _ in range(3):
            began = time.process_time()
            secrets.hide(visible(sized))
            best = min(best, time.process_time() - began)
        return best

    assert seconds(text) < 1.0
    assert seconds(text) < 20 * seconds(text[:100_000]) + 0.1
