"""Stories of like length together: how they are cut into blocks, and padded.

Everything here takes stories that are sorted by length, with the lengths known on the CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor


def length_mask(lengths: Tensor, longest: int) -> Tensor:
    """Return True where a token is real ``[news, longest]``."""
    return torch.arange(longest, device=lengths.device) < lengths[:, None]


def runs(lengths: Tensor, budget: int) -> Iterator[slice]:
    """Cut sorted rows into as few runs as hold no more tokens than they should.

    Args:
        lengths: Ascending, on the CPU ``[rows]``.
        budget: Real tokens of a run at most (one row at least).
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
    """Pad joined states of stories that are sorted by length, some of like length at a time.

    Args:
        states: States of real tokens, all stories joined ``[tokens, hidden]``.
        lengths: Real tokens of each story, ascending, on the CPU ``[news]``.
        budget: Padded tokens of a block at most (one row at least).

    Yields:
        States of some stories ``[rows, longest, hidden]``, and True where a token is real
        ``[rows, longest]``.
    """
    blocks = list(blocks_by_length(lengths, budget, spare_tokens(states.device)))
    on_device = lengths.to(states.device, non_blocking=True)
    # One split() and not slices, each of which would add a whole gradient in the backward pass.
    parts = states.split([int(lengths[rows].sum()) for rows, _ in blocks])
    for (rows, longest), part in zip(blocks, parts, strict=True):
        own = on_device[rows]
        mask = length_mask(own, longest)
        if len(part) < mask.numel():
            # Behind a story's end its last token stands again, which the mask hides.
            places = torch.arange(longest, device=own.device).minimum(own[:, None] - 1)
            places += (own.cumsum(0) - own)[:, None]
            part = part.index_select(0, places.flatten())
        yield part.unflatten(0, mask.shape), mask


def blocks_by_length(lengths: Tensor, budget: int, spare: int) -> Iterator[tuple[slice, int]]:
    """Cut sorted rows into blocks of similar length, so that little padding is computed.

    Args:
        lengths: Ascending, on the CPU ``[rows]``.
        budget: Padded tokens of a block at most (one row at least).
        spare: Padding of a block at most: what it may waste to save another block.

    Yields:
        Rows of a block and its longest length.
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
    """Cut blocks as on a kind of device, wherever the tensors are: to estimate what it will do."""
    token = _as_on.set(device)
    try:
        yield
    finally:
        _as_on.reset(token)


def spare_tokens(device: torch.device) -> int:
    """Return how many tokens of padding cost about as much as one more pass through a model.

    A pass starts a few hundred operations and adds up the gradients of all weights.

    On a GPU, where the presets' PLMs need no padding, a pass is one of the encoder's stack over
    tokens: about 150 kernels (``fit --dry_run``), a millisecond to ask for. 4,096 tokens of padding
    take its half million weights a tenth of that at a quarter of an H100's peak, so few blocks win,
    though a third of the tokens be padding. A PLM that needs padding would rather have less.
    Reckoned, not measured.
    """
    return 64 if (_as_on.get() or device.type) == "cpu" else 4096
