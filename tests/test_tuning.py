"""A PLM cut in two: the halves, one after the other, are the PLM."""

import copy

import pytest
import torch
from test_news_encoder import FAMILIES, SIZES, news, trainable

from newsrec.errors import UserError
from newsrec.model.fastformer import FastformerConfig
from newsrec.model.news_encoder import NewsEncoder
from newsrec.model.plm.cut import CutPlm, length_mask
from newsrec.model.plm.load import build_plm
from newsrec.model.plm.masks import run_plm
from newsrec.model.plm.recompute import recompute_activations

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SMALL = FastformerConfig(heads=4, ffn=24, dropout=0.0)


def made_plm(family, **options):
    torch.manual_seed(0)
    return build_plm({"model_type": family, **FAMILIES[family], **options})


def titles():
    token_ids, lengths = news([2, 5, 9, 9, 12])
    return token_ids, length_mask(lengths, 12)


@pytest.mark.parametrize("tune_layers", [0, 1, 2, 3])
@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "xlm"])
def test_below_then_above_is_the_plm(family, tune_layers):
    plm = made_plm(family).eval()
    token_ids, mask = titles()
    with torch.no_grad():
        whole = run_plm(plm, token_ids, mask)
        cut = CutPlm(plm, tune_layers)
        states = cut.below(token_ids, mask)
        assert torch.equal(cut.above(states, torch.zeros_like(token_ids), mask)[mask], whole[mask])
        assert cut.works(token_ids, mask)
        if tune_layers:
            layers = plm.config.num_hidden_layers
            every = plm(token_ids.long(), mask.long(), output_hidden_states=True).hidden_states
            assert torch.equal(states[mask], every[layers - tune_layers][mask])


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(
    ("family", "options"),
    [("xlm", {}), ("deberta-v2", {"conv_kernel_size": 3, "conv_act": "gelu"})],
)
def test_a_plm_that_cannot_be_cut_is_found_out_and_left_as_it_was(family, options, layers):
    plm = made_plm(family, **options)
    token_ids, mask = titles()
    plm.eval()
    with torch.no_grad():
        before = run_plm(plm, token_ids, mask)
        cut = CutPlm(plm.train(), layers)
        assert not cut.works(token_ids, mask)
        assert plm.training
        assert torch.equal(run_plm(plm.eval(), token_ids, mask), before)


def test_both_ways_give_the_tuned_layers_the_same_gradients():
    gradients = []
    for given in (False, True):
        plm = made_plm("bert", **NO_DROPOUT)
        encoder = NewsEncoder(plm, 16, SMALL, tune_layers=2, max_tokens=12)
        token_ids, lengths = news([2, 5, 9, 9, 12])
        mask = length_mask(lengths, 12)
        states = encoder.cut.below(token_ids, mask)[mask] if given else None
        encoder(token_ids, lengths, states).pow(2).sum().backward()
        gradients.append({n: p.grad for n, p in encoder.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_the_halves_follow_the_plm_in_mode_weights_and_copies():
    plm = made_plm("bert")
    encoder = NewsEncoder(plm, 16, SMALL, tune_layers=1, max_tokens=12)
    token_ids, mask = titles()
    states = encoder.cut.below(token_ids, mask)

    def above(encoder):
        with torch.no_grad():
            return encoder.cut.above(states, token_ids, mask)[mask]

    assert not torch.equal(above(encoder), above(encoder))  # tuned layers drop out
    encoder.eval()
    before = above(encoder)
    assert torch.equal(above(encoder), before)
    twin = copy.deepcopy(encoder)
    names = set(encoder.state_dict())
    with torch.no_grad():
        plm.encoder.layer[2].output.dense.bias.add_(1)
    assert not torch.equal(above(encoder), before)
    assert torch.equal(above(twin), before)
    assert set(encoder.state_dict()) == names
    assert not [name for name in names if "cut" in name]


def test_the_key_tells_frozen_weights_depth_and_configuration_apart():
    def key(tune_layers=1, change=None, **options):
        plm = made_plm("bert", **options)
        if change is not None:
            with torch.no_grad():
                plm.get_parameter(change).view(-1)[0] += 1e-6
        return CutPlm(plm, tune_layers).key()

    same = key()
    assert key() == same
    # what is tuned changes from step to step, and the states below do not
    assert key(change="encoder.layer.2.output.dense.weight") == same
    others = [
        key(change="encoder.layer.0.output.dense.weight"),
        key(change="embeddings.LayerNorm.bias"),
        key(tune_layers=2),
        key(tune_layers=0),
        key(layer_norm_eps=1e-6),
    ]
    assert len({same, *others}) == 6


@pytest.mark.parametrize("given", [False, True])
def test_recomputed_activations_give_the_same_gradients_with_dropout(given):
    found = []
    for recompute in (False, True):
        plm = made_plm("bert")
        encoder = NewsEncoder(
            plm, 16, SMALL, tune_layers=2, max_tokens=12, checkpoint_activations=recompute
        )
        runs = []
        plm.encoder.layer[2].intermediate.register_forward_hook(lambda *_: runs.append(1))  # noqa: B023
        token_ids, lengths = news([2, 5, 9, 9, 12])
        mask = length_mask(lengths, 12)
        states = encoder.cut.below(token_ids, mask)[mask] if given else None
        torch.manual_seed(1)
        runs.clear()
        vectors = encoder(token_ids, lengths, states)
        forward = len(runs)
        vectors.pow(2).sum().backward()
        assert len(runs) == forward * (2 if recompute else 1)
        found.append([vectors, *(p.grad for p in encoder.parameters() if p.requires_grad)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert trainable(plm)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "xlm"])
def test_every_family_recomputes_with_the_same_gradients_dropout_included(family):
    found, kept = [], []
    for recompute in (False, True):
        encoder = NewsEncoder(
            made_plm(family), 16, SMALL, -1, max_tokens=12, checkpoint_activations=recompute
        )
        encoder.plm.config._attn_implementation = "sdpa"  # the same attention in both
        encoder.cut._packs = False
        saved = {}

        def note(tensor, saved=saved):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            vectors = encoder(*news([2, 5, 9, 9, 12]))
        vectors.pow(2).sum().backward()
        grads = [p.grad for p in encoder.parameters() if p.grad is not None]
        found.append([vectors, *grads])
        kept.append(sum(saved.values()))
    assert len(found[0]) > 10
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert kept[1] < kept[0]


def test_a_copy_of_a_plm_recomputes_its_own_layers():
    plm = made_plm("mpnet")
    recompute_activations(plm)
    copied = copy.deepcopy(plm)
    with torch.no_grad():
        for parameter in plm.parameters():
            parameter.fill_(float("nan"))
    token_ids, mask = titles()
    assert run_plm(copied, token_ids, mask).isfinite().all()
    assert type(copied.encoder.layer[0]).__name__ == "MPNetLayer"


def test_a_plm_whose_layers_lie_in_parts_cannot_recompute():
    with pytest.raises(UserError, match=r"checkpoint_activations.*xlm.*false"):
        recompute_activations(made_plm("xlm"))


def test_a_cut_needs_layers():
    with pytest.raises(UserError, match=r"tune_layers is 4; this PLM has 3 layers"):
        CutPlm(build_plm({"model_type": "bert", **SIZES}), 4)
