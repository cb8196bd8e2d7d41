"""States of a frozen PLM: constants, so they are computed once and kept."""

import torch
from torch import Tensor


class TokenStates:
    """The PLM's last states of every story's real tokens, in memory.

    A frozen PLM runs without dropout, so training on these states gives the loss of training
    through the PLM, without its cost.

    Args:
        lengths: Tokens of each story, on the CPU ``[news]``.
        first: Lowest row with the same tokens; only such rows are stored ``[news]``.
        hidden: Size of a state.
    """

    def __init__(self, lengths: Tensor, first: Tensor, hidden: int) -> None:
        self.first = first
        self.lengths = lengths.masked_fill(first != torch.arange(len(first)), 0)
        self.starts = self.lengths.cumsum(0) - self.lengths
        self.values = torch.zeros(int(self.lengths.sum()), hidden)

    def put(self, rows: Tensor, states: Tensor) -> None:
        """Store the states of some stories.

        Args:
            rows: Catalogue rows, each its own ``first`` ``[rows]``.
            states: Their states, padded behind ``[rows, tokens, hidden]``.
        """
        real = torch.arange(states.shape[1]) < self.lengths[rows, None]
        self.values[self._positions(rows, states.shape[1])[real]] = states.cpu().float()[real]

    def take(self, rows: Tensor) -> Tensor:
        """Return some stories' states ``[rows, longest, hidden]``; zeros behind each's end."""
        rows = self.first[rows]
        longest = int(self.lengths[rows].max()) if len(rows) else 0
        real = torch.arange(longest) < self.lengths[rows, None]
        positions = self._positions(rows, longest).masked_fill_(~real, 0)
        return self.values[positions].mul_(real[..., None])

    def _positions(self, rows: Tensor, longest: int) -> Tensor:
        return self.starts[rows, None] + torch.arange(longest)
