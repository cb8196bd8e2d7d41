"""torch.compile makes few kernels, whatever a run's batches look like."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from newsrec.model.fastformer import Fastformer, FastformerConfig

SIZES = [(5, 7), (9, 7), (1, 7), (5, 1), (1, 1), (6, 3), (64, 50), (0, 7), (2, 2), (0, 0)]
"""Users and clicks of a batch; with ``group_by_user`` one may hold a single user."""


def outputs(stack):
    """What a stack gives in every mode that a run has, with gradients where they are asked for."""
    random = torch.Generator().manual_seed(0)
    for training, grad, wanted in ((True, True, True), (True, True, False), (False, False, False)):
        stack.train(training)
        for batch, length in SIZES:
            x = torch.randn(batch, length, 16, generator=random).requires_grad_(wanted)
            mask = torch.rand(batch, length, generator=random) > 0.3
            with torch.set_grad_enabled(grad):
                yield stack(x, mask).detach()


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("none", "learned")]


@pytest.mark.parametrize("positions", ["recency", *SLOW])
def test_a_stack_is_compiled_once_for_each_mode(positions):
    torch._dynamo.reset()
    config = FastformerConfig(heads=2, ffn=16, dropout=0.0, positions=positions)
    stack = Fastformer(16, config, 64)
    compiled, kernels = copy.deepcopy(stack), CompileCounter()
    compiled.compile(backend=kernels, dynamic=True)
    for found, expected in zip(outputs(compiled), outputs(stack), strict=True):
        torch.testing.assert_close(found, expected)
    assert 1 <= kernels.frame_count <= 3
    assert compiled.state_dict().keys() == stack.state_dict().keys()


@pytest.mark.slow
def test_without_the_care_for_small_sizes_dynamo_would_give_up():
    torch._dynamo.reset()
    stack = Fastformer(16, FastformerConfig(heads=2, ffn=16, dropout=0.0), 64)
    kernels = CompileCounter()
    nn.Module.compile(stack, backend=kernels, dynamic=True)
    for _ in outputs(stack):
        pass
    assert kernels.frame_count > 3
