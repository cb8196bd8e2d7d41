"""The page of ``compare``: differences of two sides, with intervals on one axis."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from newsrec.evaluation.beyond import ASPECT_HEADINGS, BETTER, EXPLAINED
from newsrec.evaluation.intervals import FEWEST_USERS
from newsrec.evaluation.names import HEADINGS, MEANINGS, SLICE_NAMES
from newsrec.evaluation.power import LEVEL
from newsrec.evaluation.slices import SLICES
from newsrec.files import publish
from newsrec.report.beyond import LONG, directions, left_out_notes
from newsrec.report.differences import (
    lists_note,
    p_value,
    plain_number,
    power_note,
    run_name,
    seeds_note,
    slices_note,
    unfair_notes,
)
from newsrec.report.pictures import Axis, Dot, render_page
from newsrec.report.terminal import PAGE_FILE

RESULT_FILE = "comparison.json"
KINDS = {
    "better": "A is better",
    "worse": "B is better",
    "apart": "they differ, and neither is better as such",
    "": "the split does not show a difference",
}
"""What the colour of a dot says."""


class Difference(NamedTuple):
    """A difference of the two sides, a row of a table."""

    name: str
    about: str
    """What a metric means, or the slice of a group."""
    row: Mapping[str, Any]
    """Its entry in the result of ``compare``."""
    dot: Dot


class Part(NamedTuple):
    """Differences that share an axis, part of a table."""

    name: str
    about: str
    axis: Axis
    lines: list[Difference]


def write_comparison(result: Mapping[str, Any], folder: Path) -> None:
    """Write a result of ``compare`` as a page and as JSON, into a new folder."""

    def build(folder: Path) -> None:
        (folder / RESULT_FILE).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        (folder / PAGE_FILE).write_text(comparison_page(result), encoding="utf-8")

    publish(folder, build)


def comparison_page(result: Mapping[str, Any]) -> str:
    """Return the page of a result of ``compare``."""
    accuracy = [
        _line(HEADINGS[name], MEANINGS[name], row, (row.get("over_seeds") or {}).get("interval"))
        for name, row in result["metrics"].items()
    ]
    units: dict[str, list[Difference]] = {}
    for name, heading in ASPECT_HEADINGS.items():
        if (row := result["beyond"].get(f"{name}@{LONG}")) is not None:
            short, _, unit = heading.partition(", ")
            line = _line(short, EXPLAINED[name], row, better=BETTER[name])
            units.setdefault(unit, []).append(line)
    slices = {
        name: [_line(group, SLICE_NAMES.get(name, name), row) for group, row in groups.items()]
        for name, groups in result["slices"].items()
    }
    groups = [line for lines in slices.values() for line in lines]
    axis = _axis(groups, "g")
    sure = [g for g in groups if g.row["p_holm"] is not None and g.row["p_holm"] < LEVEL]
    heading = ", ".join(filter(None, [f"A - B on {result['split']}", result["window"]]))
    return render_page(
        "compare.html.j2",
        **{"heading": heading, "result": result, "verdict": _verdict(result)},
        names={side.upper(): [run_name(run) for run in result[side]] for side in "ab"},
        notes=unfair_notes(dict(result)),
        power=power_note(dict(result)),
        seeds=seeds_note(dict(result)) if "a_runs" in result["metrics"]["auc"] else "",
        lists=lists_note(result["list_distances"]) if result["list_distances"] else "",
        accuracy=Part("", "", _axis(accuracy, "a"), accuracy),
        beyond=[
            Part(unit or "shares and distances", "", _axis(lines, f"u{number}"), lines)
            for number, (unit, lines) in enumerate(units.items())
        ],
        slices=[
            Part(SLICE_NAMES.get(name, name), SLICES.get(name, ""), axis, lines)
            for name, lines in slices.items()
        ],
        sure=Part("", "", axis, sorted(sure, key=lambda line: line.dot.value)),
        slices_note=slices_note(dict(result)) if groups else "",
        left_out=", ".join(SLICE_NAMES.get(n, n) for n in result["slices_left_out"]),
        group_metric=HEADINGS[result["slice_metric"]],
        margin=plain_number(result["margin"]),
        facts={side.upper(): [_facts(run) for run in result[side]] for side in "ab"},
        directions=directions(result["beyond"]),
        beyond_left_out=" ".join(left_out_notes(result)),
        kinds=KINDS,
        **{"p_value": p_value, "FEWEST_USERS": FEWEST_USERS, "LONG": LONG},
    )


def _line(
    name: str, about: str, row: Mapping[str, Any], wider: Any = None, better: int = 1
) -> Difference:
    """Return a row whose dot is coloured if the sides differ, by which of them is better.

    ``better`` is 1 if more is better, -1 if less is, else 0.
    """
    bounds, kind = row["interval"], "faint"
    if bounds is not None:
        sign = _sign(row)
        kind = {1: "better", -1: "worse"}.get(sign * better, "apart" if sign else "")
    dot = Dot(f"{name}, A - B", row["difference"], bounds, kind, reference=0.0, wider=wider)
    return Difference(name, about, row, dot)


def _axis(lines: Iterable[Difference], name: str) -> Axis:
    return Axis.across((line.dot for line in lines), name)


def _sign(row: Mapping[str, Any]) -> int:
    """Return 1 if A is shown to be above B, -1 if below, 0 if neither is shown.

    It is shown if 0 is outside the interval and p, for a group the adjusted one, is below
    ``LEVEL``. Rows without a p are judged by their interval.
    """
    low, high = row["interval"]
    p = row.get("p_holm", row.get("p"))
    sign: int = (low > 0) - (high < 0)
    return sign if p is None or p < LEVEL else 0


def _verdict(result: Mapping[str, Any]) -> str:
    """Return what the page says first."""
    row = result["metrics"]["auc"]
    said = f"The AUC of A is {row['a']:.4f}, that of B {row['b']:.4f}. "
    if row["interval"] is None:
        return said
    low, high = row["interval"]
    apart = f"{row['difference']:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}"
    if row["p"] is not None:
        apart += f", p {p_value(row['p'])}"
    sign = _sign(row)
    if not sign:
        return f"{said}This split does not show which is better (A - B: {apart})."
    return f"{said}{'A' if sign > 0 else 'B'} is better (A - B: {apart})."


def _facts(run: Mapping[str, Any]) -> dict[str, str]:
    """Return what is known of a run."""
    trained = [f"{name}, {window}" for name, window in (run["trained_on"] or {}).items()]
    found = run["checkpoint_sha256"] or []
    facts = {
        "folder": run["folder"],
        "scorer": run["scorer"] or "checkpoint",
        "trained on": "; ".join(trained),
        "selected on": run["selected_on"] or "",
        "precision": run["precision"] or "",
        "checkpoint SHA-256": found if isinstance(found, str) else ", ".join(found),
    }
    return {name: fact for name, fact in facts.items() if fact}
