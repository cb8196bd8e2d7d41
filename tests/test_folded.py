"""The exported form of a user encoder, against the trained form."""

import pytest
import torch
from torch import nn

from newsrec.export.folded import folded
from newsrec.export.graphs import ServedUserEncoder
from newsrec.export.verify import newest
from newsrec.model.fastformer import FastformerConfig
from newsrec.model.heads import DotHead
from newsrec.model.user_encoders import UserEncoder

DIM, FULL = 24, 7


def made_encoder(**shape):
    generator = torch.Generator().manual_seed(0)
    encoder = UserEncoder(DIM, FastformerConfig(heads=4, ffn=20, **shape), FULL, residual=True)
    for weights in encoder.parameters():
        nn.init.normal_(weights, std=0.3, generator=generator)  # biases and empty count, too
    return encoder.eval()


def made_histories(length):
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([length, 0, 1, length // 2])
    mask = torch.arange(length) < lengths[:, None]
    return torch.randn(4, length, DIM, generator=generator) * mask[..., None], mask


@pytest.mark.parametrize("shape", [
    {}, {"layers": 2, "positions": "recency"}, {"norm": "none", "pooling": "mean"},
    {"positions": "learned"}, {"encoder": "transformer"}, {"layers": 2, "share_layers": True},
])  # fmt: skip
def test_folded_matrices_give_the_same_vectors(shape):
    encoder = made_encoder(**shape)
    for length in (1, FULL):
        history, mask = made_histories(length)
        with torch.no_grad():
            expected, found = encoder(history, mask), folded(encoder)(history, mask)
        largest = expected.abs().max()
        torch.testing.assert_close(found / largest, expected / largest, rtol=0, atol=1e-6)


def test_the_graph_holds_no_weights_twice():
    encoder = made_encoder()
    kept = sum(value.numel() for value in folded(encoder).state_dict().values())
    own, scores = 4 * DIM, 2 * 4 * DIM  # of four heads; each layer has one more of these
    assert kept == sum(value.numel() for value in encoder.state_dict().values()) + own + scores


def test_older_clicks_than_the_newest_count_for_nothing():
    served = ServedUserEncoder(made_encoder(), FULL, DotHead())
    history, mask = made_histories(3 * FULL)
    with torch.no_grad():
        found, expected = served(history, mask), served(*newest(history, mask, FULL))
        history[0, : 2 * FULL] = 7.0
        assert torch.equal(served(history, mask), found)
    torch.testing.assert_close(found, expected)
