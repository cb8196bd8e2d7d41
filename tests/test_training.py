import math
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import tiny_behaviors, tiny_news, write_mind
from lightning import Callback, Trainer
from torch import nn

from newsrec.data.datamodule import MindDataModule
from newsrec.data.team import divide
from newsrec.errors import UserError
from newsrec.metrics import METRICS, mind_metrics
from newsrec.training.callbacks import FrozenStates, ScoreCollector
from newsrec.training.catalogue import encode_catalogue
from newsrec.training.checkpoint.read import (
    check_run_folder,
    check_same_options,
    hyper_parameters,
    read_checkpoint,
    resolve_checkpoint,
)
from newsrec.training.module import RecommenderModule
from newsrec.training.optimizer import parameter_groups

SLOW_LAYERS = [pytest.param(layers, marks=pytest.mark.slow) for layers in (0, 1)]
SMALL = {"heads": 2, "ffn": 16, "dropout": 0.0}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_mind(tmp_path_factory.mktemp("training") / "mind", tiny_news(), tiny_behaviors())


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Tensors this small gain nothing from threads, which wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _repeatable():
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few workers, no logger: Lightning's advice
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="module")
def make(root, plm_dir):
    """Return a function that builds a small model and its data; keywords override the model's."""

    def build(data=(), **options):
        options = {"dim": 16, "news": SMALL, "user": SMALL, "lr": 3e-3} | options
        module = RecommenderModule(plm=str(plm_dir), **options)
        sizes = {"batch_size": 8, "eval_batch_size": 5, "seed": 42, "frozen_states": "fp32"}
        sizes |= {"root": str(root)} | dict(data)
        return module, MindDataModule(plm=str(plm_dir), **sizes)

    return build


def turn_off_dropout(module):
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0


def trainer_of(*callbacks, **options):
    defaults = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "callbacks": list(callbacks),
    }
    return Trainer(**defaults | options)


class Recorder(Callback):
    """Keeps the loss, the learning rates and the key of every training step."""

    def __init__(self):
        self.losses, self.rates, self.epochs, self.states = [], [], [], []

    def on_train_start(self, trainer, pl_module):
        dataset = trainer.train_dataloader.dataset
        take = type(dataset).__getitem__
        recorder = self

        class Watched(type(dataset)):
            def __getitem__(self, key):
                recorder.epochs.append((key.epoch, key.samples.tolist()))
                return take(self, key)

        dataset.__class__ = Watched

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append([group["lr"] for group in optimizer.param_groups])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))
        self.states.append(batch.token_states is not None)


