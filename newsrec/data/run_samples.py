"""The samples that a run trains on: which there are, and how they form batches."""

import numpy as np
from numpy.typing import NDArray

from newsrec.data import FIRST_NEWS
from newsrec.data.batch import Catalogue
from newsrec.data.dataset import NewsData, Split
from newsrec.data.options import DataOptions
from newsrec.data.samplers import SampleGroups, SampleTokens, TokenBatches, TrainBatches
from newsrec.data.samples import WHOLE_IMPRESSIONS, TrainSamples, count_tokens, index_samples
from newsrec.data.states import RunStates
from newsrec.errors import DataError, UserError


class RunSamples:
    """The samples of a labelled split, listed and put into batches as the data options say.

    If ``tokens_per_batch`` limits the batches, the tokens of each sample are counted in
    ``catalogue``.

    Raises:
        DataError: If there are no samples.
        UserError: If a batch could not hold two samples.
    """

    def __init__(self, split: Split, options: DataOptions, catalogue: Catalogue) -> None:
        assert options.seed is not None
        self.split, self.options, self.seed = split, options, options.seed
        self.whole = options.loss in WHOLE_IMPRESSIONS
        self.index = index_samples(split, self.whole)
        if not len(self.index.click):
            raise DataError(
                f"{options.root}: no impression of {split.name!r} has a clicked and a skipped "
                "news item that are among the news. Do its files of news and of impressions "
                "belong together?"
            )
        limit = options.tokens_per_batch
        self.tokens = None if limit is None else self._count_tokens(limit, catalogue)

    def dataset(self, catalogue: Catalogue, states: RunStates) -> TrainSamples:
        """Return the samples as a dataset, whose keys are those of ``batches``."""
        options = self.options
        return TrainSamples(
            self.split,
            self.index,
            catalogue,
            options.max_history,
            options.npratio,
            self.seed,
            states,
            options.loss,
            options.max_candidates,
        )

    def batches(self, rank: int, world_size: int) -> TrainBatches:
        """Return the batches of one of ``world_size`` processes."""
        options, impression, groups = self.options, self.index.impression, None
        if options.batches == "user":
            groups = SampleGroups(self.split.user[impression], self.split.history[impression])
        elif options.batches == "impression" and not self.whole:
            groups = SampleGroups(impression, self.split.history[impression])
        place = self.seed, rank, world_size
        if options.tokens_per_batch is None:
            return TrainBatches(len(impression), options.batch_size, *place, groups)
        assert self.tokens is not None
        return TokenBatches(self.tokens, options.tokens_per_batch, *place, groups)

    def names(self, batch: NDArray[np.integer], data: NewsData) -> list[str]:
        """Return ids by which a person finds the samples of a batch in the files."""
        impressions = self.index.impression[batch]
        clicks = data.news["news_id"].take(self.index.click[batch] - FIRST_NEWS)
        users = data.users.take(self.split.user[impressions])
        return [
            f"impression {number} of {user}, click {news}"
            for number, user, news in zip(
                self.split.impression_id[impressions],
                users.to_pylist(),
                clicks.to_pylist(),
                strict=True,
            )
        ]

    def describe(self, world_size: int) -> list[str]:
        """Return a line on the number of samples, after a warning if they are one batch."""
        lines, size = [], self.options.batch_size
        number, largest = len(self.index.click), len(self.index.click) // world_size
        if self.tokens is None and size > largest:
            lines.append(
                f"data.batch_size is {size:,}, more than the {largest:,} samples of an epoch: each "
                "epoch is one step."
            )
        left_out = ", ".join(f"{n:,} {reason}" for reason, n in self.index.left_out.items())
        return [*lines, f"samples: {number:,} of {self.split.name} (left out: {left_out})"]

    def _count_tokens(self, limit: int, catalogue: Catalogue) -> SampleTokens:
        options, most = self.options, self.options.max_candidates if self.whole else None
        counted = self.split, self.index, catalogue.news_lengths.numpy()
        tokens = count_tokens(*counted, options.max_history, options.npratio, most)
        if limit < 2 * tokens.largest:
            raise UserError(
                f"data.tokens_per_batch is {limit}, but one sample of {self.split.name!r} can have "
                f"{tokens.largest} tokens, and a batch must hold two samples. Raise it to "
                f"{2 * tokens.largest} or more, or lower data.max_history, data.max_tokens or "
                f"data.{'npratio' if most is None else 'max_candidates'}."
            )
        return tokens
