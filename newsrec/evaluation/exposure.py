"""Metrics of all lists of a split together: in how many lists each news item is.

To add such a metric, add a function and a line in ``OVER_ALL``.

Sources: Ge et al., RecSys 2010 (coverage); Gini 1912.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


def coverage(exposure: NDArray[np.integer]) -> float:
    """Share of the news shown in any impression that are in at least one list (Ge et al. 2010).

    Args:
        exposure: In how many lists each news item is ``[shown news]``.
    """
    return float(np.mean(exposure > 0))


def gini(exposure: NDArray[np.integer]) -> float:
    """Gini coefficient of exposure: 0 if all news is in equally many lists, 1 if few fill them.

    Args:
        exposure: In how many lists each news item is ``[shown news]``.
    """
    sizes, number = np.sort(exposure), len(exposure)
    weights = 2 * np.arange(1, number + 1) - number - 1
    return float((weights * sizes).sum() / (number * max(1, sizes.sum())))


class Whole(NamedTuple):
    """One line of ``OVER_ALL``."""

    heading: str
    of: Callable[[NDArray[np.integer]], float]
    """Computes the metric of all lists from the exposure of the shown news."""
    better: int
    """As in ``Aspect``."""


OVER_ALL: dict[str, Whole] = {
    "coverage": Whole("coverage", coverage, 1),
    "gini": Whole("Gini of exposure", gini, -1),
}
"""Metrics of all lists of a split together."""
