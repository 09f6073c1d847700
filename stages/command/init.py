"""`ccd init`: a project of one's own, beside the photographs; `ccd update`: with another version.

A project is a folder under git and DVC with `params.yaml`, `dvc.yaml`, the class names and links to
what is the user's. The code stays where it is installed; `code.yaml` has a digest of each stage's,
which DVC compares as it compares parameters.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.command.preset import preset
from stages.runtime.code import CODE_FILE, digest_of
from stages.runtime.errors import UserError, reason
from stages.runtime.fingerprint import DVC_FILE
from stages.runtime.params import Params
from stages.runtime.params_file import PARAMS_FILE, edit_params, parse_params, read_yaml
from stages.runtime.publishing import write_whole
from stages.sources.class_list import class_list
from stages.sources.folder import photographs

TEMPLATE = Path(__file__).parent / "project"
PIPELINE = "pipeline"  # what code.yaml calls the digest of dvc.yaml
CLASSES, PHOTOS = "classes.txt", "data/photos"
PATHS = ("source.answers", "teacher.checkpoint", "student.checkpoint", "cam_boxes.boxes")
OF_DVC = {
    ".dvc/config": "[core]\n    analytics = false\n    check_update = false\n",
    ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n",
}
OF_LABELS = (".csv", ".txt", ".json")
CODE_ABOVE = "# Which code made the results: `ccd update` writes it. DVC reads it as parameters.\n"


def init(
    place: Path,
    images: Path,
    classes: str,
    labels: Path | None,
    recipe: str | None,
    settings: list[str],
) -> tuple[int, Params]:
    """Make a project; returns how many photographs it has, and its parameters.

    classes: a text file, or names by comma. settings: `key=value`, of parameters. All or nothing is
    made: raises `UserError`, and leaves no trace.
    """
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise UserError(f"{place} is there already: name a new folder, or an empty one")
    if not images.is_dir():
        raise UserError(f"--images: {images} is no folder")
    if place.resolve().is_relative_to(images.resolve()):
        raise UserError(
            f"{place} lies in {images}, where its own pictures would be taken for photographs: "
            "name a folder elsewhere"
        )
    if labels is not None and not (labels.is_file() and labels.suffix.lower() in OF_LABELS):
        raise UserError(f"--labels: {labels} is no file that ends in {', '.join(OF_LABELS)}")
    target = place.resolve()
    if not target.parent.is_dir():
        raise UserError(f"{place.parent} is no folder")
    found, _ = photographs(str(images), "", key="--images")
    try:
        making = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise UserError(f"{place}: {error.strerror}") from None
    try:
        params = lay_out(making, images, classes, labels, recipe, settings)
        set_up_versions(making)
        if target.exists():  # it may be where the user's shell is
            for own in making.iterdir():
                own.rename(target / own.name)
        else:
            making.chmod(0o755)
            making.rename(target)
    except UserError as error:
        raise UserError(str(error).replace(str(making), str(place))) from None
    except OSError as error:
        raise UserError(f"{place}: {error.strerror}") from None
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return len(found), params


def lay_out(
    root: Path,
    images: Path,
    classes: str,
    labels: Path | None,
    recipe: str | None,
    settings: list[str],
) -> Params:
    """Write a project's files into an empty folder; returns its parameters."""
    (root / CLASSES).write_text(names_in(classes), encoding="utf-8")
    known = class_list(str(root / CLASSES))
    (root / "data/none").mkdir(parents=True)
    shutil.copyfile(TEMPLATE / "none.md", root / "data/none/README.md")
    (root / PHOTOS).symlink_to(images.resolve())
    changes: dict[str, object] = {"source.root": PHOTOS, "source.classes": CLASSES}
    if labels is not None:
        link = Path("data/labels").with_suffix(labels.suffix)
        (root / link).symlink_to(labels.resolve())
        changes["source.labels"] = link.as_posix()
    (root / PARAMS_FILE).write_text(preset("folder", recipe), encoding="utf-8")
    looks = read_yaml(root / PARAMS_FILE)["cam_boxes"]
    if (
        looks["views"] == "cam" and looks["selection"] != "search"
    ):  # more would leave nothing to choose
        changes["cam_boxes.mean_views"] = min(looks["mean_views"], max(1.0, len(known) / 2))
    changes |= parsed(settings)
    must_be_known(read_yaml(root / PARAMS_FILE), changes)
    edit_params(root / PARAMS_FILE, changes)
    params = parse_params(read_yaml(root / PARAMS_FILE))
    shutil.copyfile(TEMPLATE / "pipeline.yaml", root / DVC_FILE)
    (root / CODE_FILE).write_text(code_text(root / DVC_FILE), encoding="utf-8")
    shutil.copyfile(TEMPLATE / "gitignore", root / ".gitignore")
    return params


