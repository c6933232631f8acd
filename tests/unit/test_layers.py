"""Imports go one way, as docs/DESIGN.md says, and there are no cycles."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import zenspeed

ROOT = Path(zenspeed.__file__).parent

# Who may import whom, lowest first; a package may import itself. Held against docs/DESIGN.md by test_design_says_the_same.
ALLOWED = {
    "errors": "",
    "config": "errors",
    "ops": "",
    "machine": "",
    "memory": "machine errors",
    "text": "config errors machine",
    "models": "ops config errors",
    "storage": "errors",
    "recipe": "config errors models storage text",
    "data": "text config errors recipe storage",
    "generate": "models config errors",
    "decode": "models config errors",
    "parallel": "config errors",
    "optim": "parallel recipe",
    "scaler": "errors",
    "engine": "memory parallel optim scaler",
    "runstore": "storage recipe config errors",
    "checkpoint": "runstore config errors",
    "run": "runstore checkpoint config errors models recipe runlog text",
    "evaluate": "data checkpoint config errors recipe",
    "tasks": "ops machine data evaluate models generate decode config errors recipe run text",
    "retrieve": "tasks data evaluate models config errors recipe run text",
    "explain": "models ops config run text",
    "runlog": "config errors machine",
    "display": "",
    "health": "",
    "rescue": "checkpoint",
    "guard": "recipe",
    "recovery": "runstore guard checkpoint engine parallel data tasks recipe runlog display config errors",
    "pace": "recovery machine recipe",
    "info": "machine",
    "serve": "retrieve tasks generate run models text recipe data ops config errors",
    "compiling": "engine recipe",
    "resolve": "config errors machine parallel recipe",
    "report": "evaluate runlog config errors",
    "training": "pace rescue recovery health compiling runstore memory report resolve engine tasks data checkpoint evaluate"
    " optim parallel recipe runlog display machine config errors",
    "server": "training run recovery pace guard engine checkpoint data display machine optim parallel recipe runlog config"
    " errors",
    "harness": "generate tasks text errors",
    "crossval": "tasks evaluate data recipe machine config errors",
    "dial": "pace plan resolve engine parallel optim data models machine recipe config errors",
    "plan": "resolve engine parallel optim machine models recipe config errors",
    "tune": "memory crossval plan report runlog resolve tasks engine optim parallel machine recipe config errors",
    "export": "tasks data evaluate models ops recipe run runlog text config errors",
    "launch": "*",
    "chaos": "*",
    "compat": "*",
    "cli": "*",
    "__main__": "cli",
    "__init__": "*",
}


def part(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else names
        found |= {name.split(".")[1] for name in names if name.startswith("zenspeed.")}
    return found


def test_imports_follow_the_layers() -> None:
    for path in ROOT.rglob("*.py"):
        here = part(path)
        assert here in ALLOWED, f"{path}: a new part; give it a place in the layers"
        if ALLOWED[here] != "*":
            wrong = imported(path) - set(ALLOWED[here].split()) - {here}
            assert not wrong, f"{path.relative_to(ROOT)} may not import {sorted(wrong)}"


def test_no_cycles() -> None:
    graph = {name: set(parts.split()) for name, parts in ALLOWED.items() if parts != "*"}
    tuple(TopologicalSorter(graph).static_order())


def test_nothing_imports_the_doors() -> None:
    for path in ROOT.rglob("*.py"):
        if part(path) not in ("cli", "__main__", "launch", "chaos", "compat", "__init__"):
            assert not imported(path) & {"cli", "launch", "chaos", "compat"}, path


def test_recipe_needs_no_torch() -> None:
    """A wrong recipe is refused before anything slow is imported."""
    import subprocess
    import sys

    code = "import sys, zenspeed.recipe, zenspeed.cli; print('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