@pytest.fixture(scope="module")
def trained(make, tmp_path_factory):
    """A model trained for two epochs, its scores on dev and its checkpoint."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        module, data = make()
        collector, recorder = ScoreCollector(), Recorder()
        trainer = trainer_of(collector, recorder, FrozenStates(), max_epochs=2)
        trainer.fit(module, datamodule=data)
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        path = tmp_path_factory.mktemp("checkpoint") / "best.ckpt"
        trainer.save_checkpoint(path)
        data.use_states(None)
        trainer.predict(module, datamodule=data, return_predictions=False)
        scores = collector.scores(trainer, data.data.split("dev"))
    return {
        "module": module.eval(),
        "data": data,
        "trainer": trainer,
        "recorder": recorder,
        "logged": logged,
        "path": path,
        "scores": scores,
    }


# fitting


def test_two_epochs_see_every_sample_twice_in_another_order(trained):
    recorder, number = trained["recorder"], len(trained["data"].index.click)
    epochs = [
        [s for e, samples in recorder.epochs if e == epoch for s in samples] for epoch in (0, 1)
    ]
    assert [sorted(samples) for samples in epochs] == [list(range(number))] * 2
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("tune_layers", [*SLOW_LAYERS, -1])
def test_a_few_samples_are_learned_by_heart(make, tune_layers):
    module, data = make(tune_layers=tune_layers, lr=1e-2, plm_lr=1e-3, data={"npratio": 2})
    recorder = Recorder()
    trainer_of(recorder, max_epochs=8, limit_val_batches=0).fit(module, datamodule=data)
    first, last = np.mean(recorder.losses[:5]), np.mean(recorder.losses[-5:])
    assert first > 0.8
    assert last < 0.6 * first


def test_a_frozen_plm_stays_as_it_was_and_a_tuned_one_does_not(make):
    changed = {}
    for tune_layers in (0, 1):
        module, data = make(tune_layers=tune_layers, plm_lr=1e-3)
        module.configure_model()
        plm = module.recommender.news_encoder.plm
        before = {name: p.clone() for name, p in plm.named_parameters()}
        trainer_of(max_epochs=1, limit_val_batches=0).fit(module, datamodule=data)
        changed[tune_layers] = {n for n, p in plm.named_parameters() if (p != before[n]).any()}
        assert not any(m.training for m in module.recommender.news_encoder.cut.frozen)
    assert changed[0] == set()
    assert changed[1]
    assert {name.split(".")[2] for name in changed[1]} == {"1"}  # encoder.layer.1


def test_the_loss_is_the_cross_entropy_over_real_candidates(make):
    module, data = make(data={"npratio": 6})
    data.setup("fit")
    module.configure_model()
    module.eval()
    module.log = lambda *args, **kwargs: None
    padded = 0
    for batch in data.train_dataloader():
        loss = module.training_step(batch, 0)
        scores = module(batch).tolist()
        expected = []
        for row, candidates in zip(scores, batch.candidates.tolist(), strict=True):
            real = [score for score, news in zip(row, candidates, strict=True) if news]
            padded += len(row) - len(real)
            expected.append(math.log(sum(map(math.exp, real))) - real[0])
        assert float(loss) == pytest.approx(np.mean(expected), abs=1e-6)
    assert padded


@pytest.mark.parametrize(("epochs", "warmup"), [(4, 0.2), (3, 0.5), (2, 0.1)])
def test_the_learning_rate_rises_to_its_peak_and_falls_to_almost_nothing(make, epochs, warmup):
    module, data = make(warmup=warmup, tune_layers=1, lr=1e-3, plm_lr=1e-5)
    recorder = Recorder()
    trainer_of(recorder, max_epochs=epochs, limit_val_batches=0).fit(module, datamodule=data)
    steps = epochs * len(data.train_dataloader())
    rates = np.array(recorder.rates)
    assert len(rates) == steps
    for group in rates.T:
        peak = group.max()
        assert any(peak == pytest.approx(rate) for rate in (1e-3, 1e-5, 1e-2))
        (top,) = np.flatnonzero(group > peak * (1 - 1e-9))
        assert top == math.ceil(warmup * steps)
        rise, fall = group[: top + 1], group[top:]
        np.testing.assert_allclose(np.diff(rise), peak / (top + 1))
        np.testing.assert_allclose(np.diff(fall), -peak / (steps - top))
        assert group[0] == pytest.approx(peak / (top + 1))
        assert group[-1] == pytest.approx(peak / (steps - top))
    assert {round(g.max() * 1e5) for g in rates.T} == {100, 1, 1000}  # all else, PLM, gates


def test_parameters_are_grouped_by_rate_and_decay(make):
    module, _ = make(tune_layers=1, user=SMALL | {"positions": "learned"}, appeal=True,
                     abstract_tokens=9)  # fmt: skip
    module.configure_model()
    recommender = module.recommender
    rates = {"lr": 1e-3, "plm_lr": 1e-5, "gate_lr": 1e-2}
    groups = parameter_groups(recommender, **rates, weight_decay=0.01)
    settings = {
        id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]
    }
    assert sum(len(group["params"]) for group in groups) == len(settings)
    assert {group["name"]: (group["lr"], group["weight_decay"]) for group in groups} == {
        "encoders": (1e-3, 0.01),
        "encoders_no_decay": (1e-3, 0.0),
        "plm": (1e-5, 0.01),
        "plm_no_decay": (1e-5, 0.0),
        "gates_no_decay": (1e-2, 0.0),
    }
    alike = parameter_groups(recommender, 1e-3, 1e-5, 1e-3, weight_decay=0.0)
    assert [group["name"] for group in alike] == ["gates+encoders", "plm"]
    norms = {
        id(p) for m in recommender.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()
    }
    for name, parameter in recommender.named_parameters():
        in_plm = name.startswith("news_encoder.plm.")
        if in_plm and "encoder.layer.1." not in name:
            assert id(parameter) not in settings  # frozen
            continue
        plain = name.endswith("bias") or id(parameter) in norms
        plain |= name in ("user_encoder.empty", "user_encoder.fastformer.positions.weight")
        expected = (1e-5 if in_plm else 1e-3, 0.0 if plain else 0.01)
        if name.endswith(("gate", "log_scale", "appeal", "views.query", "views.lean")):
            expected = (1e-2, 0.0)
        assert settings.pop(id(parameter)) == expected, name
    assert not settings


def test_a_frozen_plm_has_no_group(make):
    module, _ = make(tune_layers=0)
    module.configure_model()
    rates = {"lr": 1e-3, "plm_lr": 1e-5, "gate_lr": 1e-2}
    groups = parameter_groups(module.recommender, **rates, weight_decay=0.01)
    assert {group["lr"] for group in groups} == {1e-3, 1e-2}


def test_cached_states_give_the_losses_of_running_the_plm(make, trained):
    assert all(trained["recorder"].states)
    torch.manual_seed(0)
    module, data = make(data={"frozen_states": "none"})
    recorder = Recorder()
    trainer = trainer_of(recorder, max_epochs=2)
    trainer.fit(module, datamodule=data)
    assert not any(recorder.states)
    np.testing.assert_allclose(recorder.losses, trained["recorder"].losses, atol=1e-6)
    for name in METRICS:
        assert trained["logged"][f"val/{name}"] == pytest.approx(
            float(trainer.callback_metrics[f"val/{name}"]), abs=1e-6
        )


PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}


class Gradients(Callback):
    """Keeps the gradients of the last step, before and after they were clipped."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.before = self._flat(pl_module)

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.fused = trainer.optimizers[0].defaults["fused"]
        self.after = self._flat(pl_module)

    @staticmethod
    def _flat(module):
        return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("algorithm", ["norm", "value", "off"])
