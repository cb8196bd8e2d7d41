"""Work on every news item of the catalogue, against doing it news item by news item."""

import pytest
import torch

from newsrec.data import FIRST_NEWS
from newsrec.data.batch import Catalogue
from newsrec.model.plm.load import load_plm
from newsrec.model.recommender import NewsRecommender
from newsrec.training import catalogue as module
from newsrec.training.catalogue import (
    encode_catalogue,
    frozen_states,
    mean_states,
    news_blocks,
)

DIM = 16
TITLES = [
    [2, 17, 40, 3],
    [2, 9, 3],
    [2, 33, 8, 51, 12, 60, 3],
    [2, 9, 3],  # told again
    [2, 70, 71, 72, 73, 74, 75, 76, 3],
    [2, 3],
    [2, 9, 3],  # and again
    [2, 44, 3],
    [2, 33, 8, 51, 12, 60, 3],
]


def make_catalogue(titles):
    rows = [[]] * FIRST_NEWS + titles
    token_ids = torch.zeros(len(rows), 10, dtype=torch.int32)
    for row, tokens in enumerate(rows):
        token_ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
    first = [i if i < FIRST_NEWS else rows.index(tokens) for i, tokens in enumerate(rows)]
    return Catalogue(token_ids, torch.tensor([len(r) for r in rows]), torch.tensor(first))


CATALOGUE = make_catalogue(TITLES)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(module, "NEWS_PER_PASS", 2)


@pytest.fixture
def recommender(plm_dir):
    shape = {"heads": 4, "ffn": 24}
    recommender = NewsRecommender(
        load_plm(str(plm_dir)), DIM, news=shape, user=shape, max_tokens=10
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in recommender.named_parameters():
            if ".plm." not in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return recommender.eval()


@pytest.fixture
def states(recommender, tmp_path):
    return frozen_states(recommender.news_encoder.cut, CATALOGUE, tmp_path, "fp32")


def alone(recommender, row):
    tokens = int(CATALOGUE.token_lengths[row])
    title = CATALOGUE.token_ids[row : row + 1, :tokens]
    return recommender.news_encoder(title, torch.tensor([tokens]))[0]


def test_blocks_hold_each_distinct_news_item_once_shortest_first():
    # rows:   2 has 4 tokens, 3 has 3, 4 has 7, 6 has 9, 7 has 2, 9 has 3; 5, 8 and 10 are repeats
    assert [block.tolist() for block in news_blocks(CATALOGUE)] == [[7, 3], [9, 2], [4, 6]]


def test_the_catalogue_is_encoded_as_each_news_item_alone(recommender):
    vectors = encode_catalogue(recommender, CATALOGUE)
    assert vectors.shape == (FIRST_NEWS + len(TITLES), DIM)
    assert vectors.dtype == torch.float32
    for row in range(FIRST_NEWS, len(vectors)):
        torch.testing.assert_close(vectors[row], alone(recommender, row), rtol=1e-5, atol=1e-5)


def test_news_with_equal_tokens_get_the_same_vector(recommender):
    vectors = encode_catalogue(recommender, CATALOGUE)
    assert torch.equal(vectors[[5, 8]], vectors[[3, 3]])
    assert torch.equal(vectors[10], vectors[4])
    assert not torch.equal(vectors[2], vectors[3])


def test_padding_is_zeros_and_the_unknown_news_item_the_mean_of_the_real_ones(recommender):
    vectors = encode_catalogue(recommender, CATALOGUE)
    assert (vectors[0] == 0).all()
    torch.testing.assert_close(vectors[1], sum(vectors[2:]) / len(TITLES))


def test_vectors_are_float32_also_where_they_are_computed_in_bfloat16(recommender):
    expected = encode_catalogue(recommender, CATALOGUE)
    with torch.autocast("cpu", torch.bfloat16):
        vectors = encode_catalogue(recommender, CATALOGUE)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors, expected, rtol=0.1, atol=0.1)


def test_a_catalogue_without_news_has_two_rows_of_zeros(recommender):
    assert torch.equal(encode_catalogue(recommender, make_catalogue([])), torch.zeros(2, DIM))


def test_states_give_the_vectors_that_the_plm_gives(recommender, states):
    expected = encode_catalogue(recommender, CATALOGUE)
    recommender.news_encoder.plm = None  # it is not asked
    vectors = encode_catalogue(recommender, CATALOGUE, states)
    torch.testing.assert_close(vectors, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_processes_divide_the_news_and_end_with_the_same_vectors(
    recommender, monkeypatch, world_size
):
    expected = encode_catalogue(recommender, CATALOGUE)
    parts = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda part: parts.append(part.clone()))
    for rank in range(world_size):
        encode_catalogue(recommender, CATALOGUE, rank=rank, world_size=world_size)
    filled = torch.stack([(part != 0).any(dim=1) for part in parts]).sum(dim=0)
    assert filled.tolist() == [0, 0, 1, 1, 1, 0, 1, 1, 0, 1, 0]  # each distinct news item once

    monkeypatch.setattr(torch.distributed, "all_reduce", lambda part: part.copy_(sum(parts)))
    for rank in range(world_size):
        vectors = encode_catalogue(recommender, CATALOGUE, rank=rank, world_size=world_size)
        assert torch.equal(vectors, expected)


# States


def test_states_are_those_of_the_plm_run_on_each_news_item_alone(recommender, states):
    plm = recommender.news_encoder.plm
    for row, title in enumerate(TITLES, start=FIRST_NEWS):
        with torch.no_grad():
            expected = plm(torch.tensor([title]))[0]
        found = states.take(torch.tensor([row]))
        torch.testing.assert_close(found, expected[0], rtol=1e-5, atol=1e-5)


def test_mean_states_are_the_means_of_each_news_items_states(recommender, states):
    cut = recommender.news_encoder.cut
    for given in (None, states):
        means = mean_states(cut, CATALOGUE, given)
        assert means.shape == (len(CATALOGUE.first), 32)
        assert (means[:FIRST_NEWS] == 0).all()
        for row, title in enumerate(TITLES, start=FIRST_NEWS):
            with torch.no_grad():
                expected = cut.plm(torch.tensor([title]))[0][0].mean(dim=0)
            torch.testing.assert_close(means[row], expected, rtol=1e-5, atol=1e-5)
