"""`ccd compare`: the results here beside those that are committed at another revision."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd
from ruamel.yaml import YAML

from stages.artifacts import RESULTS
from stages.runtime.errors import UserError
from stages.runtime.params_file import PARAMS_FILE, read_yaml
from stages.storage.tables import read_csv

JUDGED = {"mAP": "mAP", "micro_AP": "micro-AP"}
OF_CLASS = {"student_AP": "average precision", "student_F1": "F1"}


class Comparison(NamedTuple):
    """The parameters that differ, there and here, by key; and figures, a row each.

    ladder: split, what, and of each figure a column `… there` and `… here`, NaN where there is
    none. classes: class and the same, those that changed most first.
    """

    params: dict[str, tuple[Any, Any]]
    ladder: pd.DataFrame
    classes: pd.DataFrame


def compare(revision: str) -> Comparison:
    """What another revision's parameters and results are beside those here.

    Raises `UserError` where git knows no such revision, or either has no results.
    """
    here = {name: read_csv(RESULTS / f"{name}.csv") for name in ("ladder", "per_class")}
    known = git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if known is None:
        raise UserError(f"git knows no revision {revision}: see `git branch -a`")
    there = {name: committed(revision, f"{RESULTS}/{name}.csv") for name in here}
    params = YAML(typ="safe", pure=True).load(text_of(revision, str(PARAMS_FILE)))
    on = ["split", "what"]
    ladder = there["ladder"].merge(here["ladder"], "outer", on, suffixes=(" there", " here"))
    order = [*here["ladder"]["what"], *there["ladder"]["what"]]
    ladder = ladder.sort_values("what", key=lambda of: of.map(order.index))
    classes = there["per_class"].merge(
        here["per_class"], "outer", "class", suffixes=(" there", " here")
    )
    change = (classes["student_AP here"] - classes["student_AP there"]).abs()
    classes = classes.loc[change.sort_values(ascending=False, kind="stable").index]
    columns = [f"{name} {side}" for name in OF_CLASS for side in ("there", "here")]
    figures = [f"{name} {side}" for name in JUDGED for side in ("there", "here")]
    return Comparison(
        differences(params, read_yaml(PARAMS_FILE)),
        ladder[[*on, *figures]].reset_index(drop=True),
        classes[["class", *columns]].reset_index(drop=True),
    )


def differences(there: Any, here: Any, above: str = "") -> dict[str, tuple[Any, Any]]:
    """The leaves by their dotted keys in which two trees differ; None where one has none."""
    if not (isinstance(there, Mapping) and isinstance(here, Mapping)):
        return {} if there == here else {above: (there, here)}
    found: dict[str, tuple[Any, Any]] = {}
    for key in dict.fromkeys([*there, *here]):
        place = f"{above}.{key}" if above else str(key)
        found |= differences(there.get(key), here.get(key), place)
    return found


def committed(revision: str, path: str) -> pd.DataFrame:
    """A CSV of the pipeline's own, as it is committed there."""
    text = text_of(revision, path)
    return pd.read_csv(io.StringIO(text), keep_default_na=False, na_values=[""])


def text_of(revision: str, path: str) -> str:
    """A file's content at a revision, its path from the folder here."""
    text = git("show", f"{revision}:./{path}")
    if text is None:
        raise UserError(f"{revision} has no {path}: run `dvc repro` there, and commit results/")
    return text


def git(*words: str) -> str | None:
    """What git says, or None where it fails; `UserError` where there is no git."""
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError("git is not installed, which knows the other revisions") from None
    return None if done.returncode else done.stdout