def test_a_fused_optimizer_gets_gradients_clipped_as_asked_in_every_precision(
    make, precision, algorithm
):
    module, data = make(data={"val": "none"}, precision=precision)
    gradients = Gradients()
    clip = {"gradient_clip_val": 1e-2, "gradient_clip_algorithm": algorithm}
    trainer = trainer_of(
        gradients,
        max_steps=1,
        precision=PRECISIONS[precision],
        **({} if algorithm == "off" else clip),
    )
    trainer.fit(module, datamodule=data)
    expected = gradients.before.clone()
    if algorithm == "norm":
        expected *= 1e-2 / (expected.norm() + 1e-6)
    elif algorithm == "value":
        expected = expected.clamp(-1e-2, 1e-2)
    assert gradients.fused
    assert gradients.before.norm() > 2e-2  # so that there is something to clip
    torch.testing.assert_close(gradients.after, expected)


@pytest.mark.parametrize("tune_layers", [*SLOW_LAYERS, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_states_below_the_tuned_layers_give_the_losses_of_the_whole_plm(
    make, tune_layers, precision
):
    losses, fitted = {}, None
    for frozen_states in (precision, "none"):
        torch.manual_seed(0)
        options = {"tune_layers": tune_layers, "plm_lr": 1e-3}
        module, data = make(data={"frozen_states": frozen_states, "val": "none"}, **options)
        module.configure_model()
        turn_off_dropout(module)  # its draws fall elsewhere where fewer layers run
        residual = module.recommender.news_encoder.residual
        if fitted is not None:  # Adam makes a whole step of a gradient that is rounding alone
            residual.load_state_dict(fitted)
        recorder = Recorder()
        trainer_of(FrozenStates(), recorder, max_epochs=2).fit(module, datamodule=data)
        fitted = residual.state_dict()
        assert set(recorder.states) == {frozen_states != "none"}
        losses[frozen_states] = recorder.losses
    tolerance = 2e-6 if precision == "fp32" else 0.05
    np.testing.assert_allclose(losses[precision], losses["none"], atol=tolerance, rtol=0)


@pytest.mark.parametrize("tune_layers", [0, 1])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("bf16", 1e-2)])
def test_the_residual_path_is_fitted_alike_on_states_and_on_the_whole_plm(
    make, tune_layers, precision, tolerance
):
    centres = []
    for frozen_states in (precision, "none"):
        module, data = make(
            data={"frozen_states": frozen_states, "val": "none"}, tune_layers=tune_layers
        )
        trainer_of(FrozenStates(), max_steps=1).fit(module, datamodule=data)
        centres.append(module.recommender.news_encoder.residual.centre)
    torch.testing.assert_close(*centres, atol=tolerance, rtol=0)


