"""Softmax self-attention, for comparison with Fastformer inside the same layer."""

from torch import Tensor, nn
from torch.nn import functional as F

from newsrec.errors import UserError


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

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Mix sequences ``[batch, length, dim]``; see ``AdditiveAttention``."""
        query, key, value = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )  # each [batch, heads, length, dim / heads]
        # A softmax over nothing is NaN on some backends, so a row of padding attends to all of it.
        attended = mask | ~mask.any(dim=1, keepdim=True)
        mixed = F.scaled_dot_product_attention(query, key, value, attended[:, None, None, :])
        return mixed.transpose(1, 2).flatten(2)
