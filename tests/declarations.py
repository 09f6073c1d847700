"""What the code says of itself, read without running it: the oracle for `dvc.yaml`."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from stages.params import Params

ROOT = Path(__file__).parent.parent


def _only_a_docstring(path: Path) -> bool:
    body = ast.parse(path.read_text()).body
    return all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)


def _file_of(module: str) -> Path | None:
    """The project's file of a dotted module, or None for anything else."""
    base = ROOT.joinpath(*module.split("."))
    if base.with_suffix(".py").is_file():
        return base.with_suffix(".py")
    return base / "__init__.py" if (base / "__init__.py").is_file() else None


def imported_files(path: Path) -> set[Path]:
    """The project's own files that importing `path` executes directly, packages included."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    for module in tuple(modules):
        parts = module.split(".")
        modules |= {".".join(parts[:n]) for n in range(1, len(parts))}
    files = {file for module in modules if (file := _file_of(module))}
    return {file for file in files if file.name != "__init__.py" or not _only_a_docstring(file)}


def import_closure(path: Path) -> set[str]:
    """`path` and every file of the project that importing it executes, relative to the root."""
    closure, waiting = set(), [path]
    while waiting:
        file = waiting.pop()
        if file not in closure:
            closure.add(file)
            waiting += imported_files(file)
    return {file.relative_to(ROOT).as_posix() for file in closure}


def leaves(key: str = "") -> set[str]:
    """The leaf parameters at or below a dotted key."""
    model: Any = Params
    for part in filter(None, key.split(".")):
        model = model.model_fields[part].annotation
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return {key}
    prefix = f"{key}." if key else ""
    return set().union(*(leaves(prefix + name) for name in model.model_fields))


def parameters_read(path: Path) -> set[str]:
    """The leaf parameters that a stage module reads: every `params.a.b` in it.

    A section handed on as a whole counts as read whole; `params` itself must not be handed on.
    """
    tree = ast.parse(path.read_text())
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    aliases = {"params": ""}
    for node in ast.walk(tree):  # `source = params.source`
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute):
            dotted, target = ast.unparse(node.value), node.targets[0]
            if dotted.startswith("params.") and isinstance(target, ast.Name):
                aliases[target.id] = dotted.removeprefix("params.")
    found: set[str] = set()
    run = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "run")
    for node in ast.walk(run):
        if isinstance(node, ast.Name) and node.id in aliases and isinstance(node.ctx, ast.Load):
            keys, top = [aliases[node.id]] if aliases[node.id] else [], parents[node]
            while isinstance(top, ast.Attribute) and _is_parameter(".".join([*keys, top.attr])):
                keys.append(top.attr)
                top = parents[top]
            if isinstance(top, ast.Assign) and ".".join(keys) in aliases.values():
                continue
            assert keys, f"{path}: params handed on as a whole"
            found |= leaves(".".join(keys))
    return found


def _is_parameter(key: str) -> bool:
    try:
        leaves(key)
    except (KeyError, AttributeError):
        return False
    return True
