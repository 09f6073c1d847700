"""`ccd compare`: the results here beside those that are committed at another revision."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.artifacts import RESULTS
from stages.runtime.errors import UserError
from stages.runtime.params_file import PARAMS_FILE, read_yaml
from stages.storage.tables import parse_csv, read_csv

JUDGED = {"mAP": "mAP", "micro_AP": "micro-AP"}
ON = {"ladder": ["split", "what"], "per_class": ["class"]}  # what a line is of
OF_CLASS = {"student_AP": "average precision", "student_F1": "F1"}


class Comparison(NamedTuple):
    """The parameters that differ, there and here, by key; and figures, a row each.

    ladder: split, what, and of each figure a column `… there` and `… here`, NaN where there is
    none. classes: class and the same, those that changed most first.
    """

    params: dict[str, tuple[Any, Any]]
    ladder: pd.DataFrame
    classes: pd.DataFrame


class Grid(NamedTuple):
    """A table as text: its heads, those that span a figure's three columns, and its rows."""

    first: list[str]
    figures: list[str]
    rows: list[list[str]]


def compare(revision: str) -> Comparison:
    """What another revision's parameters and results are beside those here.

    Raises `UserError` where git knows no such revision, or either has no results.
    """
    here = {name: read_csv(RESULTS / f"{name}.csv") for name in ON}
    if git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}") is None:
        raise UserError(f"git knows no revision {revision}: see `git branch -a`")
    there = {name: committed(revision, f"{RESULTS}/{name}.csv") for name in ON}
    try:
        params = YAML(typ="safe", pure=True).load(text_of(revision, str(PARAMS_FILE)))
    except YAMLError:
        raise UserError(f"{PARAMS_FILE} of {revision} is not valid YAML") from None
    for name, tables in {"here": here, revision: there}.items():
        for table, on in ON.items():
            if missing := [column for column in on if column not in tables[table]]:
                raise UserError(f"{RESULTS}/{table}.csv of {name} has no column {missing[0]}")
    ladder = joined(there["ladder"], here["ladder"], ON["ladder"], list(JUDGED))
    order = [*here["ladder"]["what"], *there["ladder"]["what"]]
    ladder = ladder.sort_values("what", key=lambda of: of.map(order.index))
    classes = joined(there["per_class"], here["per_class"], ON["per_class"], list(OF_CLASS))
    change = (classes["student_AP here"] - classes["student_AP there"]).abs()
    classes = classes.loc[change.sort_values(ascending=False, kind="stable").index]
    return Comparison(
        differences(params, read_yaml(PARAMS_FILE)),
        ladder.reset_index(drop=True),
        classes.reset_index(drop=True),
    )


def joined(
    there: pd.DataFrame, here: pd.DataFrame, on: list[str], figures: list[str]
) -> pd.DataFrame:
    """Figures of two tables beside each other; NaN where one has none, or is of before it had."""
    sides = {"there": there, "here": here}
    parts = [
        table.reindex(columns=[*on, *figures]).set_index(on).add_suffix(f" {side}")
        for side, table in sides.items()
    ]
    both = parts[0].join(parts[1], how="outer").reset_index()
    return both[[*on, *(f"{name} {side}" for name in figures for side in sides)]]


def grid(table: pd.DataFrame, names: dict[str, str]) -> Grid:
    """Of each figure what it was there, what it is here, and the change."""
    first = [str(column) for column in table if " " not in str(column)]
    rows = []
    for row in table.to_dict("records"):
        cells = [str(row[column]) for column in first]
        for name in names:
            there, here = row[f"{name} there"], row[f"{name} here"]
            figures = ((there, ".1f"), (here, ".1f"), (here - there, "+.1f"))
            cells += [format(value, form) if value == value else "" for value, form in figures]
        rows.append(cells)
    return Grid(first, list(names.values()), rows)


def said(value: Any) -> str:
    """A parameter's value as text; a dash where there is no such parameter."""
    return "–" if value is None else str(value)


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
    try:
        return parse_csv(text_of(revision, path))
    except ValueError:
        raise UserError(f"{path} of {revision} is no CSV of the pipeline's") from None


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
