"""Settings for all tests, and an endpoint for those of whole processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import settings

# What lands is judged by the same examples each time; new ones are looked for at home.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture
def base_url():
    """A local endpoint in a process of its own: 20 workers, 50 ms a job, no limits."""
    command = [sys.executable, "-m", "batchrun", "serve", "--worker", "echo"]
    command += ["--port", "0", "--workers", "20", "--latency", "0.05"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        said = server.stderr.readline()
        yield said.split("at ")[1].split("/ID")[0]
        server.terminate()
        assert server.wait(10) == 0
