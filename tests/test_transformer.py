"""The softmax twin against its equations, and how the work of both grows with the length."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from newsrec.errors import UserError
from newsrec.model.fastformer import Fastformer, FastformerConfig
from newsrec.model.transformer import SoftmaxAttention

BENCHMARK = Path(__file__).parent / "benchmarks" / "attention.py"
DIM = 8


def reference(x, w, heads):
    """Self-attention of one sequence without padding ``[length, dim]``, an element at a time."""
    q, k, v = (x @ w[f"{n}.weight"].T + w[f"{n}.bias"] for n in ("query", "key", "value"))
    e = x.shape[1] // heads
    mixed = np.zeros_like(x)
    for head in range(heads):
        part = slice(head * e, (head + 1) * e)
        for i in range(len(x)):
            logits = np.array([q[i, part] @ k[j, part] / np.sqrt(e) for j in range(len(x))])
            weights = np.exp(logits - logits.max())
            mixed[i, part] = weights @ v[:, part] / weights.sum()
    return mixed


@settings(max_examples=200, deadline=None)
@given(
    mask=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=3),
    length=st.integers(1, 5),
    heads=st.sampled_from([1, 2, 4, 8]),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
    seed=st.integers(0, 2**31),
)
def test_attention_follows_the_equations_for_any_mask(mask, length, heads, scale, seed):
    torch.manual_seed(seed)
    attention = SoftmaxAttention(DIM, heads).double()
    weights = {name: value.numpy() for name, value in attention.state_dict().items()}
    mask = torch.tensor(mask)[:, :length]
    x = scale * torch.randn(*mask.shape, DIM, dtype=torch.float64)
    mixed = attention(x, mask)
    assert mixed.isfinite().all()
    for row, real in enumerate(mask):
        if real.any():
            expected = reference(x[row, real].numpy(), weights, heads)
            np.testing.assert_allclose(
                mixed[row, real].detach().numpy(), expected, rtol=1e-10, atol=1e-10
            )


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
def test_a_row_of_padding_is_finite_in_every_backend(backend):
    attention = SoftmaxAttention(DIM, heads=2)
    x = torch.ones(2, 3, DIM, requires_grad=True)
    mask = torch.tensor([[False] * 3, [True, True, False]])
    with sdpa_kernel([backend, SDPBackend.MATH]):
        mixed = attention(x, mask)
    mixed.sum().backward()
    assert mixed.isfinite().all()
    assert x.grad.isfinite().all()


def test_the_twin_differs_in_its_attention_alone():
    def shapes(encoder):
        config = FastformerConfig(4, 2, 12, positions="recency", encoder=encoder)
        stack = Fastformer(16, config, max_length=5)
        return {name: p.shape for name, p in stack.named_parameters()}

    fastformer, transformer = shapes("fastformer"), shapes("transformer")
    differ = fastformer.items() ^ transformer.items()
    assert {name.split(".", 2)[2].rpartition(".")[0] for name, _ in differ} == {
        "attention.query_score",
        "attention.key_score",
        "attention.transform",
        "attention.value",
    }


def test_heads_that_do_not_divide_dim_are_refused_by_name():
    with pytest.raises(UserError, match=r"heads is 3.*dim, 8"):
        SoftmaxAttention(DIM, heads=3)


def work(encoder, length):
    """Floating point operations of a layer, forward and backward, over sequences of a length."""
    stack = Fastformer(32, FastformerConfig(4, ffn=32, encoder=encoder), max_length=1)
    x, mask = torch.randn(2, length, 32), torch.ones(2, length, dtype=torch.bool)
    # The fused kernels of the CPU are not counted; the plain one does the same multiplications.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        stack(x, mask).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("length", [32, 128, 512])
def test_the_work_of_fastformer_is_linear_and_that_of_softmax_attention_is_more(length):
    once, twice = work("fastformer", length), work("fastformer", 2 * length)
    assert twice / once == pytest.approx(2, rel=0.01)
    once, twice = work("transformer", length), work("transformer", 2 * length)
    # forward and backward: 6 multiplications by [length, length], at 2 operations of 32 each
    linear, square = once - 2 * 12 * 32 * length**2, 2 * 12 * 32 * length**2
    assert twice == 2 * linear + 4 * square


@pytest.mark.slow
def test_the_benchmark_prints_both_and_draws_them(monkeypatch, capsys, tmp_path):
    figure = tmp_path / "attention.png"
    options = ["--lengths", "8", "32", "--tokens", "64", "--dim", "16", "--heads", "2"]
    monkeypatch.setattr(sys, "argv", [str(BENCHMARK), *options, "--figure", str(figure)])
    runpy.run_path(str(BENCHMARK), run_name="__main__")
    result = json.loads(capsys.readouterr().out)
    measured = [(row["encoder"], row["length"], row["sequences"]) for row in result["results"]]
    assert measured == [
        (encoder, length, 64 // length)
        for length in (8, 32)
        for encoder in ("fastformer", "transformer")
    ]
    assert all(row["seconds"] > 0 for row in result["results"])
    assert figure.read_bytes().startswith(b"\x89PNG")
