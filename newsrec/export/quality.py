"""The metrics of ``evaluate`` that a saved model is published with, and what refuses them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from newsrec.errors import UserError
from newsrec.export.catalogue import reported


def quality(
    metrics: Mapping[str, Any] | str | Path,
    origin: Mapping[str, Any],
    changed: bool,
    root: str | Path,
) -> dict[str, Any]:
    """Return metrics as a manifest keeps them.

    Args:
        metrics: Result of ``evaluate``, or the path of its ``metrics.json``.
        origin: ``checkpoint`` of a manifest.
        changed: Whether the weights were changed since the checkpoint was written.
        root: Data folder of the training.

    Raises:
        UserError: If the metrics are not those of this model, or there are none.
    """
    if isinstance(metrics, str | Path):
        metrics = _read(metrics)
    if metrics.get("checkpoint_sha256") != origin["sha256"]:
        raise UserError(
            f"metrics are those of the checkpoint {metrics.get('checkpoint_sha256')}, and the "
            f"model is from {origin['sha256']}. Give the metrics of this model."
        )
    if changed:
        raise UserError(
            "metrics are those of the checkpoint, but the weights were changed since. Leave "
            "metrics out."
        )
    if "repeats" in metrics or metrics.get("half_life", {}).get("hours"):
        option = "repeat_threshold" if "repeats" in metrics else "half_life"
        raise UserError(
            f"metrics are those with {option}, and the model itself lowers no score. Evaluate "
            f"it without {option}."
        )
    if "auc" not in metrics:
        raise UserError(
            f"metrics has no auc: {metrics.get('split')} has no labels, or no impression that "
            "could be evaluated. Evaluate a split with labels."
        )
    own = origin["data_fingerprint"].get(metrics["split"]) == metrics["data_fingerprint"]
    selected = own and origin["selected_on"] == metrics["split"]
    return reported(metrics, root) | {"selected": selected, "by_evaluate": True}


def _read(path: str | Path) -> dict[str, Any]:
    try:
        metrics = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        metrics = None
    if not isinstance(metrics, dict):
        raise UserError(
            f"metrics is {str(path)!r}, which is not a metrics.json that evaluate wrote. Give its "
            "path, or the result of evaluate."
        )
    return metrics
