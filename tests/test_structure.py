# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The plan of the house, read off the imports: who may know whom, how large a module may be, what is private."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import ROOT

PACKAGE = ROOT / "custom" / "atlas_istn"
MODULES = sorted(PACKAGE.rglob("*.py"))

FLOORS = (
    ("errors", "spatial"),
    ("topology", "io", "settings"),
    ("registration", "networks", "fusion"),
    ("data", "pictures", "inferers", "models", "evaluation"),
    ("training", "workflow", "plan", "report", "shape"),
    ("__main__",),
)
"""Rooms from the ground up; a room imports from rooms of lower floors, and on its own floor from those left of it."""
ORDER = [room for floor in FLOORS for room in floor]
LONGEST, MOST = 400, 18


def room_of(module: str) -> str:
    return module.split(".")[0]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Modules of the package that a file imports, anywhere in it, and each name that it takes; empty for a module."""
    package = list(path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not (node.level or (node.module or "").startswith("atlas_istn")):
            continue
        written = node.module or ""
        base = package[: len(package) - node.level + 1] if node.level else []
        module = ".".join([*base, written if node.level else written.removeprefix("atlas_istn")]).strip(".")
        for name in (alias.name for alias in node.names):
            inner = f"{module}.{name}".strip(".")
            yield (inner, "") if inner in KNOWN else (module, name)


KNOWN = {name_of(path) for path in MODULES}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_is_short_and_imports_downwards(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST
    mine = room_of(name_of(path))
    for module, name in imports(path):
        assert not name.startswith("_") or name == "__version__", module
        # The package itself, whose name is empty here, holds its version, and the old names of modules.
        if mine and module and room_of(module) != mine:
            assert ORDER.index(room_of(module)) < ORDER.index(mine), f"{name_of(path)} imports {module}"


def test_modules_of_a_room_do_not_import_each_other_in_circles() -> None:
    graph = {name_of(path): {module for module, _ in imports(path) if module} for path in MODULES}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " → ".join([*way, module])
        if module not in done:
            for other in graph[module]:
                visit(other, (*way, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nobody_reaches_for_what_is_private_to_others(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    own = {"self", "cls"} | {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    for node in ast.walk(tree):
        private = isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__")
        if private and node.attr not in ("_asdict", "_replace"):  # of every named tuple
            owner = ast.unparse(node.value)
            made_here = f"{owner} = cls(" in text  # as in alternative constructors
            assert owner in own or made_here, f"line {node.lineno}: {ast.unparse(node)}"


def test_the_package_has_few_entries() -> None:
    entries = [p for p in PACKAGE.iterdir() if p.name not in ("__init__.py", "__main__.py", "py.typed", "__pycache__")]
    assert len(entries) <= MOST
    assert {entry.stem for entry in entries} <= set(ORDER)
