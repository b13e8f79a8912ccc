"""Settings for all tests."""

from __future__ import annotations

import os

from hypothesis import settings

# What lands is judged by the same examples each time; new ones are looked for at home.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
