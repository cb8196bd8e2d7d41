"""Learning rate of each group of parameters, and the schedule of the rates."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from newsrec.console import counted
from newsrec.errors import UserError
from newsrec.model.plm.lora import LoraConfig
from newsrec.model.recommender import NewsRecommender

SCHEDULES = ("linear", "cosine", "constant")
"""Learning rate after the warm-up: falls to 0 linearly, falls to 0 as half a cosine, or stays."""
RATES = {
    "encoders": "lr",
    "plm": "plm_lr",
    "lora": "lora.learning_rate",
    "gates": "gate_lr",
}
"""Part of the model -> the option with its learning rate."""
FUSED_ON = ("cpu", "cuda", "mps", "xpu")
"""Devices on which AdamW updates all parameters in one kernel."""


class Schedule:
    """The learning rate at each step, as a share of its peak.

    The share is above 0 at the first step, rises to 1 at a single step and is above 0 at the last.
    ``warmup`` is the share of all steps in which the rate rises, or the number of these steps if
    above 1. ``steps`` is infinity if it is not known; UserError if shape or warm-up need to know
    it.
    """

    def __init__(self, shape: str, warmup: float, steps: float) -> None:
        if steps == math.inf and (shape != "constant" or 0 < warmup <= 1):
            raise UserError(
                f"model.schedule is {shape} and model.warmup {warmup:g}, which need the number of "
                "steps of the run. Set --trainer.max_epochs or --trainer.max_steps, or choose "
                "model.schedule constant with model.warmup as a number of steps."
            )
        self.shape = shape
        self.steps = steps
        rising = math.ceil(warmup * steps) if warmup <= 1 and warmup else int(warmup)
        self.rising = int(min(rising, max(steps - 1, 0)))

    def __call__(self, step: int) -> float:
        """Return the share of the peak at a step; steps count from 0."""
        if step < self.rising:
            return (step + 1) / (self.rising + 1)
        if self.shape == "constant":
            return 1.0
        left = max(self.steps - step, 0) / max(self.steps - self.rising, 1)
        return left if self.shape == "linear" else (1 - math.cos(math.pi * left)) / 2

    def describe(self) -> str:
        """Describe the schedule in words."""
        then = "constant" if self.shape == "constant" else f"{self.shape} to 0"
        count = "no end" if self.steps == math.inf else counted(int(self.steps), "step")
        return f"{count}, {self.rising:,} of them rising, then {then}"


def parameter_groups(
    recommender: NewsRecommender,
    lr: float,
    plm_lr: float,
    gate_lr: float,
    weight_decay: float,
    lora_lr: float = LoraConfig.learning_rate,
) -> list[dict[str, Any]]:
    """Split trainable parameters by learning rate (PLM or its adapters, gates, others) and decay.

    Gates are the scalar parameters outside the PLM, and the vectors that start at zero, as gates do
    (``NewsRecommender.open_from_zero``). Weight matrices decay; biases, norms, gates and embeddings
    do not. Each group has a name, under which its rate is logged.
    """
    news = recommender.news_encoder
    opening = recommender.open_from_zero()
    rates = {
        parameter: ("gates", gate_lr)
        if not parameter.ndim or any(parameter is one for one in opening)
        else ("encoders", lr)
        for parameter in recommender.parameters()
    }
    of_plm = ("lora", lora_lr) if news.lora.rank else ("plm", plm_lr)
    rates |= dict.fromkeys(news.plm.parameters(), of_plm)
    tables = {m.weight for m in recommender.modules() if isinstance(m, nn.Embedding)}
    groups: dict[tuple[float, float], list[Tensor]] = {}
    names: dict[tuple[float, float], list[str]] = {}
    for parameter, (name, rate) in rates.items():
        if parameter.requires_grad:
            decay = weight_decay if parameter.ndim > 1 and parameter not in tables else 0.0
            name = name if decay == weight_decay else f"{name}_no_decay"
            groups.setdefault((rate, decay), []).append(parameter)
            names.setdefault((rate, decay), []).append(name)
    # Equal rates form one group, to match the optimizer state in checkpoints; its name joins both.
    return [
        {
            "params": parameters,
            "lr": rate,
            "weight_decay": decay,
            "name": "+".join(dict.fromkeys(names[rate, decay])),
        }
        for (rate, decay), parameters in groups.items()
    ]


def peak_rates(groups: list[dict[str, Any]]) -> str:
    """Describe the peak learning rate of each trained part, with the name of its option."""
    rates = {
        name.removesuffix("_no_decay"): group["lr"]
        for group in groups
        for name in group["name"].split("+")
    }
    return ", ".join(f"model.{RATES[part]} {rates[part]:g}" for part in RATES if part in rates)


def adamw(
    groups: list[dict[str, Any]], schedule: Callable[[int], float], fused: bool
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return AdamW and its scheduler, which must be stepped after every optimizer step.

    ``fused`` updates all parameters in one kernel, on devices that support it.
    """
    device = groups[0]["params"][0].device.type
    for group in groups:  # no kernel takes shards and whole weights together
        if len({isinstance(parameter, DTensor) for parameter in group["params"]}) > 1:
            group |= {"fused": False, "foreach": False}
    optimizer = torch.optim.AdamW(groups, fused=fused and device in FUSED_ON)
    # A lambda, because a checkpoint would store the object with its number of steps, and a run that
    # is resumed with more epochs would stay at a rate of 0.
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step))
