"""What the documentation shows is what happens."""

from __future__ import annotations

import re
import sys
from pathlib import PurePosixPath

import pytest

from stages import machine
from tests.conftest import Project
from tests.declarations import ROOT
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
            name = PurePosixPath(out).relative_to("data").parts[0].removesuffix(".parquet")
            assert f"`{name}" in table[stage], f"{stage} writes {out}"


def test_no_document_has_a_place_left_to_fill():
    for document in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        assert not re.search(r"\b(TABLE2|LADDER|TODO)\b", document.read_text()), document


def test_the_readme_counts_the_rows_of_the_invalidation_table():
    rows = re.findall(r"^\| (?!change|-)", (ROOT / "docs/invalidation.md").read_text(), flags=re.M)
    assert f"tables {len(rows)} changes" in README


def test_the_readme_names_every_setting_of_the_machine():
    documented = set(re.findall(r"CCD_[A-Z_]+", machine.__doc__ or ""))
    assert documented == set(re.findall(r"^\| `(CCD_[A-Z_]+)`", README, flags=re.M))


def test_every_file_the_documents_link_to_is_there():
    for document in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name}: {link}"
