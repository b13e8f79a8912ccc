"""A state file of somebody else sends the key, and what it names, nowhere until its user says so."""

from __future__ import annotations

import shutil
import urllib.request
from pathlib import Path

import orjson
import pytest

from batchrun.state.reader import StateReader
from batchrun.state.store import Store
from tests.support.command import invoke

KEY = "rpa_CONSENT_0123456789abcdef"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    for name in ("BATCHRUN_BASE_URL", "RUNPOD_ENDPOINT_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RUNPOD_API_KEY", KEY)
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    return tmp_path / "run"


def lines(path: Path, count: int = 3) -> Path:
    path.write_bytes(b"".join(orjson.dumps({"id": f"r{n}", "prompt": f"{n}"}) + b"\n" for n in range(count)))
    return path


def begin(base_url: str, source: object, output: object = "out.jsonl", *more: object) -> Path:
    code, said = invoke(
        *("run", source, "-e", "abc", "--base-url", base_url, "-o", output, "--limit", 1, "--progress", "none", *more)
    )
    assert code == 0, said
    return Path(f"{output}.state")


def jobs(base_url: str) -> int:
    with urllib.request.urlopen(f"{base_url}/abc/health") as answer:
        return sum(orjson.loads(answer.read())["jobs"].values())


def forget(state: Path, setting: str = "confirmed") -> None:
    with Store(state) as store:
        store.set_setting(setting, [])


def refused(base_url: str, *arguments: object, words: str, **environ: str) -> str:
    before = jobs(base_url)
    code, said = invoke(*arguments, "--progress", "none", **environ)
    assert code == 2, said
    assert words in said
    assert jobs(base_url) == before
    return said


def test_ones_own_run_resumes_without_a_word(folder: Path, base_url: str):
    source = lines(folder.parent / "in.jsonl")
    begin(base_url, source, folder.parent / "elsewhere" / "out.jsonl", "--state", "s.state")
    state = folder / "s.state"
    assert invoke("resume", state, "--progress", "none")[0] == 0
    assert invoke("cancel", state, "--progress", "none")[0] == 0


def test_a_url_that_no_holder_of_the_key_has_chosen_is_to_be_confirmed_once(folder: Path, base_url: str):
    state = begin(base_url, lines(folder / "in.jsonl"))
    forget(state)
    for command in ("resume", "cancel"):
        said = refused(base_url, command, state, words=f"sends the API key to {base_url}, and nothing proves")
        assert f"confirm it: --base-url {base_url}" in said
    assert invoke("resume", state, "--base-url", base_url, "--progress", "none")[0] == 0
    assert invoke("resume", state, "--progress", "none")[0] == 0


def test_the_environment_confirms_a_url_and_another_one_does_not(folder: Path, base_url: str):
    state = begin(base_url, lines(folder / "in.jsonl"))
    forget(state)
    refused(base_url, "resume", state, words="nothing proves", RUNPOD_ENDPOINT_BASE_URL="https://api.example/v2")
    refused(base_url, "resume", state, "--base-url", "https://api.example/v2", words=f"the run uses {base_url}")
    assert invoke("resume", state, "--progress", "none", RUNPOD_ENDPOINT_BASE_URL=base_url)[0] == 0


def test_a_proof_under_another_key_is_none(folder: Path, base_url: str):
    state = begin(base_url, lines(folder / "in.jsonl"))
    refused(base_url, "resume", state, words="another API key", RUNPOD_API_KEY="rpa_SOMEBODY_ELSES")
    refused(base_url, "cancel", state, words="another API key", RUNPOD_API_KEY="rpa_SOMEBODY_ELSES")


def test_a_planted_state_file_sends_no_file_of_elsewhere(folder: Path, base_url: str):
    state = begin(base_url, lines(folder / "in.jsonl"))
    secret = lines(folder.parent / "secret.jsonl", 5)
    with Store(state) as store:
        store.set_setting("options", {**store.get_setting("options"), "inputs": [str(secret)]})
    said = refused(base_url, "resume", state, words=f"sends {secret}, which is outside its folder")
    assert "batchrun run INPUT... -o OUTPUT" in said


def test_a_link_in_the_folder_leads_no_file_of_elsewhere_in(folder: Path, base_url: str):
    source = lines(folder / "in.jsonl")
    state = begin(base_url, source)
    lines(folder.parent / "secret.jsonl", 5)
    source.unlink()
    source.symlink_to("../secret.jsonl")
    refused(base_url, "resume", state, words=f"sends {source}, which is outside its folder")


