"""What of `dvc.yaml` follows from the code: the files of code that each stage depends on.

    make deps                        # python -m stages.command.deps

DVC does not follow imports. A stage depends on the files that importing its module executes, but
for those in `runtime/`, which cannot change a result. Tests compare, so that no edit is missed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
RUNTIME = "stages/runtime/"
CODE = ("stages", "demo/", "experiments/")
# by the file that declares stages, the package with a module for each
PACKAGES = {"dvc.yaml": "stages", "demo/dvc.yaml": "demo", "experiments/dvc.yaml": "experiments"}


def code_of(stage: Path) -> list[str]:
    """The code that a stage's module depends on, relative to the root, sorted.

    A package that it uses every file of is named as a whole, what is no code in it included.
    """
    files = {file for file in import_closure(stage) if not file.startswith(RUNTIME)}
    for folder in {str(Path(file).parent) for file in files}:
        own = [f for f in (ROOT / folder).iterdir() if f.suffix == ".py" and f.stem != "__init__"]
        whole = {file.relative_to(ROOT).as_posix() for file in own}
        if len(whole) > 1 and whole <= files:
            files = (files - whole) | {folder}
    return sorted(files)


def import_closure(path: Path) -> set[str]:
    """`path` and every file of the project that importing it executes, relative to the root."""
    closure, waiting = set(), [path]
    while waiting:
        file = waiting.pop()
        if file not in closure:
            closure.add(file)
            waiting += imported_files(file)
    return {file.relative_to(ROOT).as_posix() for file in closure}


def imported_files(path: Path) -> set[Path]:
    """The project's own files that importing `path` executes directly, packages included."""
    names = set(imported_names(ast.parse(path.read_text())))
    for name in tuple(names):
        parts = name.split(".")
        names |= {".".join(parts[:n]) for n in range(1, len(parts))}
    files = {file for name in names if (file := _file_of(name))}
    files.discard(ROOT / "stages/__init__.py")  # as little a dependency as what is in `runtime/`
    return {file for file in files if file.name != "__init__.py" or not _only_a_docstring(file)}


def imported_names(tree: ast.Module) -> Iterator[str]:
    """The dotted names that a module imports, wherever in it; of some it is not known what."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not followed"
            assert node.module
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def write_deps(file: Path, package: Path) -> None:
    """Put the code of every stage in a file that declares stages; all else in it stays."""
    yaml = YAML()
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    content: Any = yaml.load(file)
    for name, stage in content["stages"].items():
        others = [dep for dep in stage["deps"] if not dep.startswith(CODE)]
        stage["deps"] = sorted([*others, *code_of(package / f"{name}.py")])
    yaml.dump(content, file)


def _file_of(name: str) -> Path | None:
    """The project's file of a dotted name, or None for anything else."""
    base = ROOT.joinpath(*name.split("."))
    if base.with_suffix(".py").is_file():
        return base.with_suffix(".py")
    return base / "__init__.py" if (base / "__init__.py").is_file() else None


def _only_a_docstring(path: Path) -> bool:
    body = ast.parse(path.read_text()).body
    return all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)


if __name__ == "__main__":
    for declared, modules in PACKAGES.items():
        write_deps(ROOT / declared, ROOT / modules)
