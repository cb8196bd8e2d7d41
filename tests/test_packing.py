"""Joined news items have the states and gradients that each has alone."""

import copy
import json

import pytest
import torch
from test_news_encoder import FAMILIES, news
from test_tuning import NO_DROPOUT, SMALL, made_plm
from torch._dynamo.testing import CompileCounter

from newsrec.model.news_encoder import NewsEncoder
from newsrec.model.plm import packing
from newsrec.model.plm.blocks import length_mask, padded_blocks, runs
from newsrec.model.plm.cut import CutPlm
from newsrec.model.plm.masks import run_plm
from newsrec.model.plm.packing import ATTENTION, attend, groups_of, join, pack, run_packed

PACKED = ("bert", "roberta", "xlm-roberta", "electra", "distilbert")
LENGTHS = [2, 5, 9, 9, 12]


def encode(plm, tune_layers, packed, states=None):
    """News vectors, and the gradients of all that is trained."""
    torch.manual_seed(1)
    encoder = NewsEncoder(plm, 16, SMALL, tune_layers=tune_layers, max_tokens=12)
    assert encoder.cut._packs
    encoder.cut._packs = packed
    vectors = encoder(*news(LENGTHS), states)
    vectors.pow(2).sum().backward()
    return vectors, {n: p.grad for n, p in encoder.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_packed_where_that_changes_nothing(family):
    plm = made_plm(family)
    before = plm.config._attn_implementation
    modes = [module.training for module in plm.modules()]
    assert pack(plm) == (family in PACKED)
    assert plm.config._attn_implementation == (ATTENTION if family in PACKED else before)
    assert [module.training for module in plm.modules()] == modes


@pytest.mark.parametrize("family", PACKED)
def test_joined_news_have_the_states_that_they_have_behind_padding(family):
    plm = made_plm(family).eval()
    token_ids, lengths = news(LENGTHS)
    mask = length_mask(lengths, 12)
    with torch.no_grad():
        expected = run_plm(plm, token_ids, mask)[mask]
        assert pack(plm)
        groups = groups_of(lengths)
        assert groups.pairs == [(1, 2), (1, 5), (2, 9), (1, 12)]
        joined = run_packed(plm, join(token_ids, groups), groups)
        torch.testing.assert_close(joined, expected, rtol=1e-5, atol=1e-5)
        # and what is not joined still goes through as before
        assert torch.equal(run_plm(plm, token_ids, mask)[mask], expected)


@pytest.mark.parametrize("tune_layers", [1, 2, -1])
@pytest.mark.parametrize("given", [False, True])
def test_packed_and_padded_give_the_same_vectors_and_gradients(tune_layers, given):
    if given and tune_layers < 0:
        return
    plm = made_plm("bert", **NO_DROPOUT)
    states = None
    if given:
        token_ids, lengths = news(LENGTHS)
        mask = length_mask(lengths, 12)
        states = CutPlm(copy.deepcopy(plm), tune_layers).below(token_ids, mask)[mask]
    ours, gradients = encode(copy.deepcopy(plm), tune_layers, True, states)
    expected, expected_gradients = encode(copy.deepcopy(plm), tune_layers, False, states)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-4, atol=1e-6)


def test_no_padding_goes_through_the_plm():
    plm = made_plm("bert")
    encoder = NewsEncoder(plm, 16, SMALL, tune_layers=-1, max_tokens=12)
    seen = []
    plm.embeddings.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    encoder(*news(LENGTHS))
    assert seen == [(1, sum(LENGTHS), 16)]
    seen.clear()
    encoder.tokens_per_pass = 16
    encoder(*news(LENGTHS))
    assert [shape[1] for shape in seen] == [16, 9, 12]


def test_attention_over_neighbours_alone_is_not_packed():
    plm = made_plm("modernbert")
    assert not pack(plm)
    assert plm.config._attn_implementation == "sdpa"


def test_packing_changes_neither_the_key_nor_the_stored_configuration():
    plm, other = made_plm("bert"), made_plm("bert")
    cut, padded = CutPlm(plm, 1), CutPlm(other, 1)
    other.config._attn_implementation = "sdpa"
    assert plm.config._attn_implementation == ATTENTION
    assert cut.key() == padded.key()
    assert ATTENTION not in json.dumps(plm.config.to_dict(), default=str)


def test_runs_hold_no_more_than_they_should_but_one_row_at_least():
    lengths = torch.tensor([2, 3, 4, 5, 5, 30])
    assert list(runs(lengths, 9)) == [slice(0, 3), slice(3, 4), slice(4, 5), slice(5, 6)]
    assert list(runs(lengths, 100)) == [slice(0, 6)]
    assert list(runs(lengths[:0], 100)) == []


