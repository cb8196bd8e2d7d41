"""One test for each member of Lightning's insides that newsrec touches: it fails when one moves."""

import inspect
import re
from pathlib import Path
from typing import Union, get_args

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.profilers import SimpleProfiler
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.utils.data import DataLoader

import newsrec
from newsrec.data.lightning_internals import batches_done, replaces_samplers
from newsrec.training import lightning_internals as internals

NUM_BATCHES = 6


class Line(LightningModule):
    def __init__(self, size: int = 1):
        super().__init__()
        self.map = torch.nn.Linear(size, 1)

    def training_step(self, batch, batch_idx):
        return self.map(batch).mean()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Notes(Callback):
    """Notes what every function says after each batch, and the files written on the way."""

    def __init__(self):
        self.said = {name: [] for name in ("logging", "accumulating", "last", "number", "done")}
        self.validates = []
        self.files = {}
        self.resumes = None
        self.bars = []

    def on_train_start(self, trainer, pl_module):
        self.resumes = internals.resumes_validation(trainer)
        internals.share_no_signals(trainer)

    def on_train_batch_end(self, trainer, *_):
        for name, value in (
            ("logging", internals.is_logging(trainer)),
            ("accumulating", internals.is_accumulating(trainer)),
            ("last", internals.is_last_batch(trainer)),
            ("number", internals.batch_number(trainer)),
            ("done", batches_done(trainer)),
        ):
            self.said[name].append(value)
        self.validates.append(internals.validates_next(trainer))
        (bar,) = (c for c in trainer.callbacks if isinstance(c, TQDMProgressBar))
        self.bars = [internals.train_bar(bar), *internals.open_bars(bar)]
        assert internals.is_due(bar, 1, NUM_BATCHES)

    def on_validation_start(self, trainer, pl_module):
        self.keep(trainer, "validation")

    def on_train_epoch_end(self, trainer, pl_module):
        self.keep(trainer, "epoch")

    def keep(self, trainer, name):
        path = f"{trainer.default_root_dir}/{name}.ckpt"
        trainer.save_checkpoint(path)
        self.files[name] = path


def train(folder, notes, **options):
    trainer = Trainer(
        max_epochs=options.pop("max_epochs", 1),
        accelerator="cpu",
        accumulate_grad_batches=2,
        log_every_n_steps=2,
        val_check_interval=4,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[notes, TQDMProgressBar()],
        profiler=(profiler := SimpleProfiler()),
    )
    loader = DataLoader(torch.ones(NUM_BATCHES, 1))
    trainer.fit(Line(), loader, DataLoader(torch.ones(1, 1)), **options)
    return trainer, profiler


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    notes = Notes()
    return (*train(tmp_path_factory.mktemp("run"), notes), notes)


def test_what_a_trainer_is_asked_after_each_batch(run):
    _, _, notes = run
    assert notes.said["done"] == [1, 2, 3, 4, 5, 6]
    assert notes.said["number"] == [0, 1, 2, 3, 4, 5]
    assert notes.said["accumulating"] == [True, False] * 3
    assert notes.said["last"] == [False] * 5 + [True]
    assert notes.validates == [False, False, False, True, False, False]
    # Steps are counted from 1, after every two batches: the second is logged.
    assert notes.said["logging"] == [False, False, True, True, False, False]


def test_a_bar_is_there_while_it_runs(run):
    _, _, notes = run
    assert len(notes.bars) >= 2
    assert notes.bars[0] in notes.bars[1:]
    assert isinstance(notes.bars[0], internals.Tqdm)
    assert internals.convert_inf(float("inf")) is None
    assert internals.train_bar(TQDMProgressBar()) is None
    assert internals.open_bars(TQDMProgressBar()) == []


def test_a_profiler_calls_the_wait_for_a_batch_so(run):
    _, profiler, _ = run
    assert internals.LOADING in profiler.recorded_durations


def test_signals_are_asked_for_by_the_method_that_is_replaced(run):
    trainer, _, _ = run
    loop = type(trainer.fit_loop.epoch_loop)
    assert callable(loop._broadcast_sigterm_tensor)
    assert "self._broadcast_sigterm_tensor()" in inspect.getsource(loop.advance)


