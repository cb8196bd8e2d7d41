"""Tables and pictures of what re-ranking costs in accuracy, and what it gains."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from markupsafe import Markup
from rich.table import Table

from newsrec.console import counted
from newsrec.evaluation.beyond import ASPECT_HEADINGS, BETTER, DIRECTIONS
from newsrec.report.beyond import short_number, short_range
from newsrec.report.pictures import paths
from newsrec.report.tables import bold, table

RULE_NAMES = {
    "diversity": "--diversity",
    "calibration": "--calibration",
    "per_category": "--per_category",
    "near_duplicates": "--near_duplicates",
    "half_life": "--half_life, hours",
}


def trade_off_tables(found: Mapping[str, Any]) -> list[Table]:
    """Return a table for each rule: values, nDCG@10, and some metrics beyond accuracy.

    Args:
        found: The field ``trade_off`` of ``metrics.json``.
    """
    tables = []
    for rule, lines in found["rules"].items():
        names = [lines["for"], "calibration@10", "vector_diversity@10", "freshness@10"]
        headings, rows = _rows(found, rule, [n for n in dict.fromkeys(names) if n in found["none"]])
        headings = [heading.replace("-", "-\n") for heading in headings]  # fits into 80 columns
        shown = [bold(*row) if not number else row for number, row in enumerate(rows)]
        tables.append(table(headings, shown, f"Trade-off: {RULE_NAMES.get(rule, rule)}"))
    return tables


def trade_off_note(metrics: Mapping[str, Any]) -> str:
    """Return a sentence on the impressions and the order that a trade-off was measured on."""
    said = f"Measured on {counted(metrics['trade_off']['impressions'], 'impression')}"
    alone = ", each option alone, without this re-ranking" if "rerank" in metrics else ""
    return f"{said}{alone}."


def trade_off_rows(found: Mapping[str, Any]) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Return headings and rows of each rule's table of all metrics, by the name of its option.

    The first row is of the scores as they are. The metric that a rule is for comes first.
    """
    names = _properties(found)
    return {
        RULE_NAMES.get(rule, rule): _rows(
            found, rule, sorted(names, key=lambda name: name != found["rules"][rule]["for"])
        )
        for rule in found["rules"]
    }


class Curve(NamedTuple):
    """Accuracy against a metric beyond it, a line for each rule."""

    name: str
    about: str
    picture: Markup
    aimed: bool
    """Whether a rule is for this metric."""


def trade_off_pictures(found: Mapping[str, Any]) -> list[Curve]:
    """Return a picture for each metric beyond accuracy, those that a rule is for first.

    A metric that no rule changes has none.
    """
    aims = [lines["for"] for lines in found["rules"].values()]
    pictures = []
    for metric in _properties(found):
        series, hints = {}, []
        name = _heading(metric).replace("\n", " ")
        for rule, lines in found["rules"].items():
            steps = [found["none"], *lines["measured"]]
            series[rule] = [(step[metric], step["ndcg@10"]) for step in steps]
            hints.append([_hint(RULE_NAMES.get(rule, rule), step, metric) for step in steps])
        if len({x for points in series.values() for x, _ in points}) < 2:
            continue
        about = DIRECTIONS[BETTER[metric.removesuffix("@10")]]
        picture = paths(series, hints, f"nDCG@10 by {name} of the first 10", name)
        pictures.append(Curve(name, about, picture, metric in aims))
    return sorted(pictures, key=lambda curve: not curve.aimed)


def _properties(found: Mapping[str, Any]) -> list[str]:
    """Return the names of the metrics beyond accuracy that were measured for every value."""
    steps = [found["none"], *(one for rule in found["rules"].values() for one in rule["measured"])]
    names = [f"{name}@10" for name in ASPECT_HEADINGS]
    return [name for name in names if all(name in step for step in steps)]


def _hint(rule: str, step: Mapping[str, Any], metric: str) -> str:
    option, _, unit = rule.partition(", ")
    value = f"{option} {step['value']:g} {unit}".strip() if "value" in step else "as it is"
    return f"{value}: nDCG@10 {step['ndcg@10']:.4f}, {short_number(step[metric])}"


def _heading(name: str) -> str:
    return "\n".join(ASPECT_HEADINGS[name.removesuffix("@10")].split())


def _rows(
    found: Mapping[str, Any], rule: str, names: list[str]
) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of a rule's table, with a column for each of ``names``."""
    headings = ["", "nDCG@10", "minus none, 95 %", *(_heading(name) for name in names)]
    rows = [_row("none", found["none"], names)]
    rows += [_row(f"{one['value']:g}", one, names) for one in found["rules"][rule]["measured"]]
    return headings, rows


def _row(label: str, one: Mapping[str, Any], names: list[str]) -> list[str]:
    interval = one.get("ndcg@10_difference_interval")
    gain = "" if interval is None else short_range(interval, "+")
    values = [short_number(one[name]) if name in one else "" for name in names]
    return [label, f"{one['ndcg@10']:.4f}", gain, *values]
