"""Layers of a PLM that run again in the backward pass rather than keep what they computed."""

from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from newsrec.errors import UserError
from newsrec.model.plm.cut import layer_lists
from newsrec.model.plm.transformers_internals import recompute_its_way


class Recomputed:
    """Mixed into a layer's class: forward keeps its inputs alone.

    Dropout draws the same numbers in both runs, so gradients are the same bit for bit. A class and
    not a wrapper around ``forward``, or a copy of the layer would run the original.
    """

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the layer."""
        if self.training and torch.is_grad_enabled():
            return checkpoint(super().forward, *args, use_reentrant=False, **kwargs)  # type: ignore[misc]
        return super().forward(*args, **kwargs)  # type: ignore[misc]


def recompute_activations(plm: PreTrainedModel) -> None:
    """Have a PLM's layers run again in the backward pass.

    Families that ``transformers`` can do this for do it its way; layers of the others, such as
    MPNet's, get a class of their own.

    Raises:
        UserError: If its family cannot.
    """
    if recompute_its_way(plm):
        return
    for layer in _layers(plm):
        kind: Any = type(layer)
        layer.__class__ = _recomputed(kind)


def _layers(plm: PreTrainedModel) -> nn.ModuleList:
    try:
        lists = layer_lists(plm, plm.config.num_hidden_layers)
    except UserError:  # ALBERT runs one set of weights again and again, which lies in a list
        lists = [m for m in plm.modules() if isinstance(m, nn.ModuleList) and len(m)][:1]
    if len(lists) != 1:  # XLM has parts of layers, which fill a cache as they run
        raise UserError(
            f"model.checkpoint_activations: this PLM ({plm.config.model_type}) cannot run its "
            "layers again in the backward pass. Set it to false; smaller batches save memory, too."
        )
    return lists[0]


@lru_cache
def _recomputed(kind: type) -> type:
    return type(kind.__name__, (Recomputed, kind), {})
