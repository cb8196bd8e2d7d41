"""MIND files to the batches of a Lightning Trainer."""

import inspect
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

from lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from newsrec.data.batch import Batch, Catalogue, EvalBatch
from newsrec.data.mind import MindData, Split, open_mind
from newsrec.data.samples import (
    EvalBatches,
    EvalImpressions,
    SampleIndex,
    TrainBatches,
    TrainSamples,
    index_samples,
)
from newsrec.data.states import TokenStates
from newsrec.data.text import tokenize_catalogue
from newsrec.errors import UserError
from newsrec.plm import DEFAULT_PLM, load_tokenizer

log = logging.getLogger(__name__)


class TrainLoader(DataLoader[Batch]):
    """Training batches that go on where a checkpoint was written, also in the middle of an epoch.

    Lightning shortens such an epoch by the batches that are done, but leaves out the last ones.
    """

    sampler: TrainBatches
    trainer: Trainer | None = None

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # Lightning asks for an iterator before it reads the checkpoint, but for no batch.
        self.sampler.start = 0
        if self.trainer is not None and self.trainer.training:
            self.sampler.start = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        yield from super().__iter__()


class MindDataModule(LightningDataModule):
    """Click-history samples of MIND for training, whole impressions for evaluation.

    Args:
        root: Data folder with train/, dev/ and test/, each with news.tsv and behaviors.tsv.
        plm: The PLM whose tokenizer reads the stories; on the command line set model.plm instead.
        fields: What a story's text is made of: category, subcategory, title, abstract.
        max_tokens: Word pieces kept of a text, special tokens included.
        max_history: Clicks kept of a history, the last ones.
        npratio: Skipped stories per clicked story in training.
        batch_size: Samples per process and step.
        eval_batch_size: Impressions per process and step of evaluation.
        train: Split to train on.
        val: Split that chooses the checkpoint.
        seed: Seed of shuffling and of the skips drawn; that of seed_everything if not set.
        num_workers: Processes that prepare batches. 0 is fastest on most machines: batches are
            made by a few array operations, and copying them between processes costs more.
        pin_memory: Copy batches into pinned memory, for faster transfers to a GPU.
    """

    def __init__(
        self,
        root: str = "data/demo",
        plm: str = DEFAULT_PLM,
        fields: Sequence[str] = ("category", "subcategory", "title"),
        max_tokens: int = 32,
        max_history: int = 50,
        npratio: int = 4,
        batch_size: int = 64,
        eval_batch_size: int = 512,
        train: str = "train",
        val: str = "dev",
        seed: int | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        super().__init__()
        if seed is None:
            seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        for name, value, least in (
            ("max_tokens", max_tokens, 3),
            ("max_history", max_history, 1),
            ("npratio", npratio, 1),
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("seed", seed, 0),
            ("num_workers", num_workers, 0),
        ):
            if value < least:
                raise UserError(f"data.{name} is {value}; it must be at least {least}.")
        self.root = str(root)
        self.plm = plm
        self.fields = list(fields)
        self.max_tokens = max_tokens
        self.max_history = max_history
        self.npratio = npratio
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.train = train
        self.val = val
        self.seed = seed
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        # By name, not from the call: values as resolved above, and plain enough for a checkpoint.
        names = inspect.signature(MindDataModule).parameters
        self.save_hyperparameters({name: getattr(self, name) for name in names}, logger=False)
        self.tokenizer_json: str | None = None
        """Text of the tokenizer's file; read from the PLM unless a checkpoint brought it."""
        self.eval_split: str | None = None
        """Split that ``predict_dataloader`` goes through; ``val`` if None."""
        self._data: MindData | None = None
        self._catalogue: Catalogue | None = None
        self._index: SampleIndex | None = None
        self._states: TokenStates | None = None
        self._samples: TrainSamples | None = None

    def prepare_data(self) -> None:
        """Compile the files and tokenise the stories, on one process of each machine."""
        self._open()

    def setup(self, stage: str) -> None:
        """Open the arrays.

        Args:
            stage: Lightning's name for what follows; ``fit`` needs labelled splits.
        """
        self._open()
        if stage == "fit":
            for option, name in (("train", self.train), ("val", self.val)):
                if self.data.split(name).labels is None:
                    raise UserError(
                        f"data.{option}: the split {name!r} in {self.root} has no labels. "
                        "Choose a split whose candidates end in -0 and -1."
                    )
            self._index = index_samples(self.data.split(self.train))
            if not len(self._index.click):
                raise UserError(
                    f"{self.root}: no impression of {self.train!r} has a known click and a known "
                    f"skip. Does its news.tsv belong to its behaviors.tsv?"
                )

    @property
    def data(self) -> MindData:
        """The opened data folder."""
        assert self._data is not None, "setup() comes first"
        return self._data

    @property
    def catalogue(self) -> Catalogue:
        """Every story's tokens."""
        assert self._catalogue is not None, "setup() comes first"
        return self._catalogue

    @property
    def index(self) -> SampleIndex:
        """The training samples."""
        assert self._index is not None, "setup('fit') comes first"
        return self._index

    @property
    def states(self) -> TokenStates | None:
        """States of a frozen PLM, once a callback has computed them."""
        return self._states

    @states.setter
    def states(self, states: TokenStates | None) -> None:
        self._states = states
        # A schedule that counts its steps has Lightning build the loader before any callback runs.
        if self._samples is not None:
            self._samples.states = states

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return shuffled training batches."""
        rank, world_size = self._process()
        split = self.data.split(self.train)
        self._samples = TrainSamples(
            split,
            self.index,
            self.catalogue,
            self.max_history,
            self.npratio,
            self.seed,
            self.states,
        )
        sampler = TrainBatches(len(self._samples), self.batch_size, self.seed, rank, world_size)
        loader = self._loader(self._samples, sampler, TrainLoader)
        loader.trainer = self.trainer
        return loader

    def val_dataloader(self) -> DataLoader[EvalBatch]:
        """Return the impressions that choose the checkpoint."""
        return self._eval_loader(self.data.split(self.val))

    def predict_dataloader(self) -> DataLoader[EvalBatch]:
        """Return the impressions of ``eval_split``."""
        return self._eval_loader(self.data.split(self.eval_split or self.val))

    def describe(self) -> str:
        """Return a few lines on what will be trained on and what is left out."""
        counts = {name: self.data.split(name).counts for name in (self.train, self.val)}
        lines = []
        for name, count in counts.items():
            unknown = count["unknown_candidates"] / max(count["candidates"], 1)
            lines.append(
                f"{name}: {count['impressions']:,} impressions, {count['users']:,} users, "
                f"{count['candidates']:,} candidates ({unknown:.1%} not in news.tsv), "
                f"{count['empty_histories'] / count['impressions']:.1%} empty histories"
            )
        left_out = ", ".join(f"{n:,} {reason}" for reason, n in self.index.left_out.items())
        lines.append(f"samples: {len(self.index.click):,} of {self.train} (left out: {left_out})")
        return "\n".join(lines)

    def _open(self) -> None:
        if self._data is not None:
            return
        data = open_mind(self.root)
        if self.tokenizer_json is None:
            self.tokenizer_json = load_tokenizer(self.plm)
        self._catalogue = tokenize_catalogue(
            data, self.fields, self.max_tokens, self.tokenizer_json
        )
        self._data = data

    def _process(self) -> tuple[int, int]:
        """Return this process's number and how many there are."""
        trainer = self.trainer
        if trainer is None:
            return 0, 1
        connector: Any = trainer._accelerator_connector
        if trainer.world_size > 1 and connector.use_distributed_sampler:
            raise UserError(
                "Trainer(use_distributed_sampler=True) would deal out the batches a second time. "
                "Build the Trainer with use_distributed_sampler=False."
            )
        return trainer.global_rank, trainer.world_size

    def _eval_loader(self, split: Split) -> DataLoader[EvalBatch]:
        rank, world_size = self._process()
        sampler = EvalBatches(split, self.eval_batch_size, rank, world_size)
        return self._loader(EvalImpressions(split, self.max_history), sampler)

    def _loader(
        self, dataset: Any, sampler: Any, kind: type[DataLoader] = DataLoader
    ) -> DataLoader:
        return kind(
            dataset,
            batch_size=None,  # the sampler's keys are whole batches already
            sampler=sampler,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            persistent_workers=self.num_workers > 0,
        )
