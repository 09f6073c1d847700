"""Runs of the pipeline with other parameters, beside the project and sharing its cache.

A run is a `dvc repro` of what is committed, in a clone below `.ccd/`: stages that two runs have in
common run once, and a second call runs nothing. A seed of the demo world stands for other
photographs, another teacher and another student.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import typer
from ruamel.yaml import YAML

CLONE = Path(".ccd/experiments")
DVC = [sys.executable, "-m", "dvc"]
DEMO = Path("data/demo/params.yaml")


def prepare() -> None:
    """A clean checkout of HEAD, with the project's own DVC cache."""
    if not CLONE.exists():
        subprocess.run(["git", "clone", "-q", ".", str(CLONE)], check=True)
    for step in (["fetch", "-q", "origin", "HEAD"], ["checkout", "-q", "-f", "FETCH_HEAD"]):
        subprocess.run(["git", *step], cwd=CLONE, check=True)
    cache = Path(".dvc/cache").resolve()
    subprocess.run([*DVC, "cache", "dir", "--local", str(cache)], cwd=CLONE, check=True)


def reproduce(seed: int, changes: dict[str, Any], *targets: str) -> Path:
    """Run `targets` in the clone with some parameters changed; returns where their outputs are."""
    subprocess.run(["git", "checkout", "-q", "-f", "."], cwd=CLONE, check=True)
    edit_params(CLONE / "params.yaml", {"seed": seed} | changes)
    show_experiments(CLONE)
    if str(_value(CLONE / "params.yaml", "source.root")).startswith("data/demo/"):
        edit_params(CLONE / DEMO, {"world.seed": seed, "teacher.seed": seed})
    done = subprocess.run([*DVC, "repro", *targets], cwd=CLONE, check=False)
    if done.returncode:
        raise SystemExit(
            f"a run with seed {seed} and changes {changes} failed; DVC says why above. What is "
            "finished is kept: the same command goes on from there."
        )
    return CLONE


def seed_list(text: str) -> list[int]:
    """The seeds of a command line: numbers by comma."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r}: numbers by comma", param_hint="--seeds") from None


def show_experiments(root: Path) -> None:
    """Let DVC see the experiments' stages, which the project hides from a plain `dvc status`."""
    ignored = root / ".dvcignore"
    kept = [line for line in ignored.read_text().splitlines() if line != "/experiments/dvc.yaml"]
    ignored.write_text("\n".join(kept) + "\n")


def edit_params(path: Path, changes: dict[str, Any]) -> None:
    """Change parameters in a file, by dotted keys that are there; its comments stay."""
    yaml = YAML()
    content = yaml.load(path)
    for key, value in changes.items():
        *sections, name = key.split(".")
        place = content
        for section in sections:
            place = place[section]
        if name not in place:
            raise KeyError(f"{path} has no {key}")
        place[name] = value
    yaml.dump(content, path)


def _value(path: Path, key: str) -> Any:
    value = YAML(typ="safe").load(path)
    for part in key.split("."):
        value = value[part]
    return value
