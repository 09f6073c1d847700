"""Stage `weights`: get the teacher's and the student's first weights, once, and pin them.

Reads a pretrained tag (the only stage that may use the network) or a local file or folder. Writes
`data/weights/teacher/`, an open_clip local-dir, and `data/weights/student_init.safetensors`, both
safetensors with a digest that every later stage checks. Pickles are opened as plain weights only.

    python -m stages.weights
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor

from stages.artifacts import STUDENT_INIT, TEACHER
from stages.images.normalise import IMAGENET_MEAN, IMAGENET_STD
from stages.models.backbones import BackboneConfig, Tower, build_backbone, published_name
from stages.models.foreign import keep_tokenizer, load_teacher, read_foreign_weights
from stages.models.student import StudentConfig
from stages.models.teacher import WEIGHTS, Preprocess, Teacher, TeacherConfig
from stages.models.weights import TeacherNote, check_finite, load_weights, save_weights
from stages.runtime.errors import UserError, reason
from stages.runtime.job import Job, main
from stages.runtime.params import NONE, Params
from stages.runtime.progress import say
from stages.storage.provenance import write_sums

STUDENT_KEY = "student.checkpoint in params.yaml"
CLASSIFIER = "student.safetensors"  # in the folder that `train` writes
OF_A_NETWORK = ("arch", "output_stride", "tower")
IMAGENET = Preprocess(mean=IMAGENET_MEAN, std=IMAGENET_STD)


def run(params: Params, job: Job) -> None:
    given = params.teacher
    folder = job.staging / TEACHER
    logging.getLogger().setLevel(logging.ERROR)  # open_clip reports every step of the loading
    model, own = load_teacher(given)
    asked = IMAGENET if given.normalisation == "imagenet" else own.preprocess_cfg
    origin = Path(given.checkpoint).name if given.checkpoint != NONE else given.pretrained
    note = TeacherNote(model=given.model, origin=origin)
    check_finite(model.state_dict(), f"teacher in params.yaml: {origin}")
    save_weights(folder / WEIGHTS, model.state_dict(), note)
    own.model_copy(update={"preprocess_cfg": asked}).write(folder)
    keep_tokenizer(given, own, folder)
    write_sums(folder)
    prove(Teacher(folder, "cpu"), origin)

    student = params.student
    if student.arch == "teacher_tower" and not isinstance(model.visual, ModifiedResNet):
        raise UserError(
            "student.arch in params.yaml: this teacher's tower is no ResNet; use another arch"
        )
    config = backbone_config(student.arch, student.output_stride, student.weights, own)
    if student.weights == "classifier":
        tensors, trained = read_classifier(Path(student.checkpoint))
        if any(getattr(trained, key) != getattr(config, key) for key in OF_A_NETWORK):
            raise UserError(
                f"{STUDENT_KEY}: {student.checkpoint} is of another network than {student.arch} "
                f"with an output stride of {student.output_stride}"
            )
        known = {key: getattr(trained, key) for key in ("classes", "mean", "std")}
        config = config.model_copy(update=known)
    else:
        tensors = first_weights(config, model, student.checkpoint, params.seed)
    save_weights(job.staging / STUDENT_INIT, tensors, config)


@torch.inference_mode()
def prove(teacher: Teacher, origin: str) -> None:
    """Raise `UserError` unless the teacher tells two pictures, and two texts, apart.

    A broken one would show after days of looking at photographs.
    """
    where = f"teacher in params.yaml: {origin}"
    if not 0 < teacher.temperature < float("inf"):
        raise UserError(f"{where}: its temperature is {teacher.temperature}")
    native = teacher.tower.image_size
    height, width = native if isinstance(native, Iterable) else (native, native)
    noise = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)) * 255
    prompts = ("a photo of a cat", "a diagram of the sea")
    for what, of_both in (
        ("pictures", torch.cat([teacher.embed_images(noise), teacher.embed_images(noise * 0)])),
        ("texts", torch.stack([teacher.embed_class([prompt]) for prompt in prompts])),
    ):
        if not bool(torch.isfinite(of_both).all()):
            raise UserError(f"{where}: its embeddings of {what} are not finite")
        if torch.equal(of_both[0], of_both[1]):
            raise UserError(f"{where}: it says the same of all {what}; are these its weights?")


def backbone_config(
    arch: str, output_stride: int, weights: str, teacher: TeacherConfig
) -> BackboneConfig:
    """A student's backbone; the teacher's own tower keeps what it was trained with."""
    is_tower = arch == "teacher_tower"
    input_of = teacher.preprocess_cfg if is_tower else IMAGENET
    if arch.startswith("timm/") and (known := timm.get_pretrained_cfg(arch[len("timm/") :])):
        input_of = Preprocess(mean=known.mean, std=known.std)
    return BackboneConfig(
        arch=arch,
        output_stride=output_stride,
        weights=weights,
        mean=input_of.mean,
        std=input_of.std,
        tower=Tower.model_validate(teacher.model_cfg.vision_cfg) if is_tower else None,
    )


def first_weights(
    config: BackboneConfig, teacher: Any, checkpoint: str, seed: int
) -> dict[str, Tensor]:
    """The backbone's first weights, from where `config.weights` says."""
    torch.manual_seed(seed)
    expected = build_backbone(config)[0].state_dict()
    if config.weights == "random":
        return expected
    if config.weights == "teacher":
        given = teacher.visual.state_dict()
    elif config.weights == "checkpoint":
        given = read_foreign_weights(Path(checkpoint), STUDENT_KEY)
    elif config.weights == "published":
        given = fetch_from_timm(config.arch)
    else:
        given = read_foreign_weights(fetch_published(config.arch, config.weights), STUDENT_KEY)
    tensors = {}
    for name, value in expected.items():
        known = name if name in given else published_name(config.arch, name)
        if known not in given or given[known].shape != value.shape:
            raise UserError(
                f"student in params.yaml: the weights do not fit {config.arch}; they have "
                + (f"{known} in another shape" if known in given else f"no {known}")
            )
        tensors[name] = given[known]
    return tensors


def read_classifier(folder: Path) -> tuple[dict[str, Tensor], StudentConfig]:
    """A trained student, from a copy of the folder that `train` writes, and its configuration."""
    path = folder / CLASSIFIER
    if not path.is_file() or not path.with_suffix(".json").is_file():
        raise UserError(f"{STUDENT_KEY}: {folder} holds no {path.name} with its .json")
    return load_weights(path, StudentConfig)


def fetch_from_timm(arch: str) -> dict[str, Tensor]:
    """The weights of timm's tag, or of a network's usual one, fetched if they are not here."""
    say(f"weights: fetching {arch} through timm, once")
    try:
        network = timm.create_model(arch.removeprefix("timm/"), pretrained=True, num_classes=0)
    except Exception as error:  # whatever the hub makes it raise
        raise UserError(
            f"student.weights in params.yaml: {arch} cannot be fetched: {reason(error)}"
        ) from None
    tensors: dict[str, Tensor] = network.state_dict()
    return tensors


def fetch_published(arch: str, name: str) -> Path:
    """Where torchvision's published weights are on this machine, downloaded if need be.

    Their file has a digest in its name, which is checked whenever it is read.
    """
    url: str = torchvision.models.get_model_weights(arch)[name].url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.exists():
        say(f"weights: fetching {arch} {name} through torchvision, once")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"student.weights in params.yaml: {url} cannot be fetched: {reason(error)}"
            ) from None
    return path


if __name__ == "__main__":
    main("weights", run)
