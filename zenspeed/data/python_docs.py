"""The corpus that is always there: the documentation inside Python's own standard library, in English.

One document a module: its docstrings in source order, each under its qualified name; and one for each of pydoc's topics,
which are sections of the language reference. Tests are left out, and a docstring seen before is not repeated.
"""

from __future__ import annotations

import ast
import gc
import platform
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from zenspeed.config import InputError
from zenspeed.text.normalize import replace_surrogates

_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
_TOPICS = Path("pydoc_data", "topics.py")
_DOCUMENTED = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def identity() -> str:
    """What the corpus depends on, beside this file: the implementation and version of Python."""
    return f"{platform.python_implementation()} {sys.version}"


def python_docs() -> Iterator[str]:
    """The documents, modules first, in the order of their paths. About 2.2 M characters in 1.2 s."""
    library = Path(sysconfig.get_path("stdlib"))
    paths = sorted(p.relative_to(library) for p in library.rglob("*.py"))
    paths = [p for p in paths if _LEFT_OUT.isdisjoint(p.parts) and p != _TOPICS]
    modules = _module_documents(library, paths)
    if not modules:
        raise InputError(f"{library}: this Python has no source of its standard library; give a text file as data.source")
    yield from modules
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return
    for name in sorted(topics):
        yield f"{name}\n\n{topics[name].strip()}\n"


def _module_documents(library: Path, paths: list[Path]) -> list[str]:
    seen: set[str] = set()
    # The collector finds nothing to free in a syntax tree but walks it again and again, which takes half of the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        found = [_module_document(library / path, ".".join(path.with_suffix("").parts), seen) for path in paths]
    finally:
        if collecting:
            gc.enable()
    return [replace_surrogates(document) for document in found if document]


def _module_document(path: Path, name: str, seen: set[str]) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in other people's source
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):  # templates and deliberately broken files
        return ""
    parts: list[str] = []
    for qualified, text in _docstrings(tree, name.removesuffix(".__init__")):
        if text not in seen:
            seen.add(text)
            parts.append(f"{qualified}\n\n{text}\n")
    return "\n".join(parts)


def _docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """(qualified name, docstring) of `node`, a definition, and of all inside it, in source order."""
    text = ast.get_docstring(node)  # type: ignore[arg-type]
    if text and text.strip():
        yield name, text.strip()
    for definition in _definitions(node):
        yield from _docstrings(definition, f"{name}.{definition.name}")


def _definitions(node: ast.AST) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Definitions whose nearest enclosing one is `node`. Goes through statements only: expressions are 9 of 10 nodes."""
    for field in ("body", "handlers", "orelse", "finalbody", "cases"):
        for child in getattr(node, field, ()):
            if isinstance(child, _DOCUMENTED):
                yield child
            else:
                yield from _definitions(child)
