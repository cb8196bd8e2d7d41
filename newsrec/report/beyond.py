"""Tables of the metrics beyond accuracy, for the terminal and the page."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.table import Table

from newsrec.console import counted
from newsrec.evaluation.beyond import ASPECT_HEADINGS, BETTER, CUTS, OF_VECTORS
from newsrec.evaluation.names import BASELINE_NAMES
from newsrec.evaluation.runs import CHECKPOINT
from newsrec.report.tables import table

SHORT, LONG = min(CUTS), max(CUTS)


def beyond_table(metrics: Mapping[str, Any]) -> Table:
    """Return a table of what the best-ranked news is like, beside the baseline of highest AUC."""
    found = metrics["beyond"]
    headings = ["", f"first\n{SHORT}", f"first\n{LONG}", "95 % interval"]
    best = best_baseline(metrics)
    beside = found["baselines"].get(best, {})
    if beside:
        words = BASELINE_NAMES.get(best, best).split()  # short lines, so that intervals have one
        headings += ["\n".join(words), "95 % interval\nof difference"]
    rows = []
    for name, heading in ASPECT_HEADINGS.items():
        short, line = (found["metrics"].get(f"{name}@{k}") for k in (SHORT, LONG))
        if line is None:
            continue
        first = "" if short is None else short_number(short["value"])
        cells = [heading, first, short_number(line["value"])]
        cells.append(short_range(line["interval"]))
        if beside:
            other = beside.get(f"{name}@{LONG}")
            cells.append("" if other is None else short_number(other["value"]))
            interval = None if other is None else other["difference_interval"]
            cells.append(short_range(interval, "+"))
        rows.append(cells)
    return table(headings, rows, "Beyond accuracy")


def beyond_differences(result: Mapping[str, Any]) -> Table:
    """Return a table of the differences beyond accuracy in a result of ``compare``."""
    rows = [
        (
            heading,
            *(short_number(line[side]) for side in "ab"),
            short_number(line["difference"], "+"),
            short_range(line["interval"], "+"),
        )
        for name, heading in ASPECT_HEADINGS.items()
        if (line := result["beyond"].get(f"{name}@{LONG}")) is not None
    ]
    headings = ("", "A", "B", "A - B", "95 % interval")
    return table(headings, rows, f"Beyond accuracy, first {LONG}")


def directions(names: Collection[str]) -> str:
    """Return which direction is better for these metrics, named as in ``metrics.json``."""
    sides: dict[int, list[str]] = {-1: [], 0: [], 1: []}
    for name, heading in ASPECT_HEADINGS.items():
        if f"{name}@{LONG}" in names:
            sides[BETTER[name]].append(heading.partition(",")[0])
    told = [f"Less is better: {', '.join(sides[-1])}."] if sides[-1] else []
    if "calibration" in sides[-1]:
        told.append("Calibration is a distance from the categories of the history.")
    if "freshness" in sides[-1]:
        told.append("Freshness is an age.")
    if sides[0]:
        told.append(f"Neither more nor less is better: {', '.join(sides[0])}.")
    return " ".join(told)


def left_out_notes(result: Mapping[str, Any]) -> list[str]:
    """Return which metrics ``compare`` left out, and why."""
    reasons = {
        "vectors": "their news vectors are of different PLMs or texts",
        "voices": "they count different names (--voices)",
        "missing": "not all of the results have them",
    }
    lines = []
    for reason, names in result["beyond_left_out"].items():
        kinds = dict.fromkeys(name.partition("@")[0] for name in names)
        headings = ", ".join(ASPECT_HEADINGS[kind].partition(",")[0] for kind in kinds)
        lines.append(f"A and B are not compared in {headings}, because {reasons[reason]}.")
    runs = [*result["a"], *result["b"]]
    missing = result["beyond_left_out"].get("missing", ())
    if OF_VECTORS.intersection(missing) and any(map(_is_baseline, runs)):
        lines.append("For a baseline, evaluate measures those of news vectors with --model.plm.")
    return lines


def best_baseline(metrics: Mapping[str, Any]) -> str:
    """Return the name of the baseline with the highest AUC; empty if there is none."""
    baselines = metrics.get("baselines") or {}
    return max(baselines, key=lambda name: baselines[name]["auc"], default="")


def beyond_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the page's table: heading, values, interval, of baselines."""
    found = metrics.get("beyond", {"metrics": {}, "baselines": {}})
    rows = []
    for name, heading in ASPECT_HEADINGS.items():
        short, line = (found["metrics"].get(f"{name}@{k}") for k in (SHORT, LONG))
        if line is None:
            continue
        others = [lines.get(f"{name}@{LONG}") for lines in found["baselines"].values()]
        rows.append(
            {
                "heading": heading,
                "short": "" if short is None else short_number(short["value"]),
                "long": short_number(line["value"]),
                "interval": short_range(line["interval"]),
                "others": ["" if o is None else short_number(o["value"]) for o in others],
            }
        )
    return rows


def beyond_names(metrics: Mapping[str, Any]) -> list[str]:
    """Return the names of the baselines in the page's table."""
    found = metrics.get("beyond", {}).get("baselines", {})
    return [BASELINE_NAMES.get(name, name) for name in found]


def beyond_notes(metrics: Mapping[str, Any]) -> list[str]:
    """Return notes on the table."""
    found = metrics.get("beyond")
    if found is None:
        return []
    signs = directions(found["metrics"])
    lines = [f"{signs} docs/evaluate.md explains each line (Beyond accuracy)."]
    lines += _voices_notes(found)
    if f"vector_diversity@{LONG}" not in found["metrics"]:
        needed = "--model.plm" if _is_baseline(metrics) else "a PLM, baselines and labels"
        lines.append(f"Metrics of news vectors need {needed}; they are left out.")
    return lines


def _is_baseline(run: Mapping[str, Any]) -> bool:
    return run.get("scorer") not in (None, CHECKPOINT)


def _voices_notes(found: Mapping[str, Any]) -> list[str]:
    """Return notes on which named entities are counted, and in which lists."""
    has = [n for n in ("representation", "alternative_voices") if f"{n}@{LONG}" in found["metrics"]]
    voices = found.get("voices")
    lines = []
    if voices is not None:
        lines += [
            f"The news mention {voices['found']:,} of the {counted(voices['names'], 'name')} in "
            f"{voices['file']}."
        ]
    elif has:
        lines += ["Representation counts persons by name; --voices counts groups."]
    if has:
        lines += [
            "Representation and alternative voices have no value for a list whose news mention no "
            "name that counts; a difference is over impressions in which both lists have a value."
        ]
    return lines


def short_number(value: float, sign: str = "") -> str:
    """Format a number with three digits after the point, or two if it is large."""
    return f"{value:{sign}.3f}" if abs(value) < 10 else f"{value:{sign}.2f}"


def short_range(bounds: Sequence[float] | None, sign: str = "") -> str:
    """Format an interval, ``-`` if there is none."""
    return "-" if bounds is None else " to ".join(short_number(end, sign) for end in bounds)
