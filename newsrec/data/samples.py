"""Impressions to training samples and batches, vectorised from end to end.

A sample is one clicked story and ``npratio`` skipped ones of the same impression. Which skips it
gets depends on (seed, epoch, sample) alone: neither the number of workers nor of processes nor a
resume changes them. Datasets here take a whole batch's key and return a whole batch, so a
DataLoader with ``batch_size=None`` has nothing left to collate.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from newsrec.data import FIRST_NEWS
from newsrec.data.batch import Batch, Catalogue, EvalBatch
from newsrec.data.mind import Split
from newsrec.data.ragged import Ragged, to_offsets
from newsrec.data.states import TokenStates


class SampleIndex(NamedTuple):
    """Every (impression, click) of a split that can be trained on."""

    impression: NDArray[np.int64]
    """Impression of each sample ``[samples]``."""
    click: NDArray[np.int32]
    """Catalogue row of the clicked story ``[samples]``."""
    skips: Ragged
    """Known skipped stories of every impression."""
    left_out: dict[str, int]
    """Clicks that make no sample, by reason."""


def index_samples(split: Split) -> SampleIndex:
    """List a labelled split's samples.

    Only stories of ``news.tsv`` are trained on: a click on an unknown one, or one whose impression
    has no known skip, is left out and counted.
    """
    assert split.labels is not None
    known = split.candidates.values >= FIRST_NEWS
    skips = split.candidates.select((split.labels == 0) & known)
    clicked = np.flatnonzero(split.labels == 1)
    impression = np.searchsorted(split.candidates.offsets, clicked, side="right") - 1
    unknown = ~known[clicked]
    alone = ~unknown & (skips.lengths[impression] == 0)
    keep = ~unknown & ~alone
    left_out = {"unknown_click": int(unknown.sum()), "no_known_skip": int(alone.sum())}
    return SampleIndex(
        impression[keep], np.asarray(split.candidates.values[clicked[keep]]), skips, left_out
    )


def draw_skips(
    num_skips: NDArray[np.int64], npratio: int, seed: int, epoch: int, sample: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Draw ``npratio`` different skips for each sample.

    Args:
        num_skips: How many there are to draw from ``[batch]``.
        npratio: How many to draw.
        seed: Seed of the run.
        epoch: Number of the epoch.
        sample: Number of each sample ``[batch]``.

    Returns:
        Positions ``0 .. num_skips - 1``, ascending in each row, then -1 where there are too few
        ``[batch, npratio]``.
    """
    beyond = np.iinfo(np.int64).max
    chosen = np.full((len(sample), npratio), beyond)
    for draw in range(npratio):
        left = num_skips - draw
        place = (counter_uniform(seed, epoch, sample, draw) * left).astype(np.int64)
        # The place among those not drawn yet: step over the earlier draws, lowest first.
        for earlier in chosen[:, :draw].T:
            place += place >= earlier
        chosen[:, draw] = np.where(left > 0, place, beyond)
        chosen[:, : draw + 1].sort(axis=1)
    chosen[chosen == beyond] = -1
    return chosen


def counter_uniform(*counters: int | NDArray[np.integer]) -> NDArray[np.floating]:
    """Return a number in [0, 1) for each tuple of counters: the same for the same tuple, always.

    Each counter goes through the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
    """
    state = np.zeros(1, dtype=np.uint64)
    for counter in counters:
        state = state + np.asarray(counter).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


class BatchKey(NamedTuple):
    """Names a training batch: everything that its content depends on besides the data."""

    epoch: int
    samples: NDArray[np.int64]


