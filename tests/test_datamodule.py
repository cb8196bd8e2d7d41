import itertools
import json
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from test_splits import seen_by_loop
from tokenizers import Tokenizer

from newsrec.data.batch import Batch, EvalBatch
from newsrec.data.datamodule import MindDataModule
from newsrec.data.options import BATCHES
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


def process(rank, world_size, use_distributed_sampler=False, device="cpu"):
    """Return what the data module reads of a Trainer."""
    return SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device(device)),
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
    assert data.catalogue.token_ids.shape == (19, 32)  # without test's three


def test_prediction_goes_through_the_split_that_is_asked_for(make):
    data = make()
    data.setup("predict")
    assert sum(len(batch.row) for batch in data.predict_dataloader()) == 23
    data.predict_on("test")
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


def test_the_loss_decides_what_a_sample_is(make):
    made = {name: make(loss=name, max_candidates=5) for name in ("cross_entropy", "impression")}
    for data in made.values():
        data.setup("fit")
    clicks, whole = (list(data.train_dataloader()) for data in made.values())
    assert sum(len(batch.labels) for batch in clicks) > sum(len(batch.labels) for batch in whole)
    assert max(batch.candidates.shape[1] for batch in whole) == 5
    assert max(int(batch.labels.sum(dim=1).max()) for batch in whole) > 1
    names = made["impression"].name_samples(0, 0)
    assert len(names) == len(set(names)) == 8
    data = make(loss="in_batch")
    data.setup("fit")
    assert all(batch.shared is not None for batch in data.train_dataloader())


def test_a_whole_impression_with_an_npratio_is_refused_naming_both(make):
    with pytest.raises(UserError, match=r"data\.npratio is 3, but model\.loss impression"):
        make(loss="impression", npratio=3)
    assert make(loss="in_batch", npratio=3).npratio == 3


@pytest.mark.parametrize("loss", ["in_batch", "impression"])
def test_workers_make_the_batches_of_every_loss(make, loss):
    batches = []
    for workers in (0, 2):
        data = make(loss=loss, num_workers=workers)
        data.setup("fit")
        batches.append(list(data.train_dataloader()))
    for one, other in zip(*batches, strict=True):
        for a, b in zip(*(each._replace(shared=None) for each in (one, other)), strict=True):
            assert a is b is None or torch.equal(torch.as_tensor(a), torch.as_tensor(b))
        assert (one.shared is None) == (other.shared is None) == (loss == "impression")
        for a, b in zip(one.shared or (), other.shared or (), strict=True):
            assert torch.equal(a, b)


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
        ("max_candidates", 1),
        ("batch_size", 0),
        ("eval_batch_size", -1),
        ("tokens_per_batch", 0),
        ("num_workers", -1),
        ("prefetch_factor", 0),
        ("seed", -1),
        ("val_days", 0),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(make, option, value):
    with pytest.raises(UserError, match=rf"data\.{option} is {value}; .* at least"):
        make(**{option: value})


@pytest.mark.parametrize(("option", "value"), [("val_days", 1.5), ("batch_size", "2")])
def test_an_option_that_counts_is_a_whole_number(make, option, value):
    with pytest.raises(UserError, match=rf"data\.{option} is {value!r}; give a whole number"):
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


def test_clicks_on_unknown_news_alone_are_nothing_to_train_on(make, mind_dir):
    path = mind_dir / "train" / "behaviors.tsv"
    path.write_text("1\tU1\t11/11/2019 9:05:58 AM\tN1\tN404-1 N2-0\n")
    with pytest.raises(UserError, match="no impression of 'train' has a clicked and a skipped"):
        make().setup("fit")


def test_a_mistake_can_be_mended_and_setup_called_again(make):
    data = make(fields=["headline"])
    with pytest.raises(UserError, match="headline"):
        data.setup("fit")
    data.fields = ("title",)
    data.setup("fit")
    assert len(data.catalogue.first) == 19


def test_a_tokenizer_from_a_checkpoint_is_used_as_it_is(mind_dir, plm_dir):
    tokenizer_json = (plm_dir / "tokenizer.json").read_text(encoding="utf-8")
    options = {"root": str(mind_dir), "plm": "a/name/that/nobody/has"}
    data = MindDataModule.as_trained(options, tokenizer_json)
    data.setup("fit")
    assert len(data.catalogue.first) == 19


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


