"""Gives a Lightning Trainer its batches, made from the files of a data folder."""

import inspect
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from lightning import LightningDataModule
from torch.utils.data import DataLoader

from newsrec.data import FIRST_NEWS
from newsrec.data.batch import Batch, Catalogue, EvalBatch
from newsrec.data.dataset import NewsData, Split, open_mind
from newsrec.data.doubts import doubts
from newsrec.data.fields import CATEGORIES, category_names
from newsrec.data.lightning_internals import replaces_samplers
from newsrec.data.loader import TrainLoader, check_batch_size
from newsrec.data.options import DataOptions
from newsrec.data.run_samples import RunSamples
from newsrec.data.samplers import EvalBatches, SameBatches
from newsrec.data.samples import EvalImpressions, SampleIndex
from newsrec.data.splits import LAST_DAY, NONE, Unseen, choose_splits, judged_news
from newsrec.data.states import RunStates, TokenStates
from newsrec.data.summary import describe_split, describe_unseen
from newsrec.data.text import tokenize_catalogue, with_categories
from newsrec.data.workers import keep_working
from newsrec.errors import DataError, UserError
from newsrec.plm_source import load_tokenizer


class MindDataModule(DataOptions, LightningDataModule):
    """MIND for a Trainer: samples for training, whole impressions for evaluation.

    Its options are those of ``DataOptions``.
    """

    seed: int

    def __post_init__(self) -> None:
        LightningDataModule.__init__(self)
        super().__post_init__()
        # Save the attributes, not the call's arguments: they are resolved and are plain values.
        names = inspect.signature(MindDataModule).parameters
        self.save_hyperparameters({name: getattr(self, name) for name in names}, logger=False)
        self.tokenizer_json: str | None = None
        """Text of the tokenizer's file; read from the PLM unless a checkpoint provides it."""
        self.category_names: dict[str, list[str]] | None = None
        """Values of ``categories`` that have vectors, set by the model; None if there are none."""
        self._named: dict[str, list[str]] | None = None
        """The ``category_names`` whose rows are in the catalogue."""
        self._eval_split: str | None = None
        self._data: NewsData | None = None
        self._chosen = False
        self._judged: Unseen | None = None
        self._catalogue: Catalogue | None = None
        self._num_news: int | None = None
        self._samples: RunSamples | None = None
        self._states = RunStates()
        self._trained_on: int | None = None

    @classmethod
    def as_trained(
        cls,
        options: Mapping[str, Any],
        tokenizer_json: str,
        eval_split: str | None = None,
        category_names: dict[str, list[str]] | None = None,
    ) -> "MindDataModule":
        """Build a data module that reads texts as in the training of a model.

        ``tokenizer_json`` is the text of the tokenizer's file, ``eval_split`` the split of
        ``predict_dataloader``, which is ``val`` if None; ``category_names`` as the attribute.
        """
        data = cls(**options)
        data.tokenizer_json, data.category_names = tokenizer_json, category_names
        data._eval_split = eval_split
        return data

    def prepare_data(self) -> None:
        """Compile the files and tokenize the news; called in one process of each machine."""
        self._open()

    def setup(self, stage: str) -> None:
        """Open the arrays; DataError if ``stage`` is ``fit`` and a split has no labels."""
        self._open()
        if (stage == "fit" or self._eval_split == LAST_DAY) and not self._chosen:
            self._data = choose_splits(self.data, self.train, self.val, self.stale, self.val_days)
            self._chosen = True
        if stage == "fit":
            for option, name in zip(("train", "val"), self.windows(), strict=False):
                if self.data.split(name).labels is None:
                    raise DataError(
                        f"data.{option}: the split {name!r} in {self.root} has no labels. "
                        "Choose a split with labels: candidates that end in -0 and -1, or a column "
                        "labels in impressions.parquet."
                    )
            self._judged = self._judged or judged_news(self.data, self.val, self.val_news)
            split = self.data.split(self.train)
            # Trainer.fit calls setup again after fit, which calls it early to report mistakes.
            if self._samples is None or self._samples.split is not split:
                self._samples = RunSamples(split, self, self.catalogue)
        self._num_news = self._known_news(stage)

    def _known_news(self, stage: str) -> int | None:
        """Return how many of the catalogue's first rows a stage uses; None for all.

        Training and validation use only the news that their splits know. Other news, such as those
        only in test, would change the weights.
        """
        if stage == "fit":
            return max(self.data.split(name).num_news for name in self.windows())
        if stage == "validate" and self.val in self.data.splits:
            return self.data.split(self.val).num_news
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return the number of processes and the batch size, which a resumed run compares."""
        return {"world_size": self._process()[1], "batch_size": self.batch_size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the number of processes, for a run that resumes within an epoch.

        Another batch size is refused, as ``check_batch_size`` says.
        """
        self._trained_on = state_dict["world_size"]
        check_batch_size(state_dict, self.batch_size, self._process()[1])

    @property
    def data(self) -> NewsData:
        """The opened data folder."""
        assert self._data is not None, "setup() comes first"
        return self._data

    @property
    def catalogue(self) -> Catalogue:
        """Tokens of all news; while fitting, only of the news that its splits know."""
        assert self._catalogue is not None, "setup() comes first"
        if self._named != self.category_names:
            self._named = self.category_names
            self._catalogue = with_categories(self._catalogue, self.data.news, self._named)
        return self._catalogue if self._num_news is None else self._catalogue.head(self._num_news)

    def known_categories(self) -> dict[str, list[str]]:
        """Return the values of ``categories`` in the news of training and validation."""
        last = max(self.data.split(name).num_news for name in self.windows())
        return category_names(self.data.news[: last - FIRST_NEWS], CATEGORIES[self.categories])

    @property
    def news_ends(self) -> list[int]:
        """Distinct ``num_news`` of the splits, ascending, those beyond ``catalogue`` left out."""
        ends = {split.num_news for split in self.data.splits.values()}
        return sorted(end for end in ends if end <= self.catalogue.num_news)

    @property
    def samples(self) -> RunSamples:
        """The training samples."""
        assert self._samples is not None, "setup('fit') comes first"
        return self._samples

    @property
    def index(self) -> SampleIndex:
        """The impression and the click of each training sample."""
        return self.samples.index

    @property
    def states(self) -> TokenStates | None:
        """States of the PLM's frozen layers; None until a callback has read or computed them."""
        return self._states.now

    def use_states(self, states: TokenStates | None) -> None:
        """Use these states from now on, in batches and to encode news; None uses none."""
        self._states.now = states

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return shuffled training batches."""
        batches = self.samples.batches(*self._process())
        run: dict[str, Any] = {"trainer": self.trainer, "trained_on": self._trained_on}
        kind = partial(TrainLoader, **run, ahead=self._on_gpu())
        return self._loader(self.samples.dataset(self.catalogue, self._states), batches, kind)

    def val_dataloader(self) -> DataLoader[EvalBatch] | list[Any]:
        """Return the impressions that choose the checkpoint; no loader if ``val`` is none."""
        if self.selected_on is None:
            return []
        judged = self._judged or judged_news(self.data, self.val, self.val_news)
        return self._eval_loader(judged.split if judged else self.data.split(self.val))

    def predict_dataloader(self) -> DataLoader[EvalBatch]:
        """Return the impressions of ``eval_split``."""
        return self._eval_loader(self.data.split(self.eval_split))

    @property
    def eval_split(self) -> str:
        """The split of ``predict_dataloader``."""
        return self._eval_split or self.val

    def predict_on(self, split: str) -> None:
        """Set the split of ``predict_dataloader``."""
        self._eval_split = split

    @property
    def selected_on(self) -> str | None:
        """The split that chooses the checkpoint; None if there is none."""
        return None if self.val == NONE else self.val

    def windows(self) -> dict[str, str]:
        """Return the days of the training split, and of the split that chooses the checkpoint."""
        names = (self.train, self.selected_on)
        return {name: self.data.split(name).window for name in names if name}

    def describe(self) -> str:
        """Return a few lines on the splits in use, the training samples and what is left out."""
        lines = [describe_split(self.data.split(name)) for name in self.windows()]
        if self._judged is not None:
            lines.append(describe_unseen(self.train, self.data.split(self.val), self._judged))
        lines += self.samples.describe(self._process()[1])
        return "\n".join([*lines, *doubts([self.data.split(name) for name in self.windows()])])

    def name_samples(self, epoch: int, step: int) -> list[str]:
        """Return ids by which a person finds the samples of this process's batch in the files."""
        batch = self.samples.batches(*self._process()).samples(epoch, step)
        return self.samples.names(batch, self.data)

    def _open(self) -> None:
        if self._data is not None:
            return
        data = open_mind(self.root, self.on_bad_line)
        if self.tokenizer_json is None:
            self.tokenizer_json = load_tokenizer(self.plm)
        self._catalogue = tokenize_catalogue(
            data, self.fields, self.max_tokens, self.tokenizer_json, self.abstract_tokens
        )
        self._data = data

    def _process(self) -> tuple[int, int]:
        """Return this process's number and how many there are."""
        trainer = self.trainer
        if trainer is None:
            return 0, 1
        if trainer.world_size > 1 and replaces_samplers(trainer):
            raise UserError(
                "Trainer(use_distributed_sampler=True) would deal out the batches a second time. "
                "Build the Trainer with use_distributed_sampler=False."
            )
        return trainer.global_rank, trainer.world_size

    def _eval_loader(self, split: Split) -> DataLoader[EvalBatch]:
        sampler = EvalBatches(split, self.eval_batch_size, *self._process())
        return self._loader(EvalImpressions(split, self.max_history), sampler)

    def _loader(
        self, dataset: Any, sampler: Any, kind: Callable[..., DataLoader[Any]] = DataLoader
    ) -> DataLoader[Any]:
        if getattr(self.trainer, "overfit_batches", 0):
            sampler = SameBatches(sampler)
        workers: dict[str, Any] = {}
        if self.num_workers:
            workers = {"prefetch_factor": self.prefetch_factor, "persistent_workers": True}
            workers["worker_init_fn"] = keep_working
            if sys.platform == "linux":
                # Forked workers share the arrays; with other start methods each gets a copy.
                workers["multiprocessing_context"] = "fork"
        return kind(
            dataset,
            batch_size=None,  # each key of the sampler is already a whole batch
            collate_fn=_as_it_is,
            sampler=sampler,
            num_workers=self.num_workers,
            pin_memory=self._on_gpu() if self.pin_memory is None else self.pin_memory,
            **workers,
        )

    def _on_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"


def _as_it_is(batch: Any) -> Any:
    """Return the batch unchanged; PyTorch's default would turn NumPy arrays into tensors."""
    return batch
