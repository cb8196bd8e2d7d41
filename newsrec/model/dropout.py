"""Dropout that takes little time on a CPU."""

import torch
from torch import Tensor, nn

from newsrec.model.plm.blocks import runs_on_cpu

BITS = 16
"""Random bits for each value: the share that is dropped is a multiple of ``2 ** -BITS``."""


class Dropout(nn.Dropout):
    """``nn.Dropout`` that draws its random numbers faster on a CPU.

    PyTorch's kernel takes about 10 ns for each value there, as long as 100 multiplications and
    additions of a matrix product. Here 64 random bits decide about four values.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the same shape, part of it zeros in training."""
        if not self.training or not self.p or not runs_on_cpu(x.device):
            return super().forward(x)
        return x * kept(x, self.p)


def kept(x: Tensor, share: float) -> Tensor:
    """Return a random factor for each value: 0 for a share of them, a constant for the rest."""
    dropped = min(round(share * 2**BITS), 2**BITS - 1)
    words = torch.empty(-(-x.numel() * BITS // 64), dtype=torch.int64, device=x.device)
    bits = words.random_(-(2**63), None).view(torch.int16)[: x.numel()].view(x.shape)
    factor = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    torch.ge(bits, dropped - 2 ** (BITS - 1), out=factor)
    return factor.mul_(2**BITS / (2**BITS - dropped))
