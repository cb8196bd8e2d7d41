"""A language model's weights: what is loaded, built again and refused."""

import json

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertModel,
)

from newsrec.errors import UserError
from newsrec.model.plm.load import build_plm, load_plm, plm_config

SIZES = {
    "vocab_size": 90,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
}


def saved(folder, model_type, **values):
    """Save a random model of any kind."""
    AutoModel.from_config(AutoConfig.for_model(model_type, **values)).save_pretrained(folder)
    return str(folder)


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
def test_a_folder_that_cannot_be_read_is_refused_by_name(plm_copy, spoil):
    spoil(plm_copy)
    with pytest.raises(UserError, match=rf"the folder {plm_copy} cannot be read \(.+\)"):
        load_plm(str(plm_copy))


def test_weights_that_transformers_would_make_up_are_refused(plm_copy):
    values = json.loads((plm_copy / "config.json").read_text())
    (plm_copy / "config.json").write_text(json.dumps(values | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"lack 16 of the model's weights.*encoder\.layer\.2\."):
        load_plm(str(plm_copy))


def test_models_that_are_not_text_encoders_are_refused(tmp_path):
    t5 = saved(
        tmp_path / "t5", "t5", vocab_size=90, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2
    )
    picture = {k: v for k, v in SIZES.items() if k != "vocab_size"}
    vit = saved(tmp_path / "vit", "vit", **picture, image_size=16, patch_size=8)
    gpt2 = saved(tmp_path / "gpt2", "gpt2", **SIZES)
    for kind, folder, what in (
        ("t5", t5, "an encoder with a decoder"),
        ("vit", vit, "a model without token ids as input"),
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
