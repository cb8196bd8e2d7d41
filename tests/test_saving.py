"""Checkpoints are whole or absent; signals save; what is not a number is not saved."""

import logging
import os
import re
import resource
import signal
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback
from test_tuning import made_plm

from newsrec.__main__ import main
from newsrec.data.datamodule import MindDataModule
from newsrec.errors import UserError
from newsrec.model.plm.lora import LoraConfig
from newsrec.training.checkpoint.saving import AtomicCheckpointIO, LastCheckpoint
from newsrec.training.guards import FiniteLoss, out_of_memory
from newsrec.training.module import RecommenderModule


@pytest.fixture(autouse=True)
def lightning_keeps_the_stderr_of_its_import(monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)


@pytest.fixture
def fit(mind_dir, plm_dir, tmp_path):
    """Return a function that trains, with one more callback."""
    output = tmp_path / "run"

    def run(callback=None, *options):
        given = [
            "fit",
            f"--data.root={mind_dir}",
            f"--model.plm={plm_dir}",
            f"--output={output}",
            "--model.dim=16",
            "--model.news={heads: 2, ffn: 16}",
            "--model.user={heads: 2, ffn: 16}",
            "--data.batch_size=8",
            "--trainer.accelerator=cpu",
            "--trainer.devices=1",
            "--trainer.max_epochs=2",
            "--trainer.log_every_n_steps=2",
            "--trainer.enable_progress_bar=false",
            "--baselines=false",
            *options,
        ]
        main(given, [] if callback is None else [callback])

    run.output = output
    return run


class At(Callback):
    """Does something once a step of training is reached, before it runs."""

    def __init__(self, step, action):
        self.step = step
        self.action = action

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            self.action(pl_module)


# files


def test_a_checkpoint_is_replaced_as_a_whole(tmp_path):
    io, path = AtomicCheckpointIO(), tmp_path / "checkpoints" / "last.ckpt"
    for number in (1, 2):
        io.save_checkpoint({"number": torch.tensor(number)}, path)
        assert torch.load(path)["number"] == number
    assert io.failed is None
    assert os.listdir(path.parent) == ["last.ckpt"]


