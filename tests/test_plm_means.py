"""The baseline ``cosine``: its means are made once, on the run's device, by all processes."""

import subprocess
import sys

import pytest
import torch

from newsrec.__main__ import main
from newsrec.data.datamodule import MindDataModule
from newsrec.evaluation import plm_means
from newsrec.evaluation.plm_means import first_plm, record_means, vectors_before_training
from newsrec.training.catalogue import encode_catalogue, mean_states
from newsrec.training.module import RecommenderModule

TWO = """
import sys, numpy as np, torch
from newsrec.data.datamodule import MindDataModule
from newsrec.evaluation.plm_means import vectors_before_training
from newsrec.training.module import RecommenderModule
rank, meeting, root, plm, out = int(sys.argv[1]), *sys.argv[2:]
torch.distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=2)
import newsrec.data.states, newsrec.training.catalogue as catalogue
catalogue.NEWS_PER_PASS = 4
data = MindDataModule(root=root, plm=plm)
data.setup("predict")
module = RecommenderModule(plm=plm, tune_layers=-1, residual=False)
np.save(f"{out}/{rank}.npy", vectors_before_training(module, data, [], "cpu", rank, 2))
"""


@pytest.fixture
def data(mind_dir, plm_dir):
    data = MindDataModule(root=mind_dir, plm=str(plm_dir))
    data.setup("predict")
    return data


def tiny_module(plm_dir, tune_layers):
    options = {"dim": 8, "news": {"heads": 2}, "user": {"heads": 2}, "residual": False}
    module = RecommenderModule(plm=str(plm_dir), tune_layers=tune_layers, **options)
    module.configure_model()
    return module.eval()


def test_ranks_together_make_the_means_of_one(data, monkeypatch):
    monkeypatch.setattr("newsrec.training.catalogue.NEWS_PER_PASS", 4)
    cut = first_plm(data, "cpu")
    parts = []
    monkeypatch.setattr("torch.distributed.all_reduce", lambda part: parts.append(part.clone()))
    for rank in range(3):
        mean_states(cut, data.catalogue, None, rank, 3)
    assert all(part.any() for part in parts)
    alone = mean_states(cut, data.catalogue)
    assert alone[2:].any(dim=1).all()
    assert torch.equal(sum(parts)[data.catalogue.first], alone)


@pytest.mark.slow
def test_two_processes_give_the_means_of_one(data, mind_dir, plm_dir, tmp_path, monkeypatch):
    import numpy as np

    given = [str(tmp_path / "meeting"), str(mind_dir), str(plm_dir), str(tmp_path)]
    command = [sys.executable, "-c", TWO]
    both = [subprocess.Popen([*command, str(rank), *given]) for rank in (0, 1)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    monkeypatch.setattr("newsrec.training.catalogue.NEWS_PER_PASS", 4)
    alone = vectors_before_training(tiny_module(plm_dir, -1), data, [], "cpu")
    for rank in (0, 1):
        assert np.array_equal(np.load(tmp_path / f"{rank}.npy"), alone)


def test_what_a_frozen_plm_has_encoded_is_not_encoded_again(data, plm_dir, monkeypatch):
    module = tiny_module(plm_dir, 0)
    with record_means(module) as noted:
        encode_catalogue(module.recommender, data.catalogue)
    expected = mean_states(module.recommender.news_encoder.cut, data.catalogue).numpy()

    def second_pass(*_):
        raise AssertionError("a second pass")

    monkeypatch.setattr("newsrec.training.catalogue.mean_states", second_pass)
    found = vectors_before_training(module, data, noted, "cpu")
    assert (found == expected).all()


def test_the_first_weights_of_a_tuned_plm_run_on_the_device_of_the_run(data, plm_dir, monkeypatch):
    places = []

    def note(datamodule, device):
        places.append(device)
        return first_plm(datamodule, "cpu")

    monkeypatch.setattr(plm_means, "first_plm", note)
    vectors_before_training(tiny_module(plm_dir, 1), data, [], torch.device("cuda", 3))
    assert places == [torch.device("cuda", 3)]


def test_fit_with_a_frozen_plm_closes_without_a_second_pass(
    mind_dir, plm_dir, tmp_path, monkeypatch, capsys
):
    def second_pass(*_):
        raise AssertionError("a second pass")

    monkeypatch.setattr("newsrec.training.catalogue.mean_states", second_pass)
    options = [f"--data.root={mind_dir}", f"--model.plm={plm_dir}", "--trainer.max_epochs=1"]
    options += ["--model.dim=8", "--model.news.heads=2", "--model.user.heads=2"]
    options += ["--trainer.accelerator=cpu", "--trainer.devices=1", "--model.precision=fp32"]
    main(["fit", *options, f"--output={tmp_path / 'run'}"])
    assert "cosine" in capsys.readouterr().out