@pytest.fixture
def two_processes(make, root, tmp_path, monkeypatch):
    """Return a function that runs ``on_fit_start`` in two threads, as two processes would."""
    fresh = shutil.copytree(root, tmp_path / "mind", ignore=shutil.ignore_patterns("states-*"))
    modules = [make(data={"root": str(fresh)}) for _ in range(2)]
    for module, data in modules:
        module.configure_model()
        data.setup("fit")
    store = torch.distributed.HashStore()
    monkeypatch.setattr("newsrec.training.processes.waiting.watched_store", lambda: store)
    monkeypatch.setattr("newsrec.training.callbacks.fail_together", lambda _: nullcontext())
    monkeypatch.setattr("newsrec.training.callbacks.wait_for_all", lambda: None)

    def start(rank):
        module, data = modules[rank]
        trainer = SimpleNamespace(
            global_rank=rank, local_rank=rank, world_size=2, num_nodes=1, datamodule=data
        )
        FrozenStates().on_fit_start(trainer, module)
        return module, data

    def both():
        with ThreadPoolExecutor(2) as pool:
            return [pool.submit(start, rank) for rank in (0, 1)]

    return both


def test_each_process_computes_a_part_of_the_states_and_reads_all(two_processes, monkeypatch):
    monkeypatch.setattr("newsrec.data.states.NEWS_PER_PASS", 3)
    owners = set()

    def note(*given):
        owners.update(divide(*given))
        return divide(*given)

    monkeypatch.setattr("newsrec.data.states.divide", note)
    for module, data in (done.result() for done in two_processes()):
        assert len(data.states.take(torch.tensor([2]))) == data.catalogue.token_lengths[2]
        assert module.recommender.news_encoder.training
    assert owners == {0, 1}


@pytest.mark.parametrize("rank", [0, 1])
def test_a_mistake_of_one_process_stops_all(two_processes, monkeypatch, rank):
    monkeypatch.setattr("newsrec.data.states.NEWS_PER_PASS", 3)
    whole = "newsrec.data.states.np.save" if rank == 0 else "newsrec.data.states.full_disk_mistakes"
    monkeypatch.setattr(whole, full_disk)
    for done in two_processes():
        with pytest.raises(UserError, match="no space"):
            done.result()


def full_disk(*_):
    raise UserError("no space")


def test_a_plm_that_is_tuned_whole_has_no_states(make):
    module, data = make(tune_layers=-1)
    trainer_of(FrozenStates(), max_steps=1, limit_val_batches=0).fit(module, datamodule=data)
    assert data.states is None


# scoring


def test_validation_logs_the_metrics_of_the_scores(trained):
    split = trained["data"].data.split("dev")
    expected = mind_metrics(trained["scores"], split.labels, split.candidates.offsets)
    assert expected["evaluated"] == 23 - 3
    for name in METRICS:
        assert trained["logged"][f"val/{name}"] == pytest.approx(expected[name], abs=1e-6)


def scores_one_by_one(module, data, split):
    """Score each candidate of each impression alone, in the order of the file."""
    vectors = encode_catalogue(module.recommender, data.catalogue)
    scores = []
    for i, history_row in enumerate(split.history):
        start, end = split.histories.offsets[history_row : history_row + 2]
        clicked = torch.from_numpy(split.histories.values[start:end].astype(np.int64))
        with torch.no_grad():
            user = module.recommender.encode_user(vectors, clicked[None])[0, 0]
        start, end = split.candidates.offsets[i : i + 2]
        for news in split.candidates.values[start:end]:
            scores.append(float(user @ vectors[int(news)]))
    return scores


@pytest.mark.parametrize("name", ["dev", "test"])
def test_scores_come_in_the_order_of_the_file(trained, name):
    module, data, trainer = (trained[key] for key in ("module", "data", "trainer"))
    (collector,) = (c for c in trainer.callbacks if isinstance(c, ScoreCollector))
    data.predict_on(name)
    trainer.predict(module, datamodule=data, return_predictions=False)
    split = data.data.split(name)
    scores = collector.scores(trainer, split)
    data.predict_on(data.val)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, scores_one_by_one(module, data, split), 1e-6, 1e-7)
    assert len(set(np.round(scores, 6))) > len(scores) / 10  # they differ, so order is tested


def test_a_process_without_impressions_left_scores_nothing(trained):
    module, data = trained["module"], trained["data"]
    vectors = encode_catalogue(module.recommender, data.catalogue)
    data.trainer = None
    dataset = data.val_dataloader().dataset
    with torch.no_grad():
        assert module.recommender.score(vectors, dataset[np.arange(0)]).tolist() == []
        empty = np.flatnonzero(dataset.split.histories.lengths[dataset.split.history] == 0)
        batch = dataset[empty]  # histories without a column
        assert module.recommender.score(vectors, batch).isfinite().all()


