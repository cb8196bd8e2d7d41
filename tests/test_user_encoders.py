"""From clicked news to user vectors."""

import pytest
import torch

from newsrec.model.fastformer import FastformerConfig
from newsrec.model.plm.blocks import length_mask
from newsrec.model.user_encoders import UserEncoder

DIM = 16
SMALL = FastformerConfig(heads=4, ffn=24)
TWIN = FastformerConfig(heads=4, ffn=24, encoder="transformer")
SHAPES = pytest.mark.parametrize("shape", [SMALL, TWIN], ids=lambda shape: shape.encoder)


def stirred(encoder, scale=0.2):
    """The encoder in evaluation mode, its own parameters moved away from their gentle start."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return encoder.eval()


def histories(*lengths, width=6):
    generator = torch.Generator().manual_seed(0)
    history = torch.randn(len(lengths), width, DIM, generator=generator)
    return history, length_mask(torch.tensor(lengths), width)


@pytest.mark.parametrize("encoder", ["fastformer", "transformer"])
@pytest.mark.parametrize("positions", ["learned", "recency", "none"])
def test_a_user_is_encoded_alike_alone_in_any_batch_and_behind_any_padding(positions, encoder):
    config = FastformerConfig(heads=4, layers=2, positions=positions, encoder=encoder)
    encoder = stirred(UserEncoder(DIM, config, max_history=6))
    history, mask = histories(3, 0, 6, 1)
    together = encoder(history, mask)
    for row, length in enumerate([3, 0, 6, 1]):
        alone = encoder(history[row : row + 1, :length], mask[row : row + 1, :length])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-5)
    history[~mask] = 1e3
    torch.testing.assert_close(encoder(history, mask), together, rtol=1e-5, atol=1e-5)


@SHAPES
def test_a_users_score_has_no_gradient_to_the_history_of_another(shape):
    encoder = stirred(UserEncoder(DIM, shape, max_history=6))
    history, mask = histories(3, 2, 6)
    history.requires_grad_()
    (encoder(history, mask)[0, 0] @ torch.ones(DIM)).backward()
    assert (history.grad[0, :3].abs().sum(dim=1) > 0).all()
    assert (history.grad[0, 3:] == 0).all()
    assert (history.grad[1:] == 0).all()


@SHAPES
def test_an_empty_history_gets_the_learned_vector_and_teaches_it(shape):
    encoder = stirred(UserEncoder(DIM, shape, max_history=6))
    history, mask = histories(0, 4, 0)
    users = encoder(history, mask)[:, 0]
    assert torch.equal(users[0], encoder.empty)
    assert torch.equal(users[2], encoder.empty)
    assert not torch.equal(users[1], encoder.empty)
    users[:2].sum().backward()
    assert torch.equal(encoder.empty.grad, torch.ones(DIM))  # from the first user alone
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())


@SHAPES
@pytest.mark.parametrize("positions", ["recency", "none"])
def test_users_without_any_history_need_no_column(shape, positions):
    shape = FastformerConfig(4, positions=positions, encoder=shape.encoder)
    encoder = stirred(UserEncoder(DIM, shape, max_history=6))
    users = encoder(torch.zeros(2, 0, DIM), torch.zeros(2, 0, dtype=torch.bool))
    assert torch.equal(users, encoder.empty.expand(2, 1, DIM))
    assert encoder(*(t[:0] for t in histories(3))).shape == (0, 1, DIM)


def test_recency_gives_the_newest_click_its_place_however_long_the_history():
    config = FastformerConfig(heads=4, positions="recency")
    encoder = stirred(UserEncoder(DIM, config, max_history=6))
    history, mask = histories(2, 6)
    encoder(history, mask)[0].sum().backward()
    rows = encoder.fastformer.positions.weight.grad.abs().sum(dim=1) > 0
    assert rows.tolist() == [True, True, False, False, False, False]

    # the same clicks with the older two exchanged: another user
    mask = torch.ones(1, 3, dtype=torch.bool)
    exchanged = encoder(history[1:, [1, 0, 2]], mask)
    assert not torch.allclose(encoder(history[1:, :3], mask), exchanged)


def test_no_order_of_clicks_is_seen_by_default():
    assert SMALL.positions == "none"
    encoder = stirred(UserEncoder(DIM, SMALL, max_history=6))
    history, mask = histories(6)
    torch.testing.assert_close(encoder(history.flip(1), mask), encoder(history, mask))
