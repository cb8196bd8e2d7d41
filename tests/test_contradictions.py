"""Data made otherwise than those a model was trained on are refused, not scored worse."""

import json
import shutil
import warnings

import pytest
import torch
from conftest import tiny_behaviors, tiny_news, write_mind
from lightning import Trainer
from tokenizers import Tokenizer

from newsrec.data.datamodule import MindDataModule
from newsrec.errors import UserError
from newsrec.training.module import RecommenderModule

SHAPE = {"heads": 2, "ffn": 16}


def trainer():
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=1,
    )


@pytest.fixture(autouse=True)
def _quiet():
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_mind(tmp_path_factory.mktemp("data") / "mind", tiny_news(), tiny_behaviors())


@pytest.fixture(scope="module")
def best(root, plm_dir, tmp_path_factory):
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = RecommenderModule(plm=str(plm_dir), dim=16, news=SHAPE, user=SHAPE)
        data = MindDataModule(root=str(root), plm=str(plm_dir), frozen_states="none")
        fitting = trainer()
        fitting.fit(module, datamodule=data)
        path = tmp_path_factory.mktemp("checkpoint") / "best.ckpt"
        fitting.save_checkpoint(path)
    return path


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"fields": ["title"]},
            "has fields title, but the model uses category.subcategory.title",
        ),
        ({"max_history": 3}, "has max_history 3, but the model uses 50"),
        ({"max_tokens": 12}, "has max_tokens 12, but the model uses 32"),
        ({"abstract_tokens": 9}, "has abstract_tokens 9, but the model uses 0"),
        ({"categories": "both"}, "has categories both, but the model uses none"),
    ],
)
def test_a_checkpoint_refuses_data_made_otherwise(options, words, best, root, plm_dir):
    data = MindDataModule(root=str(root), plm=str(plm_dir), frozen_states="none", **options)
    with pytest.raises(UserError, match=words):
        trainer().validate(RecommenderModule.load_from_checkpoint(best), datamodule=data)
    fresh = RecommenderModule(plm=str(plm_dir), dim=16, news=SHAPE, user=SHAPE)
    if "fields" in options:  # which a model that was not trained does not know
        with pytest.raises(UserError, match=words):
            trainer().validate(fresh, datamodule=data, ckpt_path=best)


def test_a_checkpoint_refuses_another_tokenizer_and_takes_its_own_from_elsewhere(
    best, root, plm_dir, tmp_path
):
    moved = shutil.copytree(plm_dir, tmp_path / "moved")
    same = MindDataModule(root=str(root), plm=str(moved), frozen_states="none")
    trainer().validate(RecommenderModule.load_from_checkpoint(best), datamodule=same)

    written = json.loads((moved / "tokenizer.json").read_text())
    written["model"]["vocab"]["zzz"] = len(written["model"]["vocab"])
    (moved / "tokenizer.json").write_text(json.dumps(written))
    assert Tokenizer.from_file(str(moved / "tokenizer.json")).token_to_id("zzz") is not None
    other = MindDataModule(root=str(root), plm=str(moved), frozen_states="none")
    with pytest.raises(UserError, match=f"the tokenizer of {moved}, .* of {plm_dir}"):
        trainer().validate(RecommenderModule.load_from_checkpoint(best), datamodule=other)


def test_a_new_model_refuses_data_that_contradict_it(root, plm_dir):
    module = RecommenderModule(plm=str(plm_dir), dim=16, news=SHAPE, user=SHAPE, max_history=7)
    data = MindDataModule(root=str(root), plm=str(plm_dir), frozen_states="none")
    with pytest.raises(UserError, match=r"has max_history 50, .* 7"):
        trainer().fit(module, datamodule=data)


@pytest.mark.parametrize("losses", [("impression", "cross_entropy"), ("cross_entropy", "in_batch")])
def test_a_model_refuses_to_train_on_batches_of_another_loss(root, plm_dir, losses):
    module = RecommenderModule(plm=str(plm_dir), dim=16, news=SHAPE, user=SHAPE, loss=losses[0])
    data = MindDataModule(
        root=str(root), plm=str(plm_dir), frozen_states="none", loss=losses[1]
    )  # fmt: skip
    with pytest.raises(UserError, match=f"for loss {losses[1]}, .* has loss {losses[0]}"):
        trainer().fit(module, datamodule=data)
    trainer().validate(module, datamodule=data)  # for which the loss does not matter


def test_a_new_model_refuses_the_tokenizer_of_another_plm(root, plm_dir, tmp_path):
    moved = shutil.copytree(plm_dir, tmp_path / "moved")
    module = RecommenderModule(plm=str(plm_dir), dim=16, news=SHAPE, user=SHAPE)
    same = MindDataModule(root=str(root), plm=str(moved), frozen_states="none")
    trainer().fit(module, datamodule=same)  # the same tokenizer at another place
    written = json.loads((moved / "tokenizer.json").read_text())
    written["model"]["vocab"]["zzz"] = len(written["model"]["vocab"])
    (moved / "tokenizer.json").write_text(json.dumps(written))
    module = RecommenderModule(plm=str(plm_dir), dim=16, news=SHAPE, user=SHAPE)
    other = MindDataModule(root=str(root), plm=str(moved), frozen_states="none")
    with pytest.raises(UserError, match=f"the tokenizer of {moved}, .* that of {plm_dir}"):
        trainer().fit(module, datamodule=other)
