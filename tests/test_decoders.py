"""Decoder-style embedding models as news encoders: attention, pooling, adapters, export."""

import json
import shutil

import pytest
import torch
from conftest import fit_options
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel

from newsrec import PretrainedRecommender
from newsrec.__main__ import main
from newsrec.data.text import _tokenize
from newsrec.errors import ModelError
from newsrec.model.fastformer import FastformerConfig
from newsrec.model.news_encoder import NewsEncoder
from newsrec.model.plm.cut import CutPlm
from newsrec.model.plm.load import build_plm, load_plm, plm_config
from newsrec.model.plm.lora import LoraConfig, add_adapters
from newsrec.model.plm.sizes import plm_sizes
from newsrec.plm_source import read_plm_config
from newsrec.training.checkpoint.read import read_checkpoint
from newsrec.training.estimate.step_memory import packable

SIZES = {
    "vocab_size": 150,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
LENGTHS = torch.tensor([1, 2, 2, 4, 6])


def write(folder, family="qwen3", **values):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **SIZES | values)
        AutoModel.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def decoder_dir(plm_dir, tmp_path_factory):
    """A random Qwen3 with the tokenizer of ``plm_dir``."""
    size = json.loads((plm_dir / "config.json").read_text())["vocab_size"]
    folder = write(tmp_path_factory.mktemp("decoder"), vocab_size=size)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(plm_dir / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def token_ids():
    ids = torch.randint(5, 150, (5, 6), generator=torch.Generator().manual_seed(0))
    return ids * (torch.arange(6) < LENGTHS[:, None])


def joined(cut, token_ids, given=None):
    """Return the states of each text's real tokens."""
    with torch.no_grad():
        blocks = list(cut.last_states(token_ids, LENGTHS, given))
    return [own[real] for states, mask in blocks for own, real in zip(states, mask, strict=True)]


@pytest.mark.parametrize(
    ("family", "values"),
    [
        ("qwen3", {}),
        ("qwen2", {}),
        ("llama", {}),
        ("mistral", {"sliding_window": None}),
        ("mistral", {"sliding_window": 2}),  # local attention: padded, not joined
    ],
    ids=lambda value: value if isinstance(value, str) else str(value.get("sliding_window", "")),
)
def test_a_text_has_the_states_that_it_has_alone(tmp_path, token_ids, family, values):
    folder = str(write(tmp_path, family, **values))
    plain = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        alone = [plain(ids[None, :n])[0][0] for ids, n in zip(token_ids, LENGTHS, strict=True)]
    mask = torch.arange(6) < LENGTHS[:, None]
    for tune_layers in (0, 1, -1):
        cut = CutPlm(load_plm(folder).eval(), tune_layers)
        assert cut._packs == (values.get("sliding_window") is None)
        torch.testing.assert_close(joined(cut, token_ids), alone, atol=1e-5, rtol=1e-4)
        if tune_layers == -1:
            continue
        assert cut.works(token_ids, mask)
        given = cut.below(token_ids, mask)[mask]  # as they are kept beside the data
        torch.testing.assert_close(joined(cut, token_ids, given), alone, atol=1e-5, rtol=1e-4)


def test_no_token_of_a_decoder_sees_a_later_one(decoder_dir, plm_dir, token_ids):
    other = token_ids.clone()
    other[4, 5] = 7
    for folder, sees in ((decoder_dir, False), (plm_dir, True)):
        cut = CutPlm(load_plm(str(folder)).eval(), 0)
        before, after = (
            joined(cut, ids % cut.plm.config.vocab_size)[4] for ids in (token_ids, other)
        )
        assert torch.equal(before[:5], after[:5]) != sees
        assert not torch.equal(before[5], after[5])


@pytest.mark.parametrize("padded", [True, False])
def test_the_last_token_stands_for_a_text_in_the_residual_path(decoder_dir, token_ids, padded):
    plm = load_plm(str(decoder_dir)).eval()
    assert plm.config.use_cache is False
    encoder = NewsEncoder(plm, 32, FastformerConfig(heads=2), 0, 12, residual=True).eval()
    if padded:
        encoder.register_states_hook(lambda states, mask: None)
    with torch.no_grad():
        found = encoder(token_ids, LENGTHS)
        states = [plm(ids[None, :n])[0][0] for ids, n in zip(token_ids, LENGTHS, strict=True)]
    expected = torch.stack([F.normalize(own[-1], dim=0) for own in states])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("said", "last"),
    [
        (None, True),
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, True),
        ({"pooling_mode_mean_tokens": True, "word_embedding_dimension": 32}, False),
        ({"pooling_mode": "lasttoken"}, True),
        ({"pooling_mode": "mean"}, False),
    ],
)
def test_files_say_how_texts_are_pooled(decoder_dir, tmp_path, said, last):
    folder = shutil.copytree(decoder_dir, tmp_path / "plm")
    if said is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(said))
    plm = load_plm(str(folder))
    assert CutPlm(plm, 0).last_token is last
    assert CutPlm(build_plm(plm_config(plm)), 0).last_token is last  # as from a checkpoint


