import json
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer

from newsrec.data.batch import Batch, EvalBatch
from newsrec.data.datamodule import MindDataModule
from newsrec.data.states import TokenStates
from newsrec.errors import UserError


@pytest.fixture
def make(mind_dir, plm_dir):
    """Return a function that builds a small data module; keywords override its options."""

    def build(**options):
        options = {"batch_size": 8, "eval_batch_size": 5, "seed": 42} | options
        return MindDataModule(root=str(mind_dir), plm=str(plm_dir), **options)

    return build


def plain(batches):
    """Return batches as lists, which compare with ``==``."""
    return [[None if t is None else t.tolist() for t in batch] for batch in batches]


def process(rank, world_size, use_distributed_sampler=False):
    """Return what the data module reads of a Trainer."""
    return SimpleNamespace(
        global_rank=rank,
        world_size=world_size,
        training=False,
        _accelerator_connector=SimpleNamespace(use_distributed_sampler=use_distributed_sampler),
    )


def test_a_data_module_gives_training_and_evaluation_batches(make):
    data = make()
    data.prepare_data()
    data.setup("fit")
    train, val = list(data.train_dataloader()), list(data.val_dataloader())
    assert all(isinstance(batch, Batch) for batch in train)
    assert all(isinstance(batch, EvalBatch) for batch in val)
    assert len(train) == len(data.train_dataloader())
    assert sum(len(batch.labels) for batch in train) == len(data.index.click)
    assert sorted(row for batch in val for row in batch.row.tolist()) == list(range(23))
    assert {batch.candidates.shape[1] for batch in train} == {1 + data.npratio}
    assert data.catalogue.token_ids.shape == (22, 32)


def test_prediction_goes_through_the_split_that_is_asked_for(make):
    data = make()
    data.setup("predict")
    assert sum(len(batch.row) for batch in data.predict_dataloader()) == 23
    data.eval_split = "test"
    batches = list(data.predict_dataloader())
    assert sum(len(batch.row) for batch in batches) == 15
    assert {batch.labels for batch in batches} == {None}


def test_options_shape_the_batches(make):
    data = make(max_tokens=5, max_history=2, npratio=1, fields=["title"], batch_size=16)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.token_ids.shape[1] == 5
    assert batch.history.shape[1] == 2
    assert batch.candidates.shape == (16, 2)
    assert max(batch.history.shape[1] for batch in data.val_dataloader()) == 2
    tokenizer = Tokenizer.from_str(data.tokenizer_json)
    words = [tokenizer.id_to_token(i) for i in data.catalogue.token_ids[2].tolist()]
    assert words == ["[CLS]", "underdogs", "win", "the", "[SEP]"]


def test_hyperparameters_are_plain_values_that_rebuild_the_data_module(make, tmp_path):
    data = make(fields=("title", "abstract"), npratio=2)
    torch.save(dict(data.hparams), tmp_path / "hyperparameters.pt")
    stored = torch.load(tmp_path / "hyperparameters.pt", weights_only=True)
    assert stored == json.loads(json.dumps(stored))
    assert stored["fields"] == ["title", "abstract"]
    again = MindDataModule(**stored)
    assert again.hparams == data.hparams
    assert {name: getattr(again, name) for name in stored} == {
        name: getattr(data, name) for name in stored
    }


