"""MIND's metrics over batches and processes."""

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from newsrec.metrics import METRICS, impression_metrics

BITS = 40
UNIT = 2.0**-BITS
"""Fixed-point step: fractions of sums are integers in this unit, 9e-13."""


class MindMetric(Metric):
    """Sums and counts of MIND's metrics, so that the result is the same on any number of GPUs.

    ``update`` takes the arguments of ``mind_metrics``; ``compute`` returns the mean of each metric.
    The sums are a whole number and a fraction, an integer in ``UNIT``: float32 would lose digits,
    MPS has no float64, and one integer in ``UNIT`` would overflow after 8 million impressions.
    """

    full_state_update = False
    whole: Tensor
    fraction: Tensor
    evaluated: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("whole", "fraction"):
            self.add_state(name, torch.zeros(len(METRICS), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("evaluated", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, labels: Tensor, offsets: Tensor) -> None:
        """Add the impressions of one batch; scores and labels are ``[candidates]``."""
        result = impression_metrics(scores, labels, offsets)
        sums = np.rint(result.values[:, result.valid].sum(axis=1) / UNIT).astype(np.int64)
        self.fraction += torch.from_numpy(sums).to(self.fraction.device)
        self.whole += self.fraction >> BITS
        self.fraction &= (1 << BITS) - 1
        self.evaluated += int(result.valid.sum())

    def compute(self) -> dict[str, Tensor]:
        """Return the mean of each metric over all impressions seen; NaN if there were none."""
        sums = self.whole.cpu().double() + self.fraction.cpu().double() * UNIT
        means = sums / self.evaluated.cpu()
        means = means.to(torch.float32 if self.device.type == "mps" else torch.float64)
        return dict(zip(METRICS, means.to(self.device).unbind(), strict=True))
