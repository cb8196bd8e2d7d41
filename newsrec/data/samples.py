"""Turns impressions into training samples and batches, with array operations only.

A sample is one clicked news item and ``npratio`` skipped ones of the same impression, or a whole
impression for a loss in ``WHOLE_IMPRESSIONS``. What is drawn depends only on (seed, epoch, sample),
so the number of workers or processes and a resume do not change it. Datasets here take the key of a
whole batch (see ``samplers.py``) and return a whole batch, so a DataLoader with ``batch_size=None``
has nothing to collate.

Only an index of two numbers per sample is held in memory. Candidates and histories are looked up in
the memory-mapped split when a batch is made.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from newsrec.data import FIRST_NEWS
from newsrec.data.batch import Batch, Catalogue, EvalBatch, SharedClicks
from newsrec.data.dataset import Split
from newsrec.data.draws import draw_candidates, draw_skipped
from newsrec.data.ragged import Ragged, to_offsets
from newsrec.data.samplers import BatchKey, SampleTokens
from newsrec.data.states import RunStates

BLOCK = 1 << 15
"""Impressions processed at once when going through a whole split."""
WHOLE_IMPRESSIONS = ("impression",)
"""Losses (``model.loss``) whose samples are whole impressions."""
SHARING_CLICKS = ("in_batch",)
"""Losses that need ``Batch.shared``."""


class SampleIndex(NamedTuple):
    """All pairs of impression and click of a split that can be trained on.

    Where samples are whole impressions, only the pair of each impression's first click.
    """

    impression: NDArray[np.int32]
    """Impression of each sample ``[samples]``."""
    click: NDArray[np.int32]
    """Catalogue row of the clicked news item ``[samples]``."""
    left_out: dict[str, int]
    """Number of clicks that make no sample, by reason."""


def index_samples(split: Split, whole: bool = False) -> SampleIndex:
    """List a labelled split's samples.

    Only news of ``news.tsv`` is trained on. A click on an unknown news item, or in an impression
    without known skipped news, is left out and counted.

    Args:
        split: A labelled split.
        whole: Whether a sample is a whole impression.
    """
    assert split.labels is not None
    impressions, clicks = [np.zeros(0, dtype=np.int32)], [np.zeros(0, dtype=np.int32)]
    left_out = {"unknown_click": 0, "no_known_skipped": 0}
    shown, labelled = split.candidates, Ragged(split.labels, split.candidates.offsets)
    for start in range(0, shown.num_rows, BLOCK):
        candidates, labels = (rows.between(start, start + BLOCK) for rows in (shown, labelled))
        known = candidates.values >= FIRST_NEWS
        num_skipped = np.diff(to_offsets((labels.values == 0) & known)[candidates.offsets])
        clicked = np.flatnonzero(labels.values == 1)
        impression = np.searchsorted(candidates.offsets, clicked, side="right") - 1
        unknown = ~known[clicked]
        alone = ~unknown & (num_skipped[impression] == 0)
        keep = ~unknown & ~alone
        left_out["unknown_click"] += int(unknown.sum())
        left_out["no_known_skipped"] += int(alone.sum())
        impressions.append((start + impression[keep]).astype(np.int32))
        clicks.append(np.asarray(candidates.values[clicked[keep]]))
    index = SampleIndex(np.concatenate(impressions), np.concatenate(clicks), left_out)
    if whole:
        first = np.unique(index.impression, return_index=True)[1]
        index = SampleIndex(index.impression[first], index.click[first], left_out)
    return index


def count_tokens(
    split: Split,
    index: SampleIndex,
    token_lengths: NDArray[np.int64],
    max_history: int,
    npratio: int,
    most: int | None = None,
) -> SampleTokens:
    """Count the most tokens that each sample can add to a batch, whatever it draws.

    ``token_lengths`` are the tokens of each news item ``[news]``; histories are cut to their
    last ``max_history`` clicks. If samples are whole impressions, ``most`` is the most candidates
    of one, and ``npratio`` is ignored.
    """
    assert split.labels is not None
    lengths = token_lengths.astype(np.int32)
    longest_skipped = np.zeros(split.candidates.num_rows, dtype=np.int32)
    of_all = np.zeros_like(longest_skipped)
    labelled = Ragged(split.labels, split.candidates.offsets)
    for start in range(0, len(longest_skipped), BLOCK):
        candidates, labels = (
            rows.between(start, start + BLOCK) for rows in (split.candidates, labelled)
        )
        skipped_lengths = lengths[candidates.values] * (labels.values == 0)
        filled = np.flatnonzero(candidates.lengths)  # reduceat cannot handle empty rows
        if len(filled):
            first = candidates.offsets[filled]
            longest_skipped[start + filled] = np.maximum.reduceat(skipped_lengths, first)
            if most is not None:
                each = lengths[candidates.values]
                total, longest = (f.reduceat(each, first) for f in (np.add, np.maximum))
                of_all[start + filled] = np.minimum(total, most * longest)

    of_history = np.zeros(split.histories.num_rows, dtype=np.int32)
    owner = np.asarray(split.history)[index.impression]
    used = np.unique(owner)
    for start in range(0, len(used), BLOCK):
        rows = used[start : start + BLOCK]
        clicked = split.histories.take(rows, last=max_history)
        of_history[rows] = np.diff(to_offsets(lengths[clicked.values])[clicked.offsets])
    own = lengths[index.click] + npratio * longest_skipped[index.impression]
    if most is not None:
        own = of_all[index.impression]
    return SampleTokens(own, of_history[owner])


class TrainSamples(Dataset[Batch]):
    """Makes the training batch for a ``BatchKey``, from a split and the index of its samples.

    Candidates are drawn by ``seed``; ``states`` are those of the PLM's frozen layers, None if they
    are not used. The batches are made for ``loss``, a name of ``model.loss``; of a whole impression
    they keep at most ``max_candidates`` candidates, at least 2.
    """

    def __init__(
        self,
        split: Split,
        index: SampleIndex,
        catalogue: Catalogue,
        max_history: int,
        npratio: int,
        seed: int,
        states: RunStates | None = None,
        loss: str = "cross_entropy",
        max_candidates: int = 50,
    ) -> None:
        self.split = split
        self.index = index
        self.max_history = max_history
        self.npratio = npratio
        self.seed = seed
        self.states = states or RunStates()
        self.loss = loss
        self.max_candidates = max_candidates
        self.token_ids = catalogue.token_ids.numpy()
        self.token_lengths = catalogue.token_lengths.numpy()
        self.views = None if catalogue.views is None else catalogue.views.numpy()
        categories = catalogue.categories
        self.categories = None if categories is None else categories.numpy()
        # Padding and the unknown news have no tokens, so they come first here, as in a batch.
        self.by_length = np.argsort(self.token_lengths, kind="stable")
        """Rows of texts: 0 and 1, then the others, shortest text first ``[texts]``."""
        self.place = np.empty(len(self.by_length), dtype=np.int32)
        """Position of each row of texts in ``by_length`` ``[texts]``."""
        self.place[self.by_length] = np.arange(len(self.by_length))
        self.share: NDArray[np.float32] | None = None
        """Share of the samples that click each news item ``[news]``; None if not needed."""
        if loss in SHARING_CLICKS:
            clicks = np.bincount(index.click, minlength=catalogue.num_news)
            self.share = (clicks / len(index.click)).astype(np.float32)
            user = split.user[index.impression]
            by_user = index.click[np.argsort(user, kind="stable")]
            self.clicks_of_user = Ragged(by_user, to_offsets(np.bincount(user)))

    def __len__(self) -> int:
        return len(self.index.click)

    def __getitem__(self, key: BatchKey) -> Batch:
        impression = self.index.impression[key.samples]
        shown, clicked = self._shown(impression)
        known = shown.values >= FIRST_NEWS
        if self.loss in WHOLE_IMPRESSIONS:
            shown, labelled = shown.select(known), clicked.select(known)
            keep = draw_candidates(labelled, self.max_candidates, self.seed, key.epoch, impression)
            candidates = shown.select(keep).pad().astype(np.int64)
            labels = labelled.select(keep).pad().astype(np.int64)
        else:
            skipped = shown.select(known & (clicked.values == 0))
            drawn = draw_skipped(skipped.lengths, self.npratio, self.seed, key.epoch, key.samples)
            candidates = np.zeros((len(impression), 1 + self.npratio), dtype=np.int64)
            candidates[:, 0] = self.index.click[key.samples]
            real = drawn >= 0
            candidates[:, 1:][real] = skipped.values[(skipped.offsets[:-1, None] + drawn)[real]]
            labels = np.zeros_like(candidates)
            labels[:, 0] = 1

        owner = np.asarray(self.split.history)[impression]
        distinct, user = np.unique(owner, return_inverse=True)
        history = self.split.histories.take(distinct, last=self.max_history).pad()
        batch = self._with_news(history, user, candidates, labels)
        if self.share is None:
            return batch
        who, click = self.split.user[impression], candidates[:, 0]
        clicks = self.clicks_of_user.take(who).pad()
        excluded = [candidates, clicks, self.split.histories.take(owner).pad()]
        padding = (0, max(key.largest - len(click), 0))
        shared = SharedClicks(
            news=torch.from_numpy(np.pad(click, padding)),
            share=torch.from_numpy(np.pad(self.share[click], padding)),
            user=torch.from_numpy(np.pad(who, padding).astype(np.int64)),
            excluded=torch.from_numpy(np.sort(np.hstack(excluded).astype(np.int64), axis=1)),
        )
        return batch._replace(shared=shared)

    def _shown(self, impression: NDArray[np.integer]) -> tuple[Ragged, Ragged]:
        """Return the candidates of some impressions and their labels, in file order."""
        assert self.split.labels is not None
        places = self.split.candidates.places(impression)
        shown, labels = (
            Ragged(np.asarray(values)[places.values], places.offsets)
            for values in (self.split.candidates.values, self.split.labels)
        )
        return shown, labels

    def _with_news(
        self,
        history: NDArray[np.integer],
        user: NDArray[np.int64],
        candidates: NDArray[np.int64],
        labels: NDArray[np.int64],
    ) -> Batch:
        """Return a batch with each text once, sorted by length and numbered in that order."""
        if self.views is None:
            texts, clicked, shown = _numbered(
                len(self.place), self.place[history], self.place[candidates]
            )
            news, views = self.by_length[texts], None
        else:
            news, clicked, shown = _numbered(len(self.views), history, candidates)
            texts, views = _numbered(len(self.place), self.place[self.views[news]])
        rows = self.by_length[texts]
        # NumPy, since torch would split these small copies among threads and wait for the slowest.
        lengths = self.token_lengths.take(rows)
        token_ids = self.token_ids.take(rows, axis=0)[:, : lengths[-1]]
        states = self.states.now
        return Batch(
            token_ids=torch.from_numpy(np.ascontiguousarray(token_ids)),
            token_lengths=lengths,
            token_states=None if states is None else states.take(torch.from_numpy(rows)),
            history=torch.from_numpy(clicked),
            user=torch.from_numpy(user),
            candidates=torch.from_numpy(shown),
            labels=torch.from_numpy(labels),
            views=None if views is None else torch.from_numpy(views),
            categories=(
                None if self.categories is None else torch.from_numpy(self.categories[news])
            ),
        )


def _numbered(size: int, *mentions: NDArray[np.integer]) -> list[NDArray[np.int64]]:
    """Number the mentioned ones of ``size`` rows, in order; rows 0 and 1 always count as mentioned.

    Returns the mentioned rows, and the mentions with each row replaced by its number.
    """
    # Setting a flag per row sorts the mentions and drops repeats in one go. Sorting them would take
    # longer than the rest of making a batch.
    mentioned = np.zeros(size, dtype=np.bool_)
    mentioned[:FIRST_NEWS] = True
    for rows in mentions:
        mentioned[rows] = True
    found = np.flatnonzero(mentioned)
    number = np.empty(size, dtype=np.int64)  # read only where it was written
    number[found] = np.arange(len(found))
    return [found, *(number[rows] for rows in mentions)]


@dataclass(eq=False)
class EvalImpressions(Dataset[EvalBatch]):
    """Makes the evaluation batch for given impressions, with the last ``max_history`` clicks."""

    split: Split
    max_history: int

    def __len__(self) -> int:
        return len(self.split.history)

    def __getitem__(self, rows: NDArray[np.int64]) -> EvalBatch:
        split = self.split
        distinct, user = np.unique(np.asarray(split.history)[rows], return_inverse=True)
        history = split.histories.take(distinct, last=self.max_history).pad()
        places = split.candidates.places(rows)
        candidates = np.asarray(split.candidates.values)[places.values]
        labels = None if split.labels is None else np.asarray(split.labels)[places.values]
        return EvalBatch(
            history=torch.from_numpy(history.astype(np.int64)),
            user=torch.from_numpy(user),
            candidates=torch.from_numpy(candidates.astype(np.int64)),
            offsets=torch.from_numpy(places.offsets),
            labels=None if labels is None else torch.from_numpy(labels),
            row=torch.from_numpy(rows),
        )