def test_joined_states_are_padded_with_what_the_mask_hides():
    lengths = torch.tensor([1, 2, 2, 90])
    states = torch.arange(95.0)[:, None]
    (first, first_mask), (second, second_mask) = padded_blocks(states, lengths, 1000)
    assert first.squeeze(-1).tolist() == [[0, 0], [1, 2], [3, 4]]
    assert first_mask.tolist() == [[True, False], [True, True], [True, True]]
    assert torch.equal(second[0, :, 0], torch.arange(5.0, 95.0))
    assert second_mask.all()


def flash(query, key, value, starts, other, most, others, dropout, causal, mask, *, scale):
    """What FlashAttention over joined sequences computes, one sequence at a time."""
    assert starts is other
    assert most == others == int(starts.diff().max())
    assert (starts.dtype, dropout, causal, mask) == (torch.int32, 0.0, False, False)
    parts = zip(*(x.split(starts.diff().tolist()) for x in (query, key, value)), strict=True)
    mixed = [
        torch.einsum("hqk,khd->qhd", (torch.einsum("qhd,khd->hqk", q, k) * scale).softmax(-1), v)
        for q, k, v in parts
    ]
    return torch.cat(mixed), None


def test_one_call_for_all_news_gives_what_a_call_for_each_length_gives(monkeypatch):
    monkeypatch.setattr(packing, "FLASH", flash)
    groups = groups_of(torch.tensor([1, 1, 2, 5, 9, 9, 12]))
    parts = [torch.randn(1, 39, 3, 8, dtype=torch.float64).transpose(1, 2) for _ in range(3)]
    expected, _ = attend(torch.nn.Identity(), *parts, None, scaling=0.3, groups=groups)
    found = packing.in_one_call(*parts, 0.0, 0.3, groups)
    assert found.shape == expected.shape == (1, 39, 3, 8)
    torch.testing.assert_close(found, expected)


def test_the_operator_behind_that_call_takes_what_it_is_given():
    names = [argument.name for argument in packing.FLASH.default._schema.arguments]
    assert names[:10] == [
        *("query", "key", "value", "cum_seq_q", "cum_seq_k", "max_q", "max_k"),
        *("dropout_p", "is_causal", "return_debug_mask"),
    ]
    assert "scale" in names


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [8, 32, 64])
def test_a_gpu_makes_one_call_with_the_values_and_gradients_of_a_call_for_each_length(
    only_cuda, monkeypatch, dtype, dim
):
    torch.manual_seed(0)
    groups = groups_of(torch.randint(1, 33, (200,)).sort().values)
    size = sum(count * length for count, length in groups.pairs)
    given = [torch.randn(1, size, 4, dim, device="cuda", dtype=dtype) for _ in range(3)]
    calls, found = [], {}
    monkeypatch.setattr(packing, "in_one_call", spy(packing.in_one_call, calls))
    for name, takes in (("one", packing._flash_takes), ("each", lambda *_: False)):
        monkeypatch.setattr(packing, "_flash_takes", takes)
        parts = [x.clone().requires_grad_() for x in given]
        mixed, _ = attend(
            torch.nn.Identity(), *(x.transpose(1, 2) for x in parts), None, groups=groups
        )
        mixed.float().pow(2).sum().backward()
        found[name] = [mixed, *(x.grad for x in parts)]
    assert len(calls) == 1
    for one, each in zip(found["one"], found["each"], strict=True):
        torch.testing.assert_close(one, each, rtol=2e-2, atol=2e-2)


def spy(function, calls):
    def noted(*args):
        calls.append(args)
        return function(*args)

    return noted


@pytest.mark.slow
def test_a_compiled_layer_serves_batches_of_other_lengths():
    torch.compiler.reset()
    plm = made_plm("bert", **NO_DROPOUT)
    expected = copy.deepcopy(plm)
    assert pack(plm)
    assert pack(expected)
    compiled = CompileCounter()
    for layer in plm.encoder.layer:
        layer.compile(dynamic=True, backend=compiled)
    counts = []
    for lengths in ([2, 5, 9], [3, 3, 4, 7, 8], [1, 2, 3, 4, 5, 6], [4, 6, 9, 12, 12]):
        token_ids, lengths = news(lengths)
        groups = groups_of(lengths)
        ids = join(token_ids, groups)
        states = [run_packed(model, ids, groups) for model in (plm, expected)]
        torch.testing.assert_close(*states)
        counts.append(compiled.frame_count)
    assert counts[0] > 0
    assert counts[1:] == counts[1:2] * 3  # of layers alike, the second batch may teach shapes
