"""A miniature project: a few drawn photographs, an untrained tiny teacher, the real pipeline."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from safetensors.torch import save_file

from demo.scenes import draw_photo
from demo.shapes import CLASSES
from stages.runtime.code import ROOT
from stages.runtime.params_file import edit_params
from tests.warm_python import serving

settings.register_profile("busy", deadline=None)  # the machines are shared
settings.load_profile("busy")

MINI_CLASSES = CLASSES[:4]
TINY_CLIP: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64, "head_width": 64},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
MINI = {
    "source.root": "photos",
    "source.classes": "classes.txt",
    "source.labels": "truth.csv",
    "source.max_bad_share": 0.3,
    "teacher.checkpoint": "teacher",
    "student.input_size": 64,
    "global_clip.view_size": 64,
    "bias.entropy_limit": 0.9,
    "bias.min_count": 1,
    "optimiser.batch": 8,
    "warmup.epochs": 1,
    "cam_boxes.input_size": 64,
    "cam_boxes.mean_views": 2.0,
    "local_clip.view_size": 64,
    "train.epochs": 5,
    "report.samples": 1,
}


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIETLY = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip


def write_tiny_teacher(
    folder: Path, mean: tuple[float, ...] = (0.5,) * 3, std: tuple[float, ...] = (0.25,) * 3
) -> None:
    """An untrained CLIP as an open_clip local-dir, fit for input of that mean and deviation."""
    from open_clip.model import CLIP

    torch.manual_seed(0)
    model = CLIP(TINY_CLIP["embed_dim"], TINY_CLIP["vision_cfg"], TINY_CLIP["text_cfg"])
    for name, parameter in model.visual.named_parameters():
        if name.endswith("bn3.weight"):
            torch.nn.init.ones_(parameter)
    torch.nn.init.constant_(model.logit_scale, float(np.log(12)))
    _spread(model, mean, std)
    folder.mkdir(parents=True)
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    config = {
        "model_cfg": TINY_CLIP,
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))


@torch.no_grad()
def _spread(model: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Centre both encoders' outputs, so that an untrained CLIP tells images and words apart."""
    from open_clip import SimpleTokenizer

    model.eval()
    photos = [draw_photo(np.random.default_rng([5, n]))[0].resize((64, 64)) for n in range(32)]
    pixels = torch.from_numpy(np.stack([np.asarray(p) for p in photos])).permute(0, 3, 1, 2)
    shape = (1, 3, 1, 1)
    inputs = (pixels / 255 - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    images = model.encode_image(inputs)
    model.visual.attnpool.c_proj.bias -= images.mean(dim=0)
    texts = model.encode_text(
        SimpleTokenizer(context_length=20)([f"a photo of the {c}" for c in MINI_CLASSES])
    )
    axes = torch.linalg.svd(images - images.mean(dim=0), full_matrices=False)[2][
        : len(MINI_CLASSES)
    ]
    # the words are laid on the axes along which the images differ most
    model.text_projection.copy_(model.text_projection @ torch.linalg.pinv(texts) @ axes)


def write_photos(folder: Path, train: int, test: int) -> None:
    """Drawn photographs, and `truth.csv` beside their folder."""
    rows = ["image_id," + ",".join(MINI_CLASSES)]
    for split, count in (("train", train), ("test", test)):
        (folder / split).mkdir(parents=True)
        for number in range(count):
            image, objects = draw_photo(np.random.default_rng([7, len(split), number]))
            names = {shape for shape, _ in objects}
            name = f"{split}/{number:05d}.jpg"
            image.crop((0, 0, 128, 96 + number % 3 * 16)).save(folder / name, quality=90)
            rows.append(",".join([name, *(str(int(c in names)) for c in MINI_CLASSES)]))
    (folder.parent / "truth.csv").write_text("\n".join(rows) + "\n")
    (folder.parent / "classes.txt").write_text("\n".join(MINI_CLASSES) + "\n")


class Project:
    """A project folder, and what a user does in it."""

    def __init__(self, root: Path, environment: dict[str, str]) -> None:
        self.root = root
        self.environment = environment

    def __truediv__(self, path: str) -> Path:
        return self.root / path

    def run(
        self, *command: str, check: bool = True, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command,
            cwd=self.root,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode:
            pytest.fail(
                f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
            )
        return done

    def stage(
        self, name: str, check: bool = True, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a stage without DVC."""
        return self.run("python", "-m", f"stages.{name}", check=check, **environment)

    def repro(self, *targets: str) -> list[str]:
        """`dvc repro`; returns the stages that ran."""
        done = self.run("dvc", "repro", *targets)
        return re.findall(r"Running stage '([^']+)'", done.stdout)

    def set(self, **changes: Any) -> None:
        """Change `params.yaml`; keys with `__` for the dot."""
        edit_params(self / "params.yaml", {k.replace("__", "."): v for k, v in changes.items()})

    def digests(self, *patterns: str) -> dict[str, bytes]:
        """The content of all files that match."""
        files = [f for p in patterns for f in self.root.glob(p) if f.is_file()]
        return {f.relative_to(self.root).as_posix(): f.read_bytes() for f in sorted(files)}


def lay_out(root: Path, train: int = 24, test: int = 8) -> None:
    """The project's code and the miniature's data in `root`, a git and DVC repository."""
    for name in ("stages", ".dvc/config", ".dvcignore", ".gitignore", "dvc.yaml", "params.yaml"):
        source, target = ROOT / name, root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    shutil.copytree(ROOT / "data/none", root / "data/none")
    write_photos(root / "photos", train, test)
    write_tiny_teacher(root / "teacher")
    edit_params(root / "params.yaml", MINI)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)


def wait_for(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Until something is so; fails if the process ends before, however long that takes."""
    while not true():
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An environment whose `python` has its libraries imported already."""
    with serving(tmp_path_factory.mktemp("python")) as environment:
        yield isolated(environment, tmp_path_factory)


def isolated(
    environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Nothing of the user's own DVC, and none of the machine's settings for the stages."""
    clean = {k: v for k, v in environment.items() if not k.startswith("CCD_")}
    site = str(tmp_path_factory.mktemp("dvc-site"))
    clean |= {"DVC_SITE_CACHE_DIR": site, "DVC_NO_ANALYTICS": "1", "CCD_DEVICE": "cpu"}
    bin_folder = str(Path(sys.executable).parent)
    return clean | {"PATH": f"{clean['PATH']}:{bin_folder}"}


@pytest.fixture(scope="session")
def laid_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which nothing has run. Not to be changed."""
    root = tmp_path_factory.mktemp("laid-out")
    lay_out(root)
    return root


@pytest.fixture(scope="session")
def finished(
    laid_out: Path, warm: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Project:
    """A project after `dvc repro`. Not to be changed: take `project`."""
    root = tmp_path_factory.mktemp("finished") / "project"
    shutil.copytree(laid_out, root)
    project = Project(root, warm)
    project.repro()
    return project


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    """A copy of a finished project, to change; its stages start at once."""
    shutil.copytree(finished.root, tmp_path / "project")
    return Project(tmp_path / "project", finished.environment)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=list(QUIETLY))
        yield started
        started.close()


@pytest.fixture
def cold_project(project: Project) -> Project:
    """A copy of a finished project whose stages are ordinary processes, which can be killed."""
    return as_ordinary_processes(project)


def as_ordinary_processes(project: Project) -> Project:
    """The same project, with the interpreter that starts anew for every stage."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return Project(project.root, project.environment | {"PATH": path})


# files whose tests share what takes long to make: one worker has all of them. (The groups of
# pytest-xdist 3.8 are lost with pytest 9.2.)
TOGETHER = (
    "test_export", "test_init", "test_official", "test_photographs", "test_report_in_a_browser",
    "test_resume", "test_review",
)  # fmt: skip


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """A test at a time to each worker, but for the files that stay together."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if Path(file).stem in TOGETHER else nodeid

    return Scheduler(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`make quick` leaves out what runs a pipeline."""
    for item in items:
        if "warm" in getattr(item, "fixturenames", ()):
            item.add_marker("pipeline")
