"""A run that dies and goes on ends as one that never died: every tensor, bit for bit."""

import csv
import logging
import time

import pytest
import torch
from conftest import tiny_behaviors, tiny_news, write_mind
from resuming import assert_same, last, run_killed
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from newsrec.__main__ import main

pytestmark = pytest.mark.slow
EMA = (
    "--trainer.callbacks+={class_path: EMAWeightAveraging, init_args: {decay: 0.9, "
    "use_buffers: false}}"
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_mind(tmp_path_factory.mktemp("resume") / "mind", tiny_news(), tiny_behaviors())


@pytest.fixture(autouse=True)
def lightning_keeps_the_stderr_of_its_import(monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)


@pytest.fixture
def fit(root, plm_dir):
    """Return a function that trains, dying where it is told to; dropout is on."""

    def run(output, *options, kill=None):
        given = [
            "fit",
            f"--data.root={root}",
            f"--model.plm={plm_dir}",
            f"--output={output}",
            "--model.dim=16",
            "--model.tune_layers=1",
            "--model.plm_lr=1e-3",
            "--model.news={heads: 2, ffn: 16, dropout: 0.3}",
            "--model.user={heads: 2, ffn: 16, dropout: 0.3}",
            "--data.max_tokens=12",
            "--data.batch_size=8",
            "--trainer.accelerator=cpu",
            "--trainer.devices=1",
            "--trainer.max_epochs=3",
            "--trainer.log_every_n_steps=2",
            "--trainer.enable_progress_bar=false",
            "--baselines=false",
            *options,
        ]
        if kill is None:
            main(given)
        else:
            run_killed(given, kill)

    return run


def logged(output):
    """Return what the run's curves are drawn from."""
    with (output / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        name: [(int(row["step"]), row[name]) for row in rows if row.get(name)]
        for name in ("train/loss", "val/auc", "gate/news")
    }


def shown(output):
    """Return the steps at which TensorBoard shows a loss."""
    events = EventAccumulator(str(output / "tensorboard"))
    return [event.step for event in events.Reload().Scalars("train/loss")]


CASES = [
    (  # second epoch
        ("on_train_batch_end", 8),
        ("--trainer.accumulate_grad_batches=2", "--data.categories=both"),
    ),
    (("on_validation_batch_start", 1), (EMA,)),  # the end of the first epoch
    (
        ("on_train_batch_end", 10),
        ("--trainer.val_check_interval=4", "--trainer.check_val_every_n_epoch=null"),
    ),
    (("on_train_batch_end", 8), ()),
    (("on_train_batch_start", 6), ()),
    (("on_validation_batch_start", 1), ()),
    (("on_validation_epoch_end", 2), ()),
    (("on_train_epoch_end", 2), ()),
    (("on_train_epoch_start", 3), ("--model.schedule=cosine",)),
    (("on_train_batch_end", 9), (EMA,)),
    (("on_train_batch_end", 9), ("--trainer.val_check_interval=3",)),
    (("on_validation_batch_start", 3), ("--trainer.val_check_interval=3",)),
    (("on_train_batch_end", 8), ("--data.val=none",)),
    (("on_train_epoch_start", 2), ("--data.val=none",)),
    (("on_train_batch_end", 8), ("--data.tokens_per_batch=300", "--data.batches=user")),
    (("on_train_batch_end", 9), (EMA, "--model.lora.rank=2", "--model.lora.dropout=0.3")),
]


@pytest.fixture(scope="module")
def unbroken():
    """Runs that nothing ended, by their options."""
    return {}


@pytest.mark.parametrize(
    ("kill", "options"), CASES, ids=[f"{kill[0]}-{n}" for n, (kill, _) in enumerate(CASES)]
)
def test_a_killed_run_goes_on_bit_for_bit(fit, unbroken, tmp_path, tmp_path_factory, kill, options):
    every = "--save_every=2"
    if options not in unbroken:
        unbroken[options] = tmp_path_factory.mktemp("whole") / "run"
        fit(unbroken[options], every, *options)
    whole, killed = unbroken[options], tmp_path / "run"
    fit(killed, every, *options, kill=kill)
    left = last(killed)
    assert left["global_step"] < last(whole)["global_step"]
    # TensorBoard sorts a run's files by the second in their names, then by numbers as text: 10 is
    # before 9. Two processes never start in one second.
    second = time.time() // 1
    while time.time() // 1 == second:
        time.sleep(0.02)
    fit(killed, every, *options, "--ckpt_path=last")
    assert_same(last(whole), last(killed))
    best = [torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
            for run in (whole, killed)]  # fmt: skip
    assert_same(*(checkpoint["state_dict"] for checkpoint in best))
    assert logged(whole) == logged(killed)
    assert shown(whole) == shown(killed)


def test_a_run_killed_in_its_last_validation_ends_as_finished(fit, tmp_path):
    """Its file must not say that a validation was begun, which the next resume would run again."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    fit(whole, "--trainer.max_epochs=1")
    fit(killed, "--trainer.max_epochs=1", kill=("on_validation_epoch_end", 1))
    fit(killed, "--trainer.max_epochs=1", "--ckpt_path=last")
    assert_same(last(whole), last(killed))
