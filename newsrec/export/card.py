"""Writes ``README.md``, which the hub shows: the model, its metrics, its limits, its licences."""

import math
import re
from pathlib import Path
from typing import Any

from newsrec.console import counted
from newsrec.evaluation.names import data_notes
from newsrec.export.smaller import described
from newsrec.metrics import METRICS
from newsrec.model.fastformer import FastformerConfig
from newsrec.plm_source import DEFAULT_PLM
from newsrec.serving.catalogue import ARGUMENTS
from newsrec.training.module import RecommenderModule

HUB_METRICS = {
    "auc": ("auc", "AUC"),
    "mrr": ("mrr", "MRR"),
    "ndcg@5": ("ndcg_at_5", "nDCG@5"),
    "ndcg@10": ("ndcg_at_10", "nDCG@10"),
}
"""Type and name on the hub of each metric."""
PLM_LICENCES = {DEFAULT_PLM: "Apache-2.0"}


def model_card(module: RecommenderModule, manifest: dict[str, Any]) -> str:
    """Return the text of the card, with the front matter that the hub reads.

    Args:
        module: The model.
        manifest: Contents of ``manifest.json``.
    """
    origin = manifest["checkpoint"]
    tuned = {0: "frozen", -1: "all layers tuned"}.get(
        module.tune_layers, f"{module.tune_layers} top layers tuned"
    )
    if module.lora.rank:
        tuned += f" by adapters of rank {module.lora.rank}, merged into its weights"
    windows = [f"{split} ({window})" for split, window in origin["windows"].items()]
    place = Path(module.plm)  # a local path means nothing on another machine
    plm = place.name if place.is_absolute() or place.is_dir() else module.plm
    licence = PLM_LICENCES.get(plm, "see where it came from")
    residual = (
        " The PLM's own sentence vector is added to a news item's." if module.residual else ""
    )
    appeal = " A vector for what all users like is added to them." if module.appeal else ""
    own = ""
    if module.abstract_tokens:
        own = f"; its abstract, at most {module.abstract_tokens}, is a text of its own"
    if module.category_names:
        named = " and of its ".join(module.category_names)
        residual += f" A learned vector of its {named} is added."
    news, user = _stack(module.news), _stack(module.user)
    interests = manifest["matching"].get("interests")
    vectors = "as many" if interests is None else f"{interests} vectors of as many"
    fields, data = " + ".join(manifest["fields"]), ", ".join(windows) or "not recorded"
    return f"""---
{_front_matter(plm, manifest)}
---

# News recommender, exported by newsrec {manifest["versions"]["newsrec"]}

A news item's text ({fields}, at most {module.max_tokens} tokens{own}) becomes {module.dim} numbers:
{plm} ({tuned}), then {news}.{residual}
A user's last {module.max_history} clicks become {vectors}: {user}.{appeal}
{_score(manifest["matching"])} ranks news. It is not a probability, and scores of two users cannot
be compared.

{_usage(manifest)}

## Training

- Data: {data}; {counted(origin["step"], "step")}, {counted(origin["epoch"], "epoch")} begun.
- The checkpoint was chosen on: {_chosen_on(origin) or "nothing (the last one was taken)"}.
- Checkpoint SHA-256: {origin["sha256"]}

## Metrics

{_metrics(manifest)}

{_smaller(manifest)}## Limits

- It was trained on one site, one language and the weeks above. Other news is encoded without a
  warning.
- Clicks follow what was shown and where. A score is a guess at the next click, not at what is true,
  good for a user, or worth reading.
- All users without a history share one vector, which does not follow what is popular.
- Vectors of this model and of another must never be mixed: model hash {manifest["model_hash"]}.

## Licences

- Code: Apache-2.0.
- PLM {plm}: {licence}.
- Where it was trained on MIND: Microsoft Research License Terms, for non-commercial research only.
  Titles in news.parquet are that data.
"""


