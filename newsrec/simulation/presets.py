"""How large a simulated world is, and the statistics of MIND that it follows.

Quantiles and shares are those of MIND's own files (means of MINDsmall and MINDlarge). Between two
quantiles a length grows geometrically, which meets MIND's means as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DAYS = {"train": (0, 6), "dev": (6, 7), "test": (7, 14)}
"""MIND's weeks: train on November 9 to 14, dev on the 15th, test on the 16th to 22nd."""
FIRST_BIRTHS = -1
"""Day of the first of ``Preset.daily_stories``: train's first morning has fresh news."""

CANDIDATE_QUANTILES = ((0, 2), (0.05, 2), (0.5, 24), (0.9, 93), (0.99, 160), (1, 283))
"""Share of the candidate lists that are no longer than this; the 99 % point meets the mean."""
HISTORY_QUANTILES = ((0, 1), (0.18, 5), (0.5, 18), (0.81, 50), (0.9, 76), (0.99, 201), (1, 425))
"""The same of the histories, empty ones apart, in worlds too small to follow MIND closely."""
MIND_HISTORY_QUANTILES = (
    (0.025, 1), (0.177, 5.5), (0.485, 17.5), (0.51, 18.5), (0.81, 49.5), (0.9, 75.5), (0.95, 114),
    (0.99, 201), (1, 425),
)  # fmt: skip
"""The same before rounding, with the empty ones, which are the first 2.5 %. The points around 50 %
keep the median at 18 in every split, the one at 95 % meets the mean."""
CLICK_SHARES = (0.724, 0.165, 0.059, 0.024, 0.006, 0.006, 0.006, 0.005, 0.005)
"""MIND's share of impressions with 1, 2, ... clicks; the last 2.8 % spread over 5 to 9."""
POPULARITY_QUANTILES = ((0, 0.0037), (0.9, 2.45), (0.99, 10.2), (1, 22.5))
"""How often stories are shown, the mean is 1: the top 1 % of MIND's take 16 % of the slots and the
top 10 % take 66 %, which is more even at the top than any log-normal."""


@dataclass(frozen=True)
class Preset:
    """Sizes of a world; tuples have an entry for each split: train, dev and, if any, test."""

    about: str
    """One line for ``--help``."""
    impressions: tuple[int, ...]
    users: tuple[int, ...]
    shared_users: tuple[float, ...]
    """Share of a split's users whom an earlier split has too."""
    empty_histories: tuple[float, ...]
    """Share of a split's new users who have clicked nothing before."""
    early_stories: int
    """Stories of the month before, which fill the histories."""
    daily_stories: tuple[int, ...]
    """Stories that appear on each day from the one before train."""
    rarely_read: int = 0
    """How many of the early stories have almost no readers, so that only a large split names all of
    them: MINDlarge's dev has 72,023 stories, its train 101,527."""
    median_life: float = 1.1
    """Days for which half of the stories are shown at least. 84.5 % of MIND's are seen for less
    than two days, many of them in part only, as a split begins or ends."""
    length_scale: float = 1.0
    """Histories and candidate lists, relative to MIND's."""
    like_mind: bool = True
    """Follow MIND where a small world cannot: categories, exposure, re-read stories, histories that
    keep their length when they grow, longer abstracts, distinct titles."""


PRESETS = {
    # An eighth of dev's users are in train, as in MIND-small.
    "demo": Preset(
        about="the committed data/demo: 1,000 stories, lists half as long as MIND's",
        impressions=(2000, 500, 500),
        users=(650, 340, 350),
        shared_users=(0, 0.12, 0.12),
        empty_histories=(0.03, 0.03, 0.03),
        early_stories=210,
        daily_stories=(55,) * 15,
        length_scale=0.5,
        like_mind=False,
    ),
    # Dev is large, so that a small difference between two models shows.
    "medium": Preset(
        about="to compare models: 3,000 stories, 8,000 impressions in train, 10,000 in dev",
        impressions=(8000, 10_000, 2000),
        users=(2600, 6800, 1400),
        shared_users=(0, 0.12, 0.12),
        empty_histories=(0.03, 0.03, 0.03),
        early_stories=640,
        daily_stories=(160,) * 15,
        length_scale=0.65,
        like_mind=False,
    ),
    # Stories a day were fitted to MIND's counts and shares of new stories, not observed. Of what
    # small's dev shows 71 % is new, so few stories are left of train's last day; of large's 32 %.
    "small": Preset(
        about="MINDsmall's sizes and statistics; like MINDsmall it has no test split",
        impressions=(156_965, 73_152),
        users=(50_000, 50_000),
        shared_users=(0, 5943 / 50_000),
        empty_histories=(0.021, 0.034),
        early_stories=32_000,
        daily_stories=(4800,) * 6 + (550, 10_300),
        median_life=1.45,
    ),
    "large": Preset(
        about="MINDlarge's sizes and statistics: 5 million impressions, 3 GB",
        impressions=(2_232_748, 376_471, 2_370_727),
        users=(711_222, 255_990, 702_005),
        # Some of test's returning users are from dev: 22 % are not in train.
        shared_users=(0, 0.85, 0.822),
        empty_histories=(0.021, 0.2, 0.067),
        early_stories=88_000,
        daily_stories=(6000,) * 6 + (9300, 4700) + (3250,) * 7,
        rarely_read=83_000,
        median_life=1.18,
    ),
}


def interpolate_quantiles(
    quantiles: Sequence[tuple[float, float]], shares: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the values below which the given shares lie, geometric between two quantiles.

    Args:
        quantiles: Share and value, both rising.
        shares: In 0..1 ``[values]``.
    """
    known, values = np.array(quantiles).T
    return np.exp(np.interp(shares, known, np.log(values)))
