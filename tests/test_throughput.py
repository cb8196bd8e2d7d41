"""What a run says of its speed."""

import logging
import warnings

import numpy as np
import pytest
import torch
from conftest import tiny_behaviors, tiny_news, write_mind
from lightning import Trainer
from torch.utils.flop_counter import FlopCounterMode

from newsrec.console import is_first_process
from newsrec.data.datamodule import MindDataModule
from newsrec.errors import UserError
from newsrec.training.module import RecommenderModule
from newsrec.training.processes.launch import refuse_unconnected, started_by_torchrun
from newsrec.training.progress.parts import StepParts
from newsrec.training.progress.throughput import (
    Throughput,
    _Counts,
    encoding_flop,
    matrix_rate,
    model_flop,
)

SMALL = {"heads": 2, "ffn": 16, "dropout": 0.0, "norm": "none"}


@pytest.fixture
def make(tmp_path, plm_dir):
    root = write_mind(tmp_path / "mind", tiny_news(), tiny_behaviors())

    def build(**options):
        module = RecommenderModule(plm=str(plm_dir), dim=16, news=SMALL, user=SMALL, **options)
        data = MindDataModule(root=str(root), plm=str(plm_dir), batch_size=8, seed=0)
        return module, data

    return build


def fit(module, data, *callbacks, **options):
    defaults = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False,
        "log_every_n_steps": 2,
    }
    trainer = Trainer(callbacks=list(callbacks), **defaults | options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, datamodule=data)
    return trainer


def test_counts_are_those_of_a_loop(make):
    _, data = make()
    data.setup("fit")
    counts = _Counts()
    clicks = tokens = squares = read = mentions = distinct = 0
    for batch in data.train_dataloader():
        counts.add(batch)
        clicks += len(batch.labels)
        read += sum(row > 0 for row in batch.history.flatten().tolist())
        for length in batch.token_lengths.tolist()[2:]:
            distinct += 1
            tokens += length
            squares += length**2
        for sample, user in enumerate(batch.user.tolist()):
            mentions += sum(row > 0 for row in batch.history[user].tolist())
            mentions += sum(row > 0 for row in batch.candidates[sample].tolist())
    assert (counts.clicks, counts.news, counts.tokens) == (clicks, distinct, tokens)
    assert (counts.squares, float(counts.read), float(counts.mentions)) == (squares, read, mentions)


@pytest.mark.parametrize(("tune_layers", "rank"), [(-1, 0), (1, 0), (-1, 4), (1, 4)])
def test_the_models_work_is_what_torch_counts(make, tune_layers, rank):
    """But for what is outside matrix products of weights: scores, and Fastformer's own sums."""
    module, data = make(tune_layers=tune_layers, lora={"rank": rank})
    data.setup("fit")
    module.configure_model()
    module.log = lambda *args, **kwargs: None
    batch = next(iter(data.train_dataloader()))
    # One length for all, so that torch counts no padding.
    longest = int(batch.token_lengths.max())
    lengths = np.full_like(batch.token_lengths, longest)
    lengths[:2] = 0
    batch = batch._replace(token_ids=batch.token_ids.clamp(min=1), token_lengths=lengths)
    counts = _Counts()
    counts.add(batch)
    with FlopCounterMode(display=False) as counter:
        module.training_step(batch, 0).backward()
    ours = model_flop(module.recommender, counts, kept_states=False)
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_the_work_of_encoding_is_what_torch_counts(make):
    module, _ = make()
    module.configure_model()
    news = module.recommender.news_encoder.eval()
    token_ids, lengths = torch.full((20, 10), 7, dtype=torch.int32), torch.full((20,), 10)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        news(token_ids, lengths)
    assert encoding_flop(news, 200, 2000) == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_rates_are_logged_and_said(make):
    module, data = make(tune_layers=1)
    speed = Throughput()
    trainer = fit(module, data, speed, max_epochs=2)
    assert 0 < speed.clicks < 2 * len(data.index.click)  # the first steps warm up
    logged = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("speed/")}
    assert set(logged) == {f"speed/{n}" for n in ("clicks", "news", "tokens", "repeats")}
    assert 0 < logged["speed/repeats"] < 1
    assert logged["speed/tokens"] > logged["speed/news"] > logged["speed/clicks"]
    said = speed.describe(trainer)
    assert f"Training: {speed.clicks:,} clicks" in said
    assert "that a matrix product reaches here (32-true)" in said


def test_a_run_too_short_to_measure_says_nothing(make):
    module, data = make()
    speed = Throughput()
    trainer = fit(module, data, speed, max_steps=2, limit_val_batches=0)
    assert speed.describe(trainer) is None


def test_a_profiler_tells_the_parts_apart(make):
    module, data = make(tune_layers=1)
    parts = StepParts()
    trainer = fit(module, data, parts, max_epochs=2, profiler="simple")
    table = parts.describe(trainer)
    rows = dict(zip(table.columns[0].cells, table.columns[1].cells, strict=True))
    assert list(rows) == [
        "data",
        "PLM, forward",
        "Fastformer, forward",
        "backward",
        "optimizer",
        "rest of the step",
    ]
    durations = trainer.profiler.recorded_durations
    steps = 2 * len(data.train_dataloader())
    assert len(durations["[newsrec]optimizer"]) == steps
    assert len(durations["run_training_batch"]) == steps
    assert sum(durations["[newsrec]PLM"]) < sum(durations["run_training_batch"])
    assert float(rows["backward"]) > 0
    assert StepParts().describe(fit(*make(), max_steps=1)) is None


def test_a_matrix_product_has_a_rate():
    assert matrix_rate(torch.device("cpu"), "32-true") > 1e8


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"RANK": "2", "LOCAL_RANK": "0"}, False),  # torchrun's second machine
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "3"}, False),
        ({"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}, True),
    ],
)
def test_one_process_of_all_machines_is_the_first(monkeypatch, variables, first):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() == first


def test_torchrun_settles_devices_and_machines(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "newsrec")
    assert started_by_torchrun({"devices": 1, "num_nodes": 1}) == {}
    for name, value in (("TORCHELASTIC_RUN_ID", "1"), ("LOCAL_WORLD_SIZE", "4"),
                        ("GROUP_WORLD_SIZE", "3")):  # fmt: skip
        monkeypatch.setenv(name, value)
    assert started_by_torchrun({"devices": 1, "num_nodes": 2}) == {"devices": 4, "num_nodes": 3}
    assert "trainer.devices is 4, as torchrun has it" in caplog.text
    assert "trainer.num_nodes is 3, as torchrun has it" in caplog.text
    caplog.clear()
    chosen = {"devices": [0, 2, 4, 6], "num_nodes": 3}
    assert started_by_torchrun(chosen) == {"num_nodes": 3}
    assert started_by_torchrun({"devices": -1, "num_nodes": 3}) == {"devices": 4, "num_nodes": 3}
    assert not caplog.text


def test_a_process_that_knows_nothing_of_the_others_does_not_train(monkeypatch):
    alone = Trainer(accelerator="cpu", devices=1, logger=False)
    refuse_unconnected(alone)
    monkeypatch.setenv("SLURM_PROCID", "3")
    with pytest.raises(UserError, match="one of several processes"):
        refuse_unconnected(alone)
