"""Joins tensors of all processes so that gradients flow back to each of them."""

from typing import Any

import torch
from torch import Tensor, distributed


def gather(x: Tensor) -> Tensor:
    """Return the tensors of all processes joined, in order of rank ``[processes * rows, ...]``.

    The gradient of a process's own rows is the sum of what all processes' losses give them. DDP's
    mean over processes is then the gradient of the mean loss, as on one process with all rows.
    Without several processes this returns ``x``.

    Args:
        x: Rows, equally many on each process ``[rows, ...]``.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return x
    joined: Tensor = _Gather.apply(x)
    return joined


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        rows = len(total) // distributed.get_world_size()
        return total[distributed.get_rank() * rows :][:rows]
