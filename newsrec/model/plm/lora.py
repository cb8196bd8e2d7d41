"""LoRA (Hu et al., arXiv 2106.09685): trains small adapters beside the weights of a frozen PLM.

An adapted linear map computes ``W x + alpha / rank B A x``. ``B`` starts at zero, so a new model
has the same scores with and without adapters.
"""

import importlib.util
import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from newsrec.errors import MissingPackageError, UserError
from newsrec.model.plm.cut import CutPlm

ADAPTER = "adapter"
"""Name of our adapters in ``peft``, which allows several sets; part of the names of weights."""
BASE = ".base_layer."
"""Part of the name of a weight that has an adapter."""

TARGETS = {
    ("query", "key", "value"): (
        *("albert", "bert", "big_bird", "camembert", "convbert", "data2vec-text", "electra"),
        *("ernie", "esm", "layoutlm", "megatron-bert", "mobilebert", "mra", "nystromformer"),
        *("rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "tapas"),
        *("xlm-roberta", "xlm-roberta-xl", "xmod", "yoso"),
    ),
    ("q", "k", "v"): ("mpnet",),
    ("q_lin", "k_lin", "v_lin"): ("distilbert", "flaubert", "xlm"),
    ("q_proj", "k_proj", "v_proj"): (
        *("esmc", "eurobert", "gte", "jina_embeddings_v3", "nomic_bert"),
        *("llama", "mistral", "qwen2", "qwen3"),
    ),
    ("query_proj", "key_proj", "value_proj"): ("deberta-v2",),
    ("Wqkv",): ("modernbert",),
    ("in_proj",): ("deberta",),
}
"""Names of the linear maps for queries, keys and values -> the families that have them."""


@dataclass(frozen=True)
class LoraConfig:
    """Adapters (LoRA) that are trained in place of the PLM's own weights; needs the package peft.

    Args:
        rank: Rank of the adapters, for example 8; 0 trains the PLM's own weights instead. The
            layers of model.tune_layers get adapters: -1 for all layers, N for the top N. The own
            weights of these layers and everything below them are frozen.
        alpha: An adapter's output is multiplied by alpha / rank.
        dropout: Share of an adapter's inputs that is dropped in training.
        targets: Names of the linear maps of a layer that get adapters, or the ends of the names;
            null adapts queries, keys and values, whatever the PLM's family calls them.
        learning_rate: Peak learning rate of the adapters, in place of model.plm_lr. Adapters start
            at zero and need larger steps than weights that are trained already.
    """

    rank: int = 0
    alpha: float = 16.0
    dropout: float = 0.0
    targets: list[str] | None = None
    learning_rate: float = 2e-4

    @classmethod
    def of(cls, values: "LoraConfig | dict[str, Any]") -> "LoraConfig":
        """Return a config unchanged, or build it from the plain dict in a checkpoint."""
        return values if isinstance(values, cls) else cls(**values)  # type: ignore[arg-type]

    def check(self, tune_layers: int) -> None:
        """Refuse values that no adapters can be built from, or that have no effect.

        Raises:
            UserError: For the first wrong value; names it and what to set.
            MissingPackageError: If there are adapters, and ``peft`` is not installed.
        """
        if type(self.rank) is not int or self.rank < 0:
            raise UserError(
                f"model.lora.rank is {self.rank!r}; give a whole number, for example 8, or 0 for "
                "no adapters."
            )
        if not self.rank:
            for name, value in asdict(self).items():
                if value != getattr(LoraConfig, name):
                    raise UserError(
                        f"model.lora.{name} is {value}, but model.lora.rank is 0, so there are no "
                        f"adapters. Set model.lora.rank 8, or leave model.lora.{name} out."
                    )
            return
        if tune_layers == 0:
            raise UserError(
                f"model.lora.rank is {self.rank}, but model.tune_layers is 0, which trains no "
                "layer. Set model.tune_layers -1 for adapters in all layers or N for the top N, or "
                "leave model.lora.rank out."
            )
        if not 0 < self.alpha < math.inf:
            raise UserError(f"model.lora.alpha is {self.alpha}; it must be above 0.")
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.lora.dropout is {self.dropout}; it must be 0 or more, below 1.")
        if not 0 <= self.learning_rate < math.inf:
            raise UserError(
                f"model.lora.learning_rate is {self.learning_rate}; it must be 0 or more."
            )
        if self.targets is not None and not (self.targets and all(self.targets)):
            raise UserError(
                f"model.lora.targets is {self.targets}; name at least one linear map, or leave it "
                "out for queries, keys and values."
            )
        if importlib.util.find_spec("peft") is None:
            raise MissingPackageError.of("model.lora", "peft", "lora")


def add_adapters(cut: CutPlm, config: LoraConfig) -> None:
    """Add adapters to the tuned layers of a PLM, and freeze all its other weights.

    Args:
        cut: The PLM; with all layers tuned, its embeddings are also frozen, and have no dropout.
        config: Shape of the adapters; its rank is above 0.

    Raises:
        UserError: If the layers do not have the linear maps of ``config``; lists those they have.
            Also if the rank is above theirs.
    """
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    names = _target_names(cut, config)
    for name in names:
        linear: Any = cut.plm.get_submodule(name)
        smaller = min(linear.in_features, linear.out_features)
        if config.rank > smaller:
            raise UserError(
                f"model.lora.rank is {config.rank}, but {name} is a matrix of "
                f"{linear.out_features} times {linear.in_features}, whose rank is at most "
                f"{smaller}. Choose a smaller rank, for example 8."
            )
    options = {"r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout}
    made = PeftConfig(target_modules=names, **options)  # type: ignore[arg-type]
    # Adapters have no values at first. They are never the fake tensors of a memory estimate, since
    # peft cannot move these.
    with unset_fake_temporarily():
        inject_adapter_in_model(made, cut.plm, ADAPTER, low_cpu_mem_usage=True)
    # Adapters are drawn from a forked generator, so other weights start as without adapters.
    with torch.random.fork_rng(devices=[]):
        for name in names:
            adapted: Any = cut.plm.get_submodule(name)
            for part in (adapted.lora_A[ADAPTER], adapted.lora_B[ADAPTER]):
                part.weight = nn.Parameter(adapted.base_layer.weight.new_empty(part.weight.shape))
            adapted.reset_lora_parameters(ADAPTER, init_lora_weights=True)
            # Under autocast peft would copy the input to float32, and autocast would cast it back.
            adapted.cast_input_dtype_enabled = False
    cut.frozen = cut.outside(_adapted_layers(cut))


def describe(cut: CutPlm, config: LoraConfig) -> str:
    """Describe which weights of a PLM with adapters are trained."""
    named = list(cut.plm.named_parameters())
    adapters = sum(p.numel() for _, p in named if p.requires_grad)
    own = sum(p.numel() for _, p in named) - adapters
    depth = cut.plm.config.num_hidden_layers
    layers = depth if cut.tune_layers == -1 else cut.tune_layers
    ends = {name.partition(BASE)[0].rpartition(".")[2] for name, _ in named if BASE in name}
    return (
        f"adapters of rank {config.rank} beside {', '.join(sorted(ends))} of {layers} of {depth} "
        f"layers: {adapters:,} weights are trained, and the PLM's own {own:,} are frozen"
    )


def lowest_adapted(cut: CutPlm) -> set[Tensor]:
    """Return the PLM's own weights that have adapters in the lowest adapted layer.

    With the default targets, the input of these weights is constant and gets no gradient.
    """
    parts: list[Any] = list(_adapted_layers(cut)[0].modules())
    return {part.base_layer.weight for part in parts if hasattr(part, "base_layer")}


def merged_state(module: nn.Module) -> dict[str, Tensor]:
    """Return a model's weights under the names that they have without adapters.

    Args:
        module: A model with a PLM, with adapters or without.

    Returns:
        Names to weights; the adapters are added to the weights beside them.
    """
    merged = {}
    for name, value in module.state_dict().items():
        adapted, base, rest = name.rpartition(BASE)
        if base and rest == "weight":
            layer: Any = module.get_submodule(adapted)
            value = value + layer.get_delta_weight(ADAPTER).detach()
        if not name.endswith((f".lora_A.{ADAPTER}.weight", f".lora_B.{ADAPTER}.weight")):
            merged[f"{adapted}.{rest}" if base else name] = value
    return merged


def _adapted_layers(cut: CutPlm) -> list[nn.Module]:
    try:
        return cut.layers
    except UserError:  # all of ALBERT's layers, which share their weights
        return [cut.plm]


def _target_names(cut: CutPlm, config: LoraConfig) -> list[str]:
    """Return the full names in the PLM of the linear maps that get adapters."""
    layers, family = _adapted_layers(cut), cut.plm.config.model_type
    full = {module: name for name, module in cut.plm.named_modules()}
    linear = [
        (name, full[module])
        for layer in layers
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear)
    ]
    there = f"The linear maps there are {', '.join(Counter(n for n, _ in linear)) or 'none'}."
    wanted = config.targets
    if wanted is None:
        wanted = next((list(names) for names, of in TARGETS.items() if family in of), None)
    if wanted is None:
        raise UserError(
            f"model.lora: newsrec does not know which parts of {family} to adapt. Name them in "
            f"model.lora.targets. {there}"
        )
    found: dict[str, None] = {}
    for target in wanted:
        whole = [place for name, place in linear if name == target]
        ends = whole or [place for name, place in linear if name.endswith(f".{target}")]
        if not ends:
            raise UserError(
                f"model.lora.targets has {target!r}, which no adapted layer of this PLM ({family}) "
                f"has. {there}"
            )
        found |= dict.fromkeys(ends)
    return list(found)
