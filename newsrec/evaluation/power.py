"""What a split can show: the smallest detectable difference, and tests of equivalence.

All use the standard error of a paired difference, clustered by user, and Student's t with one
degree of freedom less than there are users. They cover the choice of users, not the training seed.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from newsrec.evaluation.seeds import clustered_error

LEVEL = 0.05
POWER = 0.8
MARGIN = 0.005
"""Default margin: differences up to it count as none."""


def detectable(error: float, users: int) -> float:
    """Return the true difference that a two-sided test at ``LEVEL`` finds with chance ``POWER``.

    Args:
        error: Standard error of the difference.
        users: Number of users.
    """
    reach = stdtrit(users - 1, 1 - LEVEL / 2) + stdtrit(users - 1, POWER)
    return float(reach) * error


def equivalence_p(difference: float, error: float, users: int, margin: float) -> float:
    """Return p of the hypothesis that the true difference is ``margin`` or more in size.

    It is the larger p of two one-sided tests (TOST, Schuirmann 1987). Below ``LEVEL``, the two are
    equal within the margin; above it, the data do not show this.
    """
    room = margin - abs(difference)
    if error == 0:
        return 0.0 if room > 0 else 1.0
    return float(stdtr(users - 1, -room / error))


def power_of(
    difference: NDArray[np.float64], users: NDArray[np.integer], margin: float = MARGIN
) -> dict[str, Any]:
    """Return ``detectable`` and ``p_equivalent`` of paired differences ``[impressions]``.

    Both are None if all impressions are of one user.
    """
    error, number = clustered_error(difference, users), len(np.unique(users))
    if math.isnan(error):
        return {"detectable": None, "p_equivalent": None}
    mean = float(difference.mean())
    return {
        "detectable": detectable(error, number),
        "p_equivalent": equivalence_p(mean, error, number, margin),
    }