def test_the_unknown_news_item_is_the_mean_news_item(trained):
    module, data = trained["module"], trained["data"]
    vectors = encode_catalogue(module.recommender, data.catalogue)
    assert vectors[0].tolist() == [0] * 16
    torch.testing.assert_close(vectors[1], vectors[2:].mean(dim=0))
    assert torch.equal(
        vectors, vectors[data.catalogue.first].index_copy(0, torch.tensor([1]), vectors[1:2])
    )


# checkpoints


def test_a_checkpoint_is_plain_data_that_describes_itself(trained):
    checkpoint = torch.load(trained["path"], weights_only=True)
    ours = checkpoint["newsrec"]
    data = trained["data"]
    assert ours["format"] == 1
    assert ours["tokenizer_json"] == data.tokenizer_json
    assert (ours["monitor"], ours["selected_on"]) == ("val/auc", "dev")
    assert ours["metrics"] == {k: v for k, v in trained["logged"].items() if k.startswith("val/")}
    fingerprints = {name: data.data.split(name).fingerprint for name in ("train", "dev")}
    assert ours["data_fingerprint"] == fingerprints
    assert ours["plm_config"]["hidden_size"] == 32
    assert hyper_parameters(checkpoint, "model") == dict(trained["module"].hparams)
    assert hyper_parameters(checkpoint, "data") == dict(data.hparams)
    assert any("news_encoder.plm." in name for name in checkpoint["state_dict"])


def test_a_checkpoint_needs_neither_its_plm_nor_its_options(make, plm_dir, trained, tmp_path):
    moved = shutil.copy(trained["path"], tmp_path / "elsewhere.ckpt")
    hidden = plm_dir.with_name(f"{plm_dir.name}-away")
    plm_dir.rename(hidden)
    try:
        module = RecommenderModule.load_from_checkpoint(moved)
    finally:
        hidden.rename(plm_dir)
    assert not module.training
    data, state = trained["data"], trained["module"].state_dict()
    loaded = module.state_dict()
    assert list(loaded) == list(state)
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    vectors = encode_catalogue(module.recommender, data.catalogue)
    assert torch.equal(vectors, encode_catalogue(trained["module"].recommender, data.catalogue))
    collector = ScoreCollector()
    trainer = trainer_of(collector)
    trainer.predict(module, datamodule=data, return_predictions=False)
    scores = collector.scores(trainer, data.data.split("dev"))
    assert scores.tolist() == trained["scores"].tolist()


@pytest.fixture(scope="module")
def unbroken(make, tmp_path_factory):
    """A run of two epochs with its checkpoints: in the first, after its validation, at its end."""
    folder = tmp_path_factory.mktemp("unbroken")
    recorder, saver = Recorder(), Callback()

    def save(when):
        def now(trainer, *args, **kwargs):
            path = folder / f"{when}.ckpt"
            if not path.exists() and (when != "train_batch" or trainer.global_step == 3):
                trainer.save_checkpoint(path)

        return now

    for when in ("train_batch", "validation", "train_epoch"):
        setattr(saver, f"on_{when}_end", save(when))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module, data = make()
        trainer_of(recorder, saver, max_epochs=2).fit(module, datamodule=data)
    return recorder, folder


@pytest.mark.parametrize(
    ("when", "num_workers"),
    [("train_batch", 0), ("train_batch", 1), ("validation", 0), ("train_epoch", 0)],
)
def test_a_resumed_run_goes_on_as_an_unbroken_one_does(make, unbroken, when, num_workers):
    first, folder = unbroken
    second, path = Recorder(), folder / f"{when}.ckpt"
    done = 3 if when == "train_batch" else len(first.losses) // 2
    assert torch.load(path, weights_only=True)["global_step"] == done

    torch.manual_seed(1)
    module, data = make(data={"num_workers": num_workers})
    trainer_of(second, max_epochs=2).fit(module, datamodule=data, ckpt_path=path)
    assert second.losses == first.losses[done:]
    assert second.rates == first.rates[done:]
    if num_workers == 0:
        assert second.epochs == first.epochs[done:]


