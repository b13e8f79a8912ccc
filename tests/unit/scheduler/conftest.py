"""Which of these tests run the scheduler in a simulated world."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if hasattr(getattr(item, "module", None), "World"):
            item.add_marker("simulated")
