"""Which module may import which: the house as it is drawn in the README."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "batchrun"
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))

ENGINE_LEVEL = {"errors", "exactjson", "config", "folders", "prompts", "scheduler", "endpoint", "state", "results"}
MAY_IMPORT = {
    "errors": set(),
    "exactjson": set(),
    "foreign": set(),
    "config": {"errors", "foreign"},
    "folders": set(),
    "locks": {"errors"},
    "paths": {"errors", "config"},
    "prompts": {"errors", "exactjson", "config", "locks", "paths"},
    "scheduler": {"errors", "config"},
    "endpoint": {"errors", "exactjson", "config", "foreign"},
    "state": {"errors", "exactjson", "config", "folders", "locks", "scheduler.states"},
    "results": {"errors", "exactjson", "config", "folders", "locks", "foreign"},
    "printer": set(),
    "progress": {"printer", "results.summary", "results.cost", "foreign"},
    "consent": ENGINE_LEVEL | {"foreign"},
    "local": {"errors", "exactjson", "config", "endpoint.protocol"},
    "credentials": {"errors", "config"},
    "followers": ENGINE_LEVEL,
    "journal": ENGINE_LEVEL | {"followers", "inputlines"},
    "tally": ENGINE_LEVEL | {"journal"},
    "verdict": ENGINE_LEVEL,
    "interrupts": {"config"},
    "announcer": {"results"},
    "clock": set(),
    "streamed": ENGINE_LEVEL,
    "engine": ENGINE_LEVEL | {"inputlines", "journal", "tally", "verdict", "interrupts", "announcer", "streamed"},
    "feed": ENGINE_LEVEL | {"journal", "interrupts"},
    "fleet": ENGINE_LEVEL | {"engine", "interrupts"},
    "copies": ENGINE_LEVEL,
    "intake": ENGINE_LEVEL | {"copies", "streams"},
    "checks": ENGINE_LEVEL | {"intake", "paths", "foreign"},
    "preflight": {"config", "endpoint", "errors"},
    "accounts": ENGINE_LEVEL,
    "ordering": ENGINE_LEVEL,
    "conversion": ENGINE_LEVEL | {"inputlines", "journal"},
    "conclusion": ENGINE_LEVEL | {"checks", "conversion", "engine", "accounts", "ordering", "__version__"},
    "recovery": ENGINE_LEVEL | {"conclusion"},
    "repair": ENGINE_LEVEL | {"conclusion"},
    "notify": {"results", "errors", "config", "foreign", "endpoint.connections", "endpoint.proxies", "interrupts"},
    "standing": ENGINE_LEVEL | {"accounts", "foreign"},
    "session": ENGINE_LEVEL
    | {"checks", "intake", "runs", "engine", "interrupts", "clock", "notify", "credentials", "local", "progress"}
    | {"asking", "feed", "preflight", "watching", "queued", "foreign", "consent", "repair", "streams"},
    "asking": {"errors", "state", "results"},
    "queued": {"results.record"},
    "watching": ENGINE_LEVEL | {"queued", "intake"},
    "runs": ENGINE_LEVEL
    | {
        "checks",
        "journal",
        "tally",
        "engine",
        "fleet",
        "intake",
        "conclusion",
        "recovery",
        "repair",
        "streamed",
        "followers",
        "feed",
        "interrupts",
        "consent",
        "foreign",
    },
    "inputlines": ENGINE_LEVEL | {"streams"},
    "findings": {"scheduler.states"},
    "digests": ENGINE_LEVEL,
    "verification": ENGINE_LEVEL | {"checks", "inputlines", "findings", "digests"},
    "export": ENGINE_LEVEL | {"ordering", "conversion"},
    "webpage": ENGINE_LEVEL | {"accounts", "export"},
    "reporting": ENGINE_LEVEL | {"accounts"},
    "merging": ENGINE_LEVEL | {"export", "ordering"},
    "streams": {"errors"},
    "output": {"errors", "progress", "printer", "foreign", "endpoint.proxies", "results.summary", "queued", "watching"},
    "values": {"config", "errors", "exactjson", "paths"},
    "options": {"config", "runfile", "values"},
    "runfile": {"errors"},
    "parameters": {"config", "errors", "exactjson", "intake", "paths", "prompts", "credentials", "foreign"},
    "cli": ENGINE_LEVEL
    | {"session", "standing", "verification", "export", "merging", "intake", "progress", "options", "parameters"}
    | {
        "queued",
        "watching",
        "reporting",
        "webpage",
        "output",
        "findings",
        "credentials",
        "foreign",
        "paths",
        "printer",
        "streams",
        "values",
        "__version__",
    },
    "arguments": {"config", "errors", "exactjson", "parameters"},
    "api": {
        "config",
        "errors",
        "exactjson",
        "results",
        "session",
        "arguments",
        "feed",
        "intake",
        "interrupts",
        "paths",
        "printer",
        "progress",
        "streams",
    },
    "__init__": {"api", "errors", "results.summary"},
    "__main__": {"cli"},
}
"""Part -> what it may import besides itself; `a.b` allows one module of a folder only."""

LIBRARIES = {
    "aiohttp": {"endpoint.client", "endpoint.connections", "local.server", "local.upstream", "notify"},
    "aiohttp_socks": {"endpoint.connections"},
    "sqlite3": {"state.opening", "state.database", "state.intake", "state.positions", "state.arrivals"},
    "tqdm": {"progress"},
    "matplotlib": {"results.charts"},
    "click": {"cli", "options", "output", "parameters", "runfile", "session", "values"},
    "xllamacpp": {"local.smollm2"},
    "time": {"clock", "engine", "session", "standing", "local.server"},
    "random": {"session", "local.server"},
    "asyncio": {
        "preflight",
        "api",
        "engine",
        "feed",
        "fleet",
        "interrupts",
        "notify",
        "session",
        "streamed",
        "endpoint.client",
        "endpoint.connections",
        "endpoint.memory",
        "local.server",
        "local.smollm2",
    },
}
"""What only some modules may import. A type that is only named in annotations is no import here."""


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "__init__"


def imports_of(path: Path) -> list[tuple[str, bool]]:
    """Every imported module with whether it is for annotations only."""
    found = []

    def visit(node: ast.AST, *, typing_only: bool) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for child in node.body:
                visit(child, typing_only=True)
            return
        if isinstance(node, ast.Import):
            found.extend((alias.name, typing_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            if node.module == "batchrun":
                found.extend((f"batchrun.{alias.name}", typing_only) for alias in node.names)
            elif node.module in ("batchrun.scheduler", "batchrun.prompts", "batchrun.state"):
                found.extend((f"{node.module}.{alias.name}", typing_only) for alias in node.names)
            else:
                found.append((node.module or "", typing_only))
        for child in ast.iter_child_nodes(node):
            visit(child, typing_only=typing_only)

    visit(ast.parse(path.read_text()), typing_only=False)
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_only_where_the_house_allows(path: Path):
    module = name_of(path)
    part = module.split(".")[0]
    allowed = MAY_IMPORT[part]
    for imported, _ in imports_of(path):
        if imported.startswith("batchrun."):
            target = imported.removeprefix("batchrun.")
            ours = target.split(".")[0] == part
            assert ours or target in allowed or target.split(".")[0] in allowed, f"{module} imports {target}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_libraries_stay_where_they_belong(path: Path):
    module = name_of(path)
    for imported, typing_only in imports_of(path):
        places = LIBRARIES.get(imported.split(".")[0])
        if places is not None and not typing_only:
            assert module in places, f"{module} imports {imported}"


def test_there_are_no_cycles():
    graph = {
        name_of(path): {
            imported.removeprefix("batchrun.")
            for imported, typing_only in imports_of(path)
            if imported.startswith("batchrun.") and not typing_only
        }
        for path in MODULES
    }
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way, module))
        if module not in done:
            for target in sorted(graph.get(module, ())):
                visit(target, (*way, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_every_part_of_the_package_has_its_place():
    assert {name_of(path).split(".")[0] for path in MODULES} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_file_is_named_after_nothing_or_grows_out_of_sight(path: Path):
    assert path.stem not in {"utils", "helpers", "common", "base", "types", "constants", "models", "core", "main"}
    assert len(path.read_text().splitlines()) <= 460
