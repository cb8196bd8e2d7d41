"""From titles to news vectors."""

import pytest
import torch
from torch import nn

from newsrec.errors import UserError
from newsrec.model.fastformer import FastformerConfig
from newsrec.model.news_encoder import NewsEncoder
from newsrec.model.plm.blocks import blocks_by_length, length_mask
from newsrec.model.plm.cut import CutPlm
from newsrec.model.plm.load import build_plm, load_plm, longest_text

DIM = 16
SMALL = FastformerConfig(heads=4, ffn=24)
TWIN = FastformerConfig(heads=4, ffn=24, encoder="transformer")
SHAPES = pytest.mark.parametrize("shape", [SMALL, TWIN], ids=lambda shape: shape.encoder)
SIZES = {
    "vocab_size": 90,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
}
FAMILIES = {
    "bert": SIZES,
    "roberta": SIZES,
    "xlm-roberta": SIZES,
    "mpnet": SIZES,
    "electra": SIZES | {"embedding_size": 8},
    "deberta-v2": SIZES | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "modernbert": SIZES | dict.fromkeys(("pad_token_id", "cls_token_id", "sep_token_id"), 0),
    "distilbert": {
        "vocab_size": 90,
        "dim": 16,
        "n_layers": 3,
        "n_heads": 2,
        "hidden_dim": 24,
        "max_position_embeddings": 40,
    },
    "xlm": SIZES | {"emb_dim": 16, "n_layers": 3, "n_heads": 2},
}


@pytest.fixture
def plm(plm_dir):
    return load_plm(str(plm_dir))


def stirred(encoder, scale=0.2):
    """The encoder in evaluation mode, its own parameters moved away from their gentle start."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if not name.startswith("plm."):
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return encoder.eval()


def news(lengths, vocabulary=80):
    """Token ids of news items that have these lengths, padded with 0, and the lengths."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor(lengths)
    shape = (len(lengths), int(lengths.max()))
    token_ids = torch.randint(5, vocabulary, shape, generator=generator, dtype=torch.int32)
    return token_ids * length_mask(lengths, shape[1]), lengths


def trainable(module):
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


