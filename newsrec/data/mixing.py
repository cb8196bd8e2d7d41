"""Numbers that look random but depend only on the input."""

import numpy as np
from numpy.typing import NDArray


def mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply SplitMix64's finalizer to each number (Steele, Lea and Flood, OOPSLA 2014)."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
