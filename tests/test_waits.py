"""A training step leaves the host free to run ahead of the device."""

from collections import Counter

import pytest
from conftest import fit_options
from lightning import LightningModule
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from waits import Reads, Waits

from newsrec.__main__ import main
from newsrec.model.plm.blocks import blocks_as_on
from newsrec.training.module import RecommenderModule


@pytest.fixture
def steps(monkeypatch):
    """Have each training step's waits counted; return them as (was it logged, waits)."""
    counted, waits = [], Waits()
    make = LightningModule._LightningModule__to_tensor  # Lightning 2.6.6
    run, train = _TrainingEpochLoop.advance, RecommenderModule.training_step

    def advance(loop, data_fetcher):
        waits.mark(loop.trainer.lightning_module.state_dict())
        waits.found = Counter()
        logged = loop.trainer._logger_connector.should_update_logs
        with Reads(waits), waits:
            run(loop, data_fetcher)
        counted.append((logged, waits.found))

    def training_step(module, batch, batch_idx):
        waits.mark(batch._replace(token_lengths=None))
        return train(module, batch, batch_idx)

    def to_tensor(module, value, name):
        logged = make(module, value, name)  # what is logged as a number goes to the device, too
        waits.mark(logged)
        return logged

    monkeypatch.setattr(LightningModule, "_LightningModule__to_tensor", to_tensor)
    monkeypatch.setattr(_TrainingEpochLoop, "advance", advance)
    monkeypatch.setattr(RecommenderModule, "training_step", training_step)
    return counted


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "more",
    [pytest.param([], marks=pytest.mark.slow), ["--model.tune_layers=1"]],
    ids=["frozen", "tuned"],
)
def test_no_step_waits_for_the_device_but_those_that_are_logged(
    mind_dir, plm_dir, tmp_path, steps, precision, more
):
    options = [o for o in fit_options(mind_dir, plm_dir, tmp_path / "run") if "progress" not in o]
    more = [*more, f"--model.precision={precision}", "--data.batch_size=6", "--data.num_workers=0"]
    more += ["--trainer.max_steps=11"]  # the last of them in the second epoch
    with blocks_as_on("cuda"):  # on a CPU, histories are joined, which reads their lengths
        main([*options, *more, "--trainer.log_every_n_steps=4", "--baselines=false"])
    logged = Counter(kind for kind, _ in steps)
    assert logged[True] >= 2
    assert logged[False] >= 8
    assert sum((found for kind, found in steps if kind), Counter())
    assert sum((found for kind, found in steps if not kind), Counter()) == Counter()
