"""The losses against sums by hand."""

import math

import pytest
import torch

from newsrec.data.batch import Batch
from newsrec.errors import UserError
from newsrec.model.recommender import Encoded
from newsrec.training.losses import cross_entropy
from newsrec.training.module import RecommenderModule

NEWS = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [2.0, 1.0]])
USERS = torch.tensor([[[1.0, 2.0]], [[-1.0, 0.5]]])


def batch_of(user, candidates, labels):
    token_ids, history = torch.zeros(5, 1), torch.zeros(2, 1)
    tensors = (torch.tensor(values) for values in (user, candidates, labels))
    return Batch(token_ids, torch.zeros(5), None, history, *tensors)


def test_cross_entropy_is_that_of_the_clicked_candidate_among_the_real_ones():
    batch = batch_of([0, 1], [[2, 4, 3], [3, 2, 0]], [[0, 1, 0], [1, 0, 0]])
    first = math.log(sum(map(math.exp, (1.0, 4.0, 2.0)))) - 4.0
    second = math.log(sum(map(math.exp, (0.5, -1.0)))) - 0.5  # the last candidate is padding
    found = cross_entropy(Encoded(NEWS, USERS), batch)
    torch.testing.assert_close(found, torch.tensor((first + second) / 2))


def test_what_padded_candidates_score_does_not_reach_the_loss(monkeypatch):
    batch = batch_of([0, 0], [[2, 3, 0], [3, 0, 0]], [[1, 0, 0], [1, 0, 0]])
    scores = torch.tensor([[0.0, 0.0, 99.0], [-5.0, 99.0, float("inf")]], requires_grad=True)
    monkeypatch.setattr("newsrec.training.losses.match_candidates", lambda *_: scores)
    loss = cross_entropy(Encoded(NEWS, USERS), batch)
    assert float(loss) == pytest.approx(math.log(2) / 2)
    loss.backward()
    torch.testing.assert_close(scores.grad, torch.tensor([[-0.25, 0.25, 0], [0, 0, 0]]))


def test_padding_has_no_gradient():
    news = NEWS.clone().requires_grad_()
    cross_entropy(Encoded(news, USERS), batch_of([1], [[3, 2, 0]], [[1, 0, 0]])).backward()
    assert (news.grad[0] == 0).all()
    assert (news.grad[2:4] != 0).any(dim=1).all()


def test_half_precision_vectors_give_a_loss_in_float32():
    batch = batch_of([0, 1], [[2, 4, 3], [3, 2, 0]], [[0, 1, 0], [1, 0, 0]])
    assert cross_entropy(Encoded(NEWS.half(), USERS.half()), batch).dtype == torch.float32


def test_a_loss_that_there_is_not_is_refused_naming_all():
    with pytest.raises(UserError, match=r"model\.loss is 'hinge'\. Choose one of cross_entropy\."):
        RecommenderModule(loss="hinge")
    with pytest.raises(
        UserError, match=r"model\.user_encoder is 'lstm'\. Choose one of fastformer\."
    ):
        RecommenderModule(user_encoder="lstm")
