"""Rows of the page: a dot on an axis that a group of metrics shares, and the numbers beside it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from newsrec.evaluation.beyond import ASPECT_HEADINGS, CUTS, EXPLAINED
from newsrec.evaluation.intervals import FEWEST_USERS
from newsrec.evaluation.names import BASELINE_NAMES, HEADINGS, MEANINGS, SLICE_NAMES
from newsrec.evaluation.slices import SLICES
from newsrec.report.beyond import best_baseline
from newsrec.report.pictures import Axis, Dot, Mark, lines, thinned
from newsrec.report.terminal import CEILING

Curves = Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Steps and values by name."""
KINDS = {
    "best": "best baseline by AUC",
    "other": "other baselines",
    "unseen": "only unseen news",
    "ceiling": CEILING,
}
"""What each kind of mark stands for."""
WEAKEST = 8
"""Most groups that the page names as weak."""
SHORT, LONG = min(CUTS), max(CUTS)


class Line(NamedTuple):
    """A metric, a row of a table."""

    dot: Dot
    meaning: str
    others: dict[str, float]
    """Further columns by heading."""


class Group(NamedTuple):
    """Some impressions, a row of a table."""

    slice: str
    name: str
    row: Mapping[str, Any]
    """The group's entry in ``metrics.json``."""
    dot: Dot | None
    """None if no impression of the group was evaluated."""


class SliceGroups(NamedTuple):
    """The groups of a slice."""

    name: str
    about: str
    groups: list[Group]


class Loss(NamedTuple):
    """A group in which the model gains little over the best baseline, a row of a table."""

    slice: str
    row: Mapping[str, Any]
    dot: Dot


class Bin(NamedTuple):
    """Candidates of one range of click probabilities, a row of a table."""

    row: Mapping[str, Any]
    dot: Dot


class BeyondLine(NamedTuple):
    """A metric beyond accuracy, a row of a table."""

    dot: Dot
    meaning: str
    short: float | None
    best: float | None
    difference: Sequence[float] | None
    """The interval of the difference from the best baseline."""


class BeyondGroup(NamedTuple):
    """Metrics beyond accuracy that have one unit and one axis."""

    name: str
    axis: Axis
    lines: list[BeyondLine]


class Curve(NamedTuple):
    """A picture of training, and its numbers."""

    name: str
    about: str
    picture: Markup
    headings: list[str]
    rows: list[list[float]]


def accuracy_lines(
    metrics: Mapping[str, Any], own: str, ceiling: Mapping[str, float] | None
) -> list[Line]:
    """Return a row for each metric of an evaluated split, the baselines as marks."""
    best = best_baseline(metrics)
    unseen = metrics.get("unseen", {})
    result = []
    for metric, heading in HEADINGS.items():
        rows = metrics.get("baselines", {})
        baselines = {name: row[metric] for name, row in rows.items()}
        known = {name: row.get("intervals", {}).get(metric) for name, row in rows.items()}
        marks, others = _marks(baselines, best, known), {}
        if best:
            others[BASELINE_NAMES.get(best, best)] = baselines[best]
        if metric in unseen:
            others["unseen news"] = unseen[metric]
            marks.append(Mark("only unseen news", unseen[metric], "unseen"))
        if ceiling:
            others[CEILING] = ceiling[metric]
            marks.append(Mark(CEILING, ceiling[metric], "ceiling"))
        bounds = metrics["intervals"][metric]
        dot = Dot(heading, metrics[metric], bounds, "strong", marks)
        result.append(Line(dot, MEANINGS[metric], others))
    return result


def slice_groups(metrics: Mapping[str, Any]) -> list[SliceGroups]:
    """Return the groups of every slice of an evaluated split."""
    result = []
    for key, rows in metrics["slices"].items():
        name, groups = SLICE_NAMES.get(key, key), []
        for group, row in rows.items():
            dot = None
            if row["evaluated"]:
                sure = row["users"] >= FEWEST_USERS
                bounds, kind = (row["intervals"]["auc"], "") if sure else (None, "faint")
                label = f"{name}: {group},"
                dot = Dot(label, row["auc"], bounds, kind, reference=metrics["auc"])
            groups.append(Group(name, group, row, dot))
        result.append(SliceGroups(name, SLICES.get(key, ""), groups))
    return result


def weakest(groups: Sequence[Group]) -> list[Group]:
    """Return the groups whose whole interval is below the reference, the lowest AUC first."""
    found = []
    for group in groups:
        dot = group.dot
        if dot and dot.interval and dot.reference is not None and dot.interval[1] < dot.reference:
            found.append(group)
    return sorted(found, key=lambda group: group.row["auc"])[:WEAKEST]


