"""Abstracts as texts of their own (``data.abstract_tokens``), against one news item at a time.

``test_heads_served.py`` takes a model that reads them through fit, evaluate, export and serving.
"""

import numpy as np
import pytest
import torch
from conftest import NEWS, refused
from tokenizers import Tokenizer

from newsrec.data import FIRST_NEWS
from newsrec.data.dataset import open_mind
from newsrec.data.fields import Texts, read_texts
from newsrec.data.mind_statistics import abstract_lengths
from newsrec.data.options import DataOptions
from newsrec.data.samplers import BatchKey
from newsrec.data.samples import TrainSamples, count_tokens, index_samples
from newsrec.data.states import RunStates
from newsrec.data.text import tokenize_catalogue
from newsrec.errors import UserError
from newsrec.export import graphs
from newsrec.export.verify import made_news, sorted_news
from newsrec.model.plm.load import load_plm
from newsrec.model.recommender import NewsRecommender
from newsrec.training.catalogue import encode_catalogue, frozen_states, mean_states
from newsrec.training.estimate.step_memory import Shape, batch_of

FIELDS, TITLE, ABSTRACT, DIM = ["title"], 8, 11, 16


@pytest.fixture(scope="module")
def tokenizer_json(plm_dir):
    return (plm_dir / "tokenizer.json").read_text(encoding="utf-8")


@pytest.fixture
def data(mind_dir):
    return open_mind(mind_dir)


@pytest.fixture
def catalogue(data, tokenizer_json):
    return tokenize_catalogue(data, FIELDS, TITLE, tokenizer_json, ABSTRACT)


@pytest.fixture
def model(plm_dir):
    torch.manual_seed(0)
    shape = {"heads": 2, "ffn": 16}
    model = NewsRecommender(
        load_plm(str(plm_dir)), DIM, 0, shape, shape, TITLE, 5, abstract_tokens=ABSTRACT
    )
    encoder = model.news_encoder
    encoder.gate.data.fill_(0.7)
    torch.nn.init.normal_(encoder.views.query)
    torch.nn.init.normal_(encoder.views.offset, std=0.1)
    encoder.views.lean.data.fill_(0.3)
    return model.eval()


def real_tokens(table, lengths, row):
    return table[row, : int(lengths[row])].tolist()


def tokens_alone(data, tokenizer_json):
    """Return the tokens of title and abstract of each news item; None for no abstract."""
    tokenizer, found = Tokenizer.from_str(tokenizer_json), []
    for news_id in data.news["news_id"].to_pylist():
        _, _, title, abstract = NEWS[news_id]
        pair = []
        for text, longest in ((title, TITLE), (abstract, ABSTRACT)):
            tokenizer.enable_truncation(longest)
            pair.append(tokenizer.encode(text).ids)
        found.append((pair[0], pair[1] if abstract else None))
    return found


@torch.no_grad()
def vector_alone(model, title, abstract):
    """Encode a news item alone: a softmax over its one or two texts."""
    texts = [
        model.news_encoder(torch.tensor([tokens]), torch.tensor([len(tokens)]))[0]
        for tokens in (title, abstract)
        if tokens is not None
    ]
    views = model.news_encoder.views
    if len(texts) == 1:
        return texts[0]
    texts[1] = texts[1] - views.offset
    logits = torch.stack([texts[0] @ views.query, texts[1] @ views.query + views.lean])
    first, second = logits.softmax(dim=0)
    return first * texts[0] + second * texts[1]


def test_each_news_item_has_the_tokens_of_its_title_and_of_its_abstract(
    data, catalogue, tokenizer_json
):
    table, lengths = catalogue.token_ids, catalogue.token_lengths
    assert catalogue.num_news == data.num_news
    assert catalogue.views[:FIRST_NEWS].tolist() == [[0, 0], [1, 0]]
    expected = tokens_alone(data, tokenizer_json)
    for (title, abstract), pair in zip(
        catalogue.views[FIRST_NEWS:].tolist(), expected, strict=True
    ):
        assert real_tokens(table, lengths, title) == pair[0]
        assert (abstract == 0) == (pair[1] is None)
        if abstract:
            assert real_tokens(table, lengths, abstract) == pair[1]
    assert sum(pair[1] is None for pair in expected) == 2
    rows = [tuple(real_tokens(table, lengths, row)) for row in range(len(lengths))]
    for row, first in enumerate(catalogue.first.tolist()):
        assert first == row if row < FIRST_NEWS else first == rows.index(rows[row])
    assert len(set(catalogue.first.tolist())) == len(rows) - 1  # two titles are equal