@SHAPES
def test_a_news_item_is_encoded_alike_alone_in_any_batch_and_behind_any_padding(plm, shape):
    encoder = stirred(NewsEncoder(plm, DIM, shape, tune_layers=0, max_tokens=12))
    token_ids, lengths = news([1, 2, 2, 4, 5, 9, 12])
    together = encoder(token_ids, lengths)
    assert together.std(dim=0).min() > 0.01  # the news items differ
    for row, length in enumerate(lengths):
        alone = encoder(token_ids[row : row + 1, :length], lengths[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-5)
    some = torch.tensor([1, 3, 4])
    torch.testing.assert_close(
        encoder(token_ids[some], lengths[some]), together[some], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("tokens_per_pass", [1, 12, 30])
def test_small_blocks_give_what_one_block_gives(plm, tokens_per_pass):
    encoder = stirred(NewsEncoder(plm, DIM, SMALL, tune_layers=0, max_tokens=12))
    token_ids, lengths = news([1, 2, 2, 4, 4, 5, 9, 12])
    together = encoder(token_ids, lengths)
    encoder.tokens_per_pass = tokens_per_pass
    torch.testing.assert_close(encoder(token_ids, lengths), together, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spare", [0, 30, 10_000])
def test_blocks_cover_each_row_once_in_order_and_keep_to_the_budget(spare):
    generator = torch.Generator().manual_seed(0)
    for budget in (1, 20, 64, 10_000):
        for longest in (1, 2, 32):
            lengths = torch.randint(1, longest + 1, (150,), generator=generator).sort().values
            covered = []
            for rows, tokens in blocks_by_length(lengths, budget, spare):
                inside = lengths[rows]
                covered += range(rows.start, rows.stop)
                assert tokens == inside.max()
                assert len(inside) == 1 or len(inside) * tokens <= budget
                assert (tokens - inside).sum() <= spare
            assert covered == list(range(150))


def test_blocks_by_hand():
    lengths = torch.tensor([2, 3, 4, 5, 5, 5, 30])
    blocks = list(blocks_by_length(lengths, budget=16, spare=3))
    # three more would be wasted on 5; three fives fill the budget; 30 exceeds it
    assert blocks == [(slice(0, 3), 4), (slice(3, 6), 5), (slice(6, 7), 30)]
    assert [rows for rows, _ in blocks_by_length(lengths, budget=100, spare=0)] == [
        slice(0, 1), slice(1, 2), slice(2, 3), slice(3, 6), slice(6, 7),
    ]  # fmt: skip
    assert list(blocks_by_length(lengths, budget=1000, spare=1000)) == [(slice(0, 7), 30)]
    assert list(blocks_by_length(lengths[:0], budget=16, spare=3)) == []


@pytest.mark.parametrize("tune_layers", [0, 1, 2])
def test_given_states_stand_in_for_what_is_frozen(plm, tune_layers):
    encoder = stirred(NewsEncoder(plm, DIM, SMALL, tune_layers, max_tokens=12))
    token_ids, lengths = news([1, 2, 2, 4, 5, 9, 12])
    expected = encoder(token_ids, lengths)
    mask = length_mask(lengths, 12)
    states = encoder.cut.below(token_ids, mask)[mask]  # of real tokens, joined
    for tokens_per_pass in (16, 10_000):
        encoder.tokens_per_pass = tokens_per_pass
        vectors = encoder(torch.zeros_like(token_ids), lengths, states)
        torch.testing.assert_close(vectors, expected, rtol=1e-5, atol=1e-5)
    half = encoder(token_ids, lengths, states.bfloat16())
    torch.testing.assert_close(half, expected, rtol=0.1, atol=0.1)


def test_states_of_another_plm_are_refused(plm):
    encoder = NewsEncoder(plm, DIM, SMALL, tune_layers=0, max_tokens=12)
    with pytest.raises(UserError, match=r"another PLM: .*48.*bert is 32"):
        encoder(*news([1, 2]), torch.zeros(3, 48))


def test_states_are_handed_over_until_the_hook_is_removed(plm):
    encoder = stirred(NewsEncoder(plm, 8, FastformerConfig(heads=2), 0, 12, tokens_per_pass=12))
    token_ids, lengths = news([2, 3, 5, 6])
    seen = []
    with encoder.register_states_hook(lambda *block: seen.append(block)):
        vectors = encoder(token_ids, lengths)
    assert len(seen) > 1
    assert torch.cat([mask.sum(dim=1) for _, mask in seen]).tolist() == lengths.tolist()
    assert torch.equal(torch.cat([encoder.pool(*block) for block in seen]), vectors)
    seen.clear()
    encoder(token_ids, lengths)
    assert not seen


def test_no_news_give_no_vectors(plm):
    encoder = NewsEncoder(plm, DIM, SMALL, tune_layers=0, max_tokens=12)
    nothing = torch.zeros(0, 12, dtype=torch.int32)
    assert encoder(nothing, torch.zeros(0, dtype=torch.int64)).shape == (0, DIM)


def test_max_tokens_beyond_what_the_plm_reads_is_refused(plm):
    NewsEncoder(plm, DIM, SMALL, tune_layers=0, max_tokens=64)
    with pytest.raises(UserError, match=r"max_tokens is 65.*at most 64"):
        NewsEncoder(plm, DIM, SMALL, tune_layers=0, max_tokens=65)


# What of the PLM is trained


def test_a_frozen_plm_gets_no_gradient_and_no_dropout_even_in_training(plm):
    encoder = NewsEncoder(plm, DIM, FastformerConfig(4, dropout=0.0), 0, max_tokens=12).train()
    assert plm.config.hidden_dropout_prob > 0
    token_ids, lengths = news([3, 4, 12])
    vectors = encoder(token_ids, lengths)
    assert torch.equal(vectors, encoder(token_ids, lengths))
    vectors.sum().backward()
    assert trainable(plm) == set()
    assert all(parameter.grad is None for parameter in plm.parameters())
    assert encoder.project.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("tune_layers", [1, 2])
def test_exactly_the_top_layers_are_trained(plm, tune_layers):
    encoder = NewsEncoder(plm, DIM, SMALL, tune_layers, max_tokens=12)
    top = tuple(f"encoder.layer.{i}." for i in range(2 - tune_layers, 2))
    assert trainable(plm) == {n for n, _ in plm.named_parameters() if n.startswith(top)}
    token_ids, lengths = news([3, 4, 12])
    encoder(token_ids, lengths).pow(2).sum().backward()
    with_gradient = {n for n, p in plm.named_parameters() if p.grad is not None and p.grad.any()}
    # A key's bias moves all logits of a softmax alike: its gradient is zero but for rounding.
    assert {n for n in trainable(plm) if "key.bias" not in n} <= with_gradient <= trainable(plm)


def test_everything_is_trained_at_minus_one(plm):
    encoder = NewsEncoder(plm, DIM, SMALL, tune_layers=-1, max_tokens=12)
    assert trainable(encoder) == {name for name, _ in encoder.named_parameters()}
    encoder(*news([3, 4, 12])).pow(2).sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_only_tuned_layers_drop_out(plm):
    encoder = NewsEncoder(plm, DIM, SMALL, tune_layers=1, max_tokens=12)
    token_ids, lengths = news([12, 12])
    mask = length_mask(lengths, 12).long()

    def layers():
        return plm(token_ids.long(), attention_mask=mask, output_hidden_states=True).hidden_states

    for _ in range(2):  # and again after a spell in evaluation mode
        (_, below, top), (_, below_again, top_again) = layers(), layers()
        assert torch.equal(below, below_again)
        assert not torch.equal(top, top_again)
        encoder.eval()
        assert torch.equal(layers()[2], layers()[2])
        encoder.train()


def test_a_new_encoder_is_in_training_mode_but_for_what_is_frozen(plm):
    # from_pretrained returns the PLM in evaluation mode, and a Trainer keeps modes as they are
    assert not plm.training
    NewsEncoder(plm, DIM, SMALL, tune_layers=1, max_tokens=12)
    assert all(module.training for module in plm.encoder.layer[1].modules())
    assert not any(module.training for module in plm.encoder.layer[0].modules())
    assert not any(module.training for module in plm.embeddings.modules())
    NewsEncoder(plm.train(), DIM, SMALL, tune_layers=0, max_tokens=12)
    assert not any(module.training for module in plm.modules())


@pytest.mark.parametrize("tune_layers", [3, -2])
def test_more_layers_than_there_are_are_refused(plm, tune_layers):
    with pytest.raises(UserError, match=rf"tune_layers is {tune_layers}.*0 .*1 to 2.*-1"):
        NewsEncoder(plm, DIM, SMALL, tune_layers, max_tokens=12)


def test_layers_that_share_their_weights_cannot_be_tuned_apart():
    albert = build_plm({"model_type": "albert", **SIZES, "embedding_size": 8})
    with pytest.raises(UserError, match=r"tune_layers is 1.*albert.*0 .*-1"):
        CutPlm(albert, 1)
    assert CutPlm(albert, 0).frozen == [albert]
    assert CutPlm(albert, -1).frozen == []


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_of_encoders_work(family):
    torch.manual_seed(0)
    plm = build_plm({"model_type": family, **FAMILIES[family]})
    assert not [name for name, _ in plm.named_parameters() if "pooler" in name]

    limit = longest_text(plm)
    encoder = stirred(NewsEncoder(plm, DIM, SMALL, tune_layers=1, max_tokens=limit))
    top = {name for name, _ in plm.named_parameters() if ".2." in name}  # all count from 0 to 2
    assert trainable(plm) == top
    assert len(top) >= 6

    token_ids, lengths = news([2, 5, 9, limit])
    vectors = encoder(token_ids, lengths)
    alone = encoder(token_ids[1:2, :5], lengths[1:2])
    torch.testing.assert_close(alone[0], vectors[1], rtol=1e-5, atol=1e-5)

    # A parameter without gradient would stop DistributedDataParallel on the second step.
    everything = NewsEncoder(plm.requires_grad_(True), DIM, SMALL, -1, max_tokens=limit)
    everything(token_ids, lengths).pow(2).sum().backward()
    assert [n for n, p in everything.named_parameters() if p.grad is None] == []


def test_a_plm_that_counts_positions_from_behind_its_padding_reads_fewer_tokens():
    sizes = SIZES | {"pad_token_id": 1}
    assert longest_text(build_plm({"model_type": "bert", **sizes})) == 40
    assert longest_text(build_plm({"model_type": "roberta", **sizes})) == 38


def test_a_tuned_layer_has_all_its_parts_where_they_lie_in_several_lists():
    xlm = build_plm({"model_type": "xlm", **FAMILIES["xlm"]})
    CutPlm(xlm, 1)
    for part in (xlm.attentions, xlm.layer_norm1, xlm.ffns, xlm.layer_norm2):
        assert isinstance(part, nn.ModuleList)
        assert trainable(part) == {n for n, _ in part.named_parameters() if n.startswith("2.")}


def test_mean_pooling_is_the_mean_of_the_real_tokens(plm):
    shape = FastformerConfig(4, layers=0, norm="none", pooling="mean")
    encoder = NewsEncoder(plm, DIM, shape, tune_layers=0, max_tokens=12).eval()
    token_ids, lengths = news([1, 4, 12])
    vectors = encoder(token_ids, lengths)
    for row, length in enumerate(lengths):
        with torch.no_grad():
            states = plm(token_ids[row : row + 1, :length].long())[0][0]
        expected = encoder.project(states).mean(dim=0)
        torch.testing.assert_close(vectors[row], expected, rtol=1e-5, atol=1e-5)
