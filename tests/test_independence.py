"""What is trained does not depend on splits that are neither trained on nor chosen by."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from conftest import news_row, tiny_behaviors, tiny_news, write_mind
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from newsrec.data import FIRST_NEWS
from newsrec.data.datamodule import MindDataModule
from newsrec.data.states import MISSING, StateStore
from newsrec.model.plm.cut import CutPlm
from newsrec.model.plm.load import load_plm
from newsrec.training.callbacks import FrozenStates
from newsrec.training.catalogue import frozen_states
from newsrec.training.module import RecommenderModule

SMALL = {"heads": 2, "ffn": 16}


def as_it_is(news, behaviors):
    pass


def without_test(news, behaviors):
    del news["test"], behaviors["test"]


def without_dev_and_test(news, behaviors):
    for files in (news, behaviors):
        del files["dev"], files["test"]


def other_texts(news, behaviors):
    for row in news["test"]:
        row[1:5] = ["music", "jazz", f"The cup, the storm and the {row[0]} soup win again", "Rain."]


def more_news(news, behaviors):
    """Add what other splits mention and no other news.tsv has, before all, and turn the order."""
    new = [news_row(f"N{i}", "food", "x", "Where " + "the soup " * (i % 5), "y") for i in range(90)]
    found = [row for row in new if row[0] not in {row[0] for row in news["test"]}]
    found += [news_row(f"N{i}", "food", "x", "Storm", "y") for i in (404, 405)]
    news["test"] = [*found, *reversed(news["test"])]
    behaviors["test"].reverse()


def make(change, root):
    """Write a tiny MIND whose train and dev also mention news that no news.tsv of theirs has."""
    news, behaviors = tiny_news(), tiny_behaviors()
    for split, label in (("train", "-1"), ("dev", "-0")):
        for row, added in zip(behaviors[split], itertools.cycle(("N404", "N405")), strict=False):
            row[3] += f" {added}"
            row[4] += f" {added}{label} N18-0"
    change(news, behaviors)
    return write_mind(root / "mind", news, behaviors)


def train(root, output, plm_dir, **options):
    """Train two epochs; return every tensor of last.ckpt, and the AUC that chooses."""
    model = {name: options.pop(name) for name in ("tune_layers", "residual") if name in options}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        user = SMALL | {"positions": "recency"}
        module = RecommenderModule(str(plm_dir), dim=16, news=SMALL, user=user, lr=1e-2, **model)
        data = MindDataModule(str(root), str(plm_dir), batch_size=24, seed=1, **options)
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            precision="32-true",
            max_epochs=2,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            callbacks=[FrozenStates(), ModelCheckpoint(output, filename="last")],
        )
        trainer.fit(module, datamodule=data)
    auc = trainer.callback_metrics.get("val/auc")
    assert (auc is None) == (options.get("val") == "none")
    checkpoint = torch.load(output / "last.ckpt", weights_only=False)
    found = dict(tensors(checkpoint))
    assert sum("exp_avg" in name for name in found) > 20
    assert any(name.endswith("residual.centre") for name in found) == model.get("residual", True)
    return found | ({} if auc is None else {"val/auc": auc})


def tensors(value, name=""):
    """Yield every tensor within a checkpoint, by a name for it."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from tensors(part, f"{name}/{key}")
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from tensors(part, f"{name}/{number}")


def assert_the_same(tmp_path, plm_dir, changes, **options):
    """Train on the files after each change of them, and hold all against the first."""
    first, *others = (
        train(
            make(change, tmp_path / change.__name__), tmp_path / change.__name__, plm_dir, **options
        )
        for change in changes
    )
    for change, other in zip(changes[1:], others, strict=True):
        assert list(first) == list(other)
        moved = [name for name in first if not torch.equal(first[name], other[name])]
        assert not moved, f"{change.__name__}: {len(moved)} of {len(first)} tensors"


OF_TEST = (as_it_is, without_test, other_texts, more_news)


def test_what_test_has_changes_no_tensor(tmp_path, plm_dir):
    assert_the_same(tmp_path, plm_dir, OF_TEST, tune_layers=1)


@pytest.mark.slow
@pytest.mark.parametrize("batches", ["random", "user"])
@pytest.mark.parametrize("frozen_states", ["bf16", "fp32", "none"])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("tune_layers", [0, 1, -1])
def test_what_test_has_changes_no_tensor_whatever_the_options(
    tmp_path, plm_dir, tune_layers, residual, frozen_states, batches
):
    assert_the_same(
        tmp_path, plm_dir, OF_TEST, tune_layers=tune_layers, residual=residual,
        frozen_states=frozen_states, batches=batches,
    )  # fmt: skip


def on_two_days(change):
    """Return a change of the files that also gives train a day before its last."""

    def changed(news, behaviors):
        for row in behaviors["train"][::3]:
            row[2] = row[2].replace("11/11/", "11/10/")
        change(news, behaviors)

    changed.__name__ = change.__name__
    return changed


@pytest.mark.parametrize("val", ["last_day", pytest.param("none", marks=pytest.mark.slow)])
def test_dev_changes_no_tensor_where_it_does_not_choose(tmp_path, plm_dir, val):
    changes = [on_two_days(change) for change in (as_it_is, without_dev_and_test)]
    assert_the_same(tmp_path, plm_dir, changes, val=val)


def test_states_computed_for_dev_change_none_of_train(tmp_path, plm_dir, monkeypatch):
    """A data folder keeps the states that another run has computed, so no block may mix splits."""
    found, blocks = [], []
    compute = StateStore._compute

    def note(self, work, *args):
        blocks.append(len(np.load(work / MISSING)))
        compute(self, work, *args)

    monkeypatch.setattr(StateStore, "_compute", note)
    for name, splits in (("one", ["last_day"]), ("other", ["dev", "last_day"])):
        root = make(on_two_days(as_it_is), tmp_path / name)
        for val in splits:
            data = MindDataModule(str(root), str(plm_dir), val=val, frozen_states="fp32")
            data.setup("fit")
            cut = CutPlm(load_plm(str(plm_dir)).eval(), 0)
            states = frozen_states(cut, data.catalogue, root, "fp32", data.news_ends)
        found.append(states.take(torch.arange(FIRST_NEWS, len(data.catalogue.first))))
    assert torch.equal(*found)
    assert blocks == [13, 13, 3]  # train's for one, then train's and dev's for the other


def test_scoring_knows_all_news(tmp_path, plm_dir):
    data = MindDataModule(str(make(as_it_is, tmp_path)), str(plm_dir))
    rows = {}
    for stage in ("fit", "predict", "validate", "test"):
        data.setup(stage)
        rows[stage] = len(data.catalogue.first)
    num_news = data.data.num_news
    assert rows == {
        "fit": num_news - 3,
        "validate": num_news - 3,
        "predict": num_news,
        "test": num_news,
    }