def tokens_of(batches):
    return [int(batch.token_lengths.sum()) for batch in batches]


@pytest.mark.parametrize("order", BATCHES)
def test_a_bound_on_tokens_takes_the_place_of_the_batch_size(make, order):
    data = make(tokens_per_batch=1000, batches=order, batch_size=1)
    data.setup("fit")
    loader = data.train_dataloader()
    batches = list(loader)
    assert 1 < len(batches) == len(loader) < len(data.index.click) / 2
    assert max(tokens_of(batches)) <= 1000
    assert sum(len(batch.labels) for batch in batches) == len(data.index.click)
    data.trainer = process(1, 2)
    assert len(data.train_dataloader()) == -(-len(batches) // 2)


def test_a_bound_that_one_sample_may_pass_is_refused_with_the_least_that_will_do(make):
    message = (
        r"data.tokens_per_batch is 40, but one sample of 'train' can have (\d+) tokens.*"
        r"Raise it to (\d+) or more, or lower data.max_history"
    )
    with pytest.raises(UserError, match=message) as refused:
        make(tokens_per_batch=40).setup("fit")
    least = int(str(refused.value).split("Raise it to ")[1].split()[0])
    data = make(tokens_per_batch=least)
    data.setup("fit")
    assert 0 < max(tokens_of(data.train_dataloader())) <= least
    with pytest.raises(UserError, match=f"Raise it to {least} or more"):
        make(tokens_per_batch=least - 1).setup("fit")
    make(tokens_per_batch=40).setup("predict")  # evaluation has batches of its own


def test_the_samples_of_an_impression_or_of_a_user_stay_together(make):
    changes, histories = {}, {}
    for batches in BATCHES:
        data = make(batches=batches)
        data.setup("fit")
        impression = data.index.impression
        user = data.data.split("train").user[impression]
        order = [s for key in data.train_dataloader().sampler for s in key.samples]
        assert sorted(order) == list(range(len(user)))
        changes[batches] = [int((x[order][1:] != x[order][:-1]).sum()) for x in (impression, user)]
        made = list(data.train_dataloader())
        assert {len(batch.labels) for batch in made[:-1]} == {8}
        histories[batches] = sum(len(batch.history) for batch in made)
    assert changes["impression"][0] == len(set(impression.tolist())) - 1 < changes["random"][0]
    assert changes["user"][1] == len(set(user.tolist())) - 1 < changes["random"][1]
    assert histories["user"] < histories["impression"] < histories["random"]


def test_whole_impressions_have_one_order_whether_or_not_clicks_stay_together(make):
    orders = []
    for batches in ("random", "impression"):
        data = make(batches=batches, loss="impression")
        data.setup("fit")
        orders.append([key.samples.tolist() for key in data.train_dataloader().sampler])
    assert orders[0] == orders[1]


def test_an_order_that_there_is_not_is_refused_with_those_that_are(make):
    said = r"data\.batches is 'shuffled'\. Choose one of impression, random, user\."
    with pytest.raises(UserError, match=said):
        make(batches="shuffled")


def test_workers_prepare_as_many_batches_ahead_as_asked_for(make):
    data = make(num_workers=2, prefetch_factor=3)
    data.setup("fit")
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert (loader.num_workers, loader.prefetch_factor) == (2, 3)
        assert loader.persistent_workers
        if sys.platform == "linux":  # or each worker would get a copy of all arrays
            assert loader.multiprocessing_context.get_start_method() == "fork"
    data = make(prefetch_factor=3)
    data.setup("fit")
    assert data.train_dataloader().prefetch_factor is None


@pytest.mark.parametrize(
    ("option", "device", "pinned"),
    [(None, "cpu", False), (None, "cuda", True), (False, "cuda", False), (True, "cpu", True)],
)
def test_batches_are_pinned_where_a_gpu_reads_them(make, option, device, pinned):
    data = make(pin_memory=option)
    data.setup("fit")
    assert data.train_dataloader().pin_memory == bool(option)  # no Trainer, no GPU
    data.trainer = process(0, 1, device=device)
    assert {data.train_dataloader().pin_memory, data.val_dataloader().pin_memory} == {pinned}


def test_samples_are_listed_once_for_all_setups_with_the_same_split(make, monkeypatch):
    data = make(tokens_per_batch=1000)
    data.setup("fit")
    index = data.index
    data.setup("fit")
    assert data.index is index
    data.train = "dev"
    data.setup("fit")
    assert data.index is not index
    assert data.index.impression.max() < 23


def test_options_of_an_older_checkpoint_still_build_a_data_module(make):
    stored = dict(make().hparams)
    for option in ("tokens_per_batch", "batches", "prefetch_factor"):
        del stored[option]
    again = MindDataModule(**(stored | {"pin_memory": False}))
    assert (again.tokens_per_batch, again.prefetch_factor) == (None, 2)


DONE = 8


class Watcher(LightningModule):
    """Learns nothing and notes which batches it was given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(plain([batch])[0])
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("error:.*not resumable")
@pytest.mark.parametrize(
    "options",
    [
        {"batches": "user"},
        {"batches": "impression", "pin_memory": False},
        {"tokens_per_batch": 1000, "batches": "random"},
        {"tokens_per_batch": 800, "batches": "user", "num_workers": 1},
    ],
    ids=["by user", "by impression, ahead", "tokens", "tokens by user"],
)
def test_a_run_goes_on_in_the_middle_of_an_epoch(make, tmp_path, options, monkeypatch):
    path = tmp_path / "middle.ckpt"
    if "pin_memory" in options:  # a thread is two batches ahead of the step that is saved
        monkeypatch.setattr(MindDataModule, "_on_gpu", lambda self: True)

    def train(ckpt_path=None):
        watcher, data, saver = Watcher(), make(**options), Callback()
        saver.on_train_batch_end = lambda trainer, *_: (
            trainer.global_step == DONE and trainer.save_checkpoint(path)
        )
        Trainer(
            accelerator="cpu",
            max_epochs=3,
            callbacks=[saver],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
        ).fit(watcher, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
        assert data._trained_on == (None if ckpt_path is None else 1)
        return watcher.seen, len(data.train_dataloader())

    whole, steps = train()
    assert len(whole) == 3 * steps
    assert DONE % steps
    assert train(path)[0] == whole[DONE:]


@pytest.mark.parametrize(("trained_on", "done"), [(1, 2), (3, 2), (2, 2), (1, 0), (None, 2)])
def test_another_number_of_processes_goes_on_only_at_the_end_of_an_epoch(make, trained_on, done):
    data = make()
    data.setup("fit")
    data.trainer = process(0, 2)
    assert data.state_dict() == {"world_size": 2, "batch_size": 8}
    if trained_on is not None:  # an older checkpoint does not say
        data.load_state_dict({"world_size": trained_on})
    loader = data.train_dataloader()
    loader.trainer.training = True
    progress = SimpleNamespace(current=SimpleNamespace(ready=done))
    loader.trainer.fit_loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    if done and trained_on not in (2, None):
        with pytest.raises(UserError, match=rf"by {trained_on} processes.* Use {trained_on}, or"):
            next(iter(loader))
    else:
        assert len(list(loader)) == len(loader) - done


@pytest.mark.parametrize(
    ("processes", "size", "goes_on"), [(1, 16, True), (4, 4, True), (2, 8, True), (2, 4, False)]
)
def test_another_batch_size_keeps_that_of_all_processes(make, processes, size, goes_on):
    data = make()
    data.trainer = process(0, 2)
    state = {"world_size": processes, "batch_size": size}
    if goes_on:
        data.load_state_dict(state)
    else:
        with pytest.raises(UserError, match=r"8 per process, .* is 2; .* with 4 and 2\."):
            data.load_state_dict(state)


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
    assert train.startswith(f"train: 2019-11-11, 41 impressions, {counts['users']} users")
    assert f"{counts['candidates']} candidates" in train
    assert f"{2 / 41:.1%} empty histories" in train
    assert dev.startswith("dev: 2019-11-15, 23 impressions")
    assert f"({1 / data.data.split('dev').counts['candidates']:.1%} not among the news)" in dev
    assert samples.startswith(f"samples: {len(data.index.click)} of train (left out: ")
    left_out = data.index.left_out
    assert sum(left_out.values()) == counts["clicks"] - len(data.index.click) > 0
    for reason, number in left_out.items():
        assert f"{number} {reason}" in samples


def test_a_run_may_have_no_validation(make):
    data = make(train="train+dev", val="none")
    data.setup("fit")
    assert data.val_dataloader() == []
    assert data.selected_on is None
    assert data.windows() == {"train+dev": "2019-11-11 to 2019-11-15"}
    assert data.describe().count("\n") == 1


def test_a_checkpoint_may_be_chosen_by_unseen_news_alone(make):
    data = make(val_news="new", eval_batch_size=2)
    data.setup("fit")
    seen = seen_by_loop(data.data.split("train"))
    batches = list(data.val_dataloader())
    shown = [n for batch in batches for n in batch.candidates.tolist()]
    assert shown
    assert not seen & set(shown)
    for batch in batches:
        for begin, end in itertools.pairwise(batch.offsets.tolist()):
            assert set(batch.labels[begin:end].tolist()) == {0, 1}
    plain = make()
    plain.setup("fit")
    assert "chooses by" not in plain.describe()
    assert next(iter(plain.val_dataloader())).candidates.tolist() != batches[0].candidates.tolist()
    line = data.describe().splitlines()[2]
    whole, number = data.data.split("dev"), sum(len(batch.row) for batch in batches)
    assert line.startswith(
        f"dev chooses by news that train has not seen: {len(shown)} of "
        f"{len(whole.candidates.values)} candidates, in {number} of 23 impressions (left out: "
    )
    left_out = [int(n) for n in re.findall(r"(\d+) without", line)]
    assert sum(left_out) == 23 - number
    data.setup("predict")  # what is reported is the whole split
    assert sum(len(batch.row) for batch in data.predict_dataloader()) == 23
    assert data.data.split("dev").fingerprint == plain.data.split("dev").fingerprint


def test_processes_share_out_the_impressions_of_unseen_news(make):
    found = []
    for size in (1, 2):
        rows = []
        for rank in range(size):
            data = make(val_news="new", eval_batch_size=2)
            data.trainer = process(rank, size)
            data.setup("fit")
            rows += [row for batch in data.val_dataloader() for row in batch.row.tolist()]
        found.append(sorted(rows))
    assert found[0] == found[1] == list(range(len(found[0])))


def test_unseen_news_that_cannot_judge_are_refused(make, mind_dir):
    with pytest.raises(UserError, match=r"data.val_news is 'some'. Choose all or new"):
        make(val_news="some")
    with pytest.raises(UserError, match=r"data.val_news new says what data.val judges; .* none"):
        make(val="none", val_news="new").setup("fit")
    with pytest.raises(UserError, match=r"data.val_days 2 are those of data.val last_day"):
        make(val_days=2).setup("fit")
    for split in ("dev", "train"):
        path = mind_dir / split / "behaviors.tsv"
        path.write_text((mind_dir / "train" / "behaviors.tsv").read_text())
    with pytest.raises(UserError, match="leaves nothing of dev to choose a checkpoint by"):
        make(val_news="new").setup("fit")


def test_splits_are_chosen_once_for_all_stages(make, mind_dir):
    path = mind_dir / "train" / "behaviors.tsv"
    path.write_bytes(path.read_bytes().replace(b"11/11/2019", b"11/10/2019", 20))
    data = make(val="last_day")
    for stage in ("fit", "fit", "predict"):
        data.setup(stage)
        assert data.windows() == {"train": "2019-11-10", "last_day": "2019-11-11"}
    other = make(val="last_day")
    other.predict_on("last_day")
    other.setup("predict")
    assert sum(len(b.row) for b in other.predict_dataloader()) == 21
    plain = make(val="last_day")
    plain.setup("predict")  # as for another folder, which may have no train
    assert "last_day" not in plain.data.splits


def test_states_reach_a_loader_that_lightning_asked_for_before_they_were_computed(make):
    data = make()
    data.setup("fit")
    loader = data.train_dataloader()
    assert next(iter(loader)).token_states is None
    lengths = data.catalogue.token_lengths
    starts, values = lengths.cumsum(0) - lengths, torch.zeros(int(lengths.sum()), 4)
    data.use_states(TokenStates([values], torch.zeros_like(lengths), starts, lengths))
    for batch in (next(iter(loader)), next(iter(data.train_dataloader()))):
        assert batch.token_states.shape == (int(batch.token_lengths.sum()), 4)
