"""Every setting of `experiments/params.yaml`, with what it may be."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from stages.runtime.params import Section
from stages.runtime.params_file import checked, read_yaml
from stages.runtime.values import Count, Positive, Share

FILE = Path("experiments/params.yaml")


class Baseline(Section):
    """Of the methods in `experiments.methods`."""

    share: Share
    clip: Literal["top", "threshold", "soft"]
    count: Count
    threshold: Share
    unlikely: Share
    expected: Positive
    boost: Positive


class Cdul(Section):
    """Of `experiments.cdul`."""

    threshold: Share
    difference: Share
    wait: Count
    width: Positive
    boost: Positive


class Settings(Section):
    """All of them."""

    baseline: Baseline
    cdul: Cdul


def read_settings() -> Settings:
    """The settings of the file, checked."""
    return checked(Settings, read_yaml(FILE), FILE)