def write_foreign(kind, path):
    if kind == "text":
        path.write_text("epoch,loss\n1,0.5\n")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "pickle":
        torch.save({"newsrec": {"format": 1}, "code": nn.Linear(2, 2)}, path)
    elif kind == "tensors":
        torch.save({"weight": torch.zeros(2)}, path)
    elif kind == "tensor":
        torch.save(torch.zeros(2), path)
    elif kind == "newer":
        torch.save({"newsrec": {"format": 99}}, path)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("text", "cannot be read"),
        ("empty", "cannot be read"),
        ("pickle", "cannot be read"),
        ("tensors", "holds only 1 weights (a state dict)"),
        ("tensor", "holds a single tensor, not a checkpoint"),
        ("newer", "newsrec format 99; this version reads format 1"),
        ("missing", "does not exist"),
    ],
)
def test_a_file_that_is_no_checkpoint_of_ours_is_refused(tmp_path, kind, reason):
    path = tmp_path / "some.ckpt"
    write_foreign(kind, path)
    with pytest.raises(UserError) as error:
        read_checkpoint(path)
    message = str(error.value)
    assert message.startswith(f"--ckpt_path {path}")
    assert reason in message
    assert "newsrec fit" in message or "Train it again" in message  # the next step


def test_a_cut_checkpoint_is_refused(trained, tmp_path):
    path = tmp_path / "cut.ckpt"
    path.write_bytes(trained["path"].read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"cut\.ckpt cannot be read .* Is the file whole"):
        RecommenderModule.load_from_checkpoint(path)


@pytest.mark.parametrize("url", ["https://example.org/best.ckpt", "s3://bucket/best.ckpt"])
def test_a_url_is_refused_before_anything_is_loaded(url):
    with pytest.raises(UserError, match=f"{url} is a URL.* Download the file"):
        read_checkpoint(url)


# the run folder


def test_last_and_best_are_those_of_the_run_folder(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for name in ("last", "best"):
        path = tmp_path / "checkpoints" / f"{name}.ckpt"
        with pytest.raises(UserError) as error:
            resolve_checkpoint(name, tmp_path)
        assert str(error.value).startswith(f"--ckpt_path {name}: there is no {path}. ")
        assert "--output" in str(error.value)
        path.touch()
        assert resolve_checkpoint(name, tmp_path) == path
        assert resolve_checkpoint(str(path), tmp_path / "other") == path


def test_a_checkpoint_that_is_not_there_is_never_a_new_start(tmp_path):
    path = tmp_path / "other.ckpt"
    with pytest.raises(UserError, match=r"there is no .*other\.ckpt.* leave --ckpt_path out"):
        resolve_checkpoint(str(path), tmp_path)
    with pytest.raises(UserError, match="there is no"):
        resolve_checkpoint(str(tmp_path), tmp_path)  # a folder


def test_a_run_starts_in_an_empty_folder_only(tmp_path):
    check_run_folder(tmp_path / "new")
    check_run_folder(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"is not empty\. Choose another --output"):
        check_run_folder(tmp_path)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(UserError) as error:
        check_run_folder(tmp_path / "run")
    assert str(error.value).startswith(f"--output {tmp_path / 'run'} is not empty. ")
    assert "--ckpt_path last" in str(error.value)
    with pytest.raises(UserError, match="is a file, not a folder"):
        check_run_folder(tmp_path / "file")


def test_an_option_that_contradicts_the_checkpoint_is_refused_with_both_values(trained):
    checkpoint = read_checkpoint(trained["path"])
    check_same_options(checkpoint, {}, "best.ckpt")
    same = {"model": {"dim": 16, "news": dict(trained["module"].hparams["news"])}}
    same["data"] = {"fields": ("category", "subcategory", "title"), "max_history": 50}
    check_same_options(checkpoint, same, "best.ckpt")
    for part, name, value, stored in (
        ("model", "dim", 32, "16"),
        ("data", "fields", ["title"], "['category', 'subcategory', 'title']"),
        ("data", "npratio", 1, "4"),
    ):
        with pytest.raises(UserError) as error:
            check_same_options(checkpoint, same | {part: {name: value}}, "best.ckpt")
        message = str(error.value)
        assert message.startswith(f"{part}.{name} is {value}, but best.ckpt was trained with ")
        assert stored in message.split("trained with")[1]
    shape = checkpoint["hyper_parameters"]["news"] | {"layers": 3}
    with pytest.raises(UserError, match=r"model\.news\.layers is 3, but .* trained with 1\."):
        check_same_options(checkpoint, {"model": {"news": shape}}, "best.ckpt")
