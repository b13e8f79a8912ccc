"""The README and the guides say what there is, and all that they say exists."""

from __future__ import annotations

import re
import tomllib

import pytest

from batchrun.cli.app import main
from batchrun.cli.options import GroupedOption
from batchrun.scheduler.failures import FailureKind
from tests.support.places import PACKAGE, ROOT

README = (ROOT / "README.md").read_text()
GUIDES = {path.stem: path.read_text() for path in sorted((PACKAGE / "guides").glob("*.md"))}
DOCUMENTS = "\n".join([README, *GUIDES.values()])
HIDDEN = {"help"}


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_and_option_is_in_a_guide_or_the_readme(name: str):
    assert f"`batchrun {name}" in GUIDES["commands"]
    for parameter in main.commands[name].params:
        if parameter.param_type_name == "option" and parameter.name not in HIDDEN:
            assert any(f"`{option}" in DOCUMENTS for option in parameter.opts), f"{name} {parameter.opts}"


def test_the_commands_guide_has_the_options_of_run_under_the_headings_of_its_help():
    rows = dict(re.findall(r"^\| ([a-z, ]+) \| (.+) \|$", GUIDES["commands"], re.MULTILINE))
    for option in main.commands["run"].params:
        if isinstance(option, GroupedOption):
            assert f"`{max(option.opts, key=len)}`" in rows[option.group.lower()], option.opts


def test_every_option_that_the_documents_name_exists():
    known = {
        option for command in main.commands.values() for p in command.params for option in (*p.opts, *p.secondary_opts)
    }
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", DOCUMENTS))
    assert named - known == {"--no-deps", "--help", "--full"}


def first_block(heading: str) -> str:
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return section.split("```sh\n")[1].split("```")[0]


@pytest.mark.parametrize("heading", ["Quick start", "Tests"])
def test_the_two_set_up_commands_are_one_line_each(heading: str):
    block = first_block(heading)
    assert block.count("\n") == 1
    assert block.startswith("python3 -m venv .venv && .venv/bin/pip install")


def test_the_readme_is_short_and_leads_to_every_guide():
    assert len(README.splitlines()) <= 200
    for topic in GUIDES:
        assert f"](batchrun/guides/{topic}.md)" in README


def test_the_failures_guide_has_every_failure_kind_and_whether_it_is_retried():
    for kind in FailureKind:
        (row,) = re.findall(rf"^\| `{kind.value}` \|.*\| ([^|]+) \|$", GUIDES["failures"], re.MULTILINE)
        assert (row == "yes") == kind.is_retryable


def test_the_readme_lists_every_exit_code_and_part():
    for code in (0, 1, 2, 3, 4, 130):
        assert f"| {code} |" in README
    for entry in (ROOT / "batchrun").iterdir():
        if not entry.name.startswith("__") and (entry.is_dir() or entry.suffix == ".py"):
            name = f"`{entry.name}/`" if entry.is_dir() else f"`{entry.stem}`"
            assert name in README, name


def test_what_the_quick_start_leaves_behind_is_ignored_by_git():
    ignored = (ROOT / ".gitignore").read_text().split()
    assert {".venv*/", "*.results.jsonl", "*.errors.jsonl", "*.state"} <= set(ignored)


def test_the_package_depends_on_four_libraries_and_no_more():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [re.match(r"\w+", need).group() for need in project["dependencies"]] == [
        "aiohttp",
        "click",
        "orjson",
        "tqdm",
    ]
    assert project["name"] == "runpod-batchrun"


def test_nothing_stands_at_the_top_level_that_does_not_belong_there():
    allowed = {"pyproject.toml", "batchrun", "tests", "samples", "README.md", "LICENSE", ".ci", ".gitignore", ".git"}
    made = {".venv", ".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache"}
    assert {entry.name for entry in ROOT.iterdir()} <= allowed | made
