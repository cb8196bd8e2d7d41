"""Loads a PLM from its files, or builds it from the configuration in a checkpoint."""

import json
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.models.auto import modeling_auto

from newsrec.errors import ModelError
from newsrec.model.plm.transformers_internals import first_position
from newsrec.plm_source import find_plm, first_layers, sentence_pooling, unavailable

DECODERS = ("llama", "mistral", "qwen2", "qwen3")
"""Families whose tokens see only those before them, and that newsrec can read."""


def load_plm(name: str, layers: int | None = None) -> PreTrainedModel:
    """Load a PLM's first ``layers``, all if None, in float32, without the pooler that we never use.

    A PLM that cannot be loaded, is not a text encoder, or has fewer layers is refused.
    """
    source = find_plm(name)
    cut: dict[str, Any] = {}
    try:
        if layers is not None:
            config = AutoConfig.from_pretrained(source)
            depth = config.num_hidden_layers
            if not 1 <= layers <= depth:
                raise ModelError(
                    f"model.plm_layers is {layers}, but {name!r} has {depth} layers. Choose 1 to "
                    f"{depth}, or null for all."
                )
            cut = first_layers(config.to_dict(), layers)
        plm, found = AutoModel.from_pretrained(
            source,
            dtype=torch.float32,
            output_loading_info=True,
            **cut,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise unavailable(name, error) from error
    kind = _other_kind(plm)
    if kind is not None:
        raise ModelError(
            f"model.plm: {name!r} ({plm.config.model_type}) is {kind}, not a text encoder. Name "
            "one like BERT, RoBERTa, MPNet, ModernBERT or Qwen3."
        )
    missing = sorted(key for key in found["missing_keys"] if not key.startswith("pooler."))
    if missing:  # transformers would fill them with random numbers
        raise ModelError(
            f"model.plm: the files of {name!r} lack {len(missing)} of the model's weights, such as "
            f"{missing[0]}. Download them again, or name another PLM."
        )
    plm = _without_pooler(plm)
    if plm.config.model_type in DECODERS:
        plm.config.sentence_pooling = sentence_pooling(source)
    return plm


def build_plm(config: dict[str, Any]) -> PreTrainedModel:
    """Build a PLM with random weights from the configuration that a checkpoint stores."""
    values = dict(config)
    return _without_pooler(AutoModel.from_config(AutoConfig.for_model(**values)))


def plm_config(plm: PreTrainedModel) -> dict[str, Any]:
    """Return a PLM's configuration as plain values, the argument of ``build_plm``."""
    return json.loads(plm.config.to_json_string(use_diff=False))


def _other_kind(plm: PreTrainedModel) -> str | None:
    """Describe a model that is not a bidirectional text encoder; None if it is one."""
    config = plm.config
    if config.is_encoder_decoder:
        return "an encoder with a decoder (seq2seq)"
    if plm.main_input_name != "input_ids":
        return "a model without token ids as input"
    both_ways = {*modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, "xlnet"}
    causal = {*modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES} - both_ways
    if (
        config.model_type in causal
        and config.model_type not in DECODERS
        and not getattr(config, "use_bidirectional_attention", False)
    ):
        return f"a decoder of a family that newsrec does not know (it knows {', '.join(DECODERS)})"
    return None


def _without_pooler(plm: PreTrainedModel) -> PreTrainedModel:
    """Drop the pooler: it gets no gradient, and DDP would fail on the second step."""
    if plm.config.model_type in DECODERS:
        plm.config.use_cache = False  # it would keep keys and values for tokens to come
    if getattr(plm, "pooler", None) is not None:
        plm.pooler = nn.Identity()  # some families call the pooler unconditionally
    return plm


def longest_text(plm: PreTrainedModel) -> int | None:
    """Return how many tokens a PLM can read; None if it has no limit."""
    limit = getattr(plm.config, "max_position_embeddings", None)
    if limit is None or limit < 0:
        return None
    return limit - first_position(plm)
