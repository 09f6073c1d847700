"""What a run is known by: a digest of what `dvc.yaml` declares for it, and of what computes it.

Finished work is kept under the fingerprint, and is used again by a run of the same one alone. Files
in `runtime/` are not part of it, since they are no dependency of a stage.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from stages.runtime import ranks
from stages.runtime.errors import UserError
from stages.runtime.params_file import read_yaml
from stages.storage.version import RUNTIME

DVC_FILE = Path("dvc.yaml")
LIBRARIES = ("numpy", "open_clip_torch", "pillow", "scipy", "timm", "torch", "torchvision")
EXTRAS = ("onnx", "onnxruntime", "pillow_heif")  # libraries that need not be there
MACHINE = ("CCD_DEVICE", "CCD_BATCH")  # as the user set them


@dataclass(frozen=True)
class Declaration:
    """What `dvc.yaml` says of one stage, with `${…}` filled in from `params.yaml`.

    The dependencies the user names in `params.yaml` are kept apart from the project's own.
    """

    deps: tuple[str, ...]
    user_deps: tuple[str, ...]
    params: tuple[str, ...]
    other_params: tuple[tuple[str, str], ...]  # file and key
    outs: tuple[str, ...]


def declaration(
    stage: str, params: Any, file: Path = DVC_FILE, item: dict[str, str] | None = None
) -> Declaration:
    """The stage's entry in `dvc.yaml`; `params` is the content of `params.yaml`.

    file: another than the pipeline's own, whose stages run in the same folder; item: which of the
    stages it is that a matrix there stands for.
    """
    stages = read_yaml(file, quick=True)["stages"]
    if stage not in stages:
        raise UserError(f"{file} has no stage `{stage}`")
    entry = stages[stage]
    known = params | {"item": item}
    listed = entry.get("params", [])

    def names(*kinds: str) -> list[str]:
        items = [item for kind in kinds for item in entry.get(kind, [])]
        return [next(iter(item)) if isinstance(item, dict) else item for item in items]

    def filled(name: str) -> str:
        return re.sub(r"\$\{([\w.]+)\}", lambda match: str(lookup(known, match[1])), name)

    return Declaration(
        deps=tuple(name for name in names("deps") if "${" not in name),
        user_deps=tuple(filled(name) for name in names("deps") if "${" in name),
        params=tuple(key for key in listed if isinstance(key, str)),
        other_params=tuple(
            (path, key)
            for others in listed
            if isinstance(others, dict)
            for path, keys in others.items()
            for key in keys
        ),
        outs=tuple(filled(name) for name in names("outs", "metrics", "plots")),
    )


def lookup(params: Any, key: str) -> Any:
    """The value of a dotted key in the content of `params.yaml`."""
    for part in key.split("."):
        params = params[part]
    return params


def fingerprint(declared: Declaration, params: Any) -> str:
    """Digest of a stage's parameters, the content of its dependencies, and what computes it.

    Of the machine what may change the last bits of a result, so that blocks never mix.
    """
    facts = {
        "runtime": RUNTIME,
        "params": {key: lookup(params, key) for key in declared.params},
        "other_params": [lookup(read_yaml(Path(f)), key) for f, key in declared.other_params],
        "deps": {dep: _content(Path(dep), by_time=False) for dep in declared.deps},
        "user_deps": {dep: _content(Path(dep), by_time=True) for dep in declared.user_deps},
        "libraries": {name: version(name) for name in LIBRARIES},
        "extras": {name: _version_if_any(name) for name in EXTRAS},
        "machine": {name: os.environ.get(name, "") for name in MACHINE},
        "threads": os.environ.get(ranks.THREADS, os.environ.get("OMP_NUM_THREADS", "")),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _version_if_any(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _content(path: Path, by_time: bool) -> str:
    """Digest of a file's content, or of the names and contents of the files in a folder.

    by_time: know a folder's files by size and time of change instead. So for the user's own
    folders: the photographs may be many, and `index` reads their content anyway.
    """
    if path.is_file():
        return _of_file(path)
    if not path.is_dir():
        raise UserError(f"{path} is not there: run `dvc repro` so that what makes it runs first")
    digest = hashlib.sha256()
    for folder, folders, names in os.walk(os.fsencode(path)):
        folders[:] = sorted(set(folders) - {b"__pycache__"})
        for name in sorted(name for name in names if not _is_of_an_editor(name)):
            file = os.path.join(folder, name)
            if by_time:
                status = os.stat(file, follow_symlinks=False)
                known = f"{status.st_size} {status.st_mtime_ns}"
            else:
                known = _of_file(Path(os.fsdecode(file)))
            digest.update(file + f" {known}\n".encode())
    return digest.hexdigest()


def _is_of_an_editor(name: bytes) -> bool:
    """What .dvcignore hides from DVC: it comes and goes while a file is edited."""
    return name.endswith((b".swp", b"~"))


def _of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
