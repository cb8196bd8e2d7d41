"""torch.compile makes few kernels, whatever a run's batches look like."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from newsrec.data.batch import Batch
from newsrec.model.fastformer import Fastformer, FastformerConfig
from newsrec.model.plm.load import build_plm
from newsrec.model.recommender import NewsRecommender

pytestmark = pytest.mark.slow
SIZES = [(5, 7), (9, 7), (1, 7), (5, 1), (1, 1), (6, 3), (64, 50), (0, 7), (2, 2), (0, 0)]
"""Users and clicks of a batch; with ``data.batches user`` one may hold a single user."""


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


@pytest.mark.parametrize("positions", ["recency", "none", "learned"])
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


def test_without_the_care_for_small_sizes_dynamo_would_give_up():
    torch._dynamo.reset()
    stack = Fastformer(16, FastformerConfig(heads=2, ffn=16, dropout=0.0), 64)
    kernels = CompileCounter()
    nn.Module.compile(stack, backend=kernels, dynamic=True)
    for _ in outputs(stack):
        pass
    assert kernels.frame_count > 3


def made_recommender(rank):
    """A model of two tuned layers, with stacks of one code that Dynamo counts together."""
    plm = build_plm({
        "model_type": "bert", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64,
    })  # fmt: skip
    shape = FastformerConfig(heads=2, ffn=16, dropout=0.1)
    user = FastformerConfig(heads=2, ffn=16, dropout=0.1, positions="recency")
    return NewsRecommender(plm, 16, -1, shape, user, 12, 10, lora={"rank": rank})


def made_batch(news, users, samples, tokens=12, history=10):
    lengths = np.concatenate([np.zeros(2, np.int64), np.sort(np.arange(news) % (tokens - 2) + 3)])
    random = torch.Generator().manual_seed(news)
    return Batch(
        token_ids=torch.randint(1, 64, (news + 2, tokens), generator=random, dtype=torch.int32),
        token_lengths=lengths,
        token_states=None,
        history=torch.randint(2, news + 2, (users, history), generator=random),
        user=torch.randint(0, users, (samples,), generator=random),
        candidates=torch.randint(2, news + 2, (samples, 5), generator=random),
        labels=torch.eye(5, dtype=torch.int64)[torch.zeros(samples, dtype=torch.int64)],
    )


@pytest.mark.parametrize(("precision", "rank"), [("fp32", 0), ("bf16", 2)])
@torch._dynamo.config.patch(fail_on_recompile_limit_hit=True)
def test_training_validation_and_closing_stay_within_dynamos_limit(monkeypatch, precision, rank):
    torch._dynamo.reset()
    kernels, plain = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda *a, **k: plain(*a, **k | {"backend": kernels}))
    model = made_recommender(rank)
    model.compile_parts()
    batches = [made_batch(*sizes) for sizes in ((30, 6, 8), (41, 1, 8), (23, 2, 2), (2, 1, 1))]
    half = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    made = []
    for _ in range(2):
        model.train()
        for batch in batches:
            with half:
                scores = model(batch)
            scores.float().logsumexp(dim=1).sum().backward()
        model.eval()
        for batch in batches:
            with half, torch.no_grad():
                model(batch)
        made.append(kernels.frame_count)
    assert made[0] == made[1]  # the second epoch needs nothing new
    model.eval()
    for batch in batches:  # the final comparison is in fp32
        with torch.no_grad():
            model(batch)
    assert 4 < kernels.frame_count <= 3 * made[0]