class TrainBatches(Sampler[BatchKey]):
    """Shuffled batches; every process gets the same number, and together they see each sample once.

    Args:
        num_samples: Samples to shuffle.
        batch_size: Samples per process and batch.
        seed: The order depends on seed and epoch.
        rank: This process.
        world_size: Number of processes; fewer than this many samples are left over per epoch.
    """

    def __init__(
        self, num_samples: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.start = 0
        """Batches to leave out; a run that goes on in the middle of an epoch has done them."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's order; Lightning calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        per_process = self.num_samples // self.world_size
        return -(-per_process // self.batch_size)

    def __iter__(self) -> Iterator[BatchKey]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_samples)
        usable = self.num_samples // self.world_size * self.world_size
        step = self.batch_size * self.world_size
        for start in range(self.start * step, usable, step):
            together = order[start : min(start + step, usable)]
            yield BatchKey(self.epoch, together[self.rank :: self.world_size])


class TrainSamples(Dataset[Batch]):
    """Training batches by key.

    Args:
        split: A labelled split.
        index: Its samples.
        catalogue: Every story's tokens.
        max_history: The last so many clicks are kept.
        npratio: Skipped stories per click.
        seed: Seed of the draws.
        states: States of a frozen PLM, if they were computed.
    """

    def __init__(
        self,
        split: Split,
        index: SampleIndex,
        catalogue: Catalogue,
        max_history: int,
        npratio: int,
        seed: int,
        states: TokenStates | None = None,
    ) -> None:
        self.split = split
        self.index = index
        self.catalogue = catalogue
        self.max_history = max_history
        self.npratio = npratio
        self.seed = seed
        self.states = states
        self.lengths = catalogue.token_lengths.numpy()

    def __len__(self) -> int:
        return len(self.index.click)

    def __getitem__(self, key: BatchKey) -> Batch:
        """Return one batch."""
        impression = self.index.impression[key.samples]
        skips = self.index.skips
        places = draw_skips(
            skips.lengths[impression], self.npratio, self.seed, key.epoch, key.samples
        )
        candidates = np.zeros((len(impression), 1 + self.npratio), dtype=np.int64)
        candidates[:, 0] = self.index.click[key.samples]
        drawn = places >= 0
        candidates[:, 1:][drawn] = skips.values[(skips.offsets[impression, None] + places)[drawn]]
        labels = np.zeros_like(candidates)
        labels[:, 0] = 1

        distinct, user = np.unique(self.split.history[impression], return_inverse=True)
        history = self.split.histories.take(distinct, last=self.max_history).pad()
        return self._with_stories(history, user, candidates, labels)

    def _with_stories(
        self,
        history: NDArray[np.integer],
        user: NDArray[np.int64],
        candidates: NDArray[np.int64],
        labels: NDArray[np.int64],
    ) -> Batch:
        """Bring along each story once, sorted by length, and number the stories by that order."""
        news = np.unique(np.concatenate([history.ravel(), candidates.ravel()]))
        news = news[news >= FIRST_NEWS]
        news = news[np.argsort(self.lengths[news], kind="stable")]
        news = np.concatenate([np.arange(FIRST_NEWS), news])
        number = np.zeros(len(self.lengths), dtype=np.int64)
        number[news] = np.arange(len(news))
        rows = torch.from_numpy(news)
        lengths = self.catalogue.token_lengths[rows]
        return Batch(
            token_ids=self.catalogue.token_ids[rows, : int(lengths.max())],
            token_lengths=lengths,
            token_states=None if self.states is None else self.states.take(rows),
            history=torch.from_numpy(number[history]),
            user=torch.from_numpy(user),
            candidates=torch.from_numpy(number[candidates]),
            labels=torch.from_numpy(labels),
        )


class EvalBatches(Sampler[NDArray[np.int64]]):
    """Impressions in batches; each goes to exactly one process, and none is repeated.

    Neighbours share a history or have histories of nearly the same length, so a user vector is
    made once and little is padded. Every process gets the same number of batches; the last ones
    may be empty.

    Args:
        split: The split to go through.
        batch_size: Impressions per process and batch.
        rank: This process.
        world_size: Number of processes.
    """

    def __init__(self, split: Split, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        length = split.histories.lengths[split.history]
        self.order = np.lexsort((split.history, length))
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return -(-len(self.order) // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        step = self.batch_size * self.world_size
        for start in range(0, len(self.order), step):
            yield np.array_split(self.order[start : start + step], self.world_size)[self.rank]


class EvalImpressions(Dataset[EvalBatch]):
    """Evaluation batches by their impressions.

    Args:
        split: Any split.
        max_history: The last so many clicks are kept.
    """

    def __init__(self, split: Split, max_history: int) -> None:
        self.split = split
        self.max_history = max_history

    def __len__(self) -> int:
        return len(self.split.history)

    def __getitem__(self, rows: NDArray[np.int64]) -> EvalBatch:
        """Return one batch."""
        split = self.split
        distinct, user = np.unique(split.history[rows], return_inverse=True)
        history = split.histories.take(distinct, last=self.max_history).pad()
        candidates = split.candidates.take(rows)
        labels = None
        if split.labels is not None:
            labels = Ragged(split.labels, split.candidates.offsets).take(rows).values
        return EvalBatch(
            history=torch.from_numpy(history.astype(np.int64)),
            user=torch.from_numpy(user),
            candidates=torch.from_numpy(candidates.values.astype(np.int64)),
            offsets=torch.from_numpy(to_offsets(candidates.lengths)),
            labels=None if labels is None else torch.from_numpy(labels),
            row=torch.from_numpy(rows),
        )
