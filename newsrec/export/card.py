"""Writes ``model_card.md``: the model, its metrics, its limits and its licences."""

from typing import Any

from newsrec.metrics import METRICS
from newsrec.model.fastformer import FastformerConfig
from newsrec.plm_source import DEFAULT_PLM
from newsrec.training.module import RecommenderModule

PLM_LICENCES = {DEFAULT_PLM: "Apache-2.0"}


def model_card(module: RecommenderModule, manifest: dict[str, Any]) -> str:
    """Return the text of the model card.

    Args:
        module: The model.
        manifest: Contents of ``manifest.json``.
    """
    origin = manifest["checkpoint"]
    tuned = {0: "frozen", -1: "all layers tuned"}.get(
        module.tune_layers, f"{module.tune_layers} top layers tuned"
    )
    windows = [f"{split} ({window})" for split, window in origin["windows"].items()]
    licence = PLM_LICENCES.get(module.plm, "see where it came from")
    residual = (
        " The PLM's own sentence vector is added to a news item's." if module.residual else ""
    )
    appeal = " A vector for what all users like is added to them." if module.appeal else ""
    own = ""
    if module.abstract_tokens:
        own = f"; its abstract, at most {module.abstract_tokens}, is a text of its own"
    news, user = _stack(module.news), _stack(module.user)
    interests = manifest["matching"].get("interests")
    vectors = "as many" if interests is None else f"{interests} vectors of as many"
    fields, data = " + ".join(manifest["fields"]), ", ".join(windows) or "not recorded"
    return f"""# News recommender, exported by newsrec {manifest["versions"]["newsrec"]}

A news item's text ({fields}, at most {module.max_tokens} tokens{own}) becomes {module.dim} numbers:
{module.plm} ({tuned}), then {news}.{residual}
A user's last {module.max_history} clicks become {vectors}: {user}.{appeal}
{_score(manifest["matching"])} ranks news. It is not a probability, and scores of two users cannot
be compared.

## Training

- Data: {data}; {origin["step"]:,} steps, {origin["epoch"]} epochs begun.
- The checkpoint was chosen on: {_chosen_on(origin) or "nothing (the last one was taken)"}.
- Checkpoint SHA-256: {origin["sha256"]}

## Metrics

{_metrics(manifest)}

## Limits

- It was trained on one site, one language and the weeks above. Other news is encoded without a
  warning.
- Clicks follow what was shown and where. A score is a guess at the next click, not at what is true,
  good for a user, or worth reading.
- All users without a history share one vector, which does not follow what is popular.
- Vectors of this model and of another must never be mixed: model hash {manifest["model_hash"]}.

## Licences

- Code: Apache-2.0.
- PLM {module.plm}: {licence}.
- Where it was trained on MIND: Microsoft Research License Terms, for non-commercial research only.
  Titles in news.parquet are that data.
"""


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


def _metrics(manifest: dict[str, Any]) -> str:
    found = manifest["metrics"]
    if found is None:
        said = manifest["checkpoint"]["metrics"]
        lines = [f"- {name}: {value:.4f}" for name, value in said.items()]
        where = _chosen_on(manifest["checkpoint"])
        return "\n".join(
            [
                f"Of training's last validation, on {where}, without interval (no --data.root with "
                "a labelled dev was given):"
                if lines
                else "None: no labelled dev was at hand.",
                "",
                *lines,
            ]
        ).rstrip()
    own = manifest["checkpoint"]["data_fingerprint"].get(found["split"])
    differs = own is not None and own != found["data_fingerprint"]
    other = f" It is another {found['split']} than training's." if differs else ""
    chosen = " The same split chose the checkpoint, so they flatter." if found["selected"] else ""
    lines = [
        f"On {found['split']} ({found['window']}), {found['evaluated']:,} impressions, through the "
        f"exported user encoder; the interval covers the choice of users, not the training "
        f"seed.{chosen}{other}",
        "",
        "| | | 95 % interval |",
        "|---|---|---|",
    ]
    for name in METRICS:
        low, high = found["intervals"][name]
        lines.append(f"| {name} | {found[name]:.4f} | {low:.4f} to {high:.4f} |")
    return "\n".join(lines)
