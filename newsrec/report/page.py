"""Build ``report.html``: the content of ``metrics.json`` as a single page to read or send."""

from collections.abc import Mapping, Sequence
from typing import Any

from newsrec.console import clipped, counted
from newsrec.evaluation.intervals import FEWEST_USERS
from newsrec.evaluation.names import BASELINE_NAMES, HEADINGS
from newsrec.evaluation.results import ENTROPY
from newsrec.report.beyond import (
    LONG,
    SHORT,
    best_baseline,
    beyond_names,
    beyond_notes,
    beyond_rows,
)
from newsrec.report.error_analysis import baseline_name, error_notes
from newsrec.report.examples import Example
from newsrec.report.notes import chosen_by, counts, notes
from newsrec.report.page_rows import (
    WEAKEST,
    Curves,
    Group,
    accuracy_lines,
    beyond_groups,
    bin_lines,
    legend,
    loss_groups,
    oracle_dots,
    slice_groups,
    training_curves,
    weakest,
)
from newsrec.report.pictures import Axis, Dot, render_page
from newsrec.report.recommendations import WITHOUT_CLICKS
from newsrec.report.terminal import CEILING, in_precision, scored_name
from newsrec.report.trade_off import trade_off_note, trade_off_pictures, trade_off_rows
from newsrec.simulation.oracles import ORACLES

NAMED = 3
"""Most groups that the first lines of the page name as weak."""
SECTIONS = {
    "Accuracy": ("accuracy", "accuracy"),
    "Baselines": ("baselines", "beside"),
    "Groups": ("groups", "slices"),
    "Errors": ("errors", "errors"),
    "Beyond accuracy": ("beyond", "beyond_groups"),
    "Trade-off": ("trade-off", "trade_off"),
    "Training": ("training", "curves"),
    "Examples": ("examples", "examples"),
    "Baseline better": ("losses", "losses"),
    "What was evaluated": ("facts", "facts"),
}
"""Name of each section -> its id, and the value without which it is left out."""


def html_page(
    title: str,
    metrics: Mapping[str, Any],
    ceiling: Mapping[str, float] | None,
    examples: Sequence[Example],
    curves: Curves | None,
    oracles: Mapping[str, float] | None = None,
    losses: Sequence[Example] = (),
    config: str | None = None,
) -> str:
    """Return the page of a split's results; without labels it has only counts and examples.

    ``ceiling``, ``curves``, ``oracles`` and ``config``, the text of the run's configuration, are
    left out if None. ``losses`` are further examples: impressions that the best baseline ranks
    better.
    """
    own, evaluated = scored_name(metrics), "intervals" in metrics
    heading = f"{own[:1].upper()}{own[1:]} on {metrics['split']}, {metrics['window']}"
    accuracy = accuracy_lines(metrics, own, ceiling) if evaluated else []
    known = oracle_dots(oracles, metrics["auc"]) if oracles and "auc" in metrics else {}
    slices = slice_groups(metrics) if evaluated else []
    groups = [group for each in slices for group in each.groups]
    weak, trade_off = weakest(groups), metrics.get("trade_off")
    values: dict[str, Any] = {
        **{"title": title, "heading": heading + in_precision(metrics), "metrics": metrics},
        **{"verdict": _verdict(metrics, ceiling, weak), "notes": notes(metrics), "own": own},
        **{"counts": counts(metrics), "oracles": known, "ORACLES": ORACLES},
        "oracle_axis": Axis.across(known.values(), "o"),
        "accuracy": accuracy,
        "accuracy_axis": Axis.across((line.dot for line in accuracy), "a"),
        "kinds": legend((line.dot for line in accuracy), own),
        **_baselines(metrics, own, ceiling),
        **{"slices": slices, "num_groups": len(groups), "weak": weak},
        "group_axis": Axis.across((group.dot for group in groups if group.dot), "g"),
        **_errors(metrics.get("errors") or {"reliability": None, "drift": None}),
        **_beyond(metrics, own),
        "trade_off": trade_off_rows(trade_off) if trade_off else {},
        "trade_off_note": trade_off_note(metrics) if trade_off else "",
        "trade_offs": trade_off_pictures(trade_off) if trade_off else [],
        **{"curves": training_curves(curves or {}), "examples": examples, "losses": losses},
        "explained": any(candidate.reasons for each in examples for candidate in each.candidates),
        **{"facts": _facts(metrics, title), "config": config, "WITHOUT_CLICKS": WITHOUT_CLICKS},
        **{"HEADINGS": HEADINGS, "FEWEST_USERS": FEWEST_USERS, "WEAKEST": WEAKEST},
    }
    sections = {name: id_ for name, (id_, content) in SECTIONS.items() if values[content]}
    return render_page("page.html.j2", sections=sections, **values)


