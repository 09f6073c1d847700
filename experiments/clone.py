"""Runs of the pipeline with other parameters, beside the project and sharing its cache.

A run is a `dvc repro` of what is committed, in a clone below `.ccd/`: stages that two runs have in
common run once, and a second call runs nothing. A seed of the demo world stands for other
photographs, another teacher and another student.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import typer
from ruamel.yaml import YAML

from experiments.settings import FILE as SETTINGS
from stages.artifacts import GROUND_TRUTH, INDEX
from stages.command.preset import preset as preset_of
from stages.runtime.errors import UserError
from stages.runtime.params import Params
from stages.runtime.params_file import PARAMS_FILE, edit_params, parse_params, read_yaml

CLONE = Path(".ccd/experiments")
DVC = [sys.executable, "-m", "dvc"]
DEMO = Path("data/demo")  # what demo/ makes
DEMO_PARAMS = Path("demo/params.yaml")
# as committed they may be of another machine, whose outputs are not in this cache: then DVC would
# run again what it has of this one
LOCKS = (Path("dvc.lock"), Path("demo/dvc.lock"))
# what a run is made of; a lock only says what the last one gave
RUN = [str(PARAMS_FILE), "dvc.yaml", "stages", "experiments", "demo", ":(exclude)*dvc.lock"]
NOBODY = ("-c", "user.name=experiments", "-c", "user.email=", "-c", "commit.gpgsign=false")
# what a user's own files are named by; the root first, since others may lie below it
OWN = (
    "source.root",
    "source.classes",
    "source.labels",
    "source.answers",
    "teacher.checkpoint",
    "student.checkpoint",
    "cam_boxes.boxes",
)


def prepare(preset: str = "") -> Params:
    """A clean checkout of HEAD, with the project's own DVC cache; returns its parameters.

    preset: of which data set, with the recommended recipe, instead of those that are committed.
    """
    try:
        text = preset_of(preset) if preset else PARAMS_FILE.read_text(encoding="utf-8")
        params = parse_params(YAML(typ="safe").load(text) if preset else read_yaml(PARAMS_FILE))
    except UserError as error:
        raise SystemExit(str(error)) from None
    if changed := uncommitted():
        raise SystemExit(
            "experiments run what git has committed, which these changes are not, so commit or "
            f"undo them first: {', '.join(changed)}"
        )
    if not CLONE.exists():
        subprocess.run(["git", "clone", "-q", ".", str(CLONE)], check=True)
    for step in (["fetch", "-q", "origin", "HEAD"], ["checkout", "-q", "-f", "FETCH_HEAD"]):
        subprocess.run(["git", *step], cwd=CLONE, check=True)
    if preset:
        (CLONE / PARAMS_FILE).write_text(text, encoding="utf-8")
        commit = ["commit", "-qam", preset, "--allow-empty", "--no-verify"]
        subprocess.run(["git", *NOBODY, *commit], cwd=CLONE, check=True)
    cache = Path(".dvc/cache").resolve()
    subprocess.run([*DVC, "cache", "dir", "--local", str(cache)], cwd=CLONE, check=True)
    for key in OWN:
        link(Path(_value(key)))
    return params


def uncommitted() -> list[str]:
    """The files that a run is made of and that are not as committed."""
    command = ["git", "diff", "--name-only", "HEAD", "--", *RUN]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"experiments run what git has committed: {done.stderr.strip()}")
    return done.stdout.splitlines()


def link(path: Path) -> None:
    """Let the clone see a user's own file or folder, if it is there and git does not keep it."""
    place = CLONE / path
    inside = place.parent.resolve().is_relative_to(CLONE.resolve())  # else a link leads there
    if path.is_absolute() or path.is_relative_to(DEMO) or not path.exists() or not inside:
        return
    if place.is_symlink():
        place.unlink()
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(path.resolve())


def reproduce(
    seed: int,
    changes: Mapping[str, object],
    *targets: str,
    settings: Mapping[str, object] | None = None,
) -> Path:
    """Run `targets` in the clone with some parameters changed; returns where their outputs are.

    changes: of the demo's world too, by keys that begin with `world.`; settings: what changes in
    `experiments/params.yaml`.
    """
    subprocess.run(["git", "checkout", "-q", "-f", "."], cwd=CLONE, check=True)
    for lock in LOCKS:
        (CLONE / lock).unlink(missing_ok=True)
    world = {key: value for key, value in changes.items() if key.startswith("world.")}
    own = {key: value for key, value in changes.items() if key not in world}
    of_the_demo = Path(read_yaml(CLONE / PARAMS_FILE)["source"]["root"]).is_relative_to(DEMO)
    if world and not of_the_demo:
        raise SystemExit(f"{', '.join(world)}: of the demo's world alone; these are other images")
    edit_params(CLONE / PARAMS_FILE, {"seed": seed, **own})
    edit_params(CLONE / SETTINGS, settings or {})
    show_experiments(CLONE)
    if of_the_demo:
        edit_params(CLONE / DEMO_PARAMS, {"world.seed": seed, "teacher.seed": seed, **world})
    done = subprocess.run([*DVC, "repro", *targets], cwd=CLONE, check=False)
    if done.returncode:
        raise SystemExit(
            f"a run with seed {seed} and changes {changes} failed; DVC says why above. What is "
            "finished is kept: the same command goes on from there."
        )
    return CLONE


def must_be_judged(seed: int) -> None:
    """Stop, before anything is trained, unless a test image has a label."""
    done = reproduce(seed, {}, "index", "ground_truth")
    index, truth = (pd.read_parquet(done / table.path) for table in (INDEX, GROUND_TRUTH))
    held_out = index.loc[index["split"] == "test", "image_id"]
    if not truth["image_id"].isin(held_out).any():
        raise SystemExit(
            "no test image has a label, so nothing can be judged: see source.labels and "
            "source.test_folder in params.yaml"
        )


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


def _value(key: str) -> Any:
    value = read_yaml(CLONE / PARAMS_FILE)
    for part in key.split("."):
        value = value[part]
    return value
