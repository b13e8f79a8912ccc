"""Settings for all tests, and the fixtures that several of them use."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.command import served

# No example is judged by its time. What lands is judged by the same ones each time; new ones are looked for at home.
settings.register_profile("batchrun", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("batchrun")

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a hangup that is ignored here would be ignored by the processes too


@pytest.fixture
def base_url():
    """A local endpoint in a process of its own: 20 workers, 50 ms a job, no limits."""
    with served() as url:
        yield url


@pytest.fixture
def quiet_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No key, no settings, and a folder of its own with two prompts in `p.jsonl`."""
    for name in list(os.environ):
        if name.startswith(("RUNPOD_", "BATCHRUN_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.jsonl").write_text('{"id": "a", "prompt": "x y"}\n"z"\n')
    return tmp_path


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of this machine, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "cert.pem", folder / "key.pem"
