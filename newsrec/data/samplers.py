"""Chooses the samples or impressions of each batch, on any number of processes.

In training all processes get the same number of batches, since processes wait for each other at
each step. An epoch is a random order of all samples, cut into pieces. In each step the processes
take consecutive pieces, one each, and a resumed run starts at the next piece. In evaluation every
impression goes to exactly one process, and none is repeated as padding.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler, SequentialSampler

from newsrec.data.dataset import Split
from newsrec.data.ragged import to_offsets


class BatchKey(NamedTuple):
    """Identifies a training batch: its content depends only on this key and the data."""

    epoch: int
    samples: NDArray[np.integer]
    largest: int = 0
    """Samples of the largest batch that any process has in this step."""


class SampleGroups(NamedTuple):
    """Groups of samples that stay together in an epoch's order."""

    group: NDArray[np.int32]
    """Number of each sample's impression, or of its user ``[samples]``."""
    history: NDArray[np.int32]
    """Row of each sample's history ``[samples]``; in MIND a user has one history in a split."""


class SampleTokens(NamedTuple):
    """The most tokens that each sample can add to a batch."""

    own: NDArray[np.int32]
    """Tokens of the sample's candidates ``[samples]``."""
    history: NDArray[np.int32]
    """Tokens of the sample's history, which other samples may share ``[samples]``."""

    @property
    def largest(self) -> int:
        """The most tokens that any one sample can add, including its history."""
        return int((self.own + self.history).max(initial=0))


@dataclass(eq=False)
class TrainBatches(Sampler[BatchKey]):
    """Shuffled training batches: all processes get equally many, and share out the samples.

    In an epoch each sample is in at most one batch of one process; up to ``world_size - 1`` samples
    are left out. The order depends on seed and epoch. With ``groups``, the samples of one group
    follow each other: groups are shuffled, and the samples within a group. If a group does
    not fit into the rest of a batch, its remaining samples go into the next batch. ``batch_size``
    is per process.
    """

    num_samples: int
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    groups: SampleGroups | None = None
    epoch: int = field(default=0, init=False)
    start: int = field(default=0, init=False)
    """Batches to leave out, which a run resumed within an epoch has done already."""

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which decides the order; Lightning calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        per_process = self.num_samples // self.world_size
        return -(-per_process // self.batch_size)

    def __iter__(self) -> Iterator[BatchKey]:
        order = self.order(self.epoch)
        cuts = self.cuts(order)
        first = self.start * self.world_size + self.rank
        for piece in range(first, len(cuts) - 1, self.world_size):
            step = piece - self.rank
            largest = int(np.diff(cuts[step : step + self.world_size + 1]).max())
            yield BatchKey(self.epoch, order[cuts[piece] : cuts[piece + 1]], largest)

    def samples(self, epoch: int, step: int) -> NDArray[np.integer]:
        """Return the samples of this process's batch at a step of an epoch ``[batch]``."""
        order = self.order(epoch)
        start, end = self.cuts(order)[step * self.world_size + self.rank :][:2]
        return order[start:end]

    def order(self, epoch: int) -> NDArray[np.integer]:
        """Return all samples in an epoch's order ``[samples]``."""
        rng = np.random.default_rng([self.seed, epoch])
        # Each process holds this array, so it has the smaller type if that is enough.
        kind = np.int32 if self.num_samples < 1 << 31 else np.int64
        order = rng.permutation(np.arange(self.num_samples, dtype=kind))
        if self.groups is not None:
            group, history = self.groups
            key = rng.permutation(int(group.max(initial=-1)) + 1)[group[order]]
            key <<= 32
            key |= history[order]
            order = order[np.argsort(key, kind="stable")]
        return order

    def cuts(self, order: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the offsets of all processes' batches in an order ``[batches + 1]``.

        The batches of one step have equal sizes, so that each sample has the same weight when
        gradients are averaged over processes.
        """
        whole, rest = divmod(self.num_samples // self.world_size, self.batch_size)
        sizes = [self.batch_size] * whole + [rest] * (rest > 0)
        return to_offsets(np.repeat(np.array(sizes, dtype=np.int64), self.world_size))


class TokenBatches(TrainBatches):
    """Batches with about equally many tokens, and never more than ``tokens_per_batch``.

    The cost of a sample is the most tokens that it can add. Its history counts each time, but
    only once for consecutive samples of a group that share it. The total cost
    of an epoch is always the same, and so is the number of batches, which Lightning asks for only
    once. Batches are cut so that each gets an equal share of the total cost. A batch can exceed its
    share by one sample, so a share is smaller than the bound by the cost of the largest sample, and
    the bound is at least twice that.

    Samples are left out only if batches have one sample each. Arguments as in ``TrainBatches``.
    """

    def __init__(
        self,
        tokens: SampleTokens,
        tokens_per_batch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        groups: SampleGroups | None = None,
    ) -> None:
        super().__init__(len(tokens.own), 1, seed, rank, world_size, groups)
        assert tokens_per_batch >= 2 * tokens.largest
        self.tokens = tokens
        share = max(tokens_per_batch - tokens.largest, 1)
        total = int(self._costs(self.order(0)).sum(dtype=np.int64))
        steps = -(-total // (share * world_size))
        self.steps = min(max(steps, 1), self.num_samples // world_size)

    def __len__(self) -> int:
        return self.steps

    def cuts(self, order: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the offsets of all processes' batches in an order ``[batches + 1]``."""
        pieces = self.steps * self.world_size
        if self.steps == self.num_samples // self.world_size:  # one sample per batch
            return np.arange(pieces + 1)
        spent = np.cumsum(self._costs(order), dtype=np.int64)
        shares = np.arange(pieces + 1) * int(spent[-1]) // pieces
        cuts = np.searchsorted(spent, shares, side="right")
        cuts[0] = 0
        # No piece may be empty: move cuts apart, but leave a sample for each piece that follows.
        ahead = np.arange(pieces + 1)
        cuts = np.maximum.accumulate(cuts - ahead) + ahead
        return np.minimum(cuts, len(order) - ahead[::-1])

    def _costs(self, order: NDArray[np.integer]) -> NDArray[np.int32]:
        """Return the cost of each sample in an order ``[samples]``."""
        own, history = (counts[order] for counts in self.tokens)
        if self.groups is not None:
            group, shared = (numbers[order] for numbers in self.groups)
            history[1:][(group[1:] == group[:-1]) & (shared[1:] == shared[:-1])] = 0
        costs: NDArray[np.int32] = own + history
        return costs


class EvalBatches(Sampler[NDArray[np.int64]]):
    """Evaluation batches: each impression goes to exactly one process, and none is repeated.

    Impressions are sorted by the length of their history, then by history, so that each user vector
    is computed once and there is little padding. All processes get the same number of batches of
    ``batch_size``, since processes may wait for each other at each step. In the last step some
    batches may have one impression less than the others, or none.
    """

    def __init__(self, split: Split, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        history = np.asarray(split.history)
        self.order = np.lexsort((history, split.histories.lengths[history]))
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return -(-len(self.order) // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        step = self.batch_size * self.world_size
        for start in range(0, len(self.order), step):
            yield np.array_split(self.order[start : start + step], self.world_size)[self.rank]


class SameBatches(SequentialSampler):
    """Repeats the batches of the first epoch, with the same skipped news, for ``overfit_batches``.

    It is a ``SequentialSampler`` because Lightning (read in 2.6.6, ``_resolve_overfit_batches``)
    replaces any other kind by a sampler of single indices.
    """

    def __init__(self, batches: "TrainBatches | EvalBatches") -> None:
        super().__init__(batches)
        self.batches: Any = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)
