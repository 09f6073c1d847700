"""What the documentation shows is what happens."""

from __future__ import annotations

import re
import sys
from pathlib import Path, PurePosixPath

import pandas as pd
import pytest
from ruamel.yaml import YAML

from stages.command.preset import names, preset
from stages.runtime import machine
from stages.runtime.code import ROOT, imported_files
from stages.runtime.params import Params
from stages.runtime.params_file import parse_params
from stages.sources.catalogue import DATA_SETS
from tests.conftest import Project
from tests.declarations import leaves
from tests.test_dvc_yaml import STAGES

README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, flags=re.S))
def test_the_python_of_the_readme_runs(finished: Project, block: str):
    done = finished.run(sys.executable, "-W", "error", "-c", block)
    assert done.stderr == ""


def test_the_readme_names_every_stage_and_what_it_writes():
    table = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| (.+) \|$", README, flags=re.M))
    assert set(STAGES) <= set(table)
    for stage, entry in STAGES.items():
        for out in entry.get("outs", []):
            if isinstance(out, dict):  # in git, beside the metrics
                continue
            name = PurePosixPath(out).relative_to("data").parts[0].removesuffix(".parquet")
            assert f"`{name}" in table[stage], f"{stage} writes {out}"


def test_no_document_has_a_place_left_to_fill():
    for document in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        assert not re.search(r"\b(TABLE2|LADDER|TODO)\b", document.read_text()), document


def test_the_readme_counts_the_rows_of_the_invalidation_table():
    rows = re.findall(r"^\| (?!change|-)", (ROOT / "docs/invalidation.md").read_text(), flags=re.M)
    assert f"tables {len(rows)} changes" in README


def test_the_table_of_differences_names_parameters_that_exist():
    table = (ROOT / "docs/fidelity.md").read_text()
    rows = re.findall(r"^\| (?!step|-)(.+) \|$", table, flags=re.M)
    assert len(rows) >= 34
    for row in rows:
        cells = row.split(" | ")
        assert len(cells) == 8, row
        section = ""
        for name in re.findall(r"`([\w.]+)`", cells[-2]):
            whole = "." in name or name in Params.model_fields
            section = name.partition(".")[0] if whole else section
            key = name if whole else f"{section}.{name}"
            assert leaves(key), row


def test_the_table_of_differences_names_tests_that_exist():
    named = set(
        re.findall(r"`(test_\w+)` \|$", (ROOT / "docs/fidelity.md").read_text(), flags=re.M)
    )
    assert len(named) >= 20
    written = "".join(file.read_text() for file in ROOT.glob("tests/test_*.py"))
    assert not [name for name in named if f"def {name}(" not in written]


def test_the_promises_of_reliability_name_tests_that_exist():
    named = set(re.findall(r"`([tT]est_?\w+)`", (ROOT / "docs/reliability.md").read_text()))
    written = "".join(file.read_text() for file in ROOT.glob("tests/**/test_*.py"))
    assert len(named) > 40
    assert not [n for n in named if f"def {n}(" not in written and f"{n} = " not in written]


def test_every_test_of_a_fault_is_among_the_promises():
    """But for the oracles of the suite itself, and what another row's words cover."""
    text = (ROOT / "docs/reliability.md").read_text()
    written = "".join(file.read_text() for file in ROOT.glob("tests/faults/test_*.py"))
    unnamed = [n for n in re.findall(r"def (test_\w+)\(", written) if n not in text]
    assert len(unnamed) <= 16, unnamed


def test_the_table_of_presets_is_complete_and_its_counts_are_the_published_ones():
    text = (ROOT / "docs/presets.md").read_text()
    datasets, recipes = names()
    rows = {row.split(" | ")[0].strip("`"): row for row in re.findall(r"^\| (`.+) \|$", text, re.M)}
    assert set(rows) == {*datasets, *recipes}
    for dataset in set(datasets) - {"folder", "photographs", "demo"}:
        content = YAML(typ="safe").load(preset(dataset, "paper"))
        counts = DATA_SETS[content["source"]["kind"]].published.images
        assert f"{counts['train']:,} · {counts['test']:,}" in rows[dataset]


def test_the_map_of_the_code_has_the_arrows_of_its_imports():
    text = (ROOT / "docs/architecture.md").read_text()
    table = re.findall(r"^\| `(\w+)` \| .+ \| (.+) \|$", text, flags=re.M)
    folders = {path.parent.name for path in ROOT.glob("stages/*/__init__.py")}
    assert {name for name, _ in table} == folders
    for name, allowed in table:
        found = set()
        for path in ROOT.glob(f"stages/{name}/*.py"):
            for file in imported_files(path):
                place = file.relative_to(ROOT / "stages")
                found.add(place.parts[0] if len(place.parts) > 1 else place.stem)
        expected = set() if name == "runtime" else set(allowed.split())
        found -= {name}
        assert found - ({"storage"} if name == "runtime" else set()) == expected, name


