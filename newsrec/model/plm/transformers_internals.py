"""Every touch of the insides of ``transformers`` and its reason; a test fails when one moves.

Read in transformers 5.23; ``pyproject.toml`` has the range.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

__all__ = ["eager_mask", "sdpa_attention_forward", "sdpa_mask"]
"""What ``sdpa`` and ``eager`` do; attention of our own does the same but for one thing."""

T = TypeVar("T")


def register_attention(
    name: str, attend: Callable[..., Any], mask: Callable[..., Tensor | None]
) -> None:
    """Make a kind of attention known under a name that a PLM's configuration may have.

    Args:
        name: The name.
        attend: Called by every layer of a family that asks ``transformers`` for its attention.
        mask: Makes the masks.
    """
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, mask)


def attention_of(plm: PreTrainedModel) -> str | None:
    """Return the kind of attention that a PLM computes with; the public setter checks its name."""
    return plm.config._attn_implementation


def set_attention(plm: PreTrainedModel, name: str | None) -> None:
    """Have a PLM compute with another kind of attention, from its next call on."""
    config: Any = plm.config
    config._attn_implementation = name


@torch.no_grad()
def try_attention(
    plm: PreTrainedModel, name: str, expect: Callable[[], T], works: Callable[[T], bool]
) -> bool:
    """Have a PLM compute with another kind of attention, if its states stay the same.

    Args:
        plm: The PLM; in evaluation mode and in full precision meanwhile.
        name: The kind of attention.
        expect: Runs the PLM before the change.
        works: Runs it after the change and tells whether it gives the same.

    Returns:
        Whether it does; if not, or if anything is raised, the PLM is as it was.
    """
    before, modes = attention_of(plm), [(m, m.training) for m in plm.modules()]
    plm.eval()
    same = False
    try:
        with torch.autocast(plm.device.type, enabled=False):
            expected = expect()
            set_attention(plm, name)
            same = works(expected)
    except Exception:  # whatever a family does when called in an unforeseen way
        same = False
    finally:
        for module, training in modes:
            module.training = training
        if not same:
            set_attention(plm, before)
    return same


def recompute_its_way(plm: PreTrainedModel) -> bool:
    """Have a PLM's layers run again in the backward pass, if its family can.

    Earlier versions have the method under its second name alone.
    """
    if not plm.supports_gradient_checkpointing:
        return False
    enable = getattr(plm, "activation_checkpointing_enable", plm.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
    return True


def first_position(plm: PreTrainedModel) -> int:
    """Return the position of a text's first token: RoBERTa counts from behind the padding's own."""
    positions = getattr(getattr(plm, "embeddings", None), "position_embeddings", None)
    padding = getattr(positions, "padding_idx", None)
    return 0 if padding is None else padding + 1
