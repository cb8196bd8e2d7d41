"""The options of the data module, and their limits."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from newsrec.data.fields import CATEGORIES
from newsrec.data.samples import WHOLE_IMPRESSIONS
from newsrec.data.splits import NEWS_TO_JUDGE
from newsrec.data.states import PRECISIONS
from newsrec.errors import UserError
from newsrec.plm_source import DEFAULT_PLM

NPRATIO = 4
"""Default of ``npratio``."""
BATCHES = ("impression", "random", "user")
"""Choices of ``batches``."""
CHOICES = {"categories": tuple(CATEGORIES), "batches": BATCHES, "frozen_states": PRECISIONS}
"""Allowed values of the options that name one of several."""
LARGEST = 2**62
"""Upper limit of every number among the options."""
MOST = {
    "num_workers": 1024,
    "npratio": 10_000,
    "max_candidates": 10_000,
    "max_history": 100_000,
}
"""Stricter limits for some options: above these the machine runs out of memory or processes."""
LEAST = {
    **{"max_tokens": 3, "abstract_tokens": 0, "max_candidates": 2, "stale": 0, "seed": 0},
    "num_workers": 0,
}
"""Lower limits of the numbers that may be 0 or must be more than 1."""
NUMBERS = (
    *("max_tokens", "abstract_tokens", "max_history", "npratio", "max_candidates"),
    *("batch_size", "tokens_per_batch"),
    *("eval_batch_size", "val_days", "stale", "seed", "num_workers", "prefetch_factor"),
)


@dataclass(eq=False, repr=False)
class DataOptions:
    """The options of ``MindDataModule``.

    Args:
        root: Data folder with any of train, dev and test: folders with MIND's files or with
            Parquet, or MIND's zips; or a folder of EB-NeRD or xMIND. Parquet may lie at an address
            such as s3://bucket/data.
        plm: PLM whose tokenizer is used; on the command line set model.plm instead.
        fields: Fields that make up the text of a news item: category, subcategory, title, abstract.
        max_tokens: Tokens kept of a text, special tokens included.
        abstract_tokens: Tokens kept of an abstract that is read as a text of its own, beside the
            text made of fields; 0 reads none. Attention pools the vectors of both texts. To join
            the abstract to the title as one text instead, name abstract in fields.
        categories: Which of a news item's category and subcategory have a learned vector per
            value, which is added to the news vector: none, category, subcategory or both. Values
            that neither train nor val has add nothing.
        max_history: Clicks kept of a history, the last ones.
        npratio: Skipped news per clicked news item in training.
        loss: Loss that training batches are made for; on the command line set model.loss instead.
        max_candidates: Candidates kept of an impression if model.loss is impression, which trains
            on whole impressions instead of clicks with npratio skipped news: clicks first, then
            skipped ones, drawn again in each epoch. Ignored with other losses.
        batch_size: Samples per process and step.
        tokens_per_batch: Limit on the tokens that the PLM reads per process and step. If set,
            batch_size is ignored: each batch takes as many samples as surely fit. The number of
            steps is the same in every epoch.
        batches: Samples that stay together when an epoch's samples are shuffled: impression, the
            clicks of an impression; user, all clicks of a user; or random, none. A batch has
            batch_size samples in each case. With impression, and more so with user, a batch has
            fewer histories and news items to encode, but also fewer users.
        eval_batch_size: Impressions per process and step in evaluation.
        train: Split to train on; train+dev joins two.
        val: Split that chooses the checkpoint. last_day takes the last day of train, which is then
            left out of training; with none the last checkpoint is kept.
        val_days: Days of last_day.
        val_news: Candidates that choose the checkpoint: all, or new, those that train has not seen,
            ranked among themselves. Most news of a later week is new.
        stale: Training ends this many days before the first day of the split val, to measure how
            news ages: 1 is the day before; 0 leaves nothing out.
        frozen_states: Precision in which the states of the PLM's frozen layers are stored beside
            the data, so that they are computed once: bf16, fp32 (twice the disk space, but the same
            losses as computing them each time), or none, which runs the whole PLM in every step.
            Ignored when all layers are tuned.
        on_bad_line: What to do with a line that cannot be read: error stops and names it, drop
            leaves it out and counts it.
        seed: Seed for shuffling and for drawing skipped news; that of seed_everything if not set.
        num_workers: Processes that prepare batches. With 0 the training process makes each batch
            itself, which is faster than receiving it from another process.
        prefetch_factor: Batches that each worker prepares ahead; ignored without workers.
        pin_memory: Whether to copy batches into pinned memory for faster transfer to a GPU; by
            default if the Trainer trains on CUDA.
    """

    root: str = "data/demo"
    plm: str = DEFAULT_PLM
    fields: Sequence[str] = ("category", "subcategory", "title")
    max_tokens: int = 32
    abstract_tokens: int = 0
    categories: str = "none"
    max_history: int = 50
    npratio: int = NPRATIO
    loss: str = "cross_entropy"
    max_candidates: int = 50
    batch_size: int = 64
    tokens_per_batch: int | None = None
    batches: str = "impression"
    eval_batch_size: int = 512
    train: str = "train"
    val: str = "dev"
    val_days: int = 1
    val_news: str = "all"
    stale: int = 0
    frozen_states: str = "bf16"
    on_bad_line: str = "error"
    seed: int | None = None
    num_workers: int = 0
    prefetch_factor: int = 2
    pin_memory: bool | None = None

    def __post_init__(self) -> None:
        if self.seed is None:
            self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        for name in NUMBERS:
            value, least, most = getattr(self, name), LEAST.get(name, 1), MOST.get(name, LARGEST)
            if not isinstance(value, int | np.integer | None):
                raise UserError(f"data.{name} is {value!r}; give a whole number.")
            if value is not None and value < least:
                raise UserError(f"data.{name} is {value}; it must be at least {least}.")
            if value is not None and value > most:
                raise UserError(f"data.{name} is {value}; it must be at most {most}.")
        if self.abstract_tokens in (1, 2):
            raise UserError(
                f"data.abstract_tokens is {self.abstract_tokens}; it must be 0, or at least 3."
            )
        if self.abstract_tokens and "abstract" in self.fields:
            raise UserError(
                f"data.abstract_tokens is {self.abstract_tokens}, and data.fields names the "
                "abstract, which would then be read twice. Leave it out of data.fields, or set "
                "data.abstract_tokens to 0."
            )
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UserError(
                    f"data.{name} is {getattr(self, name)!r}. Choose one of {', '.join(allowed)}."
                )
        if self.loss in WHOLE_IMPRESSIONS and self.npratio != NPRATIO:
            raise UserError(
                f"data.npratio is {self.npratio}, but model.loss {self.loss} trains on all "
                "candidates of an impression. Leave data.npratio out and set data.max_candidates, "
                "or choose another model.loss."
            )
        if self.val_news not in NEWS_TO_JUDGE:
            choices = " or ".join(NEWS_TO_JUDGE)
            raise UserError(f"data.val_news is {self.val_news!r}. Choose {choices}.")
        self.root, self.fields = str(self.root), list(self.fields)
