"""Tables and sentences on where a model errs, for the terminal and the page."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from newsrec.console import counted
from newsrec.evaluation.names import BASELINE_NAMES, SLICE_NAMES
from newsrec.report.tables import table

GROUPS_SHOWN = 5
"""Weakest groups on the terminal; the page has them all."""
GROUP_HEADINGS = ("slice", "group", "number", "AUC", "above", "95 % interval")


def weakest_table(errors: Mapping[str, Any], name: str) -> Table | None:
    """Return a table of the groups where a model gains least; None without any.

    Args:
        errors: The field of that name in ``metrics.json``.
        name: Name of the model in tables.
    """
    rows = group_rows(errors)
    if not rows:
        return None
    title = f"Where {name} gains least over {baseline_name(errors)}"
    return table(GROUP_HEADINGS, rows[:GROUPS_SHOWN], title, align="llr")


def group_rows(errors: Mapping[str, Any]) -> list[list[str]]:
    """Return a row for each group, the weakest first."""
    return [
        [
            SLICE_NAMES.get(line["slice"], line["slice"]),
            line["group"],
            f"{line['impressions']:,}",
            f"{line['auc']:.4f}",
            f"{line['difference']:+.4f}",
            " to ".join(f"{end:+.3f}" for end in line["interval"]),
        ]
        for line in errors.get("groups", ())
    ]


def bin_rows(errors: Mapping[str, Any]) -> list[list[str]]:
    """Return a row for each bin of click probabilities."""
    return [
        [
            f"{line['from']:g} to {line['to']:g}",
            f"{line['candidates']:,}",
            f"{line['expected']:.4f}",
            f"{line['clicked']:.4f}",
        ]
        for line in (errors.get("reliability") or {}).get("bins", ())
    ]


def baseline_name(errors: Mapping[str, Any]) -> str:
    """Return the name of the baseline that is compared with; empty if there is none."""
    name = errors.get("baseline", "")
    return BASELINE_NAMES.get(name, name)


def error_notes(errors: Mapping[str, Any]) -> list[str]:
    """Return what is known of the errors, one sentence each."""
    lines = []
    if errors.get("groups"):
        lines.append(
            f"Paired differences of {counted(len(errors['groups']), 'group')}, of which some may "
            "be weak by chance."
        )
    found = errors["reliability"]
    if found is not None:
        lines.append(
            "Click probabilities, a softmax of the scores of an impression, are off by "
            f"{found['ece']:.4f} on average; chance alone gives about {found['ece_by_chance']:.4f}."
        )
    if errors["drift"] is not None:
        low, high = errors["drift"]["interval"]
        lines.append(
            f"The AUC changes by {errors['drift']['slope']:+.4f} a day ({low:+.4f} to {high:+.4f})."
        )
    return lines
