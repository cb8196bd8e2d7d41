"""The residual path: an untrained model is the centred cosine, and gates let in what is learned."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import tiny_behaviors, tiny_news, write_mind
from lightning import Trainer

from newsrec.data import FIRST_NEWS
from newsrec.data.datamodule import MindDataModule
from newsrec.errors import UserError
from newsrec.evaluation.baselines import cosine_scores
from newsrec.metrics import mind_metrics
from newsrec.model.plm.blocks import length_mask
from newsrec.model.residual import ResidualPath
from newsrec.training.callbacks import FrozenStates, ScoreCollector
from newsrec.training.catalogue import encode_catalogue, mean_states
from newsrec.training.module import RecommenderModule

HIDDEN = 32  # of plm_dir
SMALL = {"heads": 2, "ffn": 16, "dropout": 0.0}


def fitted(means, dim):
    path = ResidualPath(means.shape[1], dim)
    path.fit(means)
    return path


def by_hand(means, dim):
    """``P (normalize(mean) - c)`` in numpy, P by a singular value decomposition."""
    means = means.double().numpy()
    scaled = means / np.linalg.norm(means, axis=1, keepdims=True)
    centred = scaled - scaled.mean(axis=0)
    if dim == means.shape[1]:
        return centred
    return centred @ np.linalg.svd(centred, full_matrices=False)[2][:dim].T


@pytest.mark.parametrize("dim", [1, 5, 12])
def test_vectors_are_the_centred_means_in_the_leading_directions(dim):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(40, 6, 12, generator=generator) * torch.linspace(3, 0.1, 12) + 1
    lengths = torch.randint(1, 7, (40,), generator=generator)
    mask = length_mask(lengths, 6)
    means = torch.stack([s[:n].mean(dim=0) for s, n in zip(states, lengths, strict=True)])
    states[~mask] = torch.nan  # what lies behind a news item's end is never read
    found = fitted(means, dim)(states, mask).double().numpy()
    expected = by_hand(means, dim)
    signs = np.sign((found * expected).sum(axis=0))  # of singular vectors are free
    np.testing.assert_allclose(found * signs, expected, atol=1e-6)
    if dim == 12:
        assert (signs == 1).all()


def test_an_unfitted_path_only_scales():
    states = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))
    vectors = ResidualPath(8, 8)(states, torch.ones(3, 4, dtype=torch.bool))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))


def test_a_wider_news_vector_than_the_plms_states_is_refused():
    with pytest.raises(UserError, match=r"model\.dim is 9.*have 8 values.*residual"):
        ResidualPath(8, 9)


def test_vectors_are_float32_also_under_autocast():
    path = fitted(torch.randn(30, 8, generator=torch.Generator().manual_seed(0)), 4)
    states, mask = torch.randn(3, 4, 8), torch.ones(3, 4, dtype=torch.bool)
    expected = path(states, mask)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(path(states, mask), expected)


# In the whole model


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_mind(tmp_path_factory.mktemp("residual") / "mind", tiny_news(), tiny_behaviors())


def made(root, plm_dir, dim=HIDDEN, **options):
    torch.manual_seed(0)
    options = {"residual": True, "news": SMALL, "user": SMALL, "lr": 3e-3} | options
    module = RecommenderModule(plm=str(plm_dir), dim=dim, **options)
    return module, MindDataModule(
        root=str(root), plm=str(plm_dir), batch_size=8, seed=42, frozen_states="fp32"
    )


def fit(module, data, **options):
    defaults = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    collector = ScoreCollector()
    trainer = Trainer(**defaults | options, callbacks=[FrozenStates(), collector])
    trainer.fit(module, datamodule=data)
    logged = dict(trainer.callback_metrics)
    trainer.predict(module, datamodule=data, return_predictions=False)
    return trainer, collector.scores(trainer, data.data.split("dev")), logged


@pytest.mark.parametrize("tune_layers", [0, 1])
def test_gates_at_zero_score_as_the_baseline_cosine(tmp_path, plm_dir, tune_layers):
    # The baseline centres on all news, and training on those of train and dev: here all there are.
    splits = ("train", "dev")
    files = ({name: rows[name] for name in splits} for rows in (tiny_news(), tiny_behaviors()))
    root = write_mind(tmp_path / "mind", *files)
    module, data = made(root, plm_dir, lr=0.0, plm_lr=0.0, gate_lr=0.0, tune_layers=tune_layers)
    _, scores, _ = fit(module, data, max_epochs=1)
    split = data.data.split("dev")
    cut = module.eval().recommender.news_encoder.cut
    means = mean_states(cut, data.catalogue).numpy()
    expected = cosine_scores(data.data, "dev", means)
    seen = expected != 0  # not users without history, whom the model gives a vector
    np.testing.assert_allclose(scores[seen], 10 * expected[seen], rtol=1e-4, atol=1e-5)
    auc = [
        mind_metrics(s, split.labels, split.candidates.offsets)["auc"] for s in (scores, expected)
    ]
    assert auc[0] == pytest.approx(auc[1], abs=1e-6)


def test_training_opens_the_gates_and_logs_them(root, plm_dir):
    module, data = made(root, plm_dir, dim=8)
    _, _, logged = fit(module, data, max_epochs=2)
    gates = module.recommender.gates()
    assert set(gates) == {"news", "user", "scale"}
    for name, start in (("news", 0.0), ("user", 0.0), ("scale", 10.0)):
        assert abs(float(gates[name]) - start) > 1e-3
        assert logged[f"gate/{name}"] == pytest.approx(float(gates[name]))


def test_scores_stay_plain_dot_products_of_what_is_exported(root, plm_dir):
    module, data = made(root, plm_dir, dim=8)
    _, scores, _ = fit(module, data, max_epochs=1)
    recommender, split = module.recommender.eval(), data.data.split("dev")
    vectors = encode_catalogue(recommender, data.catalogue)
    with torch.no_grad():
        for row, history in enumerate(split.history):
            clicked = torch.from_numpy(split.histories.take([history]).values.astype(np.int64))
            shown = split.candidates.between(row, row + 1).values.astype(np.int64)
            padded = clicked[None] if len(clicked) else torch.zeros(1, 1, dtype=torch.int64)
            user = recommender.encode_user(vectors, padded)[0, 0]
            expected = vectors[torch.from_numpy(shown)] @ user
            start = split.candidates.offsets[row]
            found = torch.from_numpy(scores[start : start + len(shown)])
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_open_gates_add_what_the_encoders_say(root, plm_dir):
    """The sums of docs/design.md, with the encoders' parts taken one by one."""
    module, data = made(root, plm_dir, dim=8)
    fit(module, data, max_epochs=1)
    recommender = module.recommender.eval()
    news, user = recommender.news_encoder, recommender.user_encoder
    with torch.no_grad():
        news.gate.fill_(0.3)
        user.gate.fill_(-0.7)
        user.log_scale.fill_(np.log(2.5))
        vectors = encode_catalogue(recommender, data.catalogue)
        means = mean_states(news.cut, data.catalogue)
        for row in range(FIRST_NEWS, len(vectors)):
            length = data.catalogue.token_lengths[row : row + 1]
            token_ids = data.catalogue.token_ids[row : row + 1, : int(length)].long()
            mask = torch.ones(1, int(length), dtype=torch.bool)
            states = news.plm(token_ids)[0]
            learned = news.pooling(news.fastformer(news.project(states), mask), mask)[0]
            mean = (means[row] / means[row].norm()).double() - news.residual.centre.double()
            expected = news.residual.projection.double() @ mean + 0.3 * learned
            torch.testing.assert_close(vectors[row].double(), expected, rtol=1e-4, atol=1e-5)
        clicked = vectors[None, [3, 5, 9]]
        mask = torch.ones(1, 3, dtype=torch.bool)
        learned = user.pooling(user.fastformer(clicked, mask), mask)
        expected = 2.5 * (clicked.mean(dim=1) - 0.7 * learned)
        torch.testing.assert_close(user(clicked, mask)[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_every_process_takes_the_centre_of_the_first(root, plm_dir, monkeypatch):
    module, data = made(root, plm_dir, dim=8)
    module.configure_model()
    data.setup("fit")
    residual = module.recommender.news_encoder.residual
    first = ResidualPath(HIDDEN, 8)
    first.fit(torch.randn(30, HIDDEN, generator=torch.Generator().manual_seed(1)))
    strategy = SimpleNamespace(broadcast=lambda own: first.state_dict())
    module._trainer = SimpleNamespace(
        global_rank=1, world_size=2, strategy=strategy, datamodule=data
    )
    shares = []

    def share(cut, catalogue, states, rank, world_size):
        shares.append((rank, world_size))
        return mean_states(cut, catalogue, states)

    monkeypatch.setattr("newsrec.training.module.mean_states", share)
    module.on_fit_start()
    assert shares == [(1, 2)]  # the PLM's work is shared, the result is the first one's
    for name, value in first.state_dict().items():
        assert torch.equal(residual.state_dict()[name], value)


def test_a_checkpoint_keeps_the_centre_and_a_resumed_run_does_not_fit_it_again(
    root, plm_dir, tmp_path, monkeypatch
):
    module, data = made(root, plm_dir, dim=8)
    trainer, _, _ = fit(module, data, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    again = RecommenderModule.load_from_checkpoint(tmp_path / "one.ckpt")
    residual = again.recommender.news_encoder.residual
    assert residual.fitted
    for name, value in module.recommender.news_encoder.residual.state_dict().items():
        assert torch.equal(residual.state_dict()[name], value)
    monkeypatch.setattr(ResidualPath, "fit", lambda *_: pytest.fail("fitted again"))
    other, data = made(root, plm_dir, dim=8)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, max_epochs=2,
    )  # fmt: skip
    trainer.fit(other, datamodule=data, ckpt_path=tmp_path / "one.ckpt", weights_only=True)


def test_without_a_residual_path_there_are_no_gates(root, plm_dir):
    module, _ = made(root, plm_dir, residual=False, dim=8)
    module.configure_model()
    assert module.recommender.gates() == {}
    assert not [n for n in module.state_dict() if "gate" in n or "residual" in n or "scale" in n]
    assert FIRST_NEWS == 2
