"""Configurations of the presets' PLMs, so that their sizes are known without their files."""

from pathlib import Path
from typing import Any

from newsrec.errors import UserError
from newsrec.plm_source import DEFAULT_PLM, find_plm, first_layers

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
BASE = dict(zip(SIZES, (768, 12, 12, 3072), strict=True))
MINI = dict(zip(SIZES, (384, 6, 12, 1536), strict=True))
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
    """Return the configuration of a PLM's first ``layers``, and whether it was read from its files.

    None uses all layers. UserError if the files of a PLM that is not in ``KNOWN`` are not found.
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
        config |= first_layers(config, layers)
    return config, not known
