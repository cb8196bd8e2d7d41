"""The baseline ``cosine``: its means are made once, on the run's device, by all processes."""

import sys
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from conftest import fit_options
from warm import Process

from newsrec.__main__ import main
from newsrec.data.datamodule import MindDataModule
from newsrec.data.states import distinct_rows
from newsrec.evaluation import plm_means
from newsrec.evaluation.plm_means import (
    first_plm,
    plm_vectors,
    record_means,
    vectors_before_training,
)
from newsrec.model.plm.load import load_plm
from newsrec.training import catalogue
from newsrec.training.catalogue import encode_catalogue, frozen_states, mean_states
from newsrec.training.module import RecommenderModule


def one_of_two():
    rank, meeting, root, plm, out = int(sys.argv[1]), *sys.argv[2:]
    torch.distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=2)
    catalogue.NEWS_PER_PASS = 4
    data = MindDataModule(root=root, plm=plm)
    data.setup("predict")
    module = RecommenderModule(plm=plm, tune_layers=-1, residual=False)
    np.save(f"{out}/{rank}.npy", vectors_before_training(module, data, [], "cpu", rank, 2))


@pytest.fixture
def data(mind_dir, plm_dir):
    data = MindDataModule(root=mind_dir, plm=str(plm_dir))
    data.setup("predict")
    return data


def tiny_module(plm_dir, tune_layers, **more):
    options = more | {"dim": 8, "news": {"heads": 2}, "user": {"heads": 2}, "residual": False}
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
    given = [tmp_path / "meeting", mind_dir, plm_dir, tmp_path]
    both = [Process([rank, *given], one_of_two) for rank in (0, 1)]
    assert [process.finish().returncode for process in both] == [0, 0]
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

    def note(datamodule, device, *cut):
        places.append(device)
        return first_plm(datamodule, "cpu", *cut)

    monkeypatch.setattr(plm_means, "first_plm", note)
    vectors_before_training(tiny_module(plm_dir, 1), data, [], torch.device("cuda", 3))
    assert places == [torch.device("cuda", 3)]


class LayerTokens:
    """Counts tokens that went through each layer of PLMs loaded from now on.

    Begins anew with each ``mean_states``.
    """

    def __init__(self, monkeypatch):
        self.tokens = Counter()

        def load(*args):
            plm = load_plm(*args)
            for number, layer in enumerate(plm.encoder.layer):
                layer.register_forward_hook(partial(self.note, number))
            return plm

        def means(*args):
            self.tokens.clear()  # those of the trial whether the PLM packs
            return mean_states(*args)

        monkeypatch.setattr("newsrec.model.plm.load.load_plm", load)
        monkeypatch.setattr("newsrec.training.catalogue.mean_states", means)

    def note(self, number, layer, args, states):
        self.tokens[number] += states.shape[:-1].numel()


def tokens_of(catalogue, start=0):
    rows = distinct_rows(catalogue)
    return int(catalogue.token_lengths[rows[rows >= start]].sum())


@pytest.mark.parametrize(
    ("kept", "spared"), [("fp32", None), ("some", 9), ("bf16", 0), ("other", 0)]
)
def test_kept_states_spare_the_frozen_layers_of_a_tuned_plm(
    data, mind_dir, plm_dir, monkeypatch, kept, spared
):
    module = tiny_module(plm_dir, 1)
    encoder = module.recommender.news_encoder
    direct = plm_vectors(data)
    catalogue = data.catalogue.head(9) if kept == "some" else data.catalogue
    precision = "bf16" if kept == "bf16" else "fp32"
    data.use_states(frozen_states(encoder.cut, catalogue, mind_dir, precision))
    with torch.no_grad():
        for parameter in encoder.plm.encoder.layer[1].parameters():
            parameter.add_(1.0)  # as trained
        if kept == "other":
            encoder.plm.encoder.layer[0].output.dense.bias.add_(1.0)
    counted = LayerTokens(monkeypatch)
    found = vectors_before_training(module, data, [], "cpu")
    assert counted.tokens[0] == (0 if spared is None else tokens_of(data.catalogue, spared))
    assert counted.tokens[1] == tokens_of(data.catalogue)
    np.testing.assert_allclose(found, direct, rtol=1e-5, atol=1e-6)


def test_the_plm_before_training_has_as_many_layers_as_the_model(data, plm_dir, monkeypatch):
    module = tiny_module(plm_dir, -1, plm_layers=1)
    direct = mean_states(first_plm(data, "cpu", layers=1), data.catalogue).numpy()
    counted = LayerTokens(monkeypatch)
    assert (vectors_before_training(module, data, [], "cpu") == direct).all()
    assert set(counted.tokens) == {0}
    assert not np.allclose(direct, plm_vectors(data))


def test_fit_closes_with_the_states_that_it_kept(mind_dir, plm_dir, tmp_path, monkeypatch, capsys):
    counted = LayerTokens(monkeypatch)
    options = fit_options(mind_dir, plm_dir, tmp_path / "run")
    options += ["--trainer.max_epochs=1", "--model.tune_layers=1", "--data.frozen_states=fp32"]
    main(options)
    data = MindDataModule(root=mind_dir, plm=str(plm_dir), max_tokens=12)
    data.setup("predict")
    trained_on = max(data.data.split(name).num_news for name in ("train", "dev"))
    assert counted.tokens[0] == tokens_of(data.catalogue, trained_on)  # news of test only
    assert counted.tokens[1] == tokens_of(data.catalogue)
    assert "cosine" in capsys.readouterr().out


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
