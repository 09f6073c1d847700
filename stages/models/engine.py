"""ONNX Runtime in torch's place, where a frozen network computes on the processor."""

from __future__ import annotations

import io
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from stages.runtime.errors import UserError, ours, reason

CLOSE = 1e-4  # of the norm of what a network says of an image
MEMORY = 4 << 30  # bytes of weights, of all graphs: each shape of views may need one of its own
OPSET = 17
SWITCH = "`engine: torch` is the other way"


class Exported(nn.Module):
    """A network by ONNX Runtime, with torch's tensors in and out.

    It is exported at the first views, for any shape of views; where that says something else than
    the network at another shape (paddings and positions may be of one shape), again for that one.
    The first views of a shape are given to both, which must say the same.
    key: the parameter that asked for it, for messages.
    """

    def __init__(self, network: nn.Module, key: str) -> None:
        super().__init__()
        self.network, self.key = network, key
        self.weights = sum(value.nbytes for value in network.state_dict().values())
        self.graphs: list[Any] = []
        self.graph_of: dict[tuple[int, int], Any] = {}

    def forward(self, images: Tensor) -> Tensor:
        """What the network says of normalised images (n, 3, h, w) in float32."""
        shape = (images.shape[-2], images.shape[-1])
        if shape not in self.graph_of:
            self.graph_of[shape] = self._graph_for(images[:2])
        return say_of(self.graph_of[shape], images)

    def _graph_for(self, images: Tensor) -> Any:
        expected = self.network(images)
        for graph in self.graphs:
            if agrees(graph, images, expected):
                return graph
        if (len(self.graphs) + 1) * self.weights > MEMORY:
            raise UserError(
                f"{self.key}: this network needs a graph for every shape of views, which takes too "
                f"much memory: let views be squares (aspect: squash, or square); {SWITCH}"
            )
        graph = graph_of(self.network, images, self.key)
        if not agrees(graph, images, expected):
            raise UserError(
                f"{self.key}: of the first views ONNX Runtime says something else than torch, by "
                f"more than {CLOSE} of it; {SWITCH}"
            )
        self.graphs.append(graph)
        return graph


def graph_of(network: nn.Module, images: Tensor, key: str) -> Any:
    """An inference session of the network, for any number of images, and sizes if it can be."""
    try:
        import onnx  # noqa: F401  # torch's exporter wants it
        from onnxruntime import InferenceSession, SessionOptions
    except ImportError as error:
        raise UserError(f"{key}: {error.name} is missing: `pip install '.[onnxruntime]'`") from None
    options, content = SessionOptions(), io.BytesIO()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what fails is said, or tried otherwise, here
    export: Any = torch.onnx.export  # untyped
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it has no form in ONNX
    try:
        with warnings.catch_warnings(), torch.inference_mode(mode=False), torch.no_grad():
            warnings.simplefilter("ignore")  # on what follows from a shape, which is compared
            export(
                network,
                (images.clone(),),
                content,
                input_names=["images"],
                output_names=["said"],
                dynamic_axes={"images": {0: "n", 2: "height", 3: "width"}, "said": {0: "n"}},
                opset_version=OPSET,
                dynamo=False,
            )
        return InferenceSession(content.getvalue(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the exporter, the checker and the runtime have each their own
        if ours(error):
            raise
        raise UserError(
            f"{key}: this network cannot be exported: {reason(error)}; {SWITCH}"
        ) from None
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def say_of(graph: Any, images: Tensor) -> Tensor:
    """What a graph says of images."""
    (said,) = graph.run(["said"], {"images": images.contiguous().numpy()})
    return torch.from_numpy(said)


def agrees(graph: Any, images: Tensor, expected: Tensor) -> bool:
    """Whether a graph says what is expected of every image."""
    try:
        said = say_of(graph, images)
    except Exception as error:  # a shape that it cannot take
        if ours(error):
            raise
        return False
    if said.shape != expected.shape:
        return False
    off = (said - expected).flatten(1).norm(dim=1)
    return bool((off <= CLOSE * expected.flatten(1).norm(dim=1)).all())
