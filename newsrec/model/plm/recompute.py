"""Makes layers of a PLM run again in the backward pass instead of keeping their activations."""

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
    """Mixin for a layer's class: the forward pass keeps only its inputs.

    Dropout draws the same numbers in both runs, so gradients are the same bit for bit. This is a
    class, because with a wrapped ``forward`` a copy of the layer would run the original.
    """

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the layer."""
        if self.training and torch.is_grad_enabled():
            return checkpoint(super().forward, *args, use_reentrant=False, **kwargs)  # type: ignore[misc]
        return super().forward(*args, **kwargs)  # type: ignore[misc]


def recompute_activations(plm: PreTrainedModel) -> None:
    """Make a PLM's layers run again in the backward pass; refuse families that do not support it.

    Families that ``transformers`` supports use its way; the layers of others, such as MPNet, get
    the mixin ``Recomputed``.
    """
    if recompute_its_way(plm):
        return
    for layer in _layers(plm):
        kind: Any = type(layer)
        layer.__class__ = _recomputed(kind)


def can_recompute(plm: PreTrainedModel) -> bool:
    """Return whether ``recompute_activations`` supports a PLM's family."""
    if plm.supports_gradient_checkpointing:
        return True
    try:
        return bool(_layers(plm))
    except UserError:
        return False


def _layers(plm: PreTrainedModel) -> nn.ModuleList:
    try:
        lists = layer_lists(plm, plm.config.num_hidden_layers)
    except UserError:  # ALBERT runs one set of weights repeatedly, and keeps it in a list
        lists = [m for m in plm.modules() if isinstance(m, nn.ModuleList) and len(m)][:1]
    if len(lists) != 1:  # XLM has only parts of layers, which fill a cache as they run
        raise UserError(
            f"model.checkpoint_activations: this PLM ({plm.config.model_type}) cannot run its "
            "layers again in the backward pass. Set it to false; smaller batches save memory, too."
        )
    return lists[0]


@lru_cache
def _recomputed(kind: type) -> type:
    return type(kind.__name__, (Recomputed, kind), {})
