"""Attention masks for padded news, built without reading values back from the GPU.

``transformers`` (read in 5.23) omits the mask if nothing is padded. To find out, it evaluates
``padding_mask.all()`` for every block of news, which waits for the GPU. We know the lengths on the
CPU, so the caller of the PLM says whether anything is padded.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from newsrec.model.plm import transformers_internals as internals

PADDED = {"sdpa": "newsrec_padded", "eager": "newsrec_padded_eager"}
"""Names under which these masks are registered with ``transformers``, by kind of attention."""
_NOTHING_PADDED: ContextVar[bool] = ContextVar("nothing_padded", default=False)


@contextmanager
def nothing_padded(whether: bool) -> Iterator[None]:
    """Declare whether all tokens are real, for PLM calls inside this context."""
    token = _NOTHING_PADDED.set(whether)
    try:
        yield
    finally:
        _NOTHING_PADDED.reset(token)


def _unless_unpadded(make: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
    """Wrap a function that makes masks: ``nothing_padded`` decides whether a mask is needed."""

    def mask(*args: Any, allow_is_bidirectional_skip: bool = False, **kwargs: Any) -> Tensor | None:
        local, length = kwargs.get("local_size"), kwargs["kv_length"]
        whole = local is None or length < local
        if allow_is_bidirectional_skip and whole and _NOTHING_PADDED.get():
            return None
        return make(*args, allow_is_bidirectional_skip=False, **kwargs)

    return mask


def _own_attention(*args: Any, **kwargs: Any) -> None:
    raise NotImplementedError("the attention of a family that asks transformers for one")


internals.register_attention(
    PADDED["sdpa"], internals.sdpa_attention_forward, _unless_unpadded(internals.sdpa_mask)
)
internals.register_attention(
    PADDED["eager"], _own_attention, _unless_unpadded(internals.eager_mask)
)


def mask_by_padding(plm: PreTrainedModel) -> bool:
    """Switch a PLM to masks that depend on ``nothing_padded``; return if its states stay the same.

    If not, the PLM is unchanged. Families that make masks in their own way (DeBERTa, XLM) are not
    affected either way.
    """
    before = internals.attention_of(plm)
    if before not in PADDED:
        return before in PADDED.values()
    ids = torch.arange(5, 17, device=plm.device).reshape(2, 6) % plm.config.vocab_size
    masks = [torch.ones_like(ids), torch.ones_like(ids)]
    masks[1][0, 3:] = 0

    def states(mask: Tensor) -> Tensor:
        with nothing_padded(mask is masks[0]):
            return plm(input_ids=ids, attention_mask=mask)[0]

    def same(expected: list[Tensor]) -> bool:
        pairs = zip(masks, expected, strict=True)
        return all(torch.allclose(states(m)[m.bool()], e[m.bool()], 1e-3, 1e-4) for m, e in pairs)

    return internals.try_attention(
        plm, PADDED[before], lambda: [states(mask) for mask in masks], same
    )


def run_plm(plm: PreTrainedModel, token_ids: Tensor, mask: Tensor) -> Tensor:
    """Return a PLM's last states ``[news, tokens, hidden]``; tokens and mask ``[news, tokens]``."""
    return plm(input_ids=token_ids.long(), attention_mask=mask.long())[0]