def _front_matter(plm: str, manifest: dict[str, Any]) -> str:
    """Return what the hub reads: tags, the PLM, and the metrics as a ``model-index``."""
    from huggingface_hub import EvalResult, ModelCardData

    found, origin = manifest["metrics"], manifest["checkpoint"]
    split, dataset = origin["selected_on"], origin.get("dataset", "unknown")
    values = {name.removeprefix("val/"): v for name, v in origin.get("metrics", {}).items()}
    if split and origin.get("selected_news", "all") == "new":
        split = f"{split} (unseen news)"
    if found is not None:
        split, dataset = found["split"], found.get("dataset", "unknown")
        values = {name: found[name] for name in METRICS}
    results = [
        EvalResult(
            task_type="news-recommendation",
            task_name="News recommendation",
            dataset_type=re.sub(r"[^a-z0-9]+", "-", dataset.lower()).strip("-") or "unknown",
            dataset_name=dataset,
            dataset_split=split,
            metric_type=kind,
            metric_name=shown,
            metric_value=round(values[name], 6),
        )
        for name, (kind, shown) in HUB_METRICS.items()
        if math.isfinite(values.get(name, math.nan))
    ]
    data = ModelCardData(
        library_name="newsrec",
        tags=["news-recommendation", "recommender-system", "fastformer"],
        base_model=plm if plm.count("/") == 1 else None,
        model_name="newsrec" if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml()).strip()


def _usage(manifest: dict[str, Any]) -> str:
    """Return how to load the folder; without ONNX only PyTorch reads it."""
    served = manifest["encoders"]
    name = "Recommender" if served else "PretrainedRecommender"
    read = dict.fromkeys([*manifest["fields"], *manifest.get("category_names", {})])
    given = ", ".join(f'{ARGUMENTS[field]}=["..."]' for field in read)
    return f"""```python
import newsrec as nr

model = nr.{name}.from_pretrained("...")  # this folder, or this repository's id
vectors = model.encode({given})
```"""


def _stack(config: FastformerConfig) -> str:
    name = {"fastformer": "Fastformer", "transformer": "softmax attention"}[config.encoder]
    return f"{name} ({config.layers} layer{'s' * (config.layers != 1)}) and pooling"


def _chosen_on(origin: dict[str, Any]) -> str | None:
    """Return the split that chose the checkpoint, and by which of its news."""
    split: str | None = origin["selected_on"]
    new = split and origin.get("selected_news", "all") == "new"
    return f"{split}, only by unseen news" if new else split


def _score(matching: dict[str, Any]) -> str:
    if matching["head"] == "late":
        return (
            "Their dot product, mixed with the mean of a news item's products with the "
            f"{matching['clicks']} most similar clicks,"
        )
    kind = {"max": "highest", "logsumexp": "smooth maximum of the"}
    if matching["head"] == "interests":
        return f"The {kind[matching['combine']]} dot product{'s' * (matching['combine'] != 'max')}"
    return "Their dot product"


def _smaller(manifest: dict[str, Any]) -> str:
    """Return how the export was made smaller, and what that costs; empty if it was not."""
    found = manifest.get("smaller")
    if found is None:
        return ""
    return f"""## Smaller than the model

Exported with `{found["options"]}`. {described(found)}.

"""


def _metrics(manifest: dict[str, Any]) -> str:
    found = manifest["metrics"]
    if found is None and manifest["checkpoint"].get("changed"):
        return "None: the weights were changed after the training above."
    if found is None:
        said = manifest["checkpoint"]["metrics"]
        lines = [f"- {name}: {value:.4f}" for name, value in said.items()]
        where = _chosen_on(manifest["checkpoint"])
        return "\n".join(
            [
                f"Of training's last validation, on {where}, without interval (no data folder "
                "with a labelled dev was given):"
                if lines
                else "None: no labelled dev was at hand.",
                "",
                *lines,
            ]
        ).rstrip()
    own = manifest["checkpoint"]["data_fingerprint"].get(found["split"])
    differs = own is not None and own != found["data_fingerprint"]
    other = f" It is another {found['split']} than training's." if differs else ""
    how = "by evaluate" if found.get("by_evaluate") else "through the exported user encoder"
    chosen = " The same split chose the checkpoint: they are too high." if found["selected"] else ""
    lines = [
        f"On {found['split']} ({found['window']}), {counted(found['evaluated'], 'impression')}, "
        f"{how}; the interval covers the choice of users, not the training seed.{chosen}{other}",
        *data_notes(found["split"], found),
        "",
        "| | | 95 % interval |",
        "|---|---|---|",
    ]
    for name in METRICS:
        low, high = found["intervals"][name]
        lines.append(f"| {name} | {found[name]:.4f} | {low:.4f} to {high:.4f} |")
    return "\n".join(lines)
