"""Weights of a fitted ensemble, against plain loops, scikit-learn and made cases."""

import json
import math
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from conftest import refused
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from newsrec.data.dataset import open_mind
from newsrec.errors import UserError
from newsrec.evaluation import fitted as module
from newsrec.evaluation.ensemble import combine, standardize
from newsrec.evaluation.fitted import (
    FOLDS,
    RIDGE,
    combine_fitted,
    fit_weights,
    learn,
    learns_on,
    user_folds,
)
from newsrec.metrics import mind_metrics
from newsrec.report.notes import notes
from newsrec.report.terminal import weights_table


def world(seed, impressions, noise, users=40, most=8):
    """Return clicks drawn by a softmax, and a model for each noise added to the truth."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, most + 1, impressions)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    truth = 2 * rng.normal(size=offsets[-1])
    labels = np.zeros(len(truth), dtype=np.int8)
    for begin, end in pairwise(offsets):
        chances = np.exp(truth[begin:end] - truth[begin:end].max())
        labels[begin + rng.choice(end - begin, p=chances / chances.sum())] = 1
    members = [
        rng.normal(size=len(truth))
        if level == math.inf
        else truth + level * rng.normal(size=len(truth))
        for level in noise
    ]
    return Made(members, offsets, labels, rng.integers(0, users, impressions))


class Made:
    """A labelled split with the arrays that weights are learned from."""

    name, window = "dev", "2019-11-15"

    def __init__(self, members, offsets, labels, user):
        from newsrec.data.ragged import Ragged

        self.members, self.labels, self.user = members, labels, user
        self.candidates = Ragged(np.zeros(offsets[-1], dtype=np.int32), offsets)
        self.offsets = offsets
        self.user_ids = pa.array([f"U{i}" for i in range(int(user.max()) + 1)])

    @property
    def values(self):
        return np.array([standardize(scores, self.offsets) for scores in self.members])

    def weights(self):
        return fit_weights(self.values, self.offsets, self.labels.astype(float))

    def learn(self, cross_fitted=True):
        return learn(self, self.members, self.user_ids, cross_fitted)

    def auc(self, scores):
        return mind_metrics(scores, self.labels, self.offsets)["auc"]

    def combined(self, weights=None):
        return combine(self.members, self.offsets, "mean_score", weights)


def loss_by_loop(weights, values, offsets, labels):
    total = 0.0
    for begin, end in pairwise(offsets):
        scores = [sum(w * v[i] for w, v in zip(weights, values, strict=True))
                  for i in range(begin, end)]  # fmt: skip
        log_sum = math.log(sum(map(math.exp, scores)))
        clicks = [log_sum - s for s, y in zip(scores, labels[begin:end], strict=True) if y]
        total += sum(clicks) / len(clicks)
    mean = sum(weights) / len(weights)
    return total + RIDGE / 2 * sum((w - mean) ** 2 for w in weights)


@pytest.mark.parametrize("seed", range(4))
def test_weights_are_those_of_a_general_solver_on_a_plain_loop(seed):
    made = world(seed, 60, [0.5, 2.0, math.inf])
    made.labels[made.offsets[:-1][::3]] = 1  # several clicks in some
    both = [0 < made.labels[b:e].sum() < e - b for b, e in pairwise(made.offsets)]
    keep = np.repeat(both, np.diff(made.offsets))
    offsets = np.concatenate([[0], np.cumsum(np.diff(made.offsets)[both])])
    values, labels = made.values[:, keep], made.labels[keep]
    found = fit_weights(values, offsets, labels.astype(float))
    solved = minimize(
        loss_by_loop, [0.5] * 3, args=(values, offsets, labels), method="SLSQP",
        bounds=[(0, None)] * 3, options={"ftol": 1e-12, "maxiter": 500},
    )  # fmt: skip
    np.testing.assert_allclose(found, solved.x / solved.x.sum(), atol=2e-4)
    assert found.min() >= 0
    assert found.sum() == pytest.approx(1)


def test_of_two_candidates_they_are_those_of_scikit_learns_logistic_regression(monkeypatch):
    monkeypatch.setattr(module, "RIDGE", 0.0)
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 400)
    labels = np.stack([labels, 1 - labels], axis=1)
    values = rng.normal(size=(3, 400, 2)) + np.array([1.0, 0.5, 0.2])[:, None, None] * labels
    offsets = np.arange(0, 801, 2)
    found = fit_weights(values.reshape(3, -1), offsets, labels.ravel().astype(float))
    signs = np.where(labels[:, 0] == 1, 1, -1)
    differences = np.concatenate([values[..., 0] - values[..., 1]], axis=1).T
    model = LogisticRegression(C=1e12, fit_intercept=False, tol=1e-10).fit(differences, signs)
    expected = model.coef_[0]
    assert (expected > 0).all()
    np.testing.assert_allclose(found, expected / expected.sum(), atol=1e-4)


def test_a_good_model_beside_noise_gets_nearly_all_the_weight_and_beats_the_mean():
    made = world(0, 1500, [1.0, math.inf])
    fitted = made.learn()
    assert fitted.by_fold.shape == (FOLDS, 2)
    assert fitted.weights[0] > 0.9
    across = made.auc(made.combined(fitted.by_fold[fitted.fold]))
    assert across > made.auc(made.combined()) + 0.03
    assert across > made.auc(made.members[0]) - 0.005


def test_two_models_that_are_equally_good_are_better_together():
    made = world(1, 1500, [1.5, 1.5])
    fitted = made.learn()
    np.testing.assert_allclose(fitted.weights, 0.5, atol=0.06)
    across = made.auc(made.combined(fitted.by_fold[fitted.fold]))
    assert across > max(map(made.auc, made.members)) + 0.01


def test_clicks_of_no_meaning_give_chance_across_folds_and_not_within():
    """Many models of noise: weights learned on what is reported would look like knowledge."""
    inside, across = [], []
    for seed in range(6):
        made = world(seed, 150, [math.inf] * 30, users=150)
        fitted = made.learn()
        inside.append(made.auc(made.combined(fitted.weights)))
        across.append(made.auc(made.combined(fitted.by_fold[fitted.fold])))
    assert np.mean(inside) > 0.55
    assert np.mean(across) < 0.52


def test_the_clicks_of_a_fold_do_not_decide_on_its_own_scores():
    made = world(2, 300, [1.0, 2.0, math.inf])
    before = made.learn()
    scores = made.combined(before.by_fold[before.fold])
    for number in range(FOLDS):
        inside = np.repeat(before.fold == number, np.diff(made.offsets))
        labels = made.labels.copy()
        for begin, end in pairwise(made.offsets):
            if inside[begin]:
                made.labels[begin:end] = np.roll(made.labels[begin:end], 1)
        after = made.learn()
        again = made.combined(after.by_fold[after.fold])
        np.testing.assert_array_equal(scores[inside], again[inside])
        assert (scores[~inside] != again[~inside]).any()
        made.labels = labels


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_each_user_is_in_one_fold_and_folds_are_even(data):
    number = data.draw(st.integers(1, 30))
    users = np.array(data.draw(st.lists(st.integers(0, number - 1), min_size=1, max_size=60)))
    evaluated = np.array(data.draw(st.lists(st.sampled_from(sorted(set(users))))), dtype=int)
    ids = pa.array([f"U{i}" for i in range(number)])
    fold, folds = user_folds(users, evaluated, ids)
    assert folds == min(FOLDS, len(set(evaluated)))
    of = {}
    for user, place in zip(users, fold, strict=True):
        assert of.setdefault(user, place) == place
    if folds:
        sizes = np.bincount([of[user] for user in set(evaluated)], minlength=folds)
        assert sizes.max() - sizes.min() <= 1
    order = np.random.default_rng(0).permutation(number)  # another numbering of the users
    renamed = np.argsort(order)[users]
    other, _ = user_folds(renamed, np.argsort(order)[evaluated], ids.take(pa.array(order)))
    np.testing.assert_array_equal(other, fold)


def test_equal_models_have_equal_weights_and_a_constant_one_has_none():
    made = world(4, 200, [1.0, 1.0, 2.0])
    made.members[1] = made.members[0] * 3 + 7  # equal once standardised
    weights = made.weights()
    assert weights[0] == pytest.approx(weights[1], abs=1e-6)
    made.members[2] = np.repeat(np.arange(200.0), np.diff(made.offsets))
    np.testing.assert_allclose(made.weights(), [0.5, 0.5, 0], atol=1e-6)
    made.members = [np.zeros(len(made.labels))] * 2
    assert made.weights().tolist() == [0.5, 0.5]


def test_models_that_rank_backwards_or_perfectly_leave_finite_weights():
    made = world(5, 200, [1.0, 1.0])
    made.members = [-made.members[0], -made.members[1]]
    np.testing.assert_allclose(made.weights(), 0.5)
    made.members[1] = made.labels.astype(float)
    weights = made.weights()
    assert np.isfinite(weights).all()
    assert weights[1] > 0.6  # the pull towards equal weights has no rival once all is explained
    made.members[0] = made.members[1]
    np.testing.assert_allclose(made.weights(), 0.5, atol=1e-6)


def test_the_same_scores_give_the_same_weights_whatever_the_scale_of_a_model():
    made = world(6, 200, [1.0, 2.0])
    first = made.weights()
    assert made.weights().tolist() == first.tolist()
    made.members[0] = made.members[0] * 8 - 4
    np.testing.assert_allclose(made.weights(), first, atol=1e-6)


def test_few_clicks_leave_the_weights_nearly_equal():
    made = world(7, 3, [0.5, math.inf], users=3)
    few = made.weights()
    many = world(7, 3000, [0.5, math.inf]).weights()
    assert abs(few[0] - 0.5) < 0.3 < many[0] - 0.5


def test_no_more_impressions_are_learned_from_than_are_needed(monkeypatch):
    monkeypatch.setattr(module, "MOST_IMPRESSIONS", 2000)
    made = world(8, 4000, [1.0, 2.0])
    learned, sizes = fit_weights, []
    monkeypatch.setattr(
        module, "fit_weights", lambda v, o, y: sizes.append(len(o) - 1) or learned(v, o, y)
    )
    some = made.learn().weights
    monkeypatch.undo()
    assert max(sizes) == 2000
    np.testing.assert_allclose(some, made.learn().weights, atol=0.05)


def test_equal_weights_are_the_mean_score_to_the_last_bit():
    made = world(9, 50, [1.0, 2.0, 3.0])
    equal = np.full(3, 1 / 3)
    np.testing.assert_array_equal(made.combined(equal), made.combined())
    np.testing.assert_array_equal(made.combined(np.tile(equal, (50, 1))), made.combined())
    weights = np.random.default_rng(0).dirichlet(np.ones(3), 50)
    expected = np.einsum("cm,mc->c", np.repeat(weights, np.diff(made.offsets), axis=0), made.values)
    np.testing.assert_allclose(made.combined(weights), expected, atol=1e-9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("newsrec.evaluation.ensemble.BLOCK", 7)
        np.testing.assert_array_equal(made.combined(weights), made.combined(weights))


def scores_on(data, split, seeds):
    size = len(data.split(split).candidates.values)
    return [np.random.default_rng(seed).normal(size=size).astype(np.float32) for seed in seeds]


def test_weights_for_test_come_from_dev_and_for_dev_from_other_users(mind_dir):
    data = open_mind(mind_dir)
    assert [learns_on(data, split) for split in ("train", "dev", "test")] == ["dev"] * 3
    lessons = scores_on(data, "dev", (0, 1))
    hidden = scores_on(data, "test", (2, 3))
    scores, said = combine_fitted(data, "test", ["a", "b"], hidden, lessons)
    dev = data.split("dev")
    learned = learn(dev, lessons, data.users, False)
    weights = [row["weight"] for row in said["members"]]
    assert weights == learned.weights.tolist()
    offsets = data.split("test").candidates.offsets
    np.testing.assert_allclose(
        scores, combine(hidden, offsets, "mean_score", np.array(weights)), atol=1e-12
    )
    assert not said["cross_fitted"]
    across, own = combine_fitted(data, "dev", ["a", "b"], lessons, lessons)
    assert own["cross_fitted"]
    assert json.loads(json.dumps(own)) == own
    for user in set(dev.user.tolist()):  # by hand: learn from the users of other folds
        fold = learned.fold[dev.user == user]
        assert len(set(fold)) == 1
        for row in np.flatnonzero(dev.user == user):
            part = slice(*dev.candidates.offsets[row : row + 2])
            expected = combine(
                [s[part] for s in lessons], np.array([0, part.stop - part.start]), "mean_score",
                learned.by_fold[fold[0]],
            )  # fmt: skip
            np.testing.assert_allclose(across[part], expected, atol=1e-12)
    for row, lesson in zip(own["members"], lessons, strict=True):
        expected = mind_metrics(lesson, dev.labels, dev.candidates.offsets)["auc"]
        assert row["auc"] == pytest.approx(expected)


def test_what_cannot_be_learned_from_is_refused(mind_dir, tmp_path):
    data = open_mind(mind_dir)
    pair = scores_on(data, "dev", (0, 1))
    lacking = data._replace(splits={name: data.splits[name] for name in ("train", "test")})
    assert learns_on(lacking, "train") == "train"
    with pytest.raises(UserError, match="has no dev with labels"):
        learns_on(lacking, "test")
    with pytest.raises(UserError, match="b has an infinite score"):
        combine_fitted(data, "dev", "ab", [pair[0], pair[1] + np.inf], pair)
    dev = data.split("dev")
    one = dev._replace(user=np.full_like(dev.user, dev.user[0]))
    with pytest.raises(UserError, match="of 1 user, and weights need 2 at least"):
        learn(one, pair, data.users, True)
    assert learn(one, pair, data.users, False).by_fold.shape == (0, 2)
    nothing = dev._replace(labels=np.zeros_like(dev.labels))
    with pytest.raises(UserError, match="of 0 users, and weights need 1 at least"):
        learn(nothing, pair, data.users, False)


def test_the_table_and_the_notes_say_what_was_learned_where(mind_dir):
    data = open_mind(mind_dir)
    pair = scores_on(data, "dev", (0, 1))
    pair[1][:] = 3
    _, said = combine_fitted(data, "dev", ["a.ckpt", "b.ckpt"], pair, pair)
    metrics = {"split": "dev", "trained_on": {}, "selected_on": None, "fitted": said}
    lines = notes(metrics)
    assert lines[0] == "Weights learned on dev, 2019-11-15: 20 impressions of 7 users."
    assert "in 5 folds, and each fold is scored with weights learned on the others." in lines[1]
    assert "b.ckpt gives all candidates of an impression one score: its weight is 0." in lines
    assert "7 users are too few to trust the weights." in lines
    cells = [[str(cell) for cell in column.cells] for column in weights_table(said).columns]
    assert cells[:3] == [["a.ckpt", "b.ckpt"], ["1.000", "0.000"],
                         ["1.000 to 1.000", "0.000 to 0.000"]]  # fmt: skip
    assert "No model ranks" not in " ".join(lines)
    worse = [row | {"auc": 0.4} for row in said["members"]]
    assert "No model ranks the clicks of dev better than chance." in notes(
        metrics | {"fitted": said | {"members": worse}}
    )


def test_the_command_refuses_it_for_one_model(capsys, tmp_path, mind_dir):
    for scorer in (["--ckpt_path=a.ckpt"], ["--scorer=random"]):
        said = refused(capsys, "evaluate", *scorer, "--ensemble=fitted", f"--data.root={mind_dir}",
                       "--split=dev", f"--output={tmp_path / 'x'}")  # fmt: skip
        assert "--ensemble fitted averages over several checkpoints" in said
