"""The options of ``RecommenderModule``: their limits, and those that shape the model."""

import inspect
from typing import Any, get_args

import numpy as np

from newsrec.errors import UserError
from newsrec.model.heads import Combine, Matching
from newsrec.model.recommender import NewsRecommender
from newsrec.model.user_encoders import USER_ENCODERS
from newsrec.training.checkpoint.schema import LARGEST_NUMBER
from newsrec.training.losses import LOSSES
from newsrec.training.optimizer import SCHEDULES

PRECISIONS = ("auto", "fp32", "bf16")
CHOICES = {
    "user_encoder": tuple(USER_ENCODERS),
    "matching": get_args(Matching),
    "combine": get_args(Combine),
    "loss": tuple(LOSSES),
    "schedule": SCHEDULES,
    "precision": PRECISIONS,
}
"""Allowed values of the options that name one of several."""

USED_BY = {"late_clicks": "late", "interests": "interests", "combine": "interests"}
"""The matching that uses an option; others ignore it."""


def check_options(module: Any) -> None:
    """Refuse options that no model can be built or trained with.

    Args:
        module: The ``RecommenderModule``, or another object with its options as attributes.

    Raises:
        UserError: For the first wrong value; names it and what is allowed.
    """
    for name in ("dim", "late_clicks", "interests"):
        if not isinstance(getattr(module, name), int | np.integer):
            raise UserError(f"model.{name} is {getattr(module, name)!r}; give a whole number.")
    if not 1 <= module.dim <= LARGEST_NUMBER:
        must = "must be at least 1" if module.dim < 1 else f"may be at most {LARGEST_NUMBER:,}"
        raise UserError(f"model.dim is {module.dim}; it {must}.")
    for name in ("late_clicks", "interests"):
        if not 1 <= getattr(module, name) <= LARGEST_NUMBER:
            raise UserError(
                f"model.{name} is {getattr(module, name)}; it must be at least 1, and at most "
                f"{LARGEST_NUMBER:,}."
            )
    for name in ("lr", "plm_lr", "gate_lr", "weight_decay"):
        value = getattr(module, name)
        if not 0 <= value < float("inf"):
            raise UserError(f"model.{name} is {value}; it must be 0 or more.")
    warmup = module.warmup
    if not 0 <= warmup < float("inf") or (warmup > 1 and warmup % 1):
        raise UserError(
            f"model.warmup is {warmup}; it is a share of all steps, from 0 to 1, or a number of "
            "steps."
        )
    for name, allowed in CHOICES.items():
        value = getattr(module, name)
        if value not in allowed:
            raise UserError(f"model.{name} is {value!r}. Choose one of {', '.join(allowed)}.")
    _refuse_unused(module)
    module.lora.check(module.tune_layers)
    module.news.check(module.dim, "model.news.")
    module.user.check(module.dim, "model.user.")
    if module.matching == "interests" and module.user.pooling == "mean":
        raise UserError(
            "model.user.pooling is mean, and model.matching is interests, whose vectors differ "
            "only by their attention. Leave model.user.pooling at attention, or choose another "
            "model.matching."
        )


def _refuse_unused(module: Any) -> None:
    """Refuse an option of one matching that was given with another, where it has no effect."""
    defaults = inspect.signature(NewsRecommender).parameters
    for name, matching in USED_BY.items():
        value = getattr(module, name)
        if value != defaults[name].default and module.matching != matching:
            raise UserError(
                f"model.{name} is {value}, but model.matching is {module.matching}, which does not "
                f"use it. Set model.matching {matching}, or leave model.{name} out."
            )


def recommender_options(module: Any) -> dict[str, Any]:
    """Return the arguments of ``NewsRecommender`` other than the PLM, from a module's options."""
    names = inspect.signature(NewsRecommender).parameters
    return {name: getattr(module, name) for name in names if name != "plm"}
