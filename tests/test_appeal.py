"""What all users like (``model.appeal``): a vector that is added to every user's.

In the world of these tests a title is six of forty words, each word has an appeal of its own, and
who sees five news clicks the one of the highest appeal, whatever was clicked before. Users without
clicks are only asked, never trained on.
"""

import numpy as np
import pytest
import torch
from test_heads import HEADS
from torch.nn import functional as F

from newsrec.data import FIRST_NEWS
from newsrec.data.batch import Batch
from newsrec.metrics import impression_metrics
from newsrec.model.heads import head_of
from newsrec.model.matching import match_all, match_candidates
from newsrec.model.plm.load import load_plm
from newsrec.model.recommender import NewsRecommender
from newsrec.training.optimizer import adamw, parameter_groups

DIM, STEPS, WORDS, LENGTH, CLICKS, SHOWN, USERS = 16, 40, 40, 6, 3, 5, 32
OPTIONS = {"matching": "dot", "late_clicks": 5, "interests": 4, "combine": "logsumexp"}
"""Defaults of the heads' options."""


@pytest.mark.parametrize("options", [{}, *HEADS.values()], ids=["dot", *HEADS])
def test_every_score_has_the_product_of_appeal_and_news_added(options):
    torch.manual_seed(0)
    options = OPTIONS | options
    vectors = {"interests": options["interests"]}.get(options["matching"], 1)
    users, history, news = torch.randn(4, vectors, DIM), torch.randn(4, 6, DIM), torch.randn(9, DIM)
    mask = torch.arange(6) < torch.tensor([[0], [1], [4], [6]])
    name, *others = options.values()
    without, head = (head_of(name, DIM, *others, appeal) for appeal in (False, True))
    for one in (without, head):
        for name, parameter in one.named_parameters():
            if name != "appeal":
                parameter.data.fill_(0.3)
    expected = match_all(without(users, history, mask, torch.tensor(2.0)), news)
    found = match_all(head(users, history, mask, torch.tensor(2.0)), news)
    assert torch.equal(found, expected)  # it starts at zero
    torch.nn.init.normal_(head.appeal)
    made = head(users, history, mask, torch.tensor(2.0))
    torch.testing.assert_close(match_all(made, news), expected + news @ head.appeal)
    if options["matching"] != "interests":  # the served vector is the first output
        torch.testing.assert_close(
            head.exported(made)[0],
            without.exported(without(users, history, mask, torch.tensor(2.0)))[0] + head.appeal,
        )


def made_batch(seed, states_of, shuffled=False):
    """Return new news that users with clicks see, as a batch, and the place of each one's click."""
    generator = torch.Generator().manual_seed(seed)
    number = USERS * (CLICKS + SHOWN)
    titles = torch.randint(10, 10 + WORDS, (number, LENGTH), generator=generator)
    appeal = torch.randn(WORDS, generator=torch.Generator().manual_seed(99))[titles - 10].sum(dim=1)
    rows = torch.arange(FIRST_NEWS, FIRST_NEWS + number).view(USERS, -1)
    history, candidates = rows.split([CLICKS, SHOWN], dim=1)
    clicked = appeal[candidates - FIRST_NEWS].argmax(dim=1)
    if shuffled:
        clicked = torch.randint(SHOWN, (USERS,), generator=generator)
    token_ids = torch.cat([torch.zeros(FIRST_NEWS, LENGTH, dtype=torch.int64), titles])
    lengths = np.array([0] * FIRST_NEWS + [LENGTH] * number)
    labels = F.one_hot(clicked, SHOWN)
    states = states_of(titles)
    return Batch(token_ids, lengths, states, history, torch.arange(USERS), candidates, labels)


def auc_without_clicks(plm_dir, shuffled=False, **options):
    """Train on users with clicks; return the AUC for users without, on news not seen before."""
    torch.manual_seed(0)
    shape = {"heads": 2, "ffn": 16, "dropout": 0.0}
    model = NewsRecommender(load_plm(str(plm_dir)), DIM, 0, shape, shape, 12, 9, **options)
    rates = {"lr": 5e-4, "plm_lr": 1e-5, "gate_lr": 1e-2}
    optimizer, _ = adamw(parameter_groups(model, **rates, weight_decay=0.0), lambda step: 1, False)
    everything = torch.ones(USERS * (CLICKS + SHOWN), LENGTH, dtype=torch.bool)

    def states_of(titles):
        return model.news_encoder.cut.below(titles, everything)[everything]

    means = states_of(made_batch(-1, states_of).token_ids[FIRST_NEWS:])
    model.news_encoder.residual.fit(means.view(-1, LENGTH, means.shape[1]).mean(dim=1))
    for step in range(STEPS):
        batch = made_batch(step, states_of, shuffled)
        loss = F.cross_entropy(model(batch), batch.labels.argmax(dim=1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found, labels = [], []
    with torch.no_grad():
        for seed in range(1000, 1010):
            batch = made_batch(seed, states_of)
            news, _ = model.encode(batch)
            nobody = model.users(news, torch.zeros(USERS, 1, dtype=torch.int64))
            found.append(match_candidates(nobody, news[batch.candidates]).flatten())
            labels.append(batch.labels.flatten())
    scores, labels = torch.cat(found).numpy(), torch.cat(labels).numpy()
    return impression_metrics(scores, labels, np.arange(0, scores.size + 1, SHOWN)).values[0]


@pytest.mark.parametrize("matching", ["dot", "late", "interests"])
def test_users_without_clicks_are_ranked_by_words_that_all_users_like(plm_dir, matching):
    assert auc_without_clicks(plm_dir, matching=matching, appeal=True).mean() > 0.8


def test_without_appeal_users_without_clicks_are_ranked_at_chance(plm_dir):
    assert auc_without_clicks(plm_dir).mean() == pytest.approx(0.5, abs=0.05)


def test_shuffled_labels_teach_appeal_nothing(plm_dir):
    found = auc_without_clicks(plm_dir, shuffled=True, appeal=True)
    assert found.mean() == pytest.approx(0.5, abs=0.05)
