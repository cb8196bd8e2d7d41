"""Checkpoints and exports of version 0.1 give its own scores; its option names lead to today's.

``files/version_0_1.zip`` was written by that version's ``fit``, ``export`` and ``evaluate``, of the
tiny MIND and a random PLM. The export lacks its two largest files, which nothing here reads.
"""

import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import tiny_behaviors, tiny_news, write_mind

from newsrec.__main__ import main
from newsrec.data.datamodule import MindDataModule
from newsrec.export.pretrained import PretrainedRecommender
from newsrec.export.weights import load_model
from newsrec.serving import Recommender
from newsrec.training.catalogue import encode_catalogue
from newsrec.training.checkpoint.read import check_same_options, hyper_parameters, read_checkpoint
from newsrec.training.module import RecommenderModule


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    folder = tmp_path_factory.mktemp("old")
    with zipfile.ZipFile(Path(__file__).parent / "files" / "version_0_1.zip") as file:
        file.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(old):
    return read_checkpoint(old / "run/checkpoints/last.ckpt")


@pytest.fixture(scope="module")
def data(checkpoint, tmp_path_factory):
    """The tiny MIND, read as the checkpoint's options say."""
    root = write_mind(tmp_path_factory.mktemp("mind"), tiny_news(), tiny_behaviors())
    data = MindDataModule(**(hyper_parameters(checkpoint, "data") | {"root": str(root)}))
    data.tokenizer_json = checkpoint["newsrec"]["tokenizer_json"]
    data.predict_on("dev")
    data.setup("predict")
    return data


@torch.no_grad()
def scores_of(recommender, data):
    """Score dev, in the order of the file."""
    vectors = encode_catalogue(recommender, data.catalogue)
    (batch,) = data.predict_dataloader()
    scores = recommender.score(vectors, batch).split(batch.offsets.diff().tolist())
    return torch.cat([scores[place] for place in batch.row.argsort()]).numpy()


def test_a_checkpoint_gives_the_scores_of_the_version_that_wrote_it(old, checkpoint, data):
    content = torch.load(old / "run/checkpoints/last.ckpt", weights_only=True)
    assert content["hyper_parameters"]["skip"] is True
    assert [name for name in content["state_dict"] if "news_encoder.skip." in name]
    module = RecommenderModule.from_checkpoint(checkpoint)
    assert module.recommender.user_encoder.gate != 0
    table = pq.read_table(old / "eval/scores.parquet")
    expected = table["scores"].combine_chunks().flatten().to_numpy()
    np.testing.assert_allclose(scores_of(module.recommender, data), expected, rtol=0, atol=1e-5)


def test_an_export_gives_the_scores_of_the_version_that_wrote_it(old, checkpoint, data):
    module = RecommenderModule.from_checkpoint(checkpoint)
    found = scores_of(load_model(old / "export"), data)
    np.testing.assert_array_equal(found, scores_of(module.recommender, data))
    again = PretrainedRecommender.from_pretrained(old / "export")
    np.testing.assert_array_equal(found, scores_of(again.model, data))
    served = Recommender.load(old / "export")
    assert served.user_vector(["N1", "N3"]).shape == (8,)
    history = torch.tensor(
        [[served.news["news_id"].to_pylist().index(i) + 2 for i in ("N1", "N3")]]
    )
    with torch.no_grad():
        vectors = torch.from_numpy(np.array(served.news_vectors))
        (expected,) = module.recommender.encode_user(vectors, history)[0]
    np.testing.assert_allclose(served.user_vector(["N1", "N3"]), expected, atol=1e-5)


def test_old_names_in_a_checkpoint_are_those_of_today_and_options_added_since_are_the_defaults(
    checkpoint,
):
    model, data = (hyper_parameters(checkpoint, part) for part in ("model", "data"))
    assert model["residual"] is True
    assert "skip" not in model
    assert data["on_bad_line"] == "drop"
    assert data["batches"] == "random"
    assert "group_by_user" not in data
    check_same_options(checkpoint, {"model": {"residual": True}, "data": data}, "last.ckpt")
    assert RecommenderModule(**model).loss == "cross_entropy"


def test_weights_under_the_old_names_load_into_a_model_as_a_resumed_run_loads_them(old, checkpoint):
    path = old / "run/checkpoints/last.ckpt"
    module = RecommenderModule.from_checkpoint(checkpoint)
    expected = {name: value.clone() for name, value in module.state_dict().items()}
    for value in module.state_dict().values():
        value.zero_()
    module.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    for name, value in module.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(
    ("command", "old_option", "new"),
    [
        ("fit", "--model.skip=false", "--model.residual"),
        ("fit", "--data.group_by_user=true", "--data.batches"),
        ("fit", "--model.loss=hinge", "cross_entropy"),
        ("prepare", "--data.on_bad_line=skip", "drop"),
        ("fit", "--data.on_bad_line=skip", "drop"),
    ],
)
def test_an_old_option_exits_2_and_names_the_new(
    command, old_option, new, data, plm_dir, tmp_path, capsys
):
    args = [command, f"--data.root={data.root}", old_option]
    if command == "fit":
        args += [f"--model.plm={plm_dir}", "--model.dim=16", f"--output={tmp_path / 'run'}"]
        args += ["--trainer.accelerator=cpu", "--trainer.max_steps=1"]
    with pytest.raises(SystemExit) as stopped:
        main(args)
    assert stopped.value.code == 2
    assert new in capsys.readouterr().err
