"""Stories through a PLM without padding: their tokens are joined, and attention keeps them apart.

Linear maps and norms look at one token at a time, so only attention has to know where a story ends.
Stories are sorted by length, and those of one length are one call of PyTorch's attention, without
a mask. A GPU is never waited for: lengths are known on the CPU.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from newsrec.model.plm.transformers_internals import (
    attention_of,
    first_position,
    register_attention,
    sdpa_attention_forward,
    sdpa_mask,
    try_attention,
)

ATTENTION = "newsrec_packed"
"""Name under which ``transformers`` knows ``attend``."""
NOT_PACKED = ("position_bias", "sliding_window", "softcap")
"""What attention may be asked for besides, which would need to know of stories, too."""


class Groups:
    """Number of stories and their length, for each length that occurs.

    Not a list: ``torch.compile`` looks into one, and would compile anew for nearly every batch.

    Args:
        pairs: Number and length, lengths ascending.
    """

    def __init__(self, pairs: list[tuple[int, int]]) -> None:
        self.pairs = pairs


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    groups: Groups | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend within each story; without ``groups``, do what ``sdpa`` does.

    Args:
        module: The layer that asks.
        query: Of all tokens, joined ``[1, heads, tokens, dim / heads]``.
        key: Likewise.
        value: Likewise.
        attention_mask: None where tokens are joined.
        dropout: Share of attention weights dropped.
        scaling: Factor of the products.
        groups: Stories by length; their tokens are joined in this order.
        **kwargs: Whatever else the PLM's family hands on.

    Returns:
        Mixed values ``[1, tokens, heads, dim / heads]``, and no weights.
    """
    if groups is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
    if attention_mask is not None or any(kwargs.get(name) is not None for name in NOT_PACKED):
        raise NotImplementedError("attention that looks further than at a story's tokens")
    return _attend_within(query, key, value, dropout, scaling, groups), None


@torch.compiler.disable  # type: ignore[untyped-decorator]  # else compiled group by group
def _attend_within(
    query: Tensor, key: Tensor, value: Tensor, dropout: float, scale: float | None, groups: Groups
) -> Tensor:
    sizes = [stories * length for stories, length in groups.pairs]
    mixed = []
    # split() and not slices, each of which would add a whole gradient in the backward pass.
    parts = zip(*(x[0].split(sizes, dim=1) for x in (query, key, value)), strict=True)
    for (stories, length), part in zip(groups.pairs, parts, strict=True):
        # each [stories, heads, length, dim / heads]
        q, k, v = (x.unflatten(1, (stories, length)).transpose(0, 1) for x in part)
        own = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scale)
        mixed.append(own.transpose(1, 2).flatten(0, 1))
    return torch.cat(mixed)[None]


register_attention(ATTENTION, attend, sdpa_mask)


def groups_of(lengths: Tensor) -> Groups:
    """Return stories by length.

    Args:
        lengths: Ascending, on the CPU ``[news]``.
    """
    values, counts = lengths.unique_consecutive(return_counts=True)
    return Groups(list(zip(counts.tolist(), values.tolist(), strict=True)))


def join(padded: Tensor, groups: Groups) -> Tensor:
    """Return what is real of padded rows, joined ``[tokens]``.

    Args:
        padded: One row for each story ``[news, longest]``.
        groups: Stories by length.
    """
    parts = padded.split([stories for stories, _ in groups.pairs])
    return torch.cat(
        [p[:, :length].flatten() for p, (_, length) in zip(parts, groups.pairs, strict=True)]
    )


def run_packed(plm: PreTrainedModel, token_ids: Tensor, groups: Groups) -> Tensor:
    """Run a PLM that ``pack`` has changed.

    Args:
        plm: The PLM.
        token_ids: Real tokens, all stories joined ``[tokens]``.
        groups: Stories by length.

    Returns:
        Last states ``[tokens, hidden]``.
    """
    stories = sum(number for number, _ in groups.pairs)
    longest = max(length for _, length in groups.pairs)
    positions = torch.arange(longest, device=token_ids.device) + first_position(plm)
    return plm(
        input_ids=token_ids.long()[None],
        position_ids=join(positions.expand(stories, -1), groups)[None],
        groups=groups,
    )[0][0]


def pack(plm: PreTrainedModel) -> bool:
    """Have a PLM's attention keep joined stories apart, if it can.

    Returns:
        Whether joined stories then have the states that each has alone; if not, the PLM is as it
        was. In some families positions are those of a whole sequence (DeBERTa, MPNet), or layers
        look at neighbours alone (ModernBERT).
    """
    if attention_of(plm) not in ("sdpa", ATTENTION):
        return False
    groups = Groups([(2, 2), (1, 5)])
    # Not the first few: in RoBERTa a token that is padding's own has no position.
    ids = torch.arange(5, 14, device=plm.device) % plm.config.vocab_size
    alone = [ids[None, a:b] for a, b in ((0, 2), (2, 4), (4, 9))]

    def apart() -> Tensor:
        return torch.cat([plm(input_ids=x, attention_mask=torch.ones_like(x))[0][0] for x in alone])

    def same(expected: Tensor) -> bool:
        joined = run_packed(plm, ids, groups)
        margin = max(1e-4, torch.finfo(joined.dtype).eps ** 0.5 / 2)
        return torch.allclose(joined, expected, 1e-3, margin)

    return try_attention(plm, ATTENTION, apart, same)
