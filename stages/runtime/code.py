"""The files of code that a stage's result follows from, and a digest of them.

DVC does not follow imports. A stage depends on the files that importing its module executes, but
for those in `runtime/`, which cannot change a result. In the project's own clone `dvc.yaml` lists
them (`make deps`); a project that `ccd init` made has `code.yaml`, with a digest a stage.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

from stages.runtime.errors import UserError
from stages.runtime.params_file import read_yaml

ROOT = Path(__file__).parents[2]
RUNTIME = "stages/runtime/"
OWN = ("stages", "demo", "experiments")  # packages whose imports are followed
CODE_FILE = Path("code.yaml")


def must_be_the_code_said(stage: str) -> None:
    """Refuse to run another code than `code.yaml` says, where there is one.

    DVC would take the result for that of the code that it says.
    """
    if not CODE_FILE.exists():
        return
    said = read_yaml(CODE_FILE)
    if not isinstance(said, dict) or said.get(stage) != digest_of(stage):
        raise UserError(
            f"{CODE_FILE} is of another version of ccd-pipeline than the one installed: "
            "`ccd update` takes up the one installed, and says what will run again"
        )


def digest_of(stage: str) -> str:
    """Of the names and contents of the files that the stage depends on."""
    digest = hashlib.sha256()
    for name in code_of(ROOT / f"stages/{stage}.py"):
        place = ROOT / name
        files = [place] if place.is_file() else sorted(f for f in place.iterdir() if f.is_file())
        for file in files:
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            digest.update(f"{file.relative_to(ROOT).as_posix()} {content}\n".encode())
    return digest.hexdigest()[:16]


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
    names = set(imported_names(ast.parse(path.read_text(encoding="utf-8"))))
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


def _file_of(name: str) -> Path | None:
    """The project's file of a dotted name, or None for anything else."""
    if name.partition(".")[0] not in OWN:
        return None
    base = ROOT.joinpath(*name.split("."))
    if base.with_suffix(".py").is_file():
        return base.with_suffix(".py")
    return base / "__init__.py" if (base / "__init__.py").is_file() else None


def _only_a_docstring(path: Path) -> bool:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)
