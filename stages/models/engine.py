"""ONNX Runtime in torch's place, where a frozen network computes on the processor."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stages.runtime.errors import UserError, ours, reason

CLOSE = 1e-4  # of the norm of what a network says of an image
MEMORY = 4 << 30  # bytes of weights, of all graphs: each shape of views may need one of its own
LIGHT = 32 << 20  # bytes of weights up to which full batches of a shape have a session of their own
OPSET = 17
AXES = ("images", "height", "width")
SWITCH = "`engine: torch` is the other way"


class Graph(NamedTuple):
    """An exported network, and a session in which its sizes are open."""

    content: bytes
    session: Any


class Exported(nn.Module):
    """A network by ONNX Runtime, with torch's tensors in and out.

    It is exported at the first views, for any number and shape of them; where that says something
    else than the network at another shape, again for that one. Of the first views of a shape both
    must say the same, as of more views than it was exported with.
    Full batches, of `batch` views, run in a session where no size is open: of a light network that
    takes a quarter of the time away. key: the parameter that asked for it, for messages.
    """

    batch = 0  # views in a full one; 0: there are none

    def __init__(self, network: nn.Module, key: str) -> None:
        super().__init__()
        must_be_installed(key)
        self.network, self.key = network, key
        self.weights = sum(value.nbytes for value in network.state_dict().values())
        self.graphs: list[Graph] = []
        self.of_shape: dict[tuple[int, int], Graph] = {}
        self.of_full_batch: dict[tuple[int, int], Any] = {}

    def forward(self, images: Tensor) -> Tensor:
        """What the network says of normalised images (n, 3, h, w) in float32."""
        shape = (images.shape[-2], images.shape[-1])
        if shape not in self.of_shape:
            three = images[torch.arange(3) % len(images)]
            expected: Tensor = self.network(three)
            if not bool(torch.isfinite(expected).all()):  # the caller names the image
                return expected[torch.arange(len(images)) % 3]
            self.of_shape[shape] = self._graph_for(three, expected)
        graph = self.of_shape[shape]
        if len(images) != self.batch or self.weights > LIGHT:
            return said_of(graph.session, images)
        if shape not in self.of_full_batch:
            closed = session_of(graph.content, dict(zip(AXES, (self.batch, *shape), strict=True)))
            if not agrees(closed, images, said_of(graph.session, images)):
                raise UserError(
                    f"{self.key}: ONNX Runtime says something else of a full batch; {SWITCH}"
                )
            self.of_full_batch[shape] = closed
        return said_of(self.of_full_batch[shape], images)

    def _graph_for(self, images: Tensor, expected: Tensor) -> Graph:
        for graph in self.graphs:
            if agrees(graph.session, images, expected):
                return graph
        if self.graphs and (len(self.graphs) + 1) * self.weights > MEMORY:
            raise UserError(
                f"{self.key}: this network needs a graph for every shape of views, which takes too "
                f"much memory: let views be squares (aspect: squash, or square); {SWITCH}"
            )
        graph = graph_of(self.network, images[:2], self.key)
        if not agrees(graph.session, images, expected):
            raise UserError(
                f"{self.key}: of the first views ONNX Runtime says something else than torch, by "
                f"more than {CLOSE} of it; {SWITCH}"
            )
        self.graphs.append(graph)
        return graph


def must_be_installed(key: str) -> None:
    """Raise `UserError` where onnxruntime, or what torch exports with, is missing."""
    try:
        import onnx  # noqa: F401  # only whether it is there: torch's exporter uses it
        import onnxruntime  # noqa: F401  # as above: `session_of` uses it
    except ImportError as error:
        raise UserError(f"{key}: {error.name} is missing: `pip install onnx onnxruntime`") from None


def graph_of(network: nn.Module, images: Tensor, key: str) -> Graph:
    """The network exported, for any number of images, and sizes if it can be."""
    content = io.BytesIO()
    export: Any = torch.onnx.export  # untyped
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it has no form in ONNX
    try:
        with (
            warnings.catch_warnings(),
            unprinted(),
            torch.inference_mode(mode=False),
            torch.no_grad(),
        ):
            warnings.simplefilter("ignore")  # on what follows from a shape, which is compared
            export(
                network,
                (images.clone(),),
                content,
                input_names=["images"],
                output_names=["said"],
                dynamic_axes={
                    "images": dict(zip((0, 2, 3), AXES, strict=True)),
                    "said": {0: AXES[0]},
                },
                opset_version=OPSET,
                dynamo=False,
            )
        return Graph(content.getvalue(), session_of(content.getvalue(), {}))
    except MemoryError:
        raise
    except Exception as error:  # the exporter, the checker and the runtime have each their own
        if ours(error):
            raise
        why = reason(error)
        raise UserError(f"{key}: this network cannot be exported: {why}; {SWITCH}") from None
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def session_of(content: bytes, sizes: dict[str, int]) -> Any:
    """A session of an exported network; sizes: of the axes that are open in it, those to close."""
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what fails is said, or tried otherwise, here
    for axis, size in sizes.items():
        options.add_free_dimension_override_by_name(axis, size)
    return InferenceSession(content, options, providers=["CPUExecutionProvider"])


@contextmanager
def unprinted() -> Iterator[None]:
    """Meanwhile nothing is printed: of a failure torch prints the whole network, from C++."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def said_of(session: Any, images: Tensor) -> Tensor:
    """What a session says of images; `RuntimeError` where it cannot, as torch has it."""
    try:
        (said,) = session.run(["said"], {"images": images.contiguous().numpy()})
    except (MemoryError, RuntimeError):
        raise
    except Exception as error:  # the runtime's own derive from nothing narrower
        raise RuntimeError(f"ONNX Runtime: {reason(error)}") from None
    return torch.from_numpy(said)


def agrees(session: Any, images: Tensor, expected: Tensor) -> bool:
    """Whether a session says what is expected of every image."""
    try:
        said = said_of(session, images)
    except RuntimeError:  # a shape that it cannot take
        return False
    if said.shape != expected.shape:
        return False
    off = (said - expected).flatten(1).norm(dim=1)
    return bool((off <= CLOSE * expected.flatten(1).norm(dim=1)).all())
