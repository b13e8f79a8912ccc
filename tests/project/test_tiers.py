"""Where tests lie, and what they may lean on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.places import PACKAGE, ROOT

TESTS = ROOT / "tests"
TIERS = {"unit", "http", "faults", "process", "project", "chaos", "bench"}
WITH_HELPERS_OF_THEIR_OWN = {"chaos", "bench"}
"""Tiers whose folder holds a program of their own beside its tests."""


def imported(path: Path) -> set[str]:
    """The modules below `tests` that a file imports."""
    return set(re.findall(r"^ *(?:from|import) (tests\.[\w.]+)", path.read_text(), re.MULTILINE))


@pytest.mark.parametrize("tier", sorted(TIERS))
def test_a_test_takes_helpers_from_support_and_never_from_another_test(tier: str):
    mine = {"tests.support", f"tests.{tier}"} if tier in WITH_HELPERS_OF_THEIR_OWN else {"tests.support"}
    for path in sorted((TESTS / tier).rglob("*.py")):
        others = {name for name in imported(path) if ".".join(name.split(".")[:2]) not in mine}
        assert not others, f"{path.relative_to(ROOT)} imports {', '.join(sorted(others))}"


def test_every_test_lies_in_a_tier():
    assert {path.relative_to(TESTS).parts[0] for path in TESTS.rglob("test_*.py")} == TIERS


def test_the_unit_tests_lie_in_folders_of_the_package():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    tested = {path.name for path in (TESTS / "unit").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert tested <= folders