def _baselines(
    metrics: Mapping[str, Any], own: str, ceiling: Mapping[str, float] | None
) -> dict[str, Any]:
    """Return the values of the page's comparison with the baselines."""
    baselines, unseen = metrics.get("baselines", {}), metrics.get("unseen", {})
    beside = {BASELINE_NAMES.get(name, name): row for name, row in baselines.items()}
    if baselines:
        beside |= {own: metrics} | ({CEILING: ceiling} if ceiling else {})
    dots = {}
    for name, row in beside.items():
        bounds, kind = row.get("intervals", {}).get("auc"), "strong" * (name == own)
        dots[name] = Dot(name, row["auc"], bounds, kind, reference=metrics["auc"])
    on_unseen = unseen.get("baselines", {}) | ({"": unseen} if "auc" in unseen else {})
    return {
        "beside": beside,
        "beside_dots": dots,
        "beside_axis": Axis.across(dots.values(), "b"),
        "on_unseen": {BASELINE_NAMES.get(n, n) or own: row["auc"] for n, row in on_unseen.items()},
    }


def _errors(errors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the page's section on errors."""
    less, bins, said = loss_groups(errors), bin_lines(errors), error_notes(errors)
    lost = {row["impression_id"]: row["baseline_auc"] for row in errors.get("impressions", ())}
    return {
        **{"errors": less or bins or said, "less": less, "bins": bins, "error_notes": said},
        "less_axis": Axis.across((group.dot for group in less), "l"),
        "bin_axis": Axis.across((bin_.dot for bin_ in bins), "p"),
        **{"against": baseline_name(errors), "lost": lost},
    }


def _beyond(metrics: Mapping[str, Any], own: str) -> dict[str, Any]:
    """Return the values of the page's section on metrics beyond accuracy."""
    groups, best = beyond_groups(metrics), best_baseline(metrics)
    return {
        **{"beyond_groups": groups, "best": BASELINE_NAMES.get(best, best)},
        **{"beyond": beyond_rows(metrics), "SHORT": SHORT, "LONG": LONG},
        **{"beyond_names": beyond_names(metrics), "beyond_notes": beyond_notes(metrics)},
        "kinds_beyond": legend((line.dot for group in groups for line in group.lines), own),
    }


def _verdict(
    metrics: Mapping[str, Any], ceiling: Mapping[str, float] | None, weak: Sequence[Group]
) -> list[str]:
    """Return what the page says first: the AUC, how far it is from others, and weak groups."""
    if "intervals" not in metrics:
        return []
    low, high = metrics["intervals"]["auc"]
    said = [f"AUC {metrics['auc']:.4f} (95 % interval {low:.4f} to {high:.4f})."]
    best = best_baseline(metrics)
    if best:
        row = metrics["baselines"][best]
        low, high = row["auc_difference_interval"]
        apart, name = row["auc_difference"], BASELINE_NAMES.get(best, best)
        side = "above" if apart >= 0 else "below"
        shown = "" if low > 0 or high < 0 else ", so this split does not show which is better"
        if metrics["users"] < FEWEST_USERS:
            shown = f", of {counted(metrics['users'], 'user')}, too few to trust the interval"
        said.append(
            f"That is {abs(apart):.4f} {side} the best baseline, {name} ({low:+.4f} to "
            f"{high:+.4f}){shown}."
        )
    if ceiling:
        said.append(
            f"The best AUC that is possible in this simulated world is {ceiling['auc']:.4f}."
        )
    if weak:
        named = [
            f"{clipped(group.slice)}: {clipped(group.name)} ({group.row['auc']:.4f})"
            for group in weak[:NAMED]
        ]
        said.append(f"It is weakest on these groups: {', '.join(named)}.")
    return said


def _facts(metrics: Mapping[str, Any], title: str) -> dict[str, str]:
    trained = [f"{name}, {window}" for name, window in metrics["trained_on"].items()]
    found = metrics.get("checkpoint_sha256", "-")
    hashes = found if isinstance(found, list) else [found]
    by_auto = ", chosen by auto" if metrics.get("precision_by_auto") else ""
    facts = {
        "scored": title,
        "split": f"{metrics['split']}, {metrics['window']}",
        "trained on": "; ".join(trained) or "nothing",
        "selected on": (metrics["selected_on"] or "nothing") + chosen_by(metrics),
        "precision": f"{metrics['precision']}{by_auto}" if metrics["precision"] else "-",
        "checkpoint": f"SHA-256 {', '.join(hashes)}",
        "data": f"fingerprint {metrics['data_fingerprint']}",
    }
    if "fitted" in metrics:
        weights = [f"{row['weight']:.3f} {row['name']}" for row in metrics["fitted"]["members"]]
        facts["weights"] = "; ".join(weights)
    for key, name in (
        ("impressions", "impressions"),
        ("evaluated", "evaluated"),
        ("single_class", "without a clicked or a skipped candidate"),
        ("tied", "with tied scores"),
        ("unknown_candidates", "candidates not among the news"),
        ("sampled_candidates", "skipped news that were drawn, not shown"),
        ("beyond_accuracy", "beyond-accuracy lists, which no metric counts"),
        ("dropped_lines", "lines dropped"),
    ):
        if key in metrics:
            facts[name] = f"{metrics[key]:,}"
    facts["category entropy of the top 10"] = f"{metrics[ENTROPY]:.4f} bits"
    if metrics["selected_on"] is None and "checkpoint_sha256" not in metrics:
        del facts["selected on"], facts["precision"], facts["checkpoint"]
    return facts
