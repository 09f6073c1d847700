"""`ccd status`: which stages `dvc repro` would run and why, and what the last ones left.

DVC says what changed for a stage itself; what would follow from that is read off `dvc.yaml`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from stages.method.verdict import listed
from stages.runtime.code import CODE_FILE
from stages.runtime.errors import UserError, clean
from stages.runtime.fingerprint import DVC_FILE, declaration
from stages.runtime.params_file import PARAMS_FILE, parse_params, read_yaml

CODE = ("stages/", "demo/")
STEADY = "check"  # makes the same whatever passes it, so that nothing follows from it


class Standing(NamedTuple):
    """Of a stage: whether it runs, why, and the bytes that its artifacts take.

    runs: None if that depends on whether a stage before it makes another result.
    """

    stage: str
    runs: bool | None
    because: str
    size: int


def standings() -> Iterator[Standing]:
    """Every stage, in the order of `dvc.yaml`; raises `UserError` if DVC cannot say, or
    `params.yaml` is wrong."""
    params = read_yaml(PARAMS_FILE)
    parse_params(params)
    changed = said_by_dvc()
    for name in changed:
        if ":" in name:  # of another dvc.yaml, such as the demo's
            yield Standing(name, True, reasons(changed[name], []), 0)
    made_by: dict[str, str] = {}
    unsure: set[str] = set()
    for stage in read_yaml(DVC_FILE)["stages"]:
        declared = declaration(stage, params)
        before = {made_by[dep] for dep in declared.deps if dep in made_by}
        made_by |= dict.fromkeys(declared.outs, stage)
        size = sum(map(size_of, map(Path, declared.outs)))
        if stage in changed:
            unsure |= {stage} - {STEADY}
            here = any(Path(out).exists() for out in declared.outs)
            because = (
                reasons(changed[stage], list(made_by)) if here else "what it makes is not here"
            )
            yield Standing(stage, True, because, size)
        elif waits := [name for name in made_by.values() if name in before & unsure]:
            unsure.add(stage)
            yield Standing(stage, None, f"after {listed(list(dict.fromkeys(waits)))}", size)
        else:
            yield Standing(stage, False, "", size)


def said_by_dvc() -> dict[str, list[Any]]:
    """What `dvc status` has of every stage with a change."""
    command = [sys.executable, "-m", "dvc", "status", "--json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["dvc status failed"]
        raise UserError(clean(lines[0].removeprefix("ERROR: ")))
    found: dict[str, list[Any]] = json.loads(done.stdout)
    return found


def reasons(changes: list[Any], made: list[str]) -> str:
    """In words, what changed for a stage. made: the artifacts of the pipeline itself."""
    deps: dict[str, Any] = {}
    outs: dict[str, str] = {}
    other = []
    for change in changes:
        if isinstance(change, Mapping):
            deps |= change.get("changed deps", {})
            outs |= change.get("changed outs", {})
        else:
            other.append(str(change))
    found = list(other)
    for name, keys in deps.items():
        if isinstance(keys, Mapping) and name != str(CODE_FILE):
            found.append(f"{listed(list(keys))} in {name}")
    files = [name for name, value in deps.items() if not isinstance(value, Mapping)]
    code = [name for name in files if name.startswith(CODE)]
    if code:
        found.append(f"its code: {listed(code)}")
    if str(CODE_FILE) in deps:
        found.append("its code, as `ccd update` took it up")
    own = [name for name in files if name not in (*code, *made)]
    if own:
        found.append(listed(own))
    before = [name for name in files if name in made]
    if before:
        found.append(f"what it reads: {listed(before)}")
    if outs and not found:
        found.append(f"what it made is not as it left it: {listed(list(outs))}")
    return "; ".join(found)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; 0 where there is none."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.is_file() else 0
