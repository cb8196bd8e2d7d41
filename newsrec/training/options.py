"""The options of ``RecommenderModule``, their limits, and those that shape the model."""

import inspect
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from newsrec.errors import UserError
from newsrec.model.fastformer import FastformerConfig
from newsrec.model.heads import Combine, Matching
from newsrec.model.plm.lora import LoraConfig
from newsrec.model.recommender import NewsRecommender
from newsrec.model.user_encoders import USER_ENCODERS
from newsrec.plm_source import DEFAULT_PLM
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


@dataclass(eq=False, repr=False)
class ModelOptions:
    """The options of ``RecommenderModule``.

    Args:
        plm: Pretrained language model (PLM): a folder, or a name on the Hugging Face hub.
        plm_layers: Number of the PLM's first layers to use; null uses all.
        tune_layers: Number of the PLM's top layers to train: 0 freezes the PLM, -1 trains all of it
            and its embeddings.
        dim: Size of news and user vectors.
        news: Fastformer over the tokens of a news item.
        user: Fastformer over the clicked news of a user.
        residual: Whether the PLM's own sentence vectors bypass the encoders. Training then starts
            from the centred cosine of these vectors, in dim directions of the PLM's, and gates that
            are closed at first let in the output of the encoders.
        lora: Small adapters that are trained in place of the tuned layers' own weights.
        checkpoint_activations: Whether the PLM's tuned layers run again in the backward pass
            instead of keeping their activations: less memory, more time, the same gradients.
            Ignored when no layer is tuned.
        torch_compile: Whether to compile the PLM's layers and the encoders with torch.compile, for
            any number of news items and tokens. The first steps then take minutes, and a CPU needs
            a C++ compiler.
        user_encoder: Kind of user encoder: fastformer.
        matching: How user and candidate become a score: dot, the product of their vectors; late,
            this product mixed with the mean of the candidate's products with the most similar
            clicks; interests, the highest product with several vectors of the user.
        late_clicks: Number of the most similar clicks that late averages.
        interests: Number of vectors per user that interests makes.
        combine: How interests makes one score of its products: logsumexp, a smooth maximum with a
            learned temperature, or max.
        appeal: Whether a learned vector, what all users like, is added to every user vector. It
            also ranks news for users without clicks.
        loss: Training loss: cross_entropy of picking the clicked candidate among npratio skipped
            ones; in_batch, the same with other samples' clicked news as further negatives; or
            impression, cross-entropy over all candidates of an impression and all its clicks.
        lr: Peak learning rate of all parameters outside the PLM and the gates.
        plm_lr: Peak learning rate of the PLM.
        gate_lr: Peak learning rate of the residual path's gates and scale, three numbers, and of
            the mix of late, the temperature of interests and the vector of appeal.
        weight_decay: Weight decay of AdamW; applies only to weight matrices.
        warmup: Share of all steps in which the learning rate rises, or the number of these steps if
            above 1.
        schedule: Learning rate after the warm-up: linear or cosine decay to 0, or constant.
        precision: Training precision, unless trainer.precision is set: fp32, bf16, or auto. With
            auto, fit briefly times matrix products of the model's shapes in both and takes bf16 if
            it is at least 1.3 times as fast. Weights, softmaxes and the loss are always fp32. A
            resumed run keeps its precision.
        max_tokens: Longest text, in tokens; on the command line set data.max_tokens instead.
        max_history: Longest history, in clicks; on the command line set data.max_history instead.
        abstract_tokens: Longest abstract, in tokens, that is read as a text of its own; on the
            command line set data.abstract_tokens instead.
    """

    plm: str = DEFAULT_PLM
    plm_layers: int | None = None
    tune_layers: int = 0
    dim: int = 256
    news: FastformerConfig = FastformerConfig()  # noqa: RUF009, a factory hides the values
    user: FastformerConfig = FastformerConfig(positions="recency")  # noqa: RUF009
    residual: bool = True
    lora: LoraConfig = LoraConfig()  # noqa: RUF009
    checkpoint_activations: bool = False
    torch_compile: bool = False
    user_encoder: str = "fastformer"
    matching: Matching = "dot"
    late_clicks: int = 5
    interests: int = 4
    combine: Combine = "logsumexp"
    appeal: bool = False
    loss: str = "cross_entropy"
    lr: float = 1e-4
    plm_lr: float = 1e-5
    gate_lr: float = 1e-2
    weight_decay: float = 0.01
    warmup: float = 0.1
    schedule: str = "linear"
    precision: str = "auto"
    max_tokens: int = 32
    max_history: int = 50
    abstract_tokens: int = 0

    def __post_init__(self) -> None:
        self.news, self.user = FastformerConfig.of(self.news), FastformerConfig.of(self.user)
        self.lora = LoraConfig.of(self.lora)
        check_options(self)


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
