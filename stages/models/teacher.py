"""The teacher: a frozen CLIP of open_clip's, for views of any size its tower can take."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterable
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

import torch
import torch.nn.functional as F
from open_clip import create_model, get_tokenizer
from open_clip.modified_resnet import ModifiedResNet
from open_clip.tokenizer import HFTokenizer
from open_clip.transformer import VisionTransformer
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load
from torch import Tensor, nn

from stages.images.normalise import normalise
from stages.models.attention import attention_pool, interpolate_positions
from stages.models.device import batch_size, move
from stages.models.engine import Exported
from stages.models.folding import fold_batch_norm
from stages.models.towers import ResNetTower, TransformerTower, stride_of
from stages.models.weights import TeacherNote, read_verified
from stages.runtime.errors import UserError
from stages.runtime.progress import say
from stages.runtime.values import Engine
from stages.storage.provenance import SUMS, check_sums

WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"


class ModelShape(BaseModel):
    """What open_clip builds a model of; of its keys those that are looked at here."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())

    embed_dim: int
    vision_cfg: dict[str, object]
    text_cfg: dict[str, object] = {}
    quick_gelu: bool = False


class Preprocess(BaseModel):
    """Mean and deviation of a channel of the model's input."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    mean: tuple[Annotated[float, Field(allow_inf_nan=False)], ...]
    std: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...]


class TeacherConfig(BaseModel):
    """The configuration in an open_clip local-dir."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())

    model_cfg: ModelShape
    preprocess_cfg: Preprocess

    @classmethod
    def read(cls, folder: Path) -> Self:
        """That of a folder; `UserError` for one that is damaged or of another form."""
        try:
            return cls.model_validate_json((folder / CONFIG).read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise UserError(f"{folder / CONFIG}: {where}: {first['msg'].lower()}") from None

    def write(self, folder: Path) -> None:
        """Into a folder, with what was given and nothing else."""
        content = self.model_dump(mode="json", exclude_unset=True)
        (folder / CONFIG).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def empty_model(identifier: str, device: str = "cpu") -> Any:
    """An open_clip model that has no weights yet, in float32: who asks for it loads all of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = create_model(
            identifier,
            load_weights=False,
            pretrained_image=False,
            pretrained_text=False,
            precision="fp32",
            device=device,
        )
    return model.eval()


class Teacher:
    """CLIP's two encoders, with the normalisation of the input that its folder gives.

    precision: of the image tower, a floating-point type of torch's; texts are in single precision.
    stride: pixels a cell of the tower's grid, None for a tower that takes squares of one size only.
    dim: length of an embedding. batch: views in one pass, after `prepare`.
    temperature: of the softmax, as the contrastive training left it.
    """

    def __init__(self, folder: Path, device: str, precision: str = "float32") -> None:
        # open_clip reports every step of the loading through the root logger
        logging.getLogger().setLevel(logging.ERROR)
        others = (file.name for file in folder.glob("*") if file.name not in (WEIGHTS, SUMS))
        check_sums(folder, CONFIG, *others)
        config = TeacherConfig.read(folder)
        self.folder = folder
        self.dim = config.model_cfg.embed_dim
        weights, note = read_verified(folder / WEIGHTS, TeacherNote)
        self.digest = note.sha256
        self.device = device
        self.batch = 1
        self.model = empty_model(f"local-dir:{folder}", device)
        self.model.load_state_dict(load(weights))
        del weights
        self.mean = config.preprocess_cfg.mean
        self.std = config.preprocess_cfg.std
        self.temperature = float(1 / self.model.logit_scale.detach().exp())
        self.tower = self.model.visual
        self.stride: int | None = None
        if isinstance(self.tower, ModifiedResNet):
            self.stride = 32
        elif isinstance(self.tower, VisionTransformer):
            self.stride = int(self.tower.patch_size[0])
        else:
            self.stride = stride_of(self.tower, device)
        self.precision: torch.dtype = getattr(torch, precision)
        self.tower.to(memory_format=torch.channels_last)  # folding then looks at it in this layout
        self.look: nn.Module = self.tower
        self.one_shape = False  # a graph of a transformer has the positions of one
        self._positions: dict[tuple[int, int], Tensor] = {}
        if isinstance(self.tower, ModifiedResNet):
            # the last bits of a double are lost when the embedding is rounded, so that it does not
            # depend on the batch; a convolution's result does not, on a CPU
            pool = torch.float64 if device == "cpu" else torch.float32
            self._pool = deepcopy(self.tower.attnpool).to(pool)
            self.look = ResNetTower(self.tower)
            self._fold(64)
        elif isinstance(self.tower, VisionTransformer):
            self.look = TransformerTower(self.tower)
        elif self.stride is not None:
            self._fold(2 * self.stride)
        self.tower.to(self.precision)

    def _fold(self, side: int) -> None:
        noise = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        if not fold_batch_norm(
            self.tower, lambda: self.embed_inputs(noise.to(self.device) * 2 - 1)
        ):
            say("the teacher does not say the same when folded: it stays as it is, slower")

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the teacher's words; only the text embeddings need it."""
        return get_tokenizer(f"local-dir:{self.folder}")

    def prepare(self, size: int, key: str, *, aspect_kept: bool, in_pixels: bool = False) -> None:
        """Prepare for views of `size`, or refuse, in the name of the parameter `key`.

        aspect_kept: views need not be square; in_pixels: nor multiples of the stride.
        """
        if self.stride is None:
            if aspect_kept:
                raise UserError(
                    f"`{key}` keeps the views' aspect, but this teacher's tower takes squares only"
                )
            self._resize(size, key)
        # a convolutional tower's own square need not be a multiple of its stride
        elif (size % self.stride or size < self.stride) and (
            aspect_kept or not self._is_native(size)
        ):
            raise UserError(
                f"`{key}` is {size}; it must be a multiple of the tower's stride, {self.stride}"
            )
        elif aspect_kept and self.one_shape:
            raise UserError(
                f"`{key}` keeps the views' aspect, but ONNX Runtime would need a graph of this "
                "transformer for every shape: `engine: torch`, or squares only"
            )
        elif in_pixels and not isinstance(self.tower, ModifiedResNet):
            raise UserError("`local_clip.rounding: pixel` is for a teacher whose tower is a ResNet")
        self.batch = batch_size(
            self.device, size, lambda count: self.embed_images(torch.zeros(count, 3, size, size))
        )
        if isinstance(self.look, Exported):
            self.look.batch = self.batch

    def _is_native(self, size: int) -> bool:
        native = self.tower.image_size
        return (tuple(native) if isinstance(native, Iterable) else (native, native)) == (size, size)

    def _resize(self, size: int, key: str) -> None:
        """Set a timm tower to squares of `size`, by timm's own means."""
        if self._is_native(size):
            return
        native = self.tower.image_size
        trunk: Any = getattr(self.tower, "trunk", None)
        if not hasattr(trunk, "set_input_size"):
            raise UserError(
                f"`{key}` is {size}, but this teacher's tower takes views of {native} only"
            )
        patch = trunk.patch_embed.patch_size[0]
        if size % patch:
            raise UserError(f"`{key}` is {size}; it must be a multiple of the tower's {patch}")
        self.tower.set_input_size((size, size))

    @torch.inference_mode()
    def embed_images(self, views: Tensor) -> Tensor:
        """Unit embeddings (n, dim) float32, on the device, of views (n, 3, h, w) of 0 … 255."""
        on_device = move(views, self.device)
        return self.embed_inputs(normalise(on_device, self.mean, self.std).to(self.precision))

    def embed_inputs(self, images: Tensor) -> Tensor:
        """As `embed_images`, of normalised images in the tower's precision, channels last."""
        embeddings = self.look(images)
        if isinstance(self.tower, ModifiedResNet):
            embeddings = self._pooled(embeddings)
        if embeddings.dtype in (torch.bfloat16, torch.float16):
            embeddings = embeddings.float()
        return F.normalize(embeddings, dim=-1).float()

    def use(self, engine: Engine, key: str) -> None:
        """Let the image tower be run by another `engine` than torch, or refuse, in `key`'s name."""
        if engine == "onnxruntime":
            if self.device != "cpu":
                raise UserError(
                    f"`{key}: onnxruntime` is for the processor: set it to torch, or CCD_DEVICE=cpu"
                )
            self.one_shape = isinstance(self.look, TransformerTower)
            self.look = Exported(self.look, key)

    def _pooled(self, features: Tensor) -> Tensor:
        height, width = features.shape[-2:]
        if (height, width) not in self._positions:
            table = self._pool.positional_embedding
            self._positions[height, width] = interpolate_positions(table, height, width, "bilinear")
        return attention_pool(self._pool, features, self._positions[height, width])

    @torch.inference_mode()
    def embed_class(self, prompts: list[str]) -> Tensor:
        """The unit mean (dim,) of the prompts' unit text embeddings."""
        tokens = self.tokenizer(prompts).to(self.device)
        texts = self.model.encode_text(tokens, normalize=True).float()
        return F.normalize(texts.mean(dim=0), dim=0).cpu()

    def too_long(self, prompt: str) -> bool:
        """Whether the text encoder would cut the prompt off."""
        context = int(self.tokenizer.context_length)
        if isinstance(self.tokenizer, HFTokenizer):
            return len(self.tokenizer.tokenizer(prompt).input_ids) > context
        longer = self.tokenizer([prompt], context_length=context + 64)
        return int((longer != 0).sum()) > context
