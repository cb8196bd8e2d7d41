"""A world that a single vector per user cannot explain: users with two opposite tastes.

A news vector is one of eight axes, forwards or backwards, and some noise. A user has one axis, and
clicks news of both directions; the candidates are one of these and four of other axes. A score that
is linear in the candidate orders ``a`` above ``b`` exactly if it orders ``-a`` below ``-b``, so by
a dot product any model has an AUC of .5, as has the mean of the clicks. Who knows the user's axis
has 1.0: the ceiling.
"""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from newsrec.metrics import impression_metrics
from newsrec.model.fastformer import FastformerConfig
from newsrec.model.heads import head_of
from newsrec.model.matching import match_candidates
from newsrec.model.user_encoders import UserEncoder

AXES, DIM, CLICKS, SHOWN, NOISE, STEPS = 8, 16, 6, 5, 0.3, 60


def made_news(axes, generator):
    direction = torch.randint(2, axes.shape, generator=generator) * 2 - 1
    noise = torch.randn(*axes.shape, DIM, generator=generator) * NOISE / DIM**0.5
    return F.normalize(F.one_hot(axes, DIM) * direction[..., None] + noise, dim=-1)


def made_users(number, generator):
    """Return axes, histories and candidates, of which the first was clicked."""
    axis = torch.randint(AXES, (number, 1), generator=generator)
    history = made_news(axis.expand(-1, CLICKS), generator)
    others = (axis + torch.randint(1, AXES, (number, SHOWN - 1), generator=generator)) % AXES
    return axis, history, made_news(torch.cat([axis, others], dim=1), generator)


def auc(scores):
    labels = np.tile([1] + [0] * (SHOWN - 1), len(scores))
    offsets = np.arange(0, SHOWN * len(scores) + 1, SHOWN)
    return impression_metrics(scores.flatten().numpy(), labels, offsets).values[0].mean()


def trained_auc(matching, steps=STEPS, shuffled=False):
    """Train a head over the user encoder; return its AUC for users that training has not seen."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    interests = 4 if matching == "interests" else None
    shape = FastformerConfig(heads=4, ffn=16, dropout=0.0)
    encoder = UserEncoder(DIM, shape, CLICKS, residual=True, interests=interests)
    head = head_of(matching, DIM, 2, 4, "logsumexp")

    def score(history, candidates):
        mask = torch.ones(history.shape[:2], dtype=torch.bool)
        users = head(encoder(history, mask), history, mask, encoder.scale())
        return match_candidates(users, candidates)

    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=0.01)
    for _ in range(steps):
        _, history, candidates = made_users(64, generator)
        clicked = torch.randint(SHOWN if shuffled else 1, (64,), generator=generator)
        loss = F.cross_entropy(score(history, candidates), clicked)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return auc(score(*made_users(2000, torch.Generator().manual_seed(1))[1:]))


def test_the_ceiling_is_one_and_the_mean_of_clicks_is_chance():
    axis, history, candidates = made_users(2000, torch.Generator().manual_seed(1))
    along = candidates.gather(2, axis[:, None].expand(-1, SHOWN, -1)).squeeze(2).abs()
    assert auc(along) > 0.999
    assert auc(torch.einsum("bd,bcd->bc", history.mean(dim=1), candidates)) == pytest.approx(
        0.5, abs=0.02
    )


def test_a_dot_product_stays_at_chance():
    assert trained_auc("dot") == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("matching", ["late", "interests"])
def test_clicks_and_interests_tell_both_tastes_apart(matching):
    assert trained_auc(matching) > 0.95


def test_shuffled_labels_teach_interests_nothing():
    assert trained_auc("interests", shuffled=True) == pytest.approx(0.5, abs=0.05)


def test_late_finds_similar_clicks_before_it_has_learned_anything():
    """So its AUC with shuffled labels is no measure of what it learns."""
    assert 0.85 < trained_auc("late", steps=0) < 0.95