@pytest.mark.parametrize("command", ["resume", "cancel", "run"])
def test_a_planted_state_file_writes_and_cuts_no_file_of_elsewhere(folder: Path, base_url: str, command: str):
    source = lines(folder / "in.jsonl")
    state = begin(base_url, source)
    victim = folder.parent / "profile"
    victim.write_text("export PATH")
    with Store(state) as store, store.transaction() as db:
        db.execute("INSERT INTO outputs (path, committed_bytes) VALUES ('../profile', 0)")
    arguments = [state] if command != "run" else [source, "-e", "abc", "--base-url", base_url, "-o", "out.jsonl"]
    refused(base_url, command, *arguments, words=f"writes {victim}, which is outside its folder")
    assert victim.read_text() == "export PATH"


def test_a_run_on_the_local_endpoint_is_not_asked_and_writes_no_file_of_elsewhere_either(folder: Path):
    source = lines(folder.parent / "in.jsonl")
    command = ("run", source, "-e", "local", "--worker", "echo", "-o", "out.jsonl", "--progress", "none")
    assert invoke(*command)[0] == 0
    assert invoke("resume", "out.jsonl.state", "--progress", "none")[0] == 0
    with Store(folder / "out.jsonl.state") as store, store.transaction() as db:
        db.execute("INSERT INTO outputs (path, committed_bytes) VALUES ('../in.jsonl', 0)")
    code, said = invoke("resume", "out.jsonl.state", "--progress", "none")
    assert (code, "which is outside its folder" in said) == (2, True)


def test_a_cancel_confirms_no_inputs(folder: Path, base_url: str):
    state = begin(base_url, lines(folder.parent / "in.jsonl"))
    forget(state)
    assert invoke("cancel", state, "--base-url", base_url, "--progress", "none")[0] == 0
    refused(base_url, "resume", state, "--base-url", base_url, words="in.jsonl, which is outside its folder")


def test_the_run_command_again_confirms_what_it_names(folder: Path, base_url: str):
    source = lines(folder.parent / "in.jsonl")
    state = begin(base_url, source)
    forget(state)
    begin(base_url, source)
    assert invoke("resume", state, "--progress", "none")[0] == 0


def test_a_folder_that_was_moved_as_a_whole_still_proves_its_url(folder: Path, base_url: str, monkeypatch):
    begin(base_url, lines(folder / "in.jsonl"))
    shutil.move(folder, folder.parent / "moved")
    monkeypatch.chdir(folder.parent / "moved")
    assert invoke("cancel", "out.jsonl.state", "--progress", "none")[0] == 0


def test_plain_http_to_another_machine_needs_a_word(folder: Path):
    lines(folder / "in.jsonl")
    url = "http://192.0.2.1:8000/v2"
    command = ("run", "in.jsonl", "-e", "abc", "--base-url", url, "-o", "out.jsonl")
    code, said = invoke(*command)
    assert (code, "anyone on the network path can read the API key" in said) == (2, True)
    assert not (folder / "out.jsonl.state").exists()
    assert invoke(*command, "--insecure-http", "--dry-run")[0] == 0


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.1", "[::1]"])
def test_plain_http_to_this_machine_needs_none(folder: Path, host: str):
    lines(folder / "in.jsonl")
    url = f"http://{host}:8000/v2"
    assert invoke("run", "in.jsonl", "-e", "abc", "--base-url", url, "-o", "out.jsonl", "--dry-run")[0] == 0


def test_the_api_itself_and_files_of_its_own_folder_need_no_proof(folder: Path, base_url: str):
    state = begin(base_url, lines(folder / "in.jsonl"))
    forget(state)
    with Store(state) as store:
        store.set_setting("options", {**store.get_setting("options"), "base_url": "https://api.runpod.ai/v2"})
    assert invoke("cancel", state, "--progress", "none")[0] == 0


def test_a_password_in_the_url_of_an_older_state_file_is_neither_shown_nor_kept(folder: Path, base_url: str):
    state = begin(base_url, lines(folder / "in.jsonl"))
    with Store(state) as store:
        old = base_url.replace("http://", "http://me:s3cret-word@")
        store.set_setting("options", {**store.get_setting("options"), "base_url": old})
    forget(state)
    said = refused(base_url, "resume", state, words=f"sends the API key to {base_url}")
    assert "s3cret-word" not in said
    assert invoke("resume", state, "--base-url", base_url, "--progress", "none")[0] == 0
    with StateReader(state) as store:
        assert store.get_setting("options")["base_url"] == base_url
