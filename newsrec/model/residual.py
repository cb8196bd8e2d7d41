"""The residual path: the PLM's own sentence vectors, which bypass the encoders."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from newsrec.errors import UserError
from newsrec.model.sequences import Mask, last_element, masked_mean


class ResidualPath(nn.Module):
    """A news item's mean PLM state, scaled to length 1, centred, and cut to ``dim`` directions.

    Before ``fit`` is called, nothing is subtracted and the first ``dim`` directions are kept.
    ``hidden``, the size of a state, is at least ``dim``. With ``last_token`` the state of the last
    token takes the place of the mean.
    """

    centre: Tensor
    """Mean over news items of their scaled mean states ``[hidden]``."""
    projection: Tensor
    """Directions that are kept; the identity if all are kept ``[dim, hidden]``."""
    fitted: Tensor
    """Whether ``fit`` was called; stored with the model."""

    def __init__(self, hidden: int, dim: int, last_token: bool = False) -> None:
        super().__init__()
        self.last_token = last_token
        if dim > hidden:
            raise UserError(
                f"model.dim is {dim}, but the states of this PLM have {hidden} values, and the "
                f"residual path cannot widen them. Choose model.dim up to {hidden}, or set "
                f"model.residual to false."
            )
        self.register_buffer("centre", torch.zeros(hidden))
        self.register_buffer("projection", torch.eye(dim, hidden))
        self.register_buffer("fitted", torch.tensor(False))

    @torch.no_grad()
    def fit(self, means: Tensor) -> None:
        """Set the centre to the mean of some news, and keep the directions in which they vary most.

        Takes the mean PLM state of each news item ``[news, hidden]``.
        """
        scaled = F.normalize(means.cpu().double(), dim=1)  # on the CPU, since MPS has no float64
        centre = scaled.mean(dim=0)
        dim, hidden = self.projection.shape
        if dim < hidden:
            centred = scaled - centre
            # The leading right singular vectors, from a matrix of fixed size [hidden, hidden].
            _, directions = torch.linalg.eigh(centred.T @ centred)
            self.projection.copy_(directions.flip(1)[:, :dim].T.to(self.projection.dtype))
        self.centre.copy_(centre.to(self.centre.dtype))
        self.fitted.fill_(True)

    def forward(self, states: Tensor, mask: Mask) -> Tensor:
        """Return residual vectors ``[news, dim]``, in float32 or better.

        Takes the PLM's last states ``[news, tokens, hidden]`` and a mask that is True where a token
        is real; or joined states ``[tokens, hidden]``.
        """
        with torch.autocast(states.device.type, enabled=False):
            return self.of_means(pool_states(states.to(self.centre.dtype), mask, self.last_token))

    def of_means(self, means: Tensor) -> Tensor:
        """Return residual vectors ``[news, dim]``, from the mean of the last states of each."""
        return F.linear(F.normalize(means, dim=1) - self.centre, self.projection)


def pool_states(states: Tensor, mask: Mask, last_token: bool) -> Tensor:
    """Return the mean of each text's states, or the state of its last token ``[texts, hidden]``."""
    return last_element(states, mask) if last_token else masked_mean(states, mask)


OLD_NAME = "skip"
"""Name of the residual path and of its option in version 0.1."""


def renamed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's options with the old name replaced by the current one."""
    known = {OLD_NAME: "residual"} if "residual" not in options else {}
    return {known.get(name, name): value for name, value in options.items()}


def rename_weights(state: dict[str, Any], prefix: str) -> None:
    """Rename a news encoder's weights from version 0.1 to the current names, in place."""
    for name in [name for name in state if str(name).startswith(f"{prefix}{OLD_NAME}.")]:
        state[f"{prefix}residual.{name.removeprefix(f'{prefix}{OLD_NAME}.')}"] = state.pop(name)
