"""The house: one ordered list of layers, what each library is for, and that nothing runs in a circle."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.support.places import PACKAGE

MODULES = sorted(PACKAGE.rglob("*.py"))

LAYERS = (
    "errors",
    "files",
    "config",
    "prompts",
    "scheduler",
    "endpoint",
    "results",
    "evaluation",
    "display",
    "state",
    "local",
    "engine",
    "runs",
    "commands",
    "api",
    "cli",
    "__init__",
    "__main__",
)
"""A module imports from its own layer and from those before it."""

STRANGERS = {
    "scheduler": {"files", "prompts"},
    "endpoint": {"prompts", "scheduler"},
    "results": {"prompts", "scheduler", "endpoint"},
    "evaluation": {"prompts", "scheduler", "endpoint"},
    "display": {"prompts", "endpoint"},
    "state": {"prompts", "endpoint", "results", "display"},
    "local": {"prompts", "scheduler", "results", "display", "state"},
    "engine": {"local"},
    "runs": {"local"},
    "cli": {"api"},
}
"""What a layer does without, although it comes before."""

LIBRARIES = {
    "aiohttp": {"endpoint", "local", "commands.notify"},
    "aiohttp_socks": {"endpoint"},
    "sqlite3": {"state"},
    "tqdm": {"display"},
    "click": {"cli"},
    "xllamacpp": {"local"},
    "fsspec": {"prompts.remote"},
    "pyarrow": {"prompts.parquetrows", "results.parquet", "api.loaded"},
    "zstandard": {"prompts.packing", "results.table_files"},
    "jsonschema_rs": {"results.structured"},
    "minijinja": {"prompts.jinja"},
    "huggingface_hub": {"results.hub"},
    "asyncio": {"endpoint", "local", "engine", "runs", "commands", "api"},
    "time": {"engine", "local", "commands"},
    "random": {"local", "commands"},
}
"""Where a library may be imported. `Random` as a type is allowed everywhere: randomness is passed in."""

SQL = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|CREATE|DROP|ALTER|PRAGMA|WITH|BEGIN|ATTACH)\b[^a-z]")


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "__init__"


PATHS = {name_of(path): path for path in MODULES}
NAMES = set(PATHS)


@cache
def imports_of(module: str) -> set[str]:
    """Every imported module, wherever in the file; a module of ours by its name within the package."""
    found = set()
    for node in ast.walk(ast.parse(PATHS[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            assert node.module is not None
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in whole if name.removeprefix("batchrun.") in NAMES}
            found |= modules
            if modules != whole:
                found.add(node.module if node.module != "random" or whole != {"random.Random"} else "typing")
    return {name.removeprefix("batchrun.") if name.startswith("batchrun.") else name for name in found}


def layer_of(module: str) -> int:
    return LAYERS.index(module.partition(".")[0])


@pytest.mark.parametrize("module", sorted(NAMES))
def test_imports_point_downward(module: str):
    mine = module.partition(".")[0]
    for target in imports_of(module) & NAMES:
        assert layer_of(target) <= layer_of(module), f"{module} imports {target}, which is above it"
        assert target.partition(".")[0] not in STRANGERS.get(mine, ()), f"{module} imports {target}"


@pytest.mark.parametrize("module", sorted(NAMES))
def test_libraries_stay_where_they_belong(module: str):
    for target in imports_of(module):
        places = LIBRARIES.get(target.partition(".")[0])
        if places is not None and target not in NAMES:
            assert places & {module, module.partition(".")[0]}, f"{module} imports {target}"


def test_the_internals_guide_has_the_layers_in_their_order():
    guide = (PACKAGE / "guides" / "internals.md").read_text()
    assert f"\n{' '.join(layer for layer in LAYERS if not layer.startswith('__'))}\n" in guide


def test_there_are_no_circles():
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way, module))
        if module not in done:
            for target in sorted(imports_of(module) & NAMES):
                visit(target, (*way, module))
            done.add(module)

    for module in NAMES:
        visit(module, ())


def test_every_folder_has_a_layer_and_says_what_may_be_inside():
    assert {module.partition(".")[0] for module in NAMES} == set(LAYERS)
    for folder in PACKAGE.iterdir():
        if folder.is_dir() and (folder / "__init__.py").exists():
            assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder.name


def test_only_four_modules_are_beside_the_folders():
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", "__main__", "errors", "config"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_sql_is_written_in_the_state_folder_alone(path: Path):
    if name_of(path).startswith("state."):
        return
    texts = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
    assert not [text for text in texts if isinstance(text, str) and SQL.match(text)]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_file_is_named_after_nothing_or_grows_out_of_sight(path: Path):
    assert path.stem not in {"utils", "helpers", "common", "base", "types", "constants", "models", "core", "main"}
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_function_is_longer_than_a_screen(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name
