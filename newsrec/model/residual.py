"""The skip path: the PLM's own sentence vectors, past everything that is trained from nothing."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from newsrec.errors import UserError
from newsrec.model.fastformer import masked_mean


class SkipPath(nn.Module):
    """A story's mean PLM state, scaled to length 1, centred, and cut to ``dim`` directions.

    Until ``fit`` has seen the stories, nothing is subtracted and the first directions are kept.

    Args:
        hidden: Size of a PLM state.
        dim: Size of a news vector.

    Raises:
        UserError: If ``dim`` is larger than ``hidden``.
    """

    centre: Tensor
    """Mean of the stories' scaled means ``[hidden]``."""
    projection: Tensor
    """Directions that are kept; the identity where that is all of them ``[dim, hidden]``."""
    fitted: Tensor
    """Whether ``fit`` was called; stored with a model."""

    def __init__(self, hidden: int, dim: int) -> None:
        super().__init__()
        if dim > hidden:
            raise UserError(
                f"model.dim is {dim}, but the states of this PLM have {hidden} values, and the "
                f"skip path cannot widen them. Choose model.dim up to {hidden}, or set model.skip "
                f"to false."
            )
        self.register_buffer("centre", torch.zeros(hidden))
        self.register_buffer("projection", torch.eye(dim, hidden))
        self.register_buffer("fitted", torch.tensor(False))

    @torch.no_grad()
    def fit(self, means: Tensor) -> None:
        """Centre on some stories, and keep the directions in which they differ most.

        Args:
            means: Each story's mean PLM state ``[stories, hidden]``.
        """
        scaled = F.normalize(
            means.cpu().double(), dim=1
        )  # not where it came from: MPS has no float64
        centre = scaled.mean(dim=0)
        dim, hidden = self.projection.shape
        if dim < hidden:
            centred = scaled - centre
            # The leading right singular vectors, from a matrix that does not grow with the stories.
            _, directions = torch.linalg.eigh(centred.T @ centred)
            self.projection.copy_(directions.flip(1)[:, :dim].T.to(self.projection.dtype))
        self.centre.copy_(centre.to(self.centre.dtype))
        self.fitted.fill_(True)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Return skip vectors, in float32 or better.

        Args:
            states: The PLM's last states ``[news, tokens, hidden]``.
            mask: True where a token is real ``[news, tokens]``.

        Returns:
            ``[news, dim]``.
        """
        with torch.autocast(states.device.type, enabled=False):
            mean = masked_mean(states.to(self.centre.dtype), mask)
            return F.linear(F.normalize(mean, dim=1) - self.centre, self.projection)