def test_titles_are_those_of_a_run_without_abstracts_and_the_first_news_a_head(
    data, catalogue, tokenizer_json
):
    alone = tokenize_catalogue(data, FIELDS, TITLE, tokenizer_json)
    assert torch.equal(catalogue.of_titles(catalogue.token_lengths), alone.token_lengths)
    assert torch.equal(catalogue.of_titles(catalogue.token_ids)[:, :TITLE], alone.token_ids)
    assert len(catalogue.of_abstracts(catalogue.token_ids)) == data.num_news - FIRST_NEWS - 2
    assert len(alone.of_abstracts(alone.token_ids)) == 0
    for news in range(FIRST_NEWS, data.num_news + 1):
        head = catalogue.head(news)
        assert head.num_news == news
        assert len(head.first) == int(head.views.max()) + 1
        assert torch.equal(head.news_lengths, catalogue.news_lengths[:news])


def test_contradictions_and_wrong_numbers_are_refused(plm_dir, mind_dir, tmp_path, capsys):
    with pytest.raises(UserError, match=r"abstract_tokens is 64, and data.fields names the abstr"):
        DataOptions(abstract_tokens=64, fields=["title", "abstract"])
    for wrong, said in ((2, "must be 0, or at least 3"), (-1, "at least 0"), (1.5, "whole number")):
        with pytest.raises(UserError, match=rf"data\.abstract_tokens is {wrong}.*{said}"):
            DataOptions(abstract_tokens=wrong)
    with pytest.raises(
        UserError, match=r"data\.abstract_tokens is 65, but the PLM reads at most 64"
    ):
        NewsRecommender(load_plm(str(plm_dir)), DIM, abstract_tokens=65)
    said = refused(capsys, "fit", f"--data.root={mind_dir}", f"--model.plm={plm_dir}",
                   f"--output={tmp_path / 'run'}", "--model.abstract_tokens=9")  # fmt: skip
    assert "model.abstract_tokens follows data.abstract_tokens" in said


def made_samples(data, catalogue, states=None, loss="cross_entropy"):
    split = data.split("train")
    index = index_samples(split, whole=loss == "impression")
    return TrainSamples(split, index, catalogue, 5, 2, seed=3, states=states, loss=loss)


@pytest.mark.parametrize("loss", ["cross_entropy", "in_batch", "impression"])
def test_batches_have_the_samples_of_a_run_without_abstracts_and_each_text_once(
    data, catalogue, tokenizer_json, loss
):
    alone = tokenize_catalogue(data, FIELDS, TITLE, tokenizer_json)
    with_abstracts, plain = (made_samples(data, c, loss=loss) for c in (catalogue, alone))
    key = BatchKey(0, np.arange(0, 20, 2), largest=10)
    batch, expected = with_abstracts[key], plain[key]
    lengths = batch.token_lengths
    assert (np.diff(lengths) >= 0).all()
    assert lengths[:FIRST_NEWS].tolist() == [0, 0]
    texts = batch.views[batch.views > 0].tolist()
    assert sorted(texts) == [1, *range(FIRST_NEWS, len(lengths))]  # each once, and no others
    assert batch.num_news == expected.num_news

    def titles(one, news):
        rows = one.views[:, 0] if one.views is not None else torch.arange(len(one.token_lengths))
        return [real_tokens(one.token_ids, one.token_lengths, rows[n]) for n in news.flatten()]

    for name in ("history", "candidates"):
        assert titles(batch, getattr(batch, name)) == titles(expected, getattr(expected, name))
    assert torch.equal(batch.labels, expected.labels)
    if loss == "in_batch":
        for one, other in zip(batch.shared, expected.shared, strict=True):
            assert torch.equal(one, other)


def test_a_batch_on_kept_states_gives_the_scores_of_running_the_plm(
    data, catalogue, model, tmp_path
):
    ends = sorted({split.num_news for split in data.splits.values()})
    states = frozen_states(model.news_encoder.cut, catalogue, tmp_path, "fp32", ends)
    key = BatchKey(0, np.arange(9), largest=9)
    with_states = made_samples(data, catalogue, RunStates(states))[key]
    without = made_samples(data, catalogue)[key]
    assert len(with_states.token_states) == without.token_lengths.sum()
    with torch.no_grad():
        torch.testing.assert_close(model(with_states), model(without), rtol=1e-4, atol=1e-5)


def test_the_most_tokens_of_a_sample_count_both_texts(data, catalogue):
    split = data.split("train")
    index = index_samples(split)
    lengths = catalogue.news_lengths.numpy()
    found = count_tokens(split, index, lengths, 5, 2)
    samples = made_samples(data, catalogue)
    for sample in range(0, len(index.click), 5):
        batch = samples[BatchKey(0, np.array([sample]), largest=1)]
        assert batch.token_lengths.sum() <= found.largest


