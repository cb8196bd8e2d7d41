"""Print the results of ``compare``."""

from typing import Any

from rich.table import Table
from rich.text import Text

from newsrec.console import counted, printable, terminal
from newsrec.evaluation.compare import SEEDS, USERS
from newsrec.evaluation.intervals import FEWEST_USERS
from newsrec.evaluation.names import HEADINGS, SLICE_NAMES, data_notes
from newsrec.evaluation.power import LEVEL, POWER
from newsrec.evaluation.rerank import rerank_note
from newsrec.report.beyond import beyond_differences, directions, left_out_notes
from newsrec.report.tables import Cell, bold, print_tables, table

GROUPS_SHOWN = 8
"""Most groups of a slice in the table; ``--json`` has them all."""


def print_differences(result: dict[str, Any]) -> None:
    """Print a result of ``compare``."""
    console = terminal()

    def say(text: str) -> None:
        console.print(Text(text))

    for side in "ab":
        print(printable(f"{side.upper()}: {', '.join(map(run_name, result[side]))}"))
    where = ", ".join(filter(None, [result["split"], result["window"]]))
    say(
        f"{where}: {counted(result['evaluated'], 'impression')} of "
        f"{counted(result['users'], 'user')}."
    )
    for note in unfair_notes(result):
        say(note)
    rows = [
        (
            HEADINGS[name],
            *_cells(row, row["p"]),
            p_value(row["detectable"]),
            p_value(row["p_equivalent"]),
        )
        for name, row in result["metrics"].items()
    ]
    margin = f"p, equal\nwithin {plain_number(result['margin'])}"
    headings = ("", "A", "B", "A - B", "95 % interval", "p", "detect-\nable", margin)
    print_tables(table(headings, rows))
    say(f"The interval covers {USERS}; so does p. Both are paired and clustered by user.")
    say(power_note(result))
    if result["users"] < FEWEST_USERS:
        say(f"{result['users']} users are too few to trust them.")
    if "a_runs" in result["metrics"]["auc"]:
        print_tables(_seeds_table(result))
        say(seeds_note(result))
    if result["beyond"]:
        print_tables(beyond_differences(result))
        say(directions(result["beyond"]))
    for note in left_out_notes(result):
        say(note)
    if result["list_distances"]:
        say(lists_note(result["list_distances"]))
    if result["slices"]:
        print_tables(_slices_table(result))
        say(slices_note(result))
    if result["slices_left_out"]:
        names = ", ".join(result["slices_left_out"])
        say(f"Left out, because not all runs have the same groups: {names}.")


def run_name(run: dict[str, Any]) -> str:
    """Return the folder of a run, with its precision if it has one."""
    return f"{run['folder']} ({run['precision']})" if run["precision"] else run["folder"]


def unfair_notes(result: dict[str, Any]) -> list[str]:
    """Return what makes a comparison unfair, one sentence each."""
    split, notes = result["split"], []
    for side in "ab":
        runs = [run for run in result[side] if split not in (run["other_data"] or ())]
        if any(split in name.split("+") for run in runs for name in run["trained_on"] or ()):
            notes.append(f"{side.upper()} was trained on {split}, which favours it.")
        elif any(split in (run["selected_on"] or "").split("+") for run in runs):
            notes.append(
                f"{split} chose the checkpoint of {side.upper()}, which favours it a little."
            )
    kinds = [sorted({run["precision"] for run in result[side]} - {None}) for side in "ab"]
    if all(kinds) and len({*kinds[0], *kinds[1]}) > 1:
        a, b = (" and ".join(kind) for kind in kinds)
        notes.append(
            f"A was scored in {a}, B in {b}, so part of the difference is rounding. Evaluate all "
            "with the same --precision."
        )
    rules = [{_rule(run["repeats"]) for run in result[side]} for side in "ab"]
    if rules[0] != rules[1]:
        a, b = (" or ".join(sorted(rule)) for rule in rules)
        notes.append(f"Candidates that repeat a click: A {a}, B {b}.")
    firsts = [{rerank_note(run["rerank"] or {}) for run in result[side]} for side in "ab"]
    if firsts[0] != firsts[1]:
        a, b = (" or ".join(sorted(first or "not re-ranked" for first in side)) for side in firsts)
        notes.append(f"First news: A {a}, B {b}.")
    lives = [{_half_life(run["half_life"]) for run in result[side]} for side in "ab"]
    if lives[0] != lives[1]:
        a, b = (" or ".join(sorted(life)) for life in lives)
        notes.append(f"Older candidates: A {a}, B {b}.")
    return notes + data_notes(split, result)


def _rule(repeats: dict[str, Any] | None) -> str:
    """Return what evaluate did with candidates that repeat a click."""
    if repeats is None:
        return "treats them as others"
    last = repeats["penalty"] == "last"
    how = "ranks them last" if last else f"scores them {repeats['penalty']:g} lower"
    return f"{how} (cosine of at least {repeats['threshold']:g})"


