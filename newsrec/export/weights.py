"""Writes a model's weights and configuration, and builds the model in PyTorch from them alone."""

import json
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import load_file, save

from newsrec.errors import ModelError
from newsrec.model.plm.load import build_plm, plm_config
from newsrec.model.plm.lora import merged_state
from newsrec.model.recommender import NewsRecommender
from newsrec.model.residual import rename_weights, renamed
from newsrec.serving.folder import ExportFolder
from newsrec.serving.manifest import AGAIN, CONFIG, WEIGHTS, reading
from newsrec.training.checkpoint.kinds import Wrong
from newsrec.training.checkpoint.schema import check_exported
from newsrec.training.module import RecommenderModule

MATCHING_OPTIONS = ("matching", "late_clicks", "interests", "combine")

LATER_OPTIONS = ("appeal", "abstract_tokens", "category_names")
"""Options that are written only if they are used, so that earlier versions can read the file."""

ORIGIN = ("_name_or_path", "transformers_version")
"""Keys of a PLM's configuration that tell where it comes from; they are not exported."""


def write_model(module: RecommenderModule, folder: Path) -> None:
    """Write ``model.safetensors``, with PyTorch's names of weights, and ``config.json``.

    Adapters of the PLM are merged into its weights.
    """
    state = merged_state(module.recommender)
    # Not save_file: only the owner can read its files, and on a full disk it raises an error of its
    # own class.
    (folder / WEIGHTS).write_bytes(save({name: w.contiguous() for name, w in state.items()}))
    plm = plm_config(module.recommender.news_encoder.plm)
    model = {
        "dim": module.dim,
        "tune_layers": module.tune_layers,
        "news": asdict(module.news),
        "user": asdict(module.user),
        "max_tokens": module.max_tokens,
        "max_history": module.max_history,
        "residual": module.residual,
        "user_encoder": module.user_encoder,
    }
    if module.matching != "dot":  # else the file stays as earlier versions can read it
        model |= {name: getattr(module, name) for name in MATCHING_OPTIONS}
    model |= {name: getattr(module, name) for name in LATER_OPTIONS if getattr(module, name)}
    config = {
        "model": model,
        "plm": {name: value for name, value in plm.items() if name not in ORIGIN},
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def load_model(folder: str | Path) -> NewsRecommender:
    """Build the model of an exported folder, in evaluation mode.

    This needs neither training data nor the original PLM. ``newsrec.PretrainedRecommender`` also
    has the tokenizer.

    Args:
        folder: Folder that ``export`` wrote.

    Raises:
        ModelError: If it is not an exported folder, has another format, or was changed.
    """
    exported = ExportFolder(folder)
    config, weights = exported.file(CONFIG), exported.file(WEIGHTS)
    with reading(exported.path):
        return read_model(config, weights)


def read_model(config: Path, weights: Path) -> NewsRecommender:
    """Build a model from the two files that ``write_model`` wrote, in evaluation mode.

    Raises:
        ModelError: If the configuration asks for code or packages, or does not fit the weights.
    """
    options = json.loads(config.read_text(encoding="utf-8"))
    if isinstance(options, dict) and isinstance(options.get("model"), dict):
        options["model"] = renamed(options["model"])
    state = load_file(weights)
    rename_weights(state, "news_encoder.")
    try:
        check_exported(options, state)
    except Wrong as wrong:
        raise ModelError(f"{config} is not as it was written: {wrong}. {AGAIN}") from wrong
    recommender = NewsRecommender(build_plm(options["plm"]), **options["model"])
    recommender.load_state_dict(state)
    return recommender.eval()