def test_the_catalogue_is_encoded_as_each_news_item_alone(
    data, catalogue, model, tokenizer_json, monkeypatch, tmp_path
):
    monkeypatch.setattr("newsrec.training.catalogue.VIEWS_AT_ONCE", 3)
    vectors = encode_catalogue(model, catalogue)
    assert vectors.shape == (data.num_news, DIM)
    assert (vectors[0] == 0).all()
    torch.testing.assert_close(vectors[1], vectors[2:].mean(dim=0))
    for row, pair in enumerate(tokens_alone(data, tokenizer_json), start=FIRST_NEWS):
        torch.testing.assert_close(vectors[row], vector_alone(model, *pair), rtol=1e-4, atol=1e-5)
    states = frozen_states(model.news_encoder.cut, catalogue, tmp_path, "fp32")
    again = encode_catalogue(model, catalogue, states)
    torch.testing.assert_close(again, vectors, rtol=1e-4, atol=1e-5)


def test_before_training_title_and_abstract_count_alike_and_both_are_centred(
    plm_dir, catalogue, tokenizer_json, data
):
    model = NewsRecommender(load_plm(str(plm_dir)), DIM, 0, abstract_tokens=ABSTRACT).eval()
    encoder = model.news_encoder
    means = mean_states(encoder.cut, catalogue)
    titles = catalogue.of_titles(means)[FIRST_NEWS:]
    encoder.fit_residual(titles, catalogue.of_abstracts(means))
    texts = encoder.residual.of_means(means)
    both = catalogue.views[:, 1] > 0
    centred = texts[catalogue.views[both, 1]] - encoder.views.offset
    torch.testing.assert_close(centred.mean(dim=0), torch.zeros(DIM), atol=1e-6, rtol=0)
    vectors = encode_catalogue(model, catalogue)
    expected = (texts[catalogue.views[both, 0]] + centred) / 2
    torch.testing.assert_close(vectors[both], expected, rtol=1e-4, atol=1e-5)
    alone = tokenize_catalogue(data, FIELDS, TITLE, tokenizer_json)
    without = NewsRecommender(load_plm(str(plm_dir)), DIM, 0).eval()
    without.news_encoder.residual.fit(mean_states(encoder.cut, alone)[FIRST_NEWS:])
    one_text = ~both
    one_text[1] = False  # the unknown news item is a mean of all
    torch.testing.assert_close(
        vectors[one_text], encode_catalogue(without, alone)[one_text], rtol=1e-4, atol=1e-5
    )


def test_news_vectors_do_not_depend_on_the_news_beside_them(model, catalogue):
    vectors = torch.randn(len(catalogue.first), DIM)
    whole = model.news_encoder.join(vectors, catalogue.views)
    for rows in ([3], [5, 2], [0, 4, 4]):
        assert torch.equal(model.news_encoder.join(vectors, catalogue.views[rows]), whole[rows])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.news_encoder.join(vectors, catalogue.views), whole)


@pytest.mark.slow
def test_the_traced_graph_gives_pytorchs_vectors(model):
    program = graphs.trace_news_encoder(model.news_encoder).module()
    with torch.no_grad():
        for padded in made_news(ABSTRACT, 90, abstracts=True):
            expected = sorted_news(model, *padded)
            torch.testing.assert_close(program(*padded), expected, rtol=1e-4, atol=1e-5)


def test_hashes_tell_texts_apart_and_stay_as_they_were_for_one_text(data):
    one = read_texts(data.news, FIELDS, False)
    assert one.abstracts is None
    both = read_texts(data.news, FIELDS, True)
    ids = data.news["news_id"].to_pylist()
    a, b = ids.index("N13"), ids.index("N14")  # the same title, told again
    assert one.hashes()[a] == one.hashes()[b]
    assert both.hashes()[a] != both.hashes()[b]
    assert both.take([b, a]).hashes() == [both.hashes()[b], both.hashes()[a]]
    assert len({*both.hashes(), *one.hashes()}) == len({*both.hashes()}) + len({*one.hashes()})
    assert Texts(one.titles[:1]).pairs() == [(one.titles[0].as_py(),)]


def test_a_made_up_batch_has_the_shape_of_a_real_one(data, catalogue):
    batch = made_samples(data, catalogue)[BatchKey(0, np.arange(9), largest=9)]
    shape = Shape.of(batch)
    assert (shape.news, len(shape.lengths)) == (batch.num_news - 2, len(batch.token_lengths) - 2)
    made = batch_of(shape, 32, None)
    for name in ("token_ids", "history", "candidates", "views"):
        assert getattr(made, name).shape == getattr(batch, name).shape
    abstracts = abstract_lengths(64, 1000)
    assert 900 < len(abstracts) <= 1000
    assert 3 <= abstracts.min() < abstracts.max() == 64
