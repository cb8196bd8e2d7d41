"""Runs news through a PLM without padding: tokens are joined, and attention stays within each item.

Linear maps and norms look at one token at a time, so only attention has to know where a news item
ends. On a GPU, in half precision, FlashAttention does that for all news in one call. Elsewhere,
news items of equal length share one call of PyTorch's attention, without a mask; they are sorted by
length. The CPU knows the lengths, so it never waits for the GPU.
"""

from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from newsrec.model.plm import transformers_internals as internals

ATTENTION = "newsrec_packed"
"""Name under which ``attend`` is registered with ``transformers``."""
FLASH = torch.ops.aten._flash_attention_forward
"""FlashAttention over joined sequences. Private: the public ``varlen_attn`` has no dropout."""
_JOINED: ContextVar[bool] = ContextVar("joined", default=False)
NOT_PACKED = ("position_bias", "sliding_window", "softcap")
"""Options of attention that joined news do not support."""


class Groups:
    """Pairs of a number of news items and their length, by ascending length.

    A class, because ``torch.compile`` looks into a list and would recompile for nearly every batch.
    """

    def __init__(self, pairs: list[tuple[int, int]]) -> None:
        self.pairs = pairs
        self._starts: Tensor | None = None

    @property
    def longest(self) -> int:
        """Most tokens of a news item."""
        return max(length for _, length in self.pairs)

    def starts(self, device: torch.device) -> Tensor:
        """Return where each news item's tokens begin, and the end, in int32 ``[news + 1]``."""
        if self._starts is None:
            counts, lengths = torch.tensor(self.pairs).unbind(1)
            starts = F.pad(lengths.repeat_interleave(counts).cumsum(0), (1, 0)).int()
            if device.type == "cuda":  # else the CPU would wait for the copy
                starts = starts.pin_memory()
            self._starts = starts.to(device, non_blocking=True)
        return self._starts


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
    """Attend within each news item; without ``groups``, do what ``sdpa`` does.

    In a decoder a token attends to those before it, and several heads may share keys and values.
    Queries, keys and values are those of all tokens, joined in the order of ``groups`` ``[1, heads,
    tokens, dim / heads]``; there is then no mask. Returns mixed values ``[1, tokens, heads, dim /
    heads]``, and None for the weights.
    """
    if groups is None:
        return internals.sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
    if attention_mask is not None or any(kwargs.get(name) is not None for name in NOT_PACKED):
        raise NotImplementedError("attention with a mask, or beyond one news item's tokens")
    causal = bool(getattr(module, "is_causal", False))
    shared = getattr(module, "num_key_value_groups", 1)
    if shared > 1:
        key, value = (x.repeat_interleave(shared, dim=1) for x in (key, value))
    return _attend_within(query, key, value, dropout, scaling, groups, causal), None


@torch.compiler.disable  # type: ignore[untyped-decorator]  # or each group would be compiled
def _attend_within(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float,
    scale: float | None,
    groups: Groups,
    causal: bool = False,
) -> Tensor:
    if query.is_cuda and _flash_takes(query, key, value, dropout):
        return in_one_call(query, key, value, dropout, scale, groups, causal)
    sizes = [news * length for news, length in groups.pairs]
    mixed = []
    # split(), because each slice would add a full-size gradient in the backward pass.
    parts = zip(*(x[0].split(sizes, dim=1) for x in (query, key, value)), strict=True)
    for (news, length), part in zip(groups.pairs, parts, strict=True):
        # each [news, heads, length, dim / heads]
        q, k, v = (x.unflatten(1, (news, length)).transpose(0, 1) for x in part)
        own = F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=causal, scale=scale
        )
        mixed.append(own.transpose(1, 2).flatten(0, 1))
    return torch.cat(mixed)[None]


def _flash_takes(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> bool:
    """Return whether FlashAttention runs here, and the user has not switched it off."""
    asked = torch.backends.cuda.SDPAParams(query, key, value, None, dropout, False, False)
    return query.shape[-1] % 8 == 0 and torch.backends.cuda.can_use_flash_attention(asked)


def in_one_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float,
    scale: float | None,
    groups: Groups,
    causal: bool = False,
) -> Tensor:
    """Attend within each news item by FlashAttention; arguments and result as in ``attend``."""
    joined = (x[0].transpose(0, 1) for x in (query, key, value))  # [tokens, heads, dim / heads]
    starts, longest = groups.starts(query.device), groups.longest
    rules = dropout, causal, False  # no dropout mask returned
    mixed: Tensor = FLASH(*joined, starts, starts, longest, longest, *rules, scale=scale)[0]
    return mixed[None]


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """Return no mask for joined news, for which a decoder would ask for one over all tokens."""
    return None if _JOINED.get() else internals.sdpa_mask(*args, **kwargs)


internals.register_attention(ATTENTION, attend, _mask)


def groups_of(lengths: Tensor) -> Groups:
    """Group news items by length; lengths ascend, on the CPU ``[news]``."""
    values, counts = lengths.unique_consecutive(return_counts=True)
    return Groups(list(zip(counts.tolist(), values.tolist(), strict=True)))


def join(padded: Tensor, groups: Groups) -> Tensor:
    """Join the real tokens of padded rows ``[news, longest]`` to ``[tokens]``."""
    parts = padded.split([news for news, _ in groups.pairs])
    return torch.cat(
        [p[:, :length].flatten() for p, (_, length) in zip(parts, groups.pairs, strict=True)]
    )


def run_packed(plm: PreTrainedModel, token_ids: Tensor, groups: Groups) -> Tensor:
    """Run a PLM that ``pack`` changed on joined ``[tokens]``; last states ``[tokens, hidden]``."""
    news = sum(number for number, _ in groups.pairs)
    positions = torch.arange(groups.longest, device=token_ids.device) + internals.first_position(
        plm
    )
    token = _JOINED.set(True)
    try:
        return plm(
            input_ids=token_ids.long()[None],
            position_ids=join(positions.expand(news, -1), groups)[None],
            groups=groups,
        )[0][0]
    finally:
        _JOINED.reset(token)


def pack(plm: PreTrainedModel) -> bool:
    """Switch a PLM to attention within each news item; return whether its states stay the same.

    If not, it is unchanged. Some families cannot: they compute positions over the whole sequence
    (DeBERTa, MPNet), or use local attention (ModernBERT).
    """
    if internals.attention_of(plm) not in ("sdpa", ATTENTION):
        return False
    groups = Groups([(2, 2), (1, 5)])
    # Not the first few ids: one is the padding token, which has no position in RoBERTa.
    ids = torch.arange(5, 14, device=plm.device) % plm.config.vocab_size
    alone = [ids[None, a:b] for a, b in ((0, 2), (2, 4), (4, 9))]

    def apart() -> Tensor:
        return torch.cat([plm(input_ids=x, attention_mask=torch.ones_like(x))[0][0] for x in alone])

    def same(expected: Tensor) -> bool:
        joined = run_packed(plm, ids, groups)
        margin = max(1e-4, torch.finfo(joined.dtype).eps ** 0.5 / 2)
        return torch.allclose(joined, expected, 1e-3, margin)

    return internals.try_attention(plm, ATTENTION, apart, same)
