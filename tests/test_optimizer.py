import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from newsrec.errors import UserError
from newsrec.training.optimizer import Schedule, adamw

shapes = st.sampled_from(["linear", "cosine"])


@settings(max_examples=200)
@given(shape=shapes, warmup=st.floats(0, 1), steps=st.integers(1, 500))
def test_the_rate_rises_to_one_peak_and_falls_and_is_never_zero(shape, warmup, steps):
    shares = [Schedule(shape, warmup, steps)(step) for step in range(steps)]
    top = shares.index(max(shares))
    assert all(0 < share <= 1 for share in shares)
    assert shares[top] == 1
    assert shares.count(1.0) == 1 or shape == "cosine"
    assert shares[: top + 1] == sorted(shares[: top + 1])
    assert shares[top:] == sorted(shares[top:], reverse=True)
    assert top == min(math.ceil(warmup * steps), steps - 1)


def test_a_line_is_a_line_and_a_cosine_half_a_cosine():
    linear, cosine = (Schedule(shape, 4, 14) for shape in ("linear", "cosine"))
    rising = [0.2, 0.4, 0.6, 0.8]
    assert [linear(s) for s in range(4)] == pytest.approx(rising)
    assert [linear(s) for s in range(4, 14)] == pytest.approx([1 - i / 10 for i in range(10)])
    half = [(1 + math.cos(math.pi * i / 10)) / 2 for i in range(10)]
    assert [cosine(s) for s in range(4, 14)] == pytest.approx(half)
    assert linear(14) == cosine(14) == 0  # beyond the end, where nobody trains


def test_a_constant_rate_needs_no_end():
    schedule = Schedule("constant", 3, math.inf)
    assert [schedule(step) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert schedule.describe() == "no end, 3 of them rising, then constant"


@pytest.mark.parametrize(("shape", "warmup"), [("linear", 0), ("cosine", 5), ("constant", 0.1)])
def test_a_run_without_end_is_refused_where_its_end_counts(shape, warmup):
    with pytest.raises(UserError, match="need the number of steps"):
        Schedule(shape, warmup, math.inf)


def test_short_runs_do_not_start_at_the_full_rate():
    assert Schedule("linear", 0.1, 3)(0) == 0.5
    assert Schedule("linear", 0, 3)(0) == 1


def test_adamw_is_that_of_the_textbook():
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    groups = [{"params": [weight], "lr": 0.1, "weight_decay": 0.5}]
    optimizer, scheduler = adamw(groups, lambda step: 1 / (step + 1), fused=True)
    expected, m, v = [1.0, -2.0], [0.0, 0.0], [0.0, 0.0]
    for step in range(1, 4):
        weight.grad = weight.detach() * step
        for i, x in enumerate(expected):
            gradient, lr = x * step, 0.1 / step
            m[i] = 0.9 * m[i] + 0.1 * gradient
            v[i] = 0.999 * v[i] + 0.001 * gradient**2
            x -= lr * 0.5 * x
            m_hat, v_hat = m[i] / (1 - 0.9**step), v[i] / (1 - 0.999**step)
            expected[i] = x - lr * m_hat / (math.sqrt(v_hat) + 1e-8)
        optimizer.step()
        scheduler.step()
    assert weight.tolist() == pytest.approx(expected, abs=1e-6)


def test_a_run_that_goes_on_for_longer_follows_the_longer_schedule():
    def begin(steps):
        groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": 1.0, "weight_decay": 0.0}]
        return adamw(groups, Schedule("linear", 0, steps), fused=False)

    (optimizer, scheduler), (longer, follows) = begin(4), begin(8)
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    assert scheduler.get_last_lr() == [0]
    longer.load_state_dict(optimizer.state_dict())
    # as in a checkpoint, also in one from when the schedule itself was in it
    kept = scheduler.state_dict()
    for lambdas in (kept["lr_lambdas"], [{"shape": "linear", "steps": 4, "rising": 0}]):
        follows.load_state_dict(kept | {"lr_lambdas": lambdas})
        longer.step()
        follows.step()
        assert follows.get_last_lr() == [pytest.approx(3 / 8)]
