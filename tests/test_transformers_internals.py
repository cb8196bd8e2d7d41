"""One test for each inside of transformers that newsrec touches: it fails when one moves."""

import inspect

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

from newsrec.model.plm import transformers_internals as internals

SMALL = {
    "vocab_size": 50,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 8,
}
IDS = torch.arange(5, 11)[None]


def bert(**options):
    return BertModel(BertConfig(**SMALL, **options), add_pooling_layer=False).eval()


def states(plm):
    return plm(input_ids=IDS, attention_mask=torch.ones_like(IDS))[0]


def test_attention_is_read_and_set_by_name():
    plm = bert()
    assert internals.attention_of(plm) == "sdpa"
    internals.set_attention(plm, "eager")
    assert internals.attention_of(plm) == "eager"
    assert {internals.attention_of(m) for m in plm.modules() if hasattr(m, "config")} == {"eager"}


def test_attention_under_our_name_is_called_with_the_mask_that_ours_makes():
    calls = []

    def attend(module, query, key, value, attention_mask, **kwargs):
        calls.append(("attend", attention_mask))
        return internals.sdpa_attention_forward(module, query, key, value, None, **kwargs)

    def mask(*args, **kwargs):
        calls.append(("mask", kwargs["kv_length"]))
        made = internals.sdpa_mask(*args, **kwargs)
        assert made is None or made.shape[-1] == IDS.shape[1]
        return made

    internals.register_attention("test_attention", attend, mask)
    assert "test_attention" in ALL_ATTENTION_FUNCTIONS.valid_keys()
    plm = bert()
    expected = states(plm)
    internals.set_attention(plm, "test_attention")
    torch.testing.assert_close(states(plm), expected)
    assert calls[0] == ("mask", IDS.shape[1])
    assert [name for name, _ in calls] == ["mask", "attend", "attend"]


def test_masks_know_the_argument_by_which_ours_refuse_to_look_at_values():
    for make in (internals.sdpa_mask, internals.eager_mask):
        names = inspect.signature(make).parameters
        assert "allow_is_bidirectional_skip" in names or "kwargs" in names
    assert "allow_is_bidirectional_skip" in inspect.signature(internals.sdpa_mask).parameters


def test_attention_that_gives_other_states_is_put_back():
    plm = bert().train()
    for works, kept in ((lambda _: True, "eager"), (lambda _: False, "sdpa")):
        internals.set_attention(plm, "sdpa")
        assert internals.try_attention(plm, "eager", lambda: states(plm), works) == works(None)
        assert internals.attention_of(plm) == kept
        assert plm.training
    internals.set_attention(plm, "sdpa")
    assert not internals.try_attention(plm, "eager", lambda: 1 / 0, lambda _: True)
    assert internals.attention_of(plm) == "sdpa"


def test_without_values_attention_is_not_tried_since_nothing_could_be_compared():
    for place in (torch.device("meta"), FakeTensorMode()):
        with place:
            plm = bert()
            internals.set_attention(plm, "sdpa")
            assert not internals.try_attention(plm, "eager", pytest.fail, lambda _: True)
        assert internals.attention_of(plm) == "sdpa"


def test_layers_run_again_the_familys_way_where_it_has_one():
    plm = bert()
    assert internals.recompute_its_way(plm)
    assert any(getattr(m, "gradient_checkpointing", False) for m in plm.modules())
    assert callable(PreTrainedModel.gradient_checkpointing_enable)
    plm.supports_gradient_checkpointing = False
    assert not internals.recompute_its_way(plm)


def test_roberta_counts_positions_from_behind_the_paddings():
    config = RobertaConfig(**SMALL, pad_token_id=1)
    assert internals.first_position(RobertaModel(config, add_pooling_layer=False)) == 2
    assert internals.first_position(bert()) == 0