def loss_groups(errors: Mapping[str, Any]) -> list[Loss]:
    """Return the groups with the smallest gain over the best baseline, the smallest first."""
    result = []
    for row in errors.get("groups", ()):
        name = SLICE_NAMES.get(row["slice"], row["slice"])
        kind = "weak" if row["interval"][1] < 0 else ""
        dot = Dot(f"{name}: {row['group']},", row["difference"], row["interval"], kind, (), 0.0)
        result.append(Loss(name, row, dot))
    return result


def bin_lines(errors: Mapping[str, Any]) -> list[Bin]:
    """Return a row for each range of click probabilities: the share clicked, and the expected."""
    result = []
    for row in (errors.get("reliability") or {}).get("bins", ()):
        expected = Mark("mean expected", row["expected"], "unseen")
        result.append(Bin(row, Dot("share clicked", row["clicked"], marks=[expected])))
    return result


def oracle_dots(oracles: Mapping[str, float], reference: float) -> dict[str, Dot]:
    """Return a dot for each oracle of a simulated world by its name, the best first."""
    ordered = sorted(oracles.items(), key=lambda pair: -pair[1])
    return {name: Dot(name, auc, reference=reference) for name, auc in ordered}


def beyond_groups(metrics: Mapping[str, Any]) -> list[BeyondGroup]:
    """Return the metrics beyond accuracy, those of one unit together."""
    found = metrics.get("beyond")
    if found is None:
        return []
    best = best_baseline(metrics)
    units: dict[str, list[BeyondLine]] = {}
    for key, heading in ASPECT_HEADINGS.items():
        name, _, unit = heading.partition(", ")
        long = f"{key}@{LONG}"
        if long not in found["metrics"]:
            continue
        row = found["metrics"][long]
        lines = {n: rows[long] for n, rows in found["baselines"].items() if long in rows}
        beside = {n: line["value"] for n, line in lines.items()}
        marks = _marks(beside, best, {n: line.get("interval") for n, line in lines.items()})
        dot = Dot(name, row["value"], row["interval"], "strong", marks)
        short = found["metrics"].get(f"{key}@{SHORT}", {}).get("value")
        apart = found["baselines"].get(best, {}).get(long, {}).get("difference_interval")
        line = BeyondLine(dot, EXPLAINED[key], short, beside.get(best), apart)
        units.setdefault(unit, []).append(line)
    result = []
    for number, (unit, rows) in enumerate(units.items()):
        axis = Axis.across((line.dot for line in rows), f"u{number}")
        result.append(BeyondGroup(unit or "shares and distances", axis, rows))
    return result


def training_curves(curves: Curves) -> list[Curve]:
    """Return a picture of the loss, and one of the validation metrics, which share an axis."""
    sets: dict[tuple[str, tuple[float, ...]], dict[str, Any]] = {}
    for name, (x, y) in curves.items():
        kind = "validation" if name.startswith("val/") else name
        label = HEADINGS.get(name.removeprefix("val/"), name)
        sets.setdefault((kind, tuple(x)), {})[label] = thinned(x, y)
    result = []
    for (kind, _), series in sets.items():
        steps = next(iter(series.values()))[0]
        rows = np.column_stack([steps, *(y for _, y in series.values())]).tolist()
        title, about = kind, "cross-entropy of picking the clicked candidate"
        if kind == "validation":
            title = "validation" if len(series) > 1 else f"val/{next(iter(curves)).split('/')[-1]}"
            about = "metrics on the impressions that choose the checkpoint"
        shown = series if len(series) > 1 else {"": next(iter(series.values()))}
        picture = lines(shown, f"{', '.join(series)} by step", "step")
        result.append(Curve(title, about, picture, ["step", *series], rows))
    return result


def legend(dots: Iterable[Dot], own: str) -> dict[str, str]:
    """Return what is drawn, by kind."""
    found = {mark.kind for dot in dots for mark in dot.marks}
    return {"own": f"{own}, 95 % interval"} | {k: t for k, t in KINDS.items() if k in found}


def _marks(
    values: Mapping[str, float], best: str, intervals: Mapping[str, Sequence[float] | None]
) -> list[Mark]:
    """Return a mark for each baseline, the best last, so that it is on top."""
    marks = []
    for name in sorted(values, key=lambda name: name == best):
        kind = "best" if name == best else "other"
        marks.append(Mark(BASELINE_NAMES.get(name, name), values[name], kind, intervals.get(name)))
    return marks
