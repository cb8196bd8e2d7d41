"""Sizes of simulated worlds, and the statistics of MIND that they follow.

Quantiles and shares come from MIND's files (means of MINDsmall and MINDlarge). Between two
quantiles, lengths are interpolated geometrically, which also gives MIND's means.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DAYS = {"train": (0, 6), "dev": (6, 7), "test": (7, 14)}
"""First day of each split and the day after its last, counted from November 9 as in MIND: train is
on November 9 to 14, dev on the 15th, test on the 16th to 22nd."""
FIRST_BIRTHS = -1
"""Day of the first of ``Preset.daily_news``: with -1, train's first morning has fresh news."""

CANDIDATE_QUANTILES = ((0, 2), (0.05, 2), (0.5, 24), (0.9, 93), (0.99, 160), (1, 283))
"""Pairs of a share and the length that this share of the candidate lists does not exceed. The point
at 99 % was set to give MIND's mean."""
HISTORY_QUANTILES = ((0, 1), (0.18, 5), (0.5, 18), (0.81, 50), (0.9, 76), (0.99, 201), (1, 425))
"""The same for histories that are not empty, in worlds too small to follow MIND closely."""
MIND_HISTORY_QUANTILES = (
    (0.025, 1), (0.177, 5.5), (0.485, 17.5), (0.51, 18.5), (0.81, 49.5), (0.9, 75.5), (0.95, 114),
    (0.99, 201), (1, 425),
)  # fmt: skip
"""The same for all histories, before rounding; the first 2.5 % are empty. The points around 50 %
keep the median at 18 in every split; the point at 95 % was set to give MIND's mean."""
CLICK_SHARES = (0.724, 0.165, 0.059, 0.024, 0.006, 0.006, 0.006, 0.005, 0.005)
"""MIND's share of impressions with 1, 2, ... clicks; its last 2.8 % are spread over 5 to 9."""
POPULARITY_QUANTILES = ((0, 0.0037), (0.9, 2.45), (0.99, 10.2), (1, 22.5))
"""Quantiles of how often a news item is shown, relative to the mean. In MIND the top 1 % of the
news take 16 % of the slots and the top 10 % take 66 %; no log-normal is so even at the top."""


@dataclass(frozen=True)
class Preset:
    """Sizes of a world; unless noted, tuples have an entry per split: train, dev and maybe test."""

    about: str
    """One line for ``--help``."""
    impressions: tuple[int, ...]
    users: tuple[int, ...]
    shared_users: tuple[float, ...]
    """Share of a split's users who are also in an earlier split."""
    empty_histories: tuple[float, ...]
    """Share of a split's new users whose history is empty."""
    early_news: int
    """Number of news from the month before train; histories are drawn from them."""
    daily_news: tuple[int, ...]
    """Number of news that appear on each day, starting on the day before train."""
    rarely_read: int = 0
    """Number of early news that almost nobody reads, so that only a large split contains all of
    them: MINDlarge's dev has 72,023 news, its train 101,527."""
    median_life: float = 1.1
    """Half of the news is shown for at least this many days. In MIND 84.5 % of the news
    items are seen for less than two days, many of them since a split begins or ends meanwhile."""
    length_scale: float = 1.0
    """Length of histories and candidate lists, relative to MIND's."""
    like_mind: bool = True
    """Whether to follow MIND where a small world cannot: in categories, exposure, news read twice,
    histories that keep their length, longer abstracts, and distinct titles."""
    tastes: bool = False
    """Whether users have interests of their own, as ``tastes.py`` describes."""

    @property
    def num_news(self) -> int:
        """Number of all news."""
        return self.early_news + sum(self.daily_news)


PRESETS = {
    # An eighth of dev's users are in train, as in MIND-small.
    "demo": Preset(
        about="the committed data/demo: 1,000 news items, lists half as long as MIND's",
        impressions=(2000, 500, 500),
        users=(650, 340, 350),
        shared_users=(0, 0.12, 0.12),
        empty_histories=(0.03, 0.03, 0.03),
        early_news=210,
        daily_news=(55,) * 15,
        length_scale=0.5,
        like_mind=False,
    ),
    # Dev is large, so that a small difference between two models shows.
    "medium": Preset(
        about="to compare models: 3,000 news items, 8,000 impressions in train, 10,000 in dev",
        impressions=(8000, 10_000, 2000),
        users=(2600, 6800, 1400),
        shared_users=(0, 0.12, 0.12),
        empty_histories=(0.03, 0.03, 0.03),
        early_news=640,
        daily_news=(160,) * 15,
        length_scale=0.65,
        like_mind=False,
    ),
    "tastes-small": Preset(
        about="users of several interests: 1,800 news items, 8,000 impressions in train",
        impressions=(8000, 4000, 4000),
        users=(2600, 1800, 1800),
        shared_users=(0, 0.12, 0.12),
        empty_histories=(0.03, 0.03, 0.03),
        early_news=600,
        daily_news=(80,) * 15,
        length_scale=0.5,
        like_mind=False,
        tastes=True,
    ),
    "tastes": Preset(
        about="the same with 5,100 news items, 20,000 impressions in train, 10,000 in dev and test",
        impressions=(20_000, 10_000, 10_000),
        users=(6500, 4500, 4500),
        shared_users=(0, 0.12, 0.12),
        empty_histories=(0.03, 0.03, 0.03),
        early_news=1500,
        daily_news=(240,) * 15,
        length_scale=0.65,
        like_mind=False,
        tastes=True,
    ),
    # Daily numbers of news were not observed, but fitted to MIND's counts and shares of new news.
    # In small's dev 71 % of the news shown are new, so few are left of train's last day; in large's
    # dev 32 % are new.
    "small": Preset(
        about="MINDsmall's sizes and statistics; like MINDsmall it has no test split",
        impressions=(156_965, 73_152),
        users=(50_000, 50_000),
        shared_users=(0, 5943 / 50_000),
        empty_histories=(0.021, 0.034),
        early_news=32_000,
        daily_news=(4800,) * 6 + (550, 10_300),
        median_life=1.45,
    ),
    "large": Preset(
        about="MINDlarge's sizes and statistics: 5 million impressions, 3 GB",
        impressions=(2_232_748, 376_471, 2_370_727),
        users=(711_222, 255_990, 702_005),
        # Some of test's known users are from dev: 22 % of test's users are not in train.
        shared_users=(0, 0.85, 0.822),
        empty_histories=(0.021, 0.2, 0.067),
        early_news=88_000,
        daily_news=(6000,) * 6 + (9300, 4700) + (3250,) * 7,
        rarely_read=83_000,
        median_life=1.18,
    ),
}


def interpolate_quantiles(
    quantiles: Sequence[tuple[float, float]], shares: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the values at the given shares, interpolated geometrically between two quantiles.

    Args:
        quantiles: Pairs of share and value, both ascending.
        shares: Shares from 0 to 1 ``[values]``.
    """
    known, values = np.array(quantiles).T
    return np.exp(np.interp(shares, known, np.log(values)))