@pytest.mark.parametrize(
    "text", ["", "[]", '"mean"', "{}", '{"pooling_mode": 3}', '{"pooling_mode_cls_token": true}']
)
def test_another_way_to_pool_is_refused(decoder_dir, tmp_path, text):
    folder = shutil.copytree(decoder_dir, tmp_path / "plm")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"1_Pooling/config.json of .* lasttoken and mean"):
        load_plm(str(folder))


def test_an_encoder_pools_by_the_mean_whatever_its_files_say(plm_copy):
    (plm_copy / "1_Pooling").mkdir()
    (plm_copy / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    plm = load_plm(str(plm_copy))
    assert CutPlm(plm, 0).last_token is False
    assert "sentence_pooling" not in plm_config(plm)


def test_a_tokenizer_that_pads_on_the_left_gives_the_same_tokens(decoder_dir):
    import pyarrow as pa

    text = (decoder_dir / "tokenizer.json").read_text()
    left = Tokenizer.from_str(text)
    left.enable_padding(direction="left", length=12)
    texts = pa.array(["a", "a b c d e"])
    for one, other in zip(
        _tokenize(texts, 12, text), _tokenize(texts, 12, left.to_str()), strict=True
    ):
        assert (one == other).all()


def test_the_first_layers_of_a_decoder_are_used(decoder_dir):
    """Its configuration has the kind of each layer, which is cut as well."""
    plm = load_plm(str(decoder_dir), 1)
    assert len(plm.layers) == len(plm.config.layer_types) == 1
    assert read_plm_config(str(decoder_dir), 1).layer_types == plm.config.layer_types
    config = plm_sizes(str(decoder_dir), 1)[0]
    assert len(build_plm(config).layers) == 1
    assert packable(plm_sizes(str(decoder_dir))[0])


def test_adapters_go_beside_queries_keys_and_values(decoder_dir):
    cut = CutPlm(load_plm(str(decoder_dir)), 1)
    add_adapters(cut, LoraConfig(rank=2))
    trained = {name for name, p in cut.plm.named_parameters() if p.requires_grad}
    assert trained == {
        f"layers.1.self_attn.{name}_proj.lora_{part}.adapter.weight"
        for name in "qkv"
        for part in "AB"
    }


@pytest.mark.slow
def test_a_decoder_is_trained_and_exported(mind_dir, decoder_dir, tmp_path):
    run, out = tmp_path / "run", tmp_path / "export"
    main([
        *fit_options(mind_dir, decoder_dir, run), "--model.tune_layers=1", "--model.lora.rank=2",
        "--model.checkpoint_activations=true", "--data.batch_size=8", "--trainer.max_epochs=1",
    ])  # fmt: skip
    best = run / "checkpoints" / "best.ckpt"
    assert read_checkpoint(best)["newsrec"]["plm_config"]["sentence_pooling"] == "last"
    main(["export", f"--ckpt_path={best}", f"--data.root={mind_dir}", f"--output={out}"])
    from newsrec.export.weights import load_model
    from newsrec.training.trained_run import TrainedRun

    trained = TrainedRun.open(best)
    ids, lengths = torch.tensor([[2, 30, 40, 3]]), torch.tensor([4])
    with torch.no_grad():
        expected = trained.module.recommender.news_encoder(ids, lengths)
        found = load_model(out).news_encoder(ids, lengths)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    sentences = pytest.importorskip("newsrec.export.sentences")
    pretrained = PretrainedRecommender.from_pretrained(out)
    model = pretrained.model.news_encoder
    ids = torch.tensor([pretrained.tokenizer.encode("a b c").ids])
    with torch.no_grad():
        last = model.residual.of_means(model.plm(ids)[0][:, -1])[0]
        whole = model(ids, torch.tensor([ids.shape[1]]))[0]
    for residual_only, vector in ((True, last), (False, whole)):
        found = sentences.as_sentence_transformer(pretrained, residual_only).encode("a b c")
        torch.testing.assert_close(torch.from_numpy(found), vector, atol=1e-5, rtol=1e-4)
