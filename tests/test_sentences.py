"""The news encoder as a model of ``sentence_transformers``: the same vectors, whatever loads it."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from test_export import made
from test_hub import ORIGIN, TITLES
from transformers import AutoConfig, AutoModel

import newsrec as nr
from newsrec.export.pretrained import PretrainedRecommender
from newsrec.model.news_encoder import CategoryVectors

LONG = "Storm closes ports along the coast " * 5
TEXTS = [*TITLES, LONG, "Ten quiet streets", "x"]


def pretrained(plm_dir, **options):
    tokenizer_json = (plm_dir / "tokenizer.json").read_text(encoding="utf-8")
    about = {"checkpoint": ORIGIN, "metrics": None}
    return PretrainedRecommender(made(plm_dir, **options), tokenizer_json, ["title"], about)


@pytest.fixture(scope="module")
def model(plm_dir):
    return pretrained(plm_dir)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    """The folders that sentence_transformers writes: of all, and of the residual path."""
    root = tmp_path_factory.mktemp("sentences")
    for name, residual_only in (("whole", False), ("residual", True)):
        model.sentence_transformer(residual_only).save_pretrained(str(root / name))
    return root


def types(folder):
    return [module["type"] for module in json.loads((folder / "modules.json").read_text())]


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_saved_model_gives_our_vectors(model, saved):
    loaded = SentenceTransformer(str(saved / "whole"), device="cpu", trust_remote_code=True)
    assert_close(loaded.encode(TEXTS, batch_size=3), model.encode(TEXTS))
    scaled = model.encode(TEXTS, normalize_embeddings=True)
    assert_close(loaded.encode(TEXTS, normalize_embeddings=True), scaled)
    assert_close(loaded.encode(TEXTS[0]), model.encode(TEXTS[0]))
    assert loaded.get_embedding_dimension() == 16
    assert loaded.max_seq_length == 12
    assert loaded.similarity_fn_name == "dot"
    assert not list((saved / "whole").rglob("*.py"))


def test_a_class_of_ours_is_refused_until_it_is_trusted(saved):
    assert types(saved / "whole")[1:] == ["newsrec.export.sentences.NewsPooling"]
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        SentenceTransformer(str(saved / "whole"), device="cpu")


def test_the_residual_path_needs_nothing_of_ours(model, saved):
    assert all(name.startswith("sentence_transformers.") for name in types(saved / "residual"))
    loaded = SentenceTransformer(str(saved / "residual"), device="cpu")
    encoder = model.model.news_encoder
    before = encoder.gate.detach().clone()
    with torch.no_grad():
        encoder.gate.zero_()
        expected = model.encode(TEXTS)
        stock = model.sentence_transformer()
        encoder.gate.copy_(before)
    assert_close(loaded.encode(TEXTS), expected)
    assert [type(part).__name__ for part in stock] == [
        "Transformer",
        "Pooling",
        "Normalize",
        "Dense",
    ]
    assert_close(stock.encode(TEXTS), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"residual": False},
        {"news": {"heads": 2, "ffn": 16, "encoder": "transformer", "positions": "learned"}},
        {"news": {"heads": 2, "layers": 0, "norm": "none", "pooling": "mean"}, "tune_layers": 1},
        {"matching": "interests", "news": {"heads": 2, "positions": "recency", "layers": 2}},
    ],
)
def test_every_shape_of_news_encoder_gives_our_vectors(plm_dir, options):
    model = pretrained(plm_dir, **options)
    assert_close(model.sentence_transformer().encode(TEXTS), model.encode(TEXTS))


@pytest.mark.parametrize(
    ("family", "options"),
    [("roberta", {"pad_token_id": 1, "type_vocab_size": 1}), ("mpnet", {"pad_token_id": 1})],
)
def test_a_plm_that_pads_with_another_token_gives_our_vectors(plm_dir, tmp_path, family, options):
    tokenizer_json = (plm_dir / "tokenizer.json").read_text(encoding="utf-8")
    size = len(json.loads(tokenizer_json)["model"]["vocab"])
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        family,
        vocab_size=size,
        intermediate_size=64,
        max_position_embeddings=66,
        **shape,
        **options,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(tmp_path)
    shutil.copy(plm_dir / "tokenizer.json", tmp_path)
    model = pretrained(tmp_path)
    assert_close(model.sentence_transformer().encode(TEXTS), model.encode(TEXTS))


def test_without_a_residual_path_nothing_of_it_can_be_left(plm_dir):
    with pytest.raises(nr.UserError, match=r"residual_only is True, but .* no residual path"):
        pretrained(plm_dir, residual=False).sentence_transformer(residual_only=True)


def test_adapters_are_part_of_it(plm_dir):
    model = pretrained(plm_dir, tune_layers=1, lora={"rank": 2})
    for name, weight in model.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(1))
    assert_close(model.sentence_transformer().encode(TEXTS), model.encode(TEXTS))


def test_a_model_that_reads_abstracts_encodes_both_texts_and_is_no_sentence_transformer(plm_dir):
    model = pretrained(plm_dir, abstract_tokens=9)
    titles, abstracts = ["Ten quiet streets", LONG, "x", "x"], ["Walk them at dawn.", "", LONG, "x"]
    found = model.encode(titles, abstracts=abstracts)
    apart = model._encode_tokens(
        [*model._tokens(titles, 12), *model._tokens([abstracts[i] for i in (0, 2, 3)], 9)]
    )
    views = torch.tensor([[0, 4], [1, -1], [2, 5], [3, 6]]) + 1
    texts = torch.cat([torch.zeros(1, 16), apart])
    assert_close(found, model.model.news_encoder.views(texts, views).detach().numpy())
    assert_close(found[1], apart[1].detach().numpy())  # no abstract: the title alone
    assert_close(model.encode_news(titles, abstracts=abstracts), found)
    with pytest.raises(nr.UserError, match="abstracts"):
        model.encode(titles)
    with pytest.raises(nr.UserError, match=r"one\. Use encode"):
        model.sentence_transformer()
    model.sentence_transformer(residual_only=True)


def test_a_model_with_vectors_of_categories_is_no_sentence_transformer_but_for_its_residual(
    plm_dir,
):
    model = pretrained(plm_dir)
    plain = model.encode(TITLES)
    model.module.category_names = {"category": ["sports", "travel"]}
    encoder = model.model.news_encoder
    encoder.categories = CategoryVectors(16, model.category_names)
    torch.nn.init.normal_(encoder.categories.table.weight[1:].data)
    categories = ["travel", "opera", *["sports"] * (len(TITLES) - 2)]
    rows = [[2], [0], *[[1]] * (len(TITLES) - 2)]
    added = encoder.categories.table.weight.detach().numpy()[rows].sum(axis=1)
    assert_close(model.encode(TITLES, categories), plain + added)
    with pytest.raises(nr.UserError, match="give categories"):
        model.encode(TITLES)
    with pytest.raises(nr.UserError, match="adds vectors of categories"):
        model.sentence_transformer()
    model.sentence_transformer(residual_only=True)


def test_making_one_draws_no_random_number_and_two_are_equal(model):
    before = torch.get_rng_state()
    first, second = model.sentence_transformer(), model.sentence_transformer()
    assert torch.equal(torch.get_rng_state(), before)
    own, other = first.state_dict(), second.state_dict()
    assert all(torch.equal(own[name], other[name]) for name in own)


def test_without_the_package_the_message_says_how_to_install_it(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "newsrec.export.sentences", None)
    with pytest.raises(nr.MissingPackageError, match=r"pip install \"newsrec\[sentences\]\""):
        model.sentence_transformer()


@pytest.mark.slow  # a process that imports the package
def test_another_process_loads_the_folder_without_an_import_of_newsrec(model, saved, tmp_path):
    code = f"""
import sys
import numpy as np
from sentence_transformers import SentenceTransformer
found = SentenceTransformer({str(saved / "residual")!r}, device="cpu").encode({TEXTS!r})
assert "newsrec" not in sys.modules
found = SentenceTransformer(
    {str(saved / "whole")!r}, device="cpu", trust_remote_code=True).encode({TEXTS!r})
np.save({str(tmp_path / "found.npy")!r}, found)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert_close(np.load(tmp_path / "found.npy"), model.encode(TEXTS))
