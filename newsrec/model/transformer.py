"""Softmax self-attention, for comparison with Fastformer inside the same layer."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from newsrec.errors import UserError
from newsrec.model.sequences import Joined, Mask


class SoftmaxAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al., arXiv 1706.03762) up to its output projection.

    Takes the place of ``AdditiveAttention`` in a layer; its cost grows with the square of the
    length. As with ``AdditiveAttention``, dropout applies to the layer's output, not to the
    attention weights.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise UserError(f"heads is {heads}, which does not divide dim, {dim}.")
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Mask) -> Tensor:
        """Mix sequences ``[batch, length, dim]`` or joined ones; see ``AdditiveAttention``."""
        parts = [project(x) for project in (self.query, self.key, self.value)]
        if isinstance(mask, Joined):
            return self._mix_joined(parts, mask)
        # A softmax over nothing is NaN on some backends, so a row of padding attends to all of it.
        attended = mask | ~mask.any(dim=1, keepdim=True)
        return self._mix(parts, attended[:, None, None, :])

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # or each length would be compiled
    def _mix_joined(self, parts: list[Tensor], mask: Joined) -> Tensor:
        """Mix consecutive sequences of equal length in one call, which needs no mask."""
        lengths, counts = mask.lengths.unique_consecutive(return_counts=True)
        shapes = list(zip(counts.tolist(), lengths.tolist(), strict=True))
        sizes = [count * length for count, length in shapes]
        groups = zip(*(part.split(sizes) for part in parts), strict=True)
        mixed = [
            self._mix([x.unflatten(0, shape) for x in group]).flatten(0, 1)
            for group, shape in zip(groups, shapes, strict=True)
        ]
        return torch.cat(mixed) if mixed else parts[0]

    def _mix(self, parts: list[Tensor], attended: Tensor | None = None) -> Tensor:
        """Mix by queries, keys and values, each ``[batch, length, dim]``."""
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, attended)
        return mixed.transpose(1, 2).flatten(2)
