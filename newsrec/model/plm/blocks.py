"""Cuts news into blocks of similar length, and pads each block.

Everything here takes news sorted by length, with the lengths on the CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

ALL = 1 << 62
"""More tokens than there are: one block."""


def length_mask(lengths: Tensor, longest: int) -> Tensor:
    """Return True where a token is real ``[news, longest]``."""
    return torch.arange(longest, device=lengths.device) < lengths[:, None]


def runs(lengths: Tensor, budget: int) -> Iterator[slice]:
    """Cut sorted rows into as few runs as possible of at most ``budget`` tokens, or of one row.

    Lengths ascend, on the CPU ``[rows]``.
    """
    start = total = 0
    for row, length in enumerate(lengths.tolist()):
        if row > start and total + length > budget:
            yield slice(start, row)
            start, total = row, 0
        total += length
    if len(lengths):
        yield slice(start, len(lengths))


def padded_blocks(states: Tensor, lengths: Tensor, budget: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pad joined states of news sorted by length, a block of similar length at a time.

    States are those of real tokens, all news items joined ``[tokens, hidden]``; lengths ascend, on
    the CPU ``[news]``. A block has at most ``budget`` padded tokens, or one row. Yields its states
    ``[rows, longest, hidden]``, and a mask that is True where a token is real ``[rows, longest]``.
    """
    blocks = list(blocks_by_length(lengths, budget, spare_tokens(states.device)))
    on_device = lengths.to(states.device, non_blocking=True)
    # One split(), because each slice would add a full-size gradient in the backward pass.
    parts = states.split([int(lengths[rows].sum()) for rows, _ in blocks])
    for (rows, longest), part in zip(blocks, parts, strict=True):
        own = on_device[rows]
        mask = length_mask(own, longest)
        if len(part) < mask.numel():
            # Padding repeats the last token of the news item; the mask hides it.
            places = torch.arange(longest, device=own.device).minimum(own[:, None] - 1)
            places += (own.cumsum(0) - own)[:, None]
            part = part.index_select(0, places.flatten())
        yield part.unflatten(0, mask.shape), mask


def blocks_by_length(lengths: Tensor, budget: int, spare: int) -> Iterator[tuple[slice, int]]:
    """Cut sorted rows into blocks of similar length; yield a block's rows and its longest length.

    Lengths ascend, on the CPU ``[rows]``. A block has at most ``budget`` padded tokens, or one row,
    and at most ``spare`` tokens of padding, which is worth one block less.
    """
    sizes = lengths.tolist()
    start = padding = 0
    for row, size in enumerate(sizes):
        more = (row - start) * (size - sizes[row - 1]) if row > start else 0
        if row > start and (size * (row + 1 - start) > budget or padding + more > spare):
            yield slice(start, row), sizes[row - 1]
            start, padding, more = row, 0, 0
        padding += more
    if sizes:
        yield slice(start, len(sizes)), sizes[-1]


_as_on: ContextVar[str | None] = ContextVar("_as_on", default=None)


@contextmanager
def blocks_as_on(device: str) -> Iterator[None]:
    """Cut blocks as on another kind of device, to estimate what that device will do."""
    token = _as_on.set(device)
    try:
        yield
    finally:
        _as_on.reset(token)


def tokens_per_pass(device: torch.device) -> int:
    """Return how many padded tokens go through a PLM at once.

    In training, all activations are kept anyway, and a GPU is faster with fewer, larger passes
    (docs/log.md, "On an H100"). The bound limits what scoring and recomputed activations take.
    """
    return 16_384 if _kind(device) == "cpu" else 65_536


def spare_tokens(device: torch.device) -> int:
    """Return how many tokens of padding cost about as much as one more pass through a model.

    A pass launches a few hundred operations and adds up the gradients of all weights. On a GPU the
    presets' PLMs need no padding, so a pass is one run of the encoder's stack over tokens. An H100
    waits for the host, which launches that run, so few blocks are faster even with much padding
    (docs/log.md, "On an H100").
    """
    return 64 if _kind(device) == "cpu" else 16_384


def runs_on_cpu(device: torch.device) -> bool:
    """Return whether this is a CPU, where joined elements and our own dropout are faster.

    On a GPU, sums over joined elements would be added up in another order in each run, and a step
    waits for the host, which launches the kernels: padded blocks need fewer of them.
    """
    return _kind(device) == "cpu"


def _kind(device: torch.device) -> str:
    return _as_on.get() or device.type