def test_a_checkpoint_counts_its_epochs(run):
    _, _, notes = run
    checkpoint = torch.load(notes.files["epoch"], weights_only=True)
    assert internals.epochs_done(checkpoint) == 1
    assert checkpoint["epoch"] == 0
    before = torch.load(notes.files["validation"], weights_only=True)
    assert internals.epochs_done(before) == 0


def test_a_run_begins_with_the_validation_that_its_checkpoint_says_was_begun(run, tmp_path):
    _, _, notes = run
    assert not notes.resumes
    checkpoint = torch.load(notes.files["validation"], weights_only=True)
    internals.begin_validation(checkpoint)
    torch.save(checkpoint, tmp_path / "begun.ckpt")
    again = Notes()
    train(tmp_path, again, ckpt_path=tmp_path / "begun.ckpt", weights_only=True)
    assert again.resumes
    assert again.said["done"] == [5, 6]


def test_a_trainer_tells_whether_it_replaces_samplers():
    for whether in (True, False):
        trainer = Trainer(accelerator="cpu", logger=False, use_distributed_sampler=whether)
        assert replaces_samplers(trainer) is whether


def test_a_command_line_tells_its_options(monkeypatch):
    for name in internals.OVERRIDDEN:
        assert callable(getattr(LightningCLI, name))
    monkeypatch.setattr("sys.argv", ["fit", "--trainer.max_epochs", "3"])
    cli = LightningCLI(Line, run=False, save_config_callback=None)
    assert internals.trainer_options(cli)["max_epochs"] == 3
    assert "model.size" in internals.known_options(cli, cli.parser)
    monkeypatch.setattr("sys.argv", ["newsrec", "fit", "--trainer.fast_dev_run", "1"])

    class Silent(LightningCLI):
        def fit(self, model, **kwargs):
            self.done = True

    cli = Silent(Line, save_config_callback=None)
    assert cli.done
    assert "trainer.max_epochs" in internals.known_options(cli, None)


def test_a_logger_keeps_its_experiment_where_ours_looks_for_it(tmp_path):
    logger = CSVLogger(tmp_path)
    assert logger._experiment is None
    assert logger.experiment is logger._experiment


def test_no_other_file_touches_what_is_private():
    private = re.compile(
        r"\b(trainer|loop|fit_loop|epoch_loop|connector|fetcher|plm|config|cli)\._[a-z]"
        r"|_attn_implementation|transformers\.(integrations|masking_utils)"
    )
    for path in Path(newsrec.__file__).parent.rglob("*.py"):
        if not path.name.endswith("_internals.py"):
            found = private.search(path.read_text(encoding="utf-8"))
            assert found is None, f"{path}: {found[0]}"


def test_a_parser_reads_whole_numbers_first_whatever_was_imported_before(monkeypatch):
    annotations = Trainer.__init__.__annotations__
    kinds = {
        "limit_val_batches": Union[float, int, None],  # noqa: UP007
        "limit_test_batches": Union[None, float, str, int],  # noqa: UP007
        "max_epochs": Union[None, int],  # noqa: UP007
        "barebones": bool,
    }
    for name, kind in kinds.items():
        monkeypatch.setitem(annotations, name, kind)
    internals.whole_numbers_first()
    nothing = type(None)
    assert get_args(annotations["limit_val_batches"]) == (int, float, nothing)
    assert get_args(annotations["limit_test_batches"]) == (int, float, str, nothing)
    assert get_args(annotations["max_epochs"]) == (int, nothing)
    assert annotations["barebones"] is bool


def test_shards_are_over_all_processes_of_all_machines():
    strategy = ModelParallelStrategy()
    assert strategy._data_parallel_size == strategy._tensor_parallel_size == "auto"
    strategy.num_nodes, strategy.parallel_devices = 2, [torch.device("cpu")] * 4
    internals.shard_over_all(strategy)
    assert (strategy._data_parallel_size, strategy._tensor_parallel_size) == (8, 1)
