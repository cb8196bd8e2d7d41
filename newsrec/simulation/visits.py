"""Draws who visits when, with how long a list and how many clicks; as in MIND."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from newsrec.simulation.presets import CANDIDATE_QUANTILES, CLICK_SHARES, Preset
from newsrec.simulation.world import draw_lengths


class Visits(NamedTuple):
    """Impressions without news yet, in order of time."""

    user: NDArray[np.int64]
    """Row of each impression's user in the tastes ``[impressions]``."""
    day: NDArray[np.float64]
    """Time in days since the beginning of train ``[impressions]``."""
    lengths: NDArray[np.int64]
    """Length of each list, if so many news items are fresh ``[impressions]``."""
    clicks: NDArray[np.int64]
    """Number of clicks, if the list is long enough ``[impressions]``."""

    def part(self, rows: slice) -> "Visits":
        """Return some of the impressions."""
        return Visits(self.user[rows], self.day[rows], self.lengths[rows], self.clicks[rows])


def draw_visits(
    rng: np.random.Generator,
    sizes: Preset,
    users: NDArray[np.int64],
    days: tuple[int, int],
    num_impressions: int,
) -> Visits:
    """Draw who comes when, and the lengths and numbers of clicks of the lists.

    Args:
        rng: Random number generator.
        sizes: The preset.
        users: Rows of the split's users.
        days: First day of the split, and the day after its last.
        num_impressions: Number of impressions.
    """
    # Every user has at least one impression, if there are enough.
    activity = np.cumsum(np.exp(rng.normal(0, 0.8, len(users))))
    more = rng.random(max(num_impressions - len(users), 0)) * activity[-1]
    user = np.concatenate([users, users[np.searchsorted(activity, more)]])[:num_impressions]
    user = rng.permutation(user)
    hour = rng.triangular(0, 14, 24, num_impressions)
    day = np.sort(rng.integers(days[0], days[1], num_impressions) + hour / 24)
    lengths = draw_lengths(rng, sizes, CANDIDATE_QUANTILES, num_impressions, 2)
    clicks = 1 + np.searchsorted(np.cumsum(CLICK_SHARES[:-1]), rng.random(num_impressions))
    # Longer lists get more clicks: short lists would limit the clicks to fewer than MIND's mean.
    by_length = np.argsort(np.log(lengths) + rng.normal(size=num_impressions))
    clicks[by_length] = np.sort(clicks)
    return Visits(user, day, lengths, clicks)
