"""All uses of ``transformers`` internals, with reasons; a test fails if one changes.

Checked against transformers 5.23; ``pyproject.toml`` has the allowed range.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

__all__ = ["eager_mask", "sdpa_attention_forward", "sdpa_mask"]
"""Implementations of ``sdpa`` and ``eager``, on which our own attention builds."""

T = TypeVar("T")


def register_attention(
    name: str, attend: Callable[..., Any], mask: Callable[..., Tensor | None]
) -> None:
    """Register a kind of attention and the function that makes its masks, under a name.

    If a PLM's configuration has this name, its layers call ``attend``, in families that look up
    their attention by name. ``mask`` returns None if no mask is needed.
    """
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, mask)


def attention_of(plm: PreTrainedModel) -> str | None:
    """Return the name of a PLM's attention; None if it has no name."""
    return plm.config._attn_implementation


def set_attention(plm: PreTrainedModel, name: str | None) -> None:
    """Set a PLM's attention by name, from its next call on; the public setter checks the name."""
    config: Any = plm.config
    config._attn_implementation = name


@torch.no_grad()
def try_attention(
    plm: PreTrainedModel, name: str, expect: Callable[[], T], works: Callable[[T], bool]
) -> bool:
    """Switch a PLM to another kind of attention; return whether its states stay the same.

    ``expect`` runs the PLM before the change and returns its states; ``works`` runs it after the
    change and compares. Both run in evaluation mode and full precision. If the states differ, or on
    any exception, the PLM is unchanged; also if its weights have no values to compare.
    """
    weights = next(plm.parameters()).data
    if weights.is_meta or type(weights) is not Tensor:
        return False
    before, modes = attention_of(plm), [(m, m.training) for m in plm.modules()]
    plm.eval()
    same = False
    try:
        with torch.autocast(plm.device.type, enabled=False):
            expected = expect()
            set_attention(plm, name)
            same = works(expected)
    except Exception:  # some families raise when called in this unusual way
        same = False
    finally:
        for module, training in modes:
            module.training = training
        if not same:
            set_attention(plm, before)
    return same


def recompute_its_way(plm: PreTrainedModel) -> bool:
    """Make a PLM's layers run again in the backward pass, if its family supports it.

    Earlier versions only have ``gradient_checkpointing_enable``.
    """
    if not plm.supports_gradient_checkpointing:
        return False
    enable = getattr(plm, "activation_checkpointing_enable", plm.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
    return True


def first_position(plm: PreTrainedModel) -> int:
    """Return the position of a text's first token; RoBERTa starts after the padding's position."""
    positions = getattr(getattr(plm, "embeddings", None), "position_embeddings", None)
    padding = getattr(positions, "padding_idx", None)
    return 0 if padding is None else padding + 1