def must_be_known(params: Any, changes: dict[str, object]) -> None:
    """Raise `UserError` for a dotted key that the content of `params.yaml` has not."""
    for key in changes:
        place = params
        for part in key.split("."):
            if not isinstance(place, dict) or part not in place:
                raise UserError(f"--set: {PARAMS_FILE} has no {key}")
            place = place[part]


def names_in(classes: str) -> str:
    """The text of a list of class names: of a file, or of names by comma."""
    if os.path.isfile(classes):  # of names by comma a path may not even be asked
        try:
            return Path(classes).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--classes: {classes}: {reason(error)}") from None
    if "," not in classes:
        raise UserError(f"--classes: {classes} is no file; names are given by comma: cat,dog")
    return "".join(f"{name.strip()}\n" for name in classes.split(",") if name.strip())


def parsed(settings: list[str]) -> dict[str, object]:
    """Parameters by dotted key; a relative path that is there is made absolute."""
    changes: dict[str, object] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise UserError(f"--set: {setting!r} is not of the form key=value")
        try:
            value = YAML(typ="safe", pure=True).load(text)
        except (YAMLError, ValueError):
            raise UserError(f"--set: {text!r}, the value of {key}, is not valid YAML") from None
        if key in PATHS and isinstance(value, str) and Path(value).exists():
            value = str(Path(value).resolve())
        changes[key] = value
    if "teacher.checkpoint" in changes:  # one of both is given
        changes.setdefault("teacher.pretrained", "none")
    return changes


def set_up_versions(root: Path) -> None:
    """Put a folder under DVC, and under git unless it lies in a repository or there is no git."""
    for name, text in OF_DVC.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    shutil.copyfile(TEMPLATE / "dvcignore", root / ".dvcignore")
    if shutil.which("git") is None:
        with (root / ".dvc/config").open("a") as config:
            config.write("    no_scm = true\n")
        return
    inside = ["git", "rev-parse", "--is-inside-work-tree"]
    if subprocess.run(inside, cwd=root, capture_output=True, check=False).returncode:
        subprocess.run(["git", "init", "-q"], cwd=root, check=True)


def update() -> list[str]:
    """Take up the installed code in the project here; returns the stages whose code is another.

    Raises `UserError`, with nothing changed, where `dvc.yaml` was edited and would have to change.
    """
    if not CODE_FILE.exists():
        raise UserError(f"{CODE_FILE} is not here: `ccd update` is for what `ccd init` made")
    code = read_yaml(CODE_FILE) or {}
    if not isinstance(code, dict):
        raise UserError(
            f"{CODE_FILE} is no list of stages with their digests: delete what is in it"
        )
    installed = (TEMPLATE / "pipeline.yaml").read_bytes()
    own, beside = DVC_FILE.read_bytes(), Path(f"{DVC_FILE}.new")
    if code.get(PIPELINE) != _digest(installed) and own != installed:
        if _digest(own) == code.get(PIPELINE):
            write_whole(DVC_FILE, installed)
        elif not _brought_together(beside, installed):
            write_whole(beside, installed)
            raise UserError(
                f"{DVC_FILE} was edited, and the installed version has another, now in {beside}: "
                f"bring into {DVC_FILE} what is new there, and run `ccd update` again"
            )
    beside.unlink(missing_ok=True)
    text = code_text(TEMPLATE / "pipeline.yaml")
    changed = [s for s, digest in YAML(typ="safe").load(text).items() if code.get(s) != digest]
    write_whole(CODE_FILE, text.encode())
    return [stage for stage in changed if stage != PIPELINE]


def code_text(declared: Path) -> str:
    """What `code.yaml` says of the installed code of the stages that are declared there."""
    digests = {stage: digest_of(stage) for stage in read_yaml(declared)["stages"]}
    text = io.StringIO(CODE_ABOVE)
    text.seek(0, io.SEEK_END)
    YAML().dump({PIPELINE: _digest(declared.read_bytes())} | digests, text)
    return text.getvalue()


def _brought_together(beside: Path, installed: bytes) -> bool:
    """Whether `dvc.yaml` was edited after it was laid beside, and has every stage of it."""
    if not beside.exists() or beside.read_bytes() != installed:
        return False
    wanted, there = (set(read_yaml(file)["stages"]) for file in (beside, DVC_FILE))
    return wanted <= there and DVC_FILE.stat().st_mtime_ns > beside.stat().st_mtime_ns


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
