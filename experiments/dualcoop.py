"""DualCoOp (Sun et al., NeurIPS 2022): two learned prompts on a frozen CLIP, one that says a class
is there and one that it is not; where the first looks, both are read.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from experiments.objectives import asymmetric
from stages.method.objective import Objective
from stages.models.teacher import Teacher
from stages.runtime.errors import UserError

TOKENS = 16  # learned, before the class's name, as far as the teacher's context has room
PLACES = 0.2  # of the inverse temperature, by which places are chosen: 20 of CLIP's 100


class Prompts(nn.Module):
    """The two prompts, shared by the classes: unit embeddings (2, classes, dim), present first.

    words: of the classes, as prompts say them.
    """

    ids: Tensor

    def __init__(self, teacher: Teacher, words: list[str]) -> None:
        super().__init__()
        if not isinstance(teacher.tokenizer, SimpleTokenizer):
            raise UserError("DualCoOp needs a teacher with CLIP's own tokenizer")
        teacher.model.requires_grad_(False)
        self.teacher = teacher
        said = teacher.tokenizer(words)
        room = int(said.shape[1] - (said != 0).sum(dim=1).max())
        self.tokens = min(TOKENS, room)
        if self.tokens < 1:
            raise UserError("DualCoOp: the teacher's context has no room beside the class names")
        free = said.new_zeros(len(said), self.tokens)  # where what is learned is put
        ids = torch.cat([said[:, :1], free, said[:, 1:]], dim=1)[:, : said.shape[1]]
        self.register_buffer("ids", ids)
        width = self._table.weight.shape[1]
        self.learned = nn.Parameter(0.02 * torch.randn(2, self.tokens, width))

    @property
    def _table(self) -> Any:
        model = self.teacher.model
        return getattr(model, "text", model).token_embedding

    def forward(self) -> Tensor:
        """What the teacher's text encoder makes of them."""
        return torch.stack([self._said(learned) for learned in self.learned])

    def _said(self, learned: Tensor) -> Tensor:
        def put(_module: nn.Module, _ids: object, table: Tensor) -> Tensor:
            own = learned.expand(len(table), -1, -1).to(table)
            return torch.cat([table[:, :1], own, table[:, 1 + self.tokens :]], dim=1)

        hook = self._table.register_forward_hook(put)
        try:
            said = self.teacher.model.encode_text(self.ids)
        finally:
            hook.remove()
        return F.normalize(said.float(), dim=-1)


class DualPrompts(nn.Module):
    """Unit embeddings of patches (n, dim, rows, columns) to logits (n, classes)."""

    def __init__(self, prompts: Prompts) -> None:
        super().__init__()
        self.prompts = prompts

    def forward(self, maps: Tensor) -> Tensor:
        """Of a class's presence against its absence."""
        present, absent = self.prompts()
        temperature = self.prompts.teacher.temperature
        return read_prompts(maps.flatten(2).mT, present, absent, temperature)


def read_prompts(patches: Tensor, present: Tensor, absent: Tensor, temperature: float) -> Tensor:
    """Logits (n, classes) of unit embeddings: patches (n, patches, dim), prompts (classes, dim).

    The softmax over both prompts' readings, of which this is the difference, both weighed by where
    the prompt of presence looks. Published factors, 20 and then 5, are of CLIP's temperature, .01.
    """
    of_present, of_absent = patches @ present.T, patches @ absent.T
    weights = (PLACES / temperature * of_present).softmax(dim=1)
    return (weights * (of_present - of_absent)).sum(dim=1) / temperature


class Asymmetric(Objective):
    """The asymmetric loss of the known labels (images, classes): 1, -1, or 0 unknown."""

    def forward(self, logits: Tensor, rows: list[int], epoch: int) -> Tensor:
        """Of DualCoOp, its focus on what is absent 2."""
        return asymmetric(logits, self.labels[rows], focus_absent=2.0)