@pytest.fixture
def small_disk():
    """Let no file grow beyond 100 kB: to a writer, a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_checkpoint_that_was_there(tmp_path, small_disk):
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"weights": torch.ones(100)}, path)
    io.save_checkpoint({"weights": torch.zeros(1_000_000)}, path)
    assert "File too large" in io.failed
    assert "the previous one is whole" in io.failed
    assert torch.equal(torch.load(path)["weights"], torch.ones(100))
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_a_run_on_a_full_disk_stops_and_says_so(fit, monkeypatch, capsys):
    save = torch.save

    def full(checkpoint, file):
        if checkpoint["global_step"] >= 5:
            raise OSError(28, "No space left on device")
        save(checkpoint, file)

    monkeypatch.setattr("newsrec.training.checkpoint.saving.torch.save", full)
    with pytest.raises(SystemExit) as stop:
        fit(None, "--save_every=2")
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert "--ckpt_path last" in said
    last = torch.load(fit.output / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 4


def test_a_disk_that_is_full_from_the_first_has_nothing_to_go_on_from(tmp_path, small_disk):
    io = AtomicCheckpointIO()
    io.save_checkpoint({"weights": torch.zeros(1_000_000)}, tmp_path / "last.ckpt")
    assert "there is none yet. Free some space and start a new run" in io.failed


# signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_the_step_that_runs(fit, capsys, number, code):
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stop:
        fit(At(3, lambda module: signal.raise_signal(number)))
    assert stop.value.code == code
    last = torch.load(fit.output / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 4
    said = capsys.readouterr().err
    assert f"Stopped by {number.name} after 4 steps" in said
    assert f"--ckpt_path last --output {fit.output}" in said
    assert signal.getsignal(number) == before


def test_a_second_signal_ends_the_process(tmp_path, monkeypatch):
    left = []
    monkeypatch.setattr("newsrec.training.checkpoint.saving.os._exit", left.append)
    callback = LastCheckpoint(tmp_path / "last.ckpt", None)
    callback._receive(signal.SIGINT, None)
    assert left == []
    callback._receive(signal.SIGTERM, None)
    assert left == [143]


def test_steps_between_writes_are_positive(tmp_path):
    with pytest.raises(UserError, match="--save_every is 0"):
        LastCheckpoint(tmp_path / "last.ckpt", 0)


# guards


def spoil_loss(module):
    module.recommender.user_encoder.empty.data.fill_(float("nan"))
    module.recommender.user_encoder.log_scale.data.fill_(float("nan"))


@pytest.mark.parametrize("options", [(), ("--trainer.log_every_n_steps=50",)])
def test_a_loss_that_is_no_number_stops_with_its_samples(fit, capsys, options):
    with pytest.raises(SystemExit) as stop:
        fit(At(5, spoil_loss), "--save_every=2", *options)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "since batch 5 of epoch 0 (batch 5 of the run)" in said
    assert "impression " in said
    assert " of U" in said
    assert "last.ckpt" in said
    last = torch.load(fit.output / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 4
    assert all(value.isfinite().all() for value in last["state_dict"].values())


def test_a_weight_that_is_no_number_is_not_saved(fit, capsys):
    def spoil(module):
        module.recommender.user_encoder.empty.data.fill_(float("inf"))

    with pytest.raises(SystemExit):
        fit(At(5, spoil), "--save_every=1")
    assert "since batch 5 of epoch 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no room"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_too_little_memory_names_the_options_that_lower_it(error):
    with (
        pytest.raises(UserError, match=r"data\.batch_size.*checkpoint_activations"),
        out_of_memory(),
    ):
        raise error


def test_what_is_set_already_is_no_advice_against_too_little_memory(plm_dir):
    def advice(precision, batches, **options):
        module = RecommenderModule(plm=str(plm_dir), **options)
        data = MindDataModule(plm=str(plm_dir), batches=batches)
        trainer = SimpleNamespace(precision=precision)
        with pytest.raises(UserError) as error, out_of_memory(module, data, trainer):
            raise MemoryError
        return str(error.value)

    told = advice("32-true", "random", tune_layers=2)
    for option in ("checkpoint_activations", "model.precision bf16", "tune_layers", "data.batches"):
        assert option in told
    assert "model.lora.rank 8" in told
    lora = {"rank": 8}
    told = advice("bf16-mixed", "user", tune_layers=-1, checkpoint_activations=True, lora=lora)
    assert "set fewer model.tune_layers." in told
    for option in ("checkpoint_activations", "model.precision", "data.batches", "lora"):
        assert option not in told
    assert "abstract_tokens" not in told
    told = advice("bf16-mixed", "user", tune_layers=0)  # nothing is kept for the backward pass
    assert "tune_layers" not in told
    assert "checkpoint_activations" not in told
    assert "data.npratio. `fit --dry_run`" in told


@pytest.mark.parametrize(("family", "possible"), [("bert", True), ("mpnet", True), ("xlm", False)])
def test_a_plm_that_cannot_recompute_is_not_advised_to(family, possible):
    encoder = SimpleNamespace(plm=made_plm(family))
    recommender = SimpleNamespace(news_encoder=encoder)
    module = SimpleNamespace(tune_layers=2, lora=LoraConfig(), recommender=recommender)
    trainer = SimpleNamespace(precision="32-true")
    with pytest.raises(UserError) as error, out_of_memory(module, None, trainer):
        raise MemoryError
    assert ("checkpoint_activations" in str(error.value)) == possible


def test_too_little_memory_for_abstracts_names_their_length():
    data = SimpleNamespace(abstract_tokens=64)
    named = r"data\.max_tokens, data\.abstract_tokens or data\.npratio"
    with pytest.raises(UserError, match=named), out_of_memory(None, data):
        raise MemoryError


@pytest.mark.parametrize(("rank", "rate"), [(0, "plm_lr"), (8, "lora.learning_rate")])
def test_a_loss_that_is_no_number_names_the_rates_that_are_used(tmp_path, rank, rate):
    guard = FiniteLoss(tmp_path / "last.ckpt")
    guard._first = torch.tensor(4)
    trainer = SimpleNamespace(
        world_size=1,
        num_training_batches=3,
        datamodule=SimpleNamespace(name_samples=lambda epoch, batch: ["a sample"]),
        lightning_module=SimpleNamespace(lora=LoraConfig(rank=rank)),
    )
    rates = rf"lower rates \(model\.lr, model\.{re.escape(rate)}, model\.gate_lr\)"
    with pytest.raises(UserError, match=rates):
        guard.check(trainer)


def test_other_errors_pass_the_memory_guard():
    with pytest.raises(RuntimeError, match="shapes"), out_of_memory():
        raise RuntimeError("shapes")


def test_early_stopping_counts_validations(fit, capsys):
    fit(None, "--patience=1", "--trainer.max_epochs=9", "--model.lr=0", "--model.gate_lr=0")
    last = torch.load(fit.output / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["epoch"] == 1
    with pytest.raises(SystemExit):
        fit(None, "--patience=1", "--data.val=none", f"--output={fit.output}2")
    assert "--patience is 1 and data.val is none" in capsys.readouterr().err
