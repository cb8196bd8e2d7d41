"""Tables and pictures of what re-ranking costs in accuracy, and what it gains."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from rich.table import Table

from newsrec.console import counted
from newsrec.evaluation.beyond import ASPECT_HEADINGS, BETTER
from newsrec.report.beyond import short_number, short_range
from newsrec.report.pictures import line
from newsrec.report.tables import bold, table

RULE_NAMES = {
    "diversity": "--diversity",
    "calibration": "--calibration",
    "half_life": "--half_life, hours",
}


def trade_off_tables(found: Mapping[str, Any]) -> list[Table]:
    """Return a table for each rule: values, nDCG@10, and the metrics beyond accuracy.

    Args:
        found: The field ``trade_off`` of ``metrics.json``.
    """
    tables = []
    for rule, (headings, rows) in trade_off_rows(found).items():
        shown = [bold(*row) if not number else row for number, row in enumerate(rows)]
        tables.append(table(headings, shown, f"Trade-off: {rule}"))
    return tables


def trade_off_note(metrics: Mapping[str, Any]) -> str:
    """Return a sentence on the impressions and the order that a trade-off was measured on."""
    said = f"Measured on {counted(metrics['trade_off']['impressions'], 'impression')}"
    alone = ", each option alone, without the rules above" if "rerank" in metrics else ""
    return f"{said}{alone}."


def trade_off_rows(found: Mapping[str, Any]) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Return the headings and rows of each rule's table, by the name of its option.

    The first row is of the scores as they are. The metric that a rule is for comes first.
    """
    result = {}
    for rule, lines in found["rules"].items():
        names = [lines["for"], "calibration@10", "vector_diversity@10", "freshness@10"]
        names = [name for name in dict.fromkeys(names) if name in found["none"]]
        headings = ["", "nDCG@10", "minus none, 95 %", *(_heading(name) for name in names)]
        rows = [_row("none", found["none"], names)]
        for one in lines["measured"]:
            rows.append(_row(f"{one['value']:g}", one, names))
        result[RULE_NAMES.get(rule, rule)] = (headings, rows)
    return result


class Curve(NamedTuple):
    """A curve of nDCG@10 against the metric that a rule is for."""

    about: str
    picture: Markup


def trade_off_pictures(found: Mapping[str, Any]) -> dict[str, Curve]:
    """Return a curve for each rule by the name of its option."""
    pictures = {}
    for rule, lines in found["rules"].items():
        aim = lines["for"]
        if aim not in found["none"]:
            continue
        points = sorted((one[aim], one["ndcg@10"]) for one in [found["none"], *lines["measured"]])
        x, y = np.array(points).T
        name = _heading(aim).replace("\n", " ")
        side = {1: "more", -1: "less"}[BETTER[aim.removesuffix("@10")]]
        about = (
            f"nDCG@10 by {name} of the first 10, of which {side} is better. A dot for each value."
        )
        pictures[RULE_NAMES.get(rule, rule)] = Curve(about, line(x, y, about, name))
    return pictures


def _heading(name: str) -> str:
    return "\n".join(ASPECT_HEADINGS[name.removesuffix("@10")].split())


def _row(label: str, one: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    interval = one.get("ndcg@10_difference_interval")
    gain = "" if interval is None else short_range(interval, "+")
    return [label, f"{one['ndcg@10']:.4f}", gain, *(short_number(one[name]) for name in names)]
