"""Statistics of MIND: its sizes, its text lengths, and how many news a batch mentions.

Sizes come from the MIND paper and from MIND's files; lengths and mentions were counted on MIND's
training set. With them ``fit --dry_run`` can describe a preset before MIND is downloaded.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Published(NamedTuple):
    """One of MIND's two versions."""

    name: str
    train: int
    """Impressions of the training set."""
    clicks: float
    """Clicks per impression, on average."""
    news: int
    """News of all splits together."""
    impressions: int
    """Impressions of all splits together."""
    users: int
    """Sum of the splits' numbers of users; a user has one history in a split."""


SMALL = Published("MIND-small", 156_965, 1.51, 65_238, 230_117, 100_000)
LARGE = Published("MIND-large", 2_232_748, 1.52, 161_013, 4_979_946, 1_669_217)

CANDIDATES = 37.4
"""Candidates per impression, on average."""
HISTORY = 32
"""Clicks of a whole history, on average."""
SAMPLES_OF = {"random": 1.0, "impression": 1.5, "user": 4.7}
"""Training samples that stay together, on average, by ``data.batches``."""

NAMES = {"category": 20, "subcategory": 300}
"""Number of distinct values of each field; assumed, somewhat more than MIND has."""

CUT_HISTORY = {0: (0.0, 0.0), 50: (25.5, 18.1), 100: (32.9, 31.0)}
"""``max_history`` to mean and standard deviation of the length of cut histories, over samples."""
DISTINCT = {"random": ((975, 822), (5116, 3012)), "user": ((5125, 2133), (19379, 5150))}
"""Pairs of mentions of news in a batch (clicks of histories, and candidates) and distinct news
among them. Counted on batches of 32 and 168 samples in random order, and on batches of 168 and 512
samples grouped by user."""

QUANTILES = {
    "title": [4, 9, 11, 11, 12, 13, 13, 14, 14, 15, 15, 16, 17, 17, 18, 19, 19, 21, 22, 24, 40],
    "category": [7, 13, 14, 15, 16, 17, 17, 18, 19, 19, 20, 20, 21, 21, 22, 23, 24, 25, 26, 28, 44],
    "abstract": [
        10, 24, 29, 33, 36, 39, 42, 44, 46, 49, 52, 55, 59, 65, 79, 100, 106, 112, 117, 125, 509,
    ],
}  # fmt: skip
"""Quantiles, in steps of 5 %, of the number of tokens of a text (BERT's, with special tokens).
``title`` is the title alone, ``category`` adds category and subcategory, and ``abstract`` adds the
abstract to these."""


class Mentions(NamedTuple):
    """Expected numbers of distinct news and histories in a training batch."""

    distinct: float
    """Distinct news, on average."""
    spread: float
    """Standard deviation of ``distinct``, divided by ``distinct``."""
    users: float
    """Distinct histories."""
    read: float
    """Clicks of these histories."""


def mentions(samples: int, max_history: int, candidates: int, batches: str) -> Mentions:
    """Estimate what a batch mentions, with a power law through the two counted batch sizes.

    ``batches`` is the option of that name. With ``impression``, a batch is treated like one
    of random samples, except that the samples of an impression mention its history once.
    """
    known = sorted(CUT_HISTORY)
    mean, deviation = (
        float(np.interp(max_history, known, [CUT_HISTORY[k][i] for k in known])) for i in (0, 1)
    )
    users = max(samples / SAMPLES_OF[batches], 1)
    total = (users if batches == "impression" else samples) * mean + samples * candidates
    (m1, d1), (m2, d2) = DISTINCT["user" if batches == "user" else "random"]
    power = math.log(d2 / d1) / math.log(m2 / m1)
    distinct = min(d1 * (total / m1) ** power, total)
    spread = deviation / (mean + candidates) / math.sqrt(users)
    return Mentions(distinct, spread, users, users * mean)


def text_lengths(fields: Sequence[str], max_tokens: int, news: int) -> NDArray[np.int64]:
    """Return the lengths of ``news`` typical texts, at most ``max_tokens`` each ``[news]``."""
    kind = next((k for k in ("abstract", "category") if k in fields), "title")
    steps = np.linspace(0, 1, len(QUANTILES[kind]))
    places = (np.arange(news) + 0.5) / news
    return np.interp(places, steps, QUANTILES[kind]).round().astype(np.int64).clip(3, max_tokens)


def abstract_lengths(max_tokens: int, news: int) -> NDArray[np.int64]:
    """Return the lengths of the abstracts of ``news`` typical news ``[abstracts]``.

    The length of an abstract is the number of tokens that it adds to category and title, and two
    special tokens. Empty abstracts are left out.
    """
    steps = np.linspace(0, 1, len(QUANTILES["abstract"]))
    places = (np.arange(news) + 0.5) / news
    joined, title = (np.interp(places, steps, QUANTILES[k]) for k in ("abstract", "category"))
    own = np.sort((joined - title).round().astype(np.int64))
    return (own[own > 0] + 2).clip(3, max_tokens)


def array_bytes(size: Published, max_tokens: int, abstract_tokens: int = 0) -> int:
    """Return the size in bytes of the compiled arrays and the tokens (see ``compile.py``)."""
    impression = 8 + 4 + 8 + 4 + 8 + CANDIDATES * (4 + 1)
    history = 8 + HISTORY * 4
    news = 4 * (max_tokens + 1)
    if abstract_tokens:
        news = 8 * (max(max_tokens, abstract_tokens) + 1)
    return int(size.impressions * impression + size.users * history + size.news * news)
