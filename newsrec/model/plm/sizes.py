"""Configurations of the presets' PLMs, so that their sizes are known without their files."""

from pathlib import Path
from typing import Any

from newsrec.errors import UserError
from newsrec.plm_source import DEFAULT_PLM, find_plm

BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
MINI = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}
BERT = {"model_type": "bert", "vocab_size": 30_522, "max_position_embeddings": 512}
ROBERTA = {
    "model_type": "roberta",
    "vocab_size": 50_265,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}
KNOWN: dict[str, dict[str, Any]] = {
    DEFAULT_PLM: BERT | MINI,
    "thenlper/gte-base": BERT | BASE,
    "BAAI/bge-base-en-v1.5": BERT | BASE,
    "FacebookAI/roberta-base": ROBERTA | BASE,
    "sentence-transformers/all-distilroberta-v1": ROBERTA | BASE | {"num_hidden_layers": 6},
    "microsoft/mpnet-base": BASE
    | {"model_type": "mpnet", "vocab_size": 30_527, "max_position_embeddings": 514},
}
"""Sizes of these models from their ``config.json``; all else is the default of their family."""


def plm_sizes(name: str, layers: int | None = None) -> tuple[dict[str, Any], bool]:
    """Return a PLM's configuration, and whether it was read from the PLM's files.

    Args:
        name: A folder, or a name on the Hugging Face hub.
        layers: Number of first layers to use; None uses all.

    Raises:
        UserError: If the PLM is not in ``KNOWN`` and its files cannot be found.
    """
    known = name in KNOWN and not Path(name).is_dir()
    if known:
        config = dict(KNOWN[name])
    else:
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(find_plm(name)).to_dict()
        except (OSError, ValueError) as error:
            raise UserError(
                f"model.plm: the configuration of {name!r} cannot be found. Name a folder written "
                f"by save_pretrained, or one of {', '.join(KNOWN)}, whose sizes are known."
            ) from error
    if layers is not None:
        config["num_hidden_layers"] = layers
    return config, not known
