"""What the code says of itself, read without running it: the oracle for `dvc.yaml`."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from stages.runtime.params import Params


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

    A section handed on as a whole counts as read whole, and so does `params` itself.
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
            found |= leaves(".".join(keys))
    return found


def _is_parameter(key: str) -> bool:
    try:
        leaves(key)
    except (KeyError, AttributeError):
        return False
    return True
