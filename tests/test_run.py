"""A run is assembled without a command line, and its folder is kept for it."""

import shutil
import warnings

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy

from newsrec.data.datamodule import MindDataModule
from newsrec.errors import UserError
from newsrec.training.hardware.settle import trainer_defaults
from newsrec.training.module import RecommenderModule
from newsrec.training.progress import curves
from newsrec.training.progress.curves import Curves
from newsrec.training.run import DEFAULTS, Run

SHORT = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "enable_progress_bar": False}


class Count(Callback):
    steps = 0

    def on_train_batch_end(self, *_):
        self.steps += 1


@pytest.fixture
def make(mind_dir, plm_dir, tmp_path):
    """Return a function that builds a run and its Trainer."""

    def build(root=mind_dir, options=None, **more):
        shape = {"heads": 2, "ffn": 16}
        sizes = {"dim": 16, "news": shape, "user": shape, "max_tokens": 12}
        module = RecommenderModule(plm=str(plm_dir), **sizes)
        data = MindDataModule(root=str(root), plm=str(plm_dir), batch_size=8, max_tokens=12)
        run = Run(tmp_path / "run", module, data, **more)
        wanted = trainer_defaults(**(DEFAULTS | SHORT | (options or {})))
        settled = run.settle(wanted)
        return run, Trainer(**(wanted | settled.options)), settled.hardware

    return build


def test_a_run_needs_no_command_line(make, tmp_path):
    count = Count()
    run, trainer, hardware = make(callbacks=[count])
    with run.folder(trainer), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few workers: Lightning's advice
        run.train(trainer)
    assert count.steps == trainer.global_step > 0
    best = torch.load(run.best.best_model_path, weights_only=True)
    assert best["hyper_parameters"]["precision"] == hardware.precision in ("fp32", "bf16")
    assert best["newsrec"]["auto_precision"] == hardware.precision
    assert best["newsrec"]["threads"] == hardware.threads
    assert run.last.is_file()
    assert (tmp_path / "run" / "metrics.csv").is_file()


class Buffers(Callback):
    """Keeps the buffers before the first step and after each, and whether DDP sends them."""

    def __init__(self):
        self.kept, self.sends = [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.kept.append({name: x.clone() for name, x in pl_module.named_buffers()})
        self.sends.append(trainer.strategy.model.will_sync_module_buffers())

    def on_train_start(self, trainer, pl_module):
        self.kept.append({name: x.clone() for name, x in pl_module.named_buffers()})


@pytest.mark.parametrize("given", [{}, {"broadcast_buffers": True}])
def test_ddp_does_not_send_buffers_which_are_constants(make, given):
    buffers = Buffers()
    strategy = DDPStrategy(process_group_backend="gloo", **given)
    run, trainer, _ = make(callbacks=[buffers], options={"strategy": strategy, "max_steps": 3})
    try:
        with run.folder(trainer), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run.train(trainer)
    finally:  # later tests fork, and form groups of their own
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    assert buffers.sends == [bool(given)] * 3
    first, *others = buffers.kept
    assert {"residual.centre", "residual.projection"} <= {
        ".".join(name.split(".")[-2:]) for name in first
    }
    for other in others:
        assert all(torch.equal(other[name], x) for name, x in first.items())


@pytest.mark.parametrize(("every", "drawn"), [(3600.0, 1), (0.0, 3)])
def test_curves_are_drawn_during_a_run_but_not_all_the_time(make, monkeypatch, every, drawn):
    """After each of two epochs, if the last drawing was long enough ago, and in the end."""
    drawings = []
    monkeypatch.setattr(curves, "EVERY", every)
    monkeypatch.setattr(curves, "draw_curves", lambda log, picture: drawings.append(picture))
    run, trainer, _ = make()
    trainer.fit_loop.max_epochs = 2
    with run.folder(trainer), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few workers: Lightning's advice
        run.train(trainer)
    assert drawings == [run.output / "curves.png"] * drawn


def test_further_callbacks_come_before_those_that_draw_and_save(make):
    count = Count()
    run, trainer, _ = make(callbacks=[count])
    kinds = [type(callback) for callback in trainer.callbacks]
    assert kinds.index(Count) < kinds.index(Curves)
    assert trainer.callbacks.index(count) < trainer.callbacks.index(run.best)


def test_a_start_that_fails_leaves_no_folder(make, mind_dir, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(mind_dir, root)
    run, trainer, _ = make(root=root)
    shutil.rmtree(root)
    with pytest.raises(UserError, match="is not a folder"), run.folder(trainer):
        run.train(trainer)
    assert not (tmp_path / "run").exists()


def test_patience_needs_validations(make):
    with pytest.raises(UserError, match="--patience is 0"):
        make(patience=0)