@pytest.mark.parametrize("document", ["docs/architecture.md", "stages/__init__.py"])
def test_the_drawing_has_every_stage(document: str):
    drawn = re.findall(r"\w+", (ROOT / document).read_text())
    assert set(STAGES) <= set(drawn)


def test_contributing_names_files_that_are_there():
    for name in re.findall(r"`([\w/.]+\.(?:py|yaml|md))`", (ROOT / "CONTRIBUTING.md").read_text()):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize(
    "block", re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/presets.md").read_text(), flags=re.S)
)
def test_the_parameters_of_the_documents_are_valid(block: str):
    content = YAML(typ="safe").load(preset("folder"))
    for section, values in YAML(typ="safe").load(block).items():
        content[section] |= values
    parse_params(content)


def test_the_readme_names_every_setting_of_the_machine():
    documented = set(re.findall(r"CCD_[A-Z_]+", machine.__doc__ or ""))
    assert documented == set(re.findall(r"^\| `(CCD_[A-Z_]+)`", README, flags=re.M))


def anchors(document: Path) -> set[str]:
    """What can be linked to in it, as git hosts make it of headings."""
    headings = re.findall(r"^#+ (.*)", document.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


def test_every_file_and_heading_the_documents_link_to_is_there():
    for document in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        for link, anchor in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", document.read_text()):
            target = document.parent / link if link else document
            assert target.stat().st_size, f"{document.name}: {link}"
            assert not anchor or anchor in anchors(target), f"{document.name}: {link}#{anchor}"


SEEDS = (0, 1, 2)  # of the page; who has recorded fewer, or others, is held to those alone


@pytest.mark.parametrize(
    "name",
    [
        "table2",
        "figure3",
        "figure6a",
        "figure6b",
        "figure7",
        "extensions",
        "floor",
        "recipes",
        "rounds",
    ],
)
def test_the_documented_ablations_are_those_that_were_recorded(name: str):
    lines = pd.read_csv(ROOT / f"results/{name}.csv", dtype={"row": str})
    compared(name, lines)
    compared(name, lines[lines["seed"] == 0])


def compared(name: str, lines: pd.DataFrame) -> None:
    for row, of_row in lines.groupby("row", sort=False):
        cells = documented(name).get(str(row), "").split(" | ")
        for seed, quality in zip(of_row["seed"], of_row["mAP"], strict=True):
            if seed in SEEDS:
                assert cells[SEEDS.index(seed)] == f"{quality:.1f}", f"{name}: {row}, seed {seed}"
        if tuple(of_row["seed"]) == SEEDS:
            found = [f"**{of_row['mAP'].mean():.1f}**", f"{of_row['mAP'].std():.1f}"]
            assert [cell.strip() for cell in cells[3:5]] == found, f"{name}: {row}"


def test_the_documented_methods_are_those_that_were_recorded():
    lines = pd.read_csv(ROOT / "results/table1.csv")
    for (level, method), of_method in lines.groupby(["level", "method"], sort=False):
        quality = of_method["mAP"]
        found = f"{method} | **{quality.mean():.1f}** | {quality.std():.1f}"
        if tuple(of_method["seed"]) == SEEDS:
            assert found in documented("table1").get(level, ""), f"{level}: {method}"


def test_the_documented_classes_are_those_that_were_recorded():
    lines = pd.read_csv(ROOT / "results/tables3to5.csv")
    if tuple(lines["seed"].unique()) != SEEDS:
        return
    of_class = lines.pivot_table(index="class", columns="row", values="student_AP")
    for name, quality in of_class.iterrows():
        without, with_ = quality["without debiasing"], quality["with debiasing"]
        found = f"{without:.1f} | {with_:.1f} | {with_ - without:+.1f}"
        assert found in documented("tables3to5").get(str(name), ""), name


def documented(name: str) -> dict[str, str]:
    """The rows of the table in the section of experiments.md that has that command's chart.

    By the first cell; those of one first cell in one string.
    """
    sections = (ROOT / "docs/experiments.md").read_text().split("\n## ")
    (section,) = (text for text in sections if f"](../results/{name}.svg)" in text)
    rows: dict[str, str] = {}
    for first, rest in re.findall(r"^\| ([^|]+?) \| (.+) \|$", section, flags=re.M):
        rows[first] = rows.get(first, "") + f"{rest}\n"
    return rows
