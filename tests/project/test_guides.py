"""The guides are found and shown by `batchrun help`, and what they and the README show works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from batchrun.cli.app import main
from batchrun.commands.help import contents, guide, topics
from batchrun.errors import UsageError
from tests.support.places import PACKAGE, ROOT, SAMPLES

DOCUMENTS = [ROOT / "README.md", SAMPLES / "README.md", *sorted((PACKAGE / "guides").glob("*.md"))]
BLOCK = re.compile(r"^```(sh|python) run\n(.*?)^```$", re.MULTILINE | re.DOTALL)
"""A block that is run: its info string ends in ` run`, which a page does not show."""
LINK = re.compile(r"\]\((?!https?://)([^)#]+)\)")
WRITTEN_BY_A_RUN = re.compile(r"\.(results|errors)\.|^samples/sweep\.report\.html$")


def blocks(document: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(document.read_text())


@pytest.mark.parametrize("document", [each for each in DOCUMENTS if blocks(each)], ids=lambda path: path.stem)
def test_the_runnable_blocks_of_a_document_work_in_their_order(document: Path, tmp_path: Path):
    written = shutil.ignore_patterns("*.results.jsonl*", "*.errors.jsonl", "*.manifest.json", "*.state*")
    shutil.copytree(SAMPLES, tmp_path / "samples", ignore=written)
    foreign = ("RUNPOD_", "BATCHRUN_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for language, block in blocks(document):
        command = ["bash", "-euo", "pipefail", "-c"] if language == "sh" else [sys.executable, "-c"]
        done = subprocess.run(
            [*command, block],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"


def test_each_guide_has_a_title_and_a_summary_that_fits_a_terminal():
    for topic, summary in topics().items():
        assert guide(topic).startswith(f"# {topic.capitalize()}\n\n{summary}\n\n")
        assert summary.endswith(".")
    assert max(map(len, contents().splitlines())) <= 80


def test_help_lists_every_topic_and_shows_each_as_it_is_written():
    said = CliRunner().invoke(main, ["help"])
    assert said.exit_code == 0
    assert contents() in said.output
    for topic in topics():
        assert f"  {topic} " in said.output
        assert CliRunner().invoke(main, ["help", topic]).output.strip() == guide(topic).strip()


def test_a_guide_piped_into_a_command_is_plain_text():
    command = [sys.executable, "-m", "batchrun", "help", "sweeps"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("# Sweeps\n")
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("topic", "advice"),
    [
        ("swep", "try batchrun help sweeps"),
        ("Sweeps", "try batchrun help sweeps"),
        ("../../README", "batchrun help lists the guides"),
        ("zzz", "batchrun help lists the guides"),
        ("", "batchrun help lists the guides"),
        ("tables", "try batchrun help input or output"),
        ("jinja", "try batchrun help templates"),
    ],
)
def test_an_unknown_topic_is_one_line_with_the_nearest_name_or_the_guides_about_it(topic: str, advice: str):
    with pytest.raises(UsageError, match=advice) as raised:
        guide(topic)
    assert (raised.value.exit_code, raised.value.hint) == (2, "")
    said = CliRunner().invoke(main, ["help", topic])
    assert (said.exit_code, said.output.count("\n")) == (2, 1)


def test_a_shell_completes_topics():
    completion = ShellComplete(main, {}, "batchrun", "_BATCHRUN_COMPLETE")
    assert [item.value for item in completion.get_completions(["help"], "sw")] == ["sweeps"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_each_file_that_a_document_names_exists(document: Path):
    text = document.read_text()
    for link in LINK.findall(text):
        assert (document.parent / link).exists(), link
    for name in re.findall(r"\bsamples/(?>[\w.-]*\w)(?!-?\*)", text):
        assert WRITTEN_BY_A_RUN.search(name) or (ROOT / name).exists(), name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_each_command_of_a_document_begins_a_line_or_follows_an_operator(document: Path):
    for block in re.findall(r"^```sh.*?\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            before = re.split(r"\bbatchrun [a-z]+ ", line.partition("  #")[0])[:-1]
            assert all(re.search(r"(^|[|&;/])\s*$", each) for each in before), line


def test_each_module_and_folder_that_the_internals_name_exists():
    named = re.findall(r"`((?:[a-z_]+/)+(?:\w+\.py)?)`", guide("internals"))
    assert len(named) > 15
    for name in named:
        assert (PACKAGE / name).exists() or (ROOT / name).exists(), name
