"""Which samples or impressions make up a batch, on any number of processes.

In training every process gets the same number of batches, or the others would wait for it for ever.
An epoch is one order of all samples, cut into pieces; the processes take neighbouring pieces, and a
resumed run goes on with the piece behind the last one it has done. In evaluation every impression
goes to exactly one process, without padding by repeated ones.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler, SequentialSampler

from newsrec.data.dataset import Split
from newsrec.data.ragged import to_offsets


class BatchKey(NamedTuple):
    """Names a training batch: everything that its content depends on besides the data."""

    epoch: int
    samples: NDArray[np.int64]


class SampleUsers(NamedTuple):
    """Whose each sample is."""

    user: NDArray[np.int32]
    """User of each sample ``[samples]``."""
    history: NDArray[np.int32]
    """Number of that user's history; in MIND a user has one in a split ``[samples]``."""


class SampleTokens(NamedTuple):
    """Word pieces that a sample brings to a batch at most."""

    own: NDArray[np.int32]
    """Of its candidates ``[samples]``."""
    history: NDArray[np.int32]
    """Of its history, which samples of one history share ``[samples]``."""

    @property
    def largest(self) -> int:
        """Most that one sample brings, its history included."""
        return int((self.own + self.history).max(initial=0))


class TrainBatches(Sampler[BatchKey]):
    """Shuffled batches; every process gets the same number, and together they see each sample once.

    Args:
        num_samples: Samples to shuffle.
        batch_size: Samples per process and batch.
        seed: The order depends on seed and epoch.
        rank: This process.
        world_size: Number of processes; fewer than this many samples are left over per epoch.
        readers: Shuffle blocks of one user's samples, and the samples within a block; by default
            all samples are shuffled.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        readers: SampleUsers | None = None,
    ) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.readers = readers
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
        order = self.order(self.epoch)
        cuts = self.cuts(order)
        for piece in range(
            self.start * self.world_size + self.rank, len(cuts) - 1, self.world_size
        ):
            yield BatchKey(self.epoch, order[cuts[piece] : cuts[piece + 1]])

    def samples(self, epoch: int, step: int) -> NDArray[np.int64]:
        """Return the samples of this process's batch at a step of an epoch ``[batch]``."""
        order = self.order(epoch)
        start, end = self.cuts(order)[step * self.world_size + self.rank :][:2]
        return order[start:end]

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return all samples in an epoch's order ``[samples]``."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(self.num_samples)
        if self.readers is not None:
            user, history = self.readers
            place = rng.permutation(int(user.max(initial=-1)) + 1)  # of each user
            key = (place[user] << 32) | history
            order = order[np.argsort(key[order], kind="stable")]
        return order

    def cuts(self, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where batches begin in an order, and the end ``[batches + 1]``, all processes'.

        A step's pieces have equal sizes, or gradients averaged over processes would weigh samples
        differently.
        """
        whole, rest = divmod(self.num_samples // self.world_size, self.batch_size)
        sizes = [self.batch_size] * whole + [rest] * (rest > 0)
        return to_offsets(np.repeat(np.array(sizes, dtype=np.int64), self.world_size))


class TokenBatches(TrainBatches):
    """Batches of different sizes that hold about as many word pieces, never more than a bound.

    An epoch's cost is what its samples bring at most: a history counts with every sample, or once
    for neighbouring samples that share it where users' samples stay together. It is the same in
    every epoch, and so is the number of batches, which Lightning asks for once. Batches are cut
    where equal shares of the cost end. A share is as much below the bound as one sample can reach
    into it from the share before.

    Args:
        tokens: What each sample brings.
        tokens_per_batch: Bound on the word pieces of a batch's distinct stories; at least twice
            ``tokens.largest``.
        seed: The order depends on seed and epoch.
        rank: This process.
        world_size: Number of processes; fewer than this many samples are left over per epoch, and
            none where a batch holds more than one.
        readers: As for ``TrainBatches``.
    """

    def __init__(
        self,
        tokens: SampleTokens,
        tokens_per_batch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        readers: SampleUsers | None = None,
    ) -> None:
        super().__init__(len(tokens.own), 1, seed, rank, world_size, readers)
        assert tokens_per_batch >= 2 * tokens.largest
        self.tokens = tokens
        share = max(tokens_per_batch - tokens.largest, 1)
        total = int(self._costs(self.order(0)).sum(dtype=np.int64))
        steps = -(-total // (share * world_size))
        self.steps = min(max(steps, 1), self.num_samples // world_size)

    def __len__(self) -> int:
        return self.steps

    def cuts(self, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where batches begin in an order, and the end ``[batches + 1]``, all processes'."""
        pieces = self.steps * self.world_size
        if self.steps == self.num_samples // self.world_size:  # of one sample each
            return np.arange(pieces + 1)
        spent = np.cumsum(self._costs(order), dtype=np.int64)
        shares = np.arange(pieces + 1) * int(spent[-1]) // pieces
        cuts = np.searchsorted(spent, shares, side="right")
        cuts[0] = 0
        # No piece may be empty: push cuts apart, but not beyond what the pieces behind them need.
        ahead = np.arange(pieces + 1)
        cuts = np.maximum.accumulate(cuts - ahead) + ahead
        return np.minimum(cuts, len(order) - ahead[::-1])

    def _costs(self, order: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return what each sample adds, in an order ``[samples]``."""
        own, history = (counts[order] for counts in self.tokens)
        if self.readers is not None:
            user, shared = (numbers[order] for numbers in self.readers)
            history[1:][(user[1:] == user[:-1]) & (shared[1:] == shared[:-1])] = 0
        return own + history


class EvalBatches(Sampler[NDArray[np.int64]]):
    """Impressions in batches; each goes to exactly one process, and none is repeated.

    Neighbours share a history or have histories of nearly the same length, so a user vector is
    made once and little is padded. Every process gets the same number of batches, since processes
    may wait for each other within one; those of the last step may be smaller by one, or empty.

    Args:
        split: The split to go through.
        batch_size: Impressions per process and batch.
        rank: This process.
        world_size: Number of processes.
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
    """The batches of the first epoch in every epoch, negatives and all: ``overfit_batches``.

    Lightning (read in 2.6.6, ``_resolve_overfit_batches``) puts a sampler of single indices in the
    place of any that is no ``SequentialSampler``.

    Args:
        batches: What makes them.
    """

    def __init__(self, batches: "TrainBatches | EvalBatches") -> None:
        super().__init__(batches)
        self.batches: Any = batches

    @property
    def start(self) -> int:
        """Batches to leave out, as ``TrainBatches`` has it."""
        return int(self.batches.start)

    @start.setter
    def start(self, start: int) -> None:
        self.batches.start = start

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return int(self.batches.world_size)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)
