"""Vectors of categories (``data.categories``), against one news item at a time.

``test_heads_served.py`` takes models that have them through fit, evaluate, export and serving, and
``test_resume.py`` through a resume.
"""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import NEWS, tiny_behaviors, tiny_news, write_mind
from torch import nn

from newsrec.data import FIRST_NEWS
from newsrec.data.datamodule import MindDataModule
from newsrec.data.fields import CATEGORIES, category_names, category_rows, read_texts
from newsrec.data.options import DataOptions
from newsrec.data.samplers import BatchKey
from newsrec.errors import UserError
from newsrec.export.graph_runs import distinct_news, encode_all
from newsrec.export.graphs import trace_news_encoder
from newsrec.export.verify import made_news, sorted_news
from newsrec.model.plm.load import load_plm
from newsrec.model.recommender import NewsRecommender
from newsrec.serving.sessions import Encoders
from newsrec.training.catalogue import encode_catalogue
from newsrec.training.checkpoint.contradictions import check_categories

DIM, SHAPE = 16, {"heads": 2, "ffn": 16}
NEVER_IN_TRAIN_OR_DEV = {"music"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_mind(tmp_path_factory.mktemp("categories") / "mind", tiny_news(), tiny_behaviors())


def data_of(root, plm_dir, kind="both", stage="fit", names=None, **options):
    sizes = {"fields": ["title"], "max_tokens": 8, "frozen_states": "none", "npratio": 2}
    data = MindDataModule(str(root), str(plm_dir), categories=kind, **(sizes | options))
    data.setup(stage)
    data.category_names = names or data.known_categories()
    return data


@pytest.fixture(scope="module", params=[0, 11], ids=["titles", "abstracts"])
def world(request, root, plm_dir):
    """Data of news with one or two texts, and a model whose every part has a say."""
    data = data_of(root, plm_dir, abstract_tokens=request.param)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = NewsRecommender(
            load_plm(str(plm_dir)), DIM, 0, SHAPE, SHAPE, 12, 20,
            abstract_tokens=request.param, category_names=data.category_names,
        ).eval()  # fmt: skip
        encoder = model.news_encoder
        encoder.gate.data.fill_(0.7)
        nn.init.normal_(encoder.categories.table.weight[1:].data)
    return SimpleNamespace(data=data, model=model, catalogue=data.catalogue)


def names_of(news_id):
    category, subcategory, _, _ = NEWS[news_id]
    return {"category": category, "subcategory": subcategory}


def row_alone(names, news_id):
    """Return the rows of a news item's values, counted one after the other."""
    order = [(field, name) for field in names for name in names[field]]
    values = names_of(news_id)
    return [
        1 + order.index((field, values[field])) if (field, values[field]) in order else 0
        for field in names
    ]


def test_rows_are_found_by_name_and_an_unknown_or_empty_value_has_none():
    names = {"category": ["art", "news"], "subcategory": ["art", "b"]}
    columns = {
        "category": pa.array(["news", "", "none", "art"]),
        "subcategory": pa.array(["b", "art", "", "news"]),
        "another": pa.array(["x"] * 4),
    }
    assert category_rows(names, columns).tolist() == [[2, 4], [0, 3], [0, 0], [1, 0]]
    assert category_rows({"category": []}, columns).tolist() == [[0]] * 4
    table = pa.table({"category": ["b", " a  c ", "", "b"], "subcategory": ["x", "", "y", "x"]})
    found = category_names(table, CATEGORIES["both"])
    assert found == {"category": ["a c", "b"], "subcategory": ["x", "y"]}
    assert category_names(table, CATEGORIES["subcategory"]) == {"subcategory": ["x", "y"]}


def test_only_values_of_the_news_of_train_and_val_have_vectors(root, plm_dir):
    data = data_of(root, plm_dir)
    expected = {field: set() for field in CATEGORIES["both"]}
    for news_id in data.data.news["news_id"].to_pylist():
        known = news_id not in ("N18", "N19", "N20")  # those are in test alone
        for field, value in names_of(news_id).items():
            expected[field] |= {value} if known and value else set()
    assert data.category_names == {field: sorted(names) for field, names in expected.items()}
    assert not NEVER_IN_TRAIN_OR_DEV & set(data.category_names["category"])
    alone = data_of(root, plm_dir, "category")
    assert list(alone.category_names) == ["category"]


def test_names_and_not_numbers_decide_the_rows_of_another_folder(root, plm_dir):
    names = {"category": ["weather", "sports", "opera"], "subcategory": ["tennis"]}
    data = data_of(root, plm_dir, stage="predict", names=names)
    rows = data.catalogue.categories[FIRST_NEWS:].tolist()
    ids = data.data.news["news_id"].to_pylist()
    assert rows == [row_alone(names, news_id) for news_id in ids]
    assert data.catalogue.categories[:FIRST_NEWS].tolist() == [[0, 0]] * FIRST_NEWS
    assert data.catalogue.head(5).categories.tolist() == [[0, 0], [0, 0], *rows[:3]]
    data.category_names = {"subcategory": ["storms"]}  # of another model
    storms = [[int(NEWS[i][1] == "storms")] for i in ids]
    assert data.catalogue.categories[FIRST_NEWS:].tolist() == storms
    data.category_names = None
    assert data.catalogue.categories is None


def test_each_news_item_of_a_batch_has_its_own_categories(world):
    data, names = world.data, world.data.category_names
    samples = data.train_dataloader().dataset
    key = BatchKey(0, np.arange(9), largest=9)
    batch = samples[key]
    assert batch.categories.shape == (batch.num_news, 2)
    ids = [None, None, *data.data.news["news_id"].to_pylist()]
    plain = data_of(data.root, data.plm, "none", abstract_tokens=data.abstract_tokens)
    expected = plain.train_dataloader().dataset[key]
    assert expected.categories is None
    assert torch.equal(batch.candidates, expected.candidates)
    # The same batch of a catalogue whose categories are the numbers of the news.
    samples.categories = np.arange(len(ids))[:, None]
    numbered = samples[key].categories[:, 0].tolist()
    found = batch.categories.tolist()
    assert found == [row_alone(names, ids[n]) if ids[n] else [0, 0] for n in numbered]


def test_a_vector_is_that_of_the_texts_and_the_rows_of_the_categories(world):
    model, catalogue = world.model, world.catalogue
    vectors = encode_catalogue(model, catalogue)
    texts = encode_catalogue(model, catalogue._replace(categories=None))
    table = model.news_encoder.categories.table.weight
    for row, places in enumerate(catalogue.categories.tolist()):
        if row >= FIRST_NEWS:
            expected = texts[row] + sum(table[place] for place in places)
            torch.testing.assert_close(vectors[row], expected)
    torch.testing.assert_close(vectors[1], vectors[FIRST_NEWS:].mean(dim=0))
    assert (vectors[0] == 0).all()
    assert (table[0] == 0).all()


def test_equal_texts_of_other_categories_are_other_news(root, plm_dir, tmp_path):
    news = tiny_news()
    for split in news:
        news[split] = [[row[0], "travel", *row[2:]] if row[0] == "N14" else row for row in
                       news[split]]  # fmt: skip
    data = data_of(write_mind(tmp_path / "mind", news, tiny_behaviors()), plm_dir, "category")
    model = NewsRecommender(
        load_plm(str(plm_dir)), DIM, 0, SHAPE, SHAPE, 12, category_names=data.category_names
    ).eval()
    nn.init.normal_(model.news_encoder.categories.table.weight[1:].data)
    vectors = encode_catalogue(model, data.catalogue)
    ids = data.data.news["news_id"].to_pylist()
    a, b = (ids.index(i) + FIRST_NEWS for i in ("N13", "N14"))
    assert data.catalogue.first[b] == a
    assert (vectors[a] - vectors[b]).abs().max() > 0.1
    assert distinct_news(data.catalogue).tolist() == list(range(FIRST_NEWS, len(vectors)))
    texts = read_texts(data.data.news, ["title"], False, ["category"])
    assert texts.hashes()[a - FIRST_NEWS] != texts.hashes()[b - FIRST_NEWS]

    def encode(token_ids, mask, *more):
        return sorted_news(model, token_ids, mask, *more)

    with torch.no_grad():
        torch.testing.assert_close(encode_all(encode, data.catalogue, DIM), vectors)


def test_an_untrained_model_scores_as_without_and_learns_all_rows_but_the_unknown(root, plm_dir):
    data = data_of(root, plm_dir)
    batch = data.train_dataloader().dataset[BatchKey(0, np.arange(9), largest=9)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = NewsRecommender(load_plm(str(plm_dir)), DIM, 0, SHAPE, SHAPE, 12, 20).eval()
        model = NewsRecommender(
            load_plm(str(plm_dir)), DIM, 0, SHAPE, SHAPE, 12, 20, category_names=data.category_names
        ).eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(model(batch), plain(batch._replace(categories=None)))
    table = model.news_encoder.categories.table
    model(batch).logsumexp(dim=1).sum().backward()
    used = set(batch.categories.flatten().tolist()) - {0}
    assert {row for row, one in enumerate(table.weight.grad) if one.any()} == used
    assert model.gates()["category"] == 0


@pytest.mark.slow
def test_the_traced_graph_gives_pytorchs_vectors(world):
    program = trace_news_encoder(world.model.news_encoder).module()
    sizes = tuple(map(len, world.data.category_names.values()))
    with torch.no_grad():
        for padded in made_news(8, 90, world.data.abstract_tokens > 0, sizes):
            expected = sorted_news(world.model, *padded)
            torch.testing.assert_close(program(*padded), expected, rtol=1e-4, atol=1e-5)


def test_the_names_of_a_served_news_item_are_its_last_values():
    encoders = Encoders.__new__(Encoders)
    encoders.category_names = {"category": ["a"], "subcategory": ["x", "y"]}
    pairs = [("a", "an abstract", "a", "y"), ("y", "", "", "a")]
    assert encoders._categories(pairs).tolist() == [[1, 3], [0, 0]]
    encoders.category_names = {}
    assert encoders._categories(pairs) is None


def test_a_checkpoint_of_other_categories_is_refused():
    names = {"category": ["a", "b"]}
    for stored, own in (({}, None), ({"category_names": names}, {"category": ["a", "b"]})):
        check_categories({"newsrec": stored}, own)
    for own in (None, {"category": ["b", "a"]}, {"category": ["a", "b"], "subcategory": []}):
        with pytest.raises(UserError, match="has vectors of other categories than the news of"):
            check_categories({"newsrec": {"category_names": names}}, own)


def test_a_wrong_choice_is_refused_with_those_there_are():
    with pytest.raises(UserError, match=r"data.categories is 'all'. Choose one of none, category,"):
        DataOptions(categories="all")