def _half_life(found: dict[str, Any] | None) -> str:
    """Return what evaluate did with older candidates."""
    if found is None or found["hours"] is None:
        return "treats them as others"
    return f"lowers them with a half-life of {found['hours']:g} h"


def power_note(result: dict[str, Any]) -> str:
    """Return what the split can show, and whether the AUC of both sides is equal."""
    auc, margin = result["metrics"]["auc"], plain_number(result["margin"])
    if auc["detectable"] is None:
        return ""
    said = (
        "Detectable: the true difference that this split shows with a chance of "
        f"{POWER * 100:.0f} %. The last p tests the hypothesis that A and B differ by {margin} "
        "or more (TOST): "
    )
    if auc["p_equivalent"] < LEVEL:
        return f"{said}in AUC they are equal within {margin}."
    if auc["p"] < LEVEL:
        return f"{said}in AUC they are not shown to be equal."
    return f"{said}in AUC they are shown neither to differ nor to be equal."


def lists_note(found: dict[str, float | None]) -> str:
    """Return how far apart the lists of the sides and of runs with other seeds are."""
    names = {"between": "A and B", "a": "the runs of A", "b": "the runs of B"}
    said = [f"{names[k]} {value:.3f}" for k, value in found.items() if value is not None]
    return f"Distance of the first 10 news (0: equal; 1: none in common): {', '.join(said)}."


def plain_number(value: float) -> str:
    """Format a number below 1 without its leading 0."""
    return f"{value:g}".replace("0.", ".", 1)


def _seeds_table(result: dict[str, Any]) -> Table:
    rows = []
    for name, row in result["metrics"].items():
        ranges = [
            " to ".join(_short(end) for end in sorted({min(runs), max(runs)}))
            for runs in (row["a_runs"], row["b_runs"])
        ]
        over = row["over_seeds"] or {"interval": None, "p": None}
        rows.append((HEADINGS[name], *ranges, _range(over["interval"]), p_value(over["p"])))
    return table(("", "A", "B", "95 % interval", "p"), rows, "Runs, lowest to highest")


def _slices_table(result: dict[str, Any]) -> Table:
    rows: list[list[Cell]] = []
    for name, groups in result["slices"].items():
        rows.append([*bold(SLICE_NAMES.get(name, name))])
        for group, row in list(groups.items())[:GROUPS_SHOWN]:
            rows.append([f"  {group}", f"{row['impressions']:,}", *_cells(row, row["p_holm"])])
        if len(groups) > GROUPS_SHOWN:
            rows.append([f"  and {len(groups) - GROUPS_SHOWN} more"])
    headings = ("", "number", "A", "B", "A - B", "95 % interval", "p, Holm")
    return table(headings, rows, f"{HEADINGS[result['slice_metric']]} by group")


def seeds_note(result: dict[str, Any]) -> str:
    """Return what the interval over training seeds covers, or why there is none."""
    numbers = f"{len(result['a'])} and {len(result['b'])} runs"
    if result["metrics"]["auc"]["over_seeds"] is None:
        side = "A" if len(result["a"]) == 1 else "B"
        return f"{side} is one run, so the effect of its seed is unknown: give two or three runs."
    return (
        f"This interval and p cover {SEEDS}: they add the error over users and the spread of the "
        f"runs (Welch's t). With {numbers} both are rough; more seeds make them surer."
    )


def slices_note(result: dict[str, Any]) -> str:
    """Return how to read the tests of groups."""
    groups = [group for slice_ in result["slices"].values() for group in slice_.values()]
    tested = sum(group["p"] is not None for group in groups)
    few = (
        f" Groups of fewer than {FEWEST_USERS} users have no interval and no p."
        if tested < len(groups)
        else ""
    )
    if not tested:
        return few.strip()
    return (
        f"Tests: {counted(tested, 'group')}, of which some may differ by chance: p is adjusted for "
        f"their number (Holm), the intervals are not. Both cover {USERS}.{few}"
    )


def _cells(row: dict[str, Any], p: float | None) -> tuple[str, ...]:
    a, b = _short(row["a"]), _short(row["b"])
    return a, b, _short(row["difference"], "+"), _range(row["interval"]), p_value(p)


def _range(bounds: list[float] | None) -> str:
    return "-" if bounds is None else f"{_short(bounds[0], '+')} to {_short(bounds[1], '+')}"


def p_value(p: float | None) -> str:
    """Format a p value; ``-`` if there is none."""
    return "-" if p is None else "<.0001" if p < 1e-4 else _short(p)


def _short(value: float, sign: str = "") -> str:
    """Format a number between -1 and 1: ``.7231``, or ``+.0123`` with ``sign="+"``."""
    return f"{value:{sign}.4f}".replace("0.", ".", 1)
