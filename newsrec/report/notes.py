"""What to know beside the metrics of a split, in sentences for the terminal and the page."""

from collections.abc import Mapping
from typing import Any

from newsrec.console import counted
from newsrec.evaluation.intervals import FEWEST_USERS
from newsrec.evaluation.names import BASELINE_NAMES, data_notes
from newsrec.evaluation.rerank import rerank_note


def notes(metrics: Mapping[str, Any]) -> list[str]:
    """Return what to know before reading a split's metrics, one sentence each."""
    split = metrics["split"]
    other = metrics.get("other_data", [])
    lines = []
    for name, window in metrics["trained_on"].items():
        lines.append(f"Trained on {name}, {window}.")
        if split in name.split("+") and split not in other:
            lines.append(
                f"The model was trained on {split}, so its metrics say nothing of new impressions."
            )
    if other:
        lines.append(f"The data of training was not this folder's {' and '.join(other)}.")
    chosen_on = (metrics["selected_on"] or "").split("+")
    if split in chosen_on and split not in other and "auc" in metrics:
        which = "some of these checkpoints" if "ensemble" in metrics else "this checkpoint"
        by = chosen_by(metrics)
        lines.append(f"{split} chose {which}{by}: expect lower metrics on another split.")
    elif "new" in metrics.get("selected_news", "all").split("+") and metrics["selected_on"]:
        lines.append(f"Chosen on {metrics['selected_on']}{chosen_by(metrics)}.")
    lines += data_notes(split, metrics)
    if "fitted" in metrics:
        lines += _how_fitted(metrics["fitted"])
    if "half_life" in metrics:
        lines.append(_half_life(metrics["half_life"]))
    if "rerank" in metrics:
        lines.append(f"The first 10 news items are re-ranked: {rerank_note(metrics['rerank'])}.")
    if "repeats" in metrics:
        lines.append(_repeats(metrics["repeats"]))
    clicks = [f"{name} ({window})" for name, window in metrics.get("clicks_of", {}).items()]
    if clicks:
        lines.append(f"The baseline counts the clicks of {' and '.join(clicks)}.")
    return lines


def _repeats(found: Mapping[str, Any]) -> str:
    """Return how candidates that repeat a click were ranked, and how many there are."""
    how = "ranked last"
    if found["penalty"] != "last":
        how = f"scored {found['penalty']:g} lower"
    repeat = "repeats" if found["candidates"] == 1 else "repeat"
    return (
        f"{counted(found['candidates'], 'candidate')} {repeat} a click (cosine of at least "
        f"{found['threshold']:g}), {how}."
    )


def _half_life(found: Mapping[str, Any]) -> str:
    """Return by which half-life older candidates were lowered, and what chose it."""
    hours, split = found["hours"], found.get("chosen_on")
    if hours is None:
        return f"No half-life has a higher AUC on {split} than none: age counts for nothing."
    lowered = f"Scores are lowered by age, with a half-life of {hours:g} h"
    if split is None:
        return f"{lowered}."
    return f"{lowered}, the best on {split} itself: expect a smaller gain on another split."


def _how_fitted(fitted: Mapping[str, Any]) -> list[str]:
    """Return on what the weights of an ensemble were learned, and which weights mean little."""
    source, members = fitted["learned_on"], fitted["members"]
    lines = [
        f"Weights learned on {source}, {fitted['window']}: "
        f"{counted(fitted['impressions'], 'impression')} of {counted(fitted['users'], 'user')}."
    ]
    if fitted["cross_fitted"]:
        folds = len(members[0]["fold_weights"])
        lines.append(
            f"{source} is also reported, so its users are in {folds} folds, and each fold is "
            "scored with weights learned on the others."
        )
    constant = [row["name"] for row in members if row["constant"]]
    for name in constant:
        lines.append(f"{name} gives all candidates of an impression one score: its weight is 0.")
    if all(row["auc"] <= 0.5 for row in members):
        lines.append(f"No model ranks the clicks of {source} better than chance.")
    if fitted["users"] < FEWEST_USERS:
        lines.append(f"{fitted['users']} users are too few to trust the weights.")
    return lines


def chosen_by(metrics: Mapping[str, Any]) -> str:
    """Return the end of a clause on what chose a checkpoint; empty if all candidates did."""
    news = metrics.get("selected_news", "all")
    some = ", some" if "+" in news else ""
    return f"{some} only by unseen news" if "new" in news.split("+") else ""


def on_unseen(metrics: Mapping[str, Any]) -> list[str]:
    """Return what is known of the news that train has not seen, as lines of text."""
    unseen = metrics.get("unseen")
    if unseen is None:
        return []
    if not unseen["impressions"]:
        return ["No impression has both a clicked and a skipped candidate that train has not seen."]
    auc = f"AUC {unseen['auc']:.4f}"
    best = max(unseen["baselines"].items(), key=lambda row: row[1]["auc"], default=None)
    if best is not None:
        auc += f" ({BASELINE_NAMES.get(best[0], best[0])}: {best[1]['auc']:.4f})"
    return [
        f"Only unseen news: {counted(unseen['candidates'], 'candidate')} that train "
        f"neither shows nor has in a history, in {counted(unseen['impressions'], 'impression')} of "
        f"{counted(unseen['users'], 'user')}; {auc}."
    ]


def can_show(metrics: Mapping[str, Any]) -> list[str]:
    """Return the difference that the split can show, as lines of text."""
    best = max(metrics.get("baselines", {}).items(), key=lambda row: row[1]["auc"], default=None)
    if best is None or best[1].get("auc_detectable") is None:
        return []
    name = BASELINE_NAMES.get(best[0], best[0])
    return [
        f"Against {name}, this split shows a true difference in AUC of "
        f"{best[1]['auc_detectable']:.4f} with a chance of 80 %. Between more similar models "
        "it shows smaller differences (compare prints how small)."
    ]


def counts(metrics: Mapping[str, Any]) -> list[str]:
    """Return the counts that go with the metrics, as lines of text."""
    unknown = f"{counted(metrics['unknown_candidates'], 'candidate')} not among the news."
    if "evaluated" in metrics:
        lines = [
            f"{counted(metrics['impressions'], 'impression')}, {metrics['evaluated']:,} evaluated "
            f"({metrics['single_class']:,} without a clicked or a skipped candidate left out);",
            f"{metrics['tied']:,} with tied scores; {unknown}",
            "Intervals cover the choice of users, not the training seed."
            if metrics["evaluated"]
            else "No impression has both a clicked and a skipped candidate: there are no metrics.",
        ]
        lines += can_show(metrics)
        lines += on_unseen(metrics)
        if 0 < metrics["users"] < FEWEST_USERS:
            were = "user is" if metrics["users"] == 1 else "users are"
            lines.append(f"{metrics['users']} {were} too few for intervals that can be trusted.")
    else:
        lines = [
            f"{metrics['split']} has no labels: {counted(metrics['impressions'], 'impression')} "
            f"ranked, {unknown}"
        ]
    dropped = metrics["dropped_lines"]
    if dropped:
        were = "impression was" if dropped == 1 else "impressions were"
        lines.append(f"{dropped:,} {were} dropped and not ranked: the data cannot be read there.")
    return lines


def oracles_note(oracles: Mapping[str, float]) -> str:
    """Return what a simulated world's oracles reach, the best first."""
    ordered = sorted(oracles.items(), key=lambda pair: -pair[1])
    return (
        "AUC of this world's oracles, each of which knows all but one thing (docs/data.md, Worlds "
        f"of tastes): {', '.join(f'{name} {auc:.4f}' for name, auc in ordered)}."
    )