def test_the_seed_of_the_run_is_used_and_stored_if_none_is_given(make, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert make(seed=None).seed == make(seed=None).hparams["seed"] == 7
    assert make(seed=3).seed == 3
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert make(seed=None).seed == 0


def test_the_seed_decides_order_and_negatives(make):
    batches = []
    for seed in (1, 1, 2):
        data = make(seed=seed)
        data.setup("fit")
        batches.append(plain(data.train_dataloader()))
    assert batches[0] == batches[1]
    assert batches[0] != batches[2]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_tokens", 2),
        ("max_history", 0),
        ("npratio", 0),
        ("batch_size", 0),
        ("eval_batch_size", -1),
        ("num_workers", -1),
        ("seed", -1),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(make, option, value):
    with pytest.raises(UserError, match=rf"data\.{option} is {value}; .* at least"):
        make(**{option: value})


@pytest.mark.parametrize(("option", "split"), [("train", "test"), ("val", "test")])
def test_training_and_validation_need_labels(make, option, split):
    data = make(**{option: split})
    with pytest.raises(UserError, match=rf"data\.{option}: the split '{split}' .* no labels"):
        data.setup("fit")
    data.setup("predict")  # scores alone need none


def test_a_split_that_is_not_there_is_refused_with_those_that_are(make):
    with pytest.raises(UserError, match="no split 'valid', only train, dev, test"):
        make(val="valid").setup("fit")


def test_clicks_on_unknown_stories_alone_are_nothing_to_train_on(make, mind_dir):
    path = mind_dir / "train" / "behaviors.tsv"
    path.write_text("1\tU1\t11/11/2019 9:05:58 AM\tN1\tN404-1 N2-0\n")
    with pytest.raises(UserError, match="no impression of 'train' has a known click"):
        make().setup("fit")


def test_a_mistake_can_be_mended_and_setup_called_again(make):
    data = make(fields=["headline"])
    with pytest.raises(UserError, match="headline"):
        data.setup("fit")
    data.fields = ("title",)
    data.setup("fit")
    assert len(data.catalogue.first) == 22


def test_a_tokenizer_from_a_checkpoint_is_used_as_it_is(make, plm_dir):
    data = make()
    data.plm = "a/name/that/nobody/has"
    data.tokenizer_json = (plm_dir / "tokenizer.json").read_text(encoding="utf-8")
    data.setup("fit")
    assert len(data.catalogue.first) == 22


def test_a_worker_process_gives_the_same_batches(make):
    found = []
    for num_workers in (0, 1):
        data = make(num_workers=num_workers)
        data.setup("fit")
        train = data.train_dataloader()
        epochs = []
        for epoch in (0, 1):
            train.sampler.set_epoch(epoch)
            epochs.append(plain(train))
        found.append((epochs, plain(data.val_dataloader())))
        assert epochs[0] != epochs[1]
    assert found[0] == found[1]


def test_processes_share_the_samples_out(make):
    data = make()
    data.setup("fit")
    batches_alone = len(data.train_dataloader())
    parts, rows = [], []
    for rank in (0, 1):
        data.trainer = process(rank, 2)
        parts.append(list(data.train_dataloader()))
        rows += [row for batch in data.val_dataloader() for row in batch.row.tolist()]
    assert len(parts[0]) == len(parts[1]) == -(-batches_alone // 2)
    assert sum(len(batch.labels) for part in parts for batch in part) in (
        len(data.index.click),
        len(data.index.click) - 1,
    )
    assert sorted(rows) == list(range(23))


def test_a_trainer_that_would_deal_the_batches_out_again_is_refused(make):
    data = make()
    data.setup("fit")
    data.trainer = process(0, 2, use_distributed_sampler=True)
    for loader in (data.train_dataloader, data.val_dataloader, data.predict_dataloader):
        with pytest.raises(UserError, match="use_distributed_sampler=False"):
            loader()
    data.trainer = process(0, 1, use_distributed_sampler=True)  # one process has nothing to deal
    assert len(data.train_dataloader()) > 0


def test_the_description_counts_what_is_used_and_what_is_not(make):
    data = make()
    data.setup("fit")
    train, dev, samples = data.describe().splitlines()
    counts = data.data.split("train").counts
    assert train.startswith(f"train: 41 impressions, {counts['users']} users")
    assert f"{counts['candidates']} candidates" in train
    assert f"{2 / 41:.1%} empty histories" in train
    assert dev.startswith("dev: 23 impressions")
    assert f"({1 / data.data.split('dev').counts['candidates']:.1%} not in news.tsv)" in dev
    assert samples.startswith(f"samples: {len(data.index.click)} of train (left out: ")
    left_out = data.index.left_out
    assert sum(left_out.values()) == counts["clicks"] - len(data.index.click) > 0
    for reason, number in left_out.items():
        assert f"{number} {reason}" in samples


def test_states_reach_a_loader_that_lightning_asked_for_before_they_were_computed(make):
    data = make()
    data.setup("fit")
    loader = data.train_dataloader()
    assert next(iter(loader)).token_states is None
    catalogue = data.catalogue
    data.states = TokenStates(catalogue.token_lengths, catalogue.first, hidden=4)
    for batch in (next(iter(loader)), next(iter(data.train_dataloader()))):
        assert batch.token_states.shape == (*batch.token_ids.shape, 4)
