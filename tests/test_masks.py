"""Padded families are told what is padded, and no GPU is asked."""

import pytest
import torch
from test_news_encoder import FAMILIES, news
from test_packing import PACKED
from test_tuning import made_plm
from waits import Reads, Waits

from newsrec.model.plm import cut as tuning
from newsrec.model.plm.blocks import length_mask
from newsrec.model.plm.cut import CutPlm
from newsrec.model.plm.masks import PADDED, mask_by_padding, nothing_padded, run_plm

OWN_MASKS = ("deberta-v2", "xlm")
"""Families that make masks without transformers' shared functions."""
NOT_PACKED = [family for family in FAMILIES if family not in PACKED]


@pytest.mark.parametrize("lengths", [[2, 5, 9, 9, 12], [7, 7, 7], [1, 12], [40, 40]])
@pytest.mark.parametrize("family", NOT_PACKED)
def test_what_is_told_and_what_is_asked_give_the_same_states(family, lengths):
    plm = made_plm(family).eval()
    lengths = [min(length, 38) for length in lengths]
    token_ids, _ = news(lengths)
    mask = length_mask(torch.tensor(lengths), max(lengths))
    with torch.no_grad():
        expected = run_plm(plm, token_ids, mask)[mask]
        mask_by_padding(plm)
        for told in {min(lengths) == max(lengths), False}:
            with nothing_padded(told):
                found = run_plm(plm, token_ids, mask)[mask]
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_window_narrower_than_a_text_keeps_its_mask():
    """ModernBERT's layers that look at neighbours alone need a mask where nothing is padded."""
    plm = made_plm("modernbert", local_attention=8).eval()
    token_ids, _ = news([30, 30])
    mask = torch.ones(2, 30, dtype=torch.bool)
    with torch.no_grad():
        expected = run_plm(plm, token_ids, mask)
        assert mask_by_padding(plm)
        with nothing_padded(True):
            torch.testing.assert_close(run_plm(plm, token_ids, mask), expected)


@pytest.mark.parametrize("family", NOT_PACKED)
def test_families_that_share_transformers_masks_are_told(family):
    plm = made_plm(family)
    before = plm.config._attn_implementation
    modes = [module.training for module in plm.modules()]
    told = mask_by_padding(plm)
    assert [module.training for module in plm.modules()] == modes
    assert plm.config._attn_implementation == (PADDED[before] if told else before)
    assert told or family in OWN_MASKS
    assert mask_by_padding(plm) == told  # a second time


def waits_of(monkeypatch, family, lengths, told):
    """What a GPU would be asked while padded texts go through a PLM."""
    plm = made_plm(family)
    if told:
        assert mask_by_padding(plm)
    cut = CutPlm.__new__(CutPlm)
    cut.plm, cut.tune_layers, cut._packs = plm, -1, False
    token_ids, _ = news(lengths)
    lengths = torch.tensor(lengths)
    waits = Waits(token_ids, *plm.state_dict().values())

    def mask_on_device(*args):
        waits.mark(mask := length_mask(*args))
        return mask

    monkeypatch.setattr(tuning, "length_mask", mask_on_device)
    with Reads(waits), waits:
        for states, mask in cut.last_states(token_ids, lengths):
            waits.mark((states, mask))
    return waits.found


@pytest.mark.parametrize("family", ["mpnet", "modernbert"])
@pytest.mark.parametrize("lengths", [[2, 5, 9, 9, 12], [6, 6, 6]])
def test_a_gpu_is_not_asked_what_is_padded(monkeypatch, family, lengths):
    assert waits_of(monkeypatch, family, lengths, told=True) == {}
    asked = waits_of(monkeypatch, family, lengths, told=False)
    assert sum(asked.values()) == {"mpnet": 1, "modernbert": 2}[family]  # of this one block
    assert "masking_utils.py" in next(iter(asked))
