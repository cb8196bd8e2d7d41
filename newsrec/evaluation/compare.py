"""The command ``compare``: what differs between two results of ``evaluate``, and how surely.

Both are paired impression by impression, so what is hard for both cancels. With several runs on a
side, each impression's values are averaged over them, and a second interval covers their seeds.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from newsrec.console import printable, progress, terminal
from newsrec.errors import UserError
from newsrec.evaluation.intervals import FEWEST_USERS, holm, mean_interval, sign_flip_p
from newsrec.evaluation.names import HEADINGS, SLICE_NAMES
from newsrec.evaluation.runs import Paired, Run, has_seed, pair, read_run
from newsrec.evaluation.seeds import seed_interval
from newsrec.metrics import METRICS

if TYPE_CHECKING:
    import argparse

    from rich.table import Table

GROUPS_SHOWN = 8
"""Groups of a slice in the table; ``--json`` has them all."""
SLOW_IMPRESSIONS = 200_000
"""Impressions in all groups that need no progress bar."""
USERS = "the choice of users, not the training seed"
SEEDS = "the choice of users and the training seeds"


def add_arguments(parser: "argparse.ArgumentParser") -> None:
    """Add the command's options."""
    parser.add_argument(
        "folders",
        nargs="+",
        metavar="A",
        help="folders that evaluate wrote: A B, or several seeds on each side: A1 A2 -- B1 B2",
    )
    parser.add_argument(
        "--against", nargs="+", metavar="B", help="the other side's folders; the same as --"
    )
    parser.add_argument(
        "--metric", choices=METRICS, default="auc", help="what to compare in each group"
    )
    parser.add_argument(
        "--json", action="store_true", help="print all numbers as JSON in place of tables"
    )


def name_separator(args: Sequence[str]) -> list[str]:
    """Return the command line with the option ``--against`` where it has ``--``.

    Raises:
        UserError: If there are more than two sides.
    """
    named = ["--against" if arg == "--" else arg for arg in args]
    if sum(arg.split("=")[0] == "--against" for arg in named) > 1:
        raise UserError("There are two sides: A1 A2 -- B1 B2. Give -- or --against once.")
    return named


def run(args: "argparse.Namespace") -> None:
    """Compare two sides and print what was found."""
    folders, against = args.folders, args.against
    if against is None:
        if len(folders) != 2:
            number = "One folder is" if len(folders) == 1 else f"{len(folders)} folders are"
            raise UserError(
                f"{number} given. Give two, A B, or several seeds on each side: A1 A2 -- B1 B2."
            )
        folders, against = folders[:1], folders[1:]
    a, b = ([read_run(Path(folder)) for folder in side] for side in (folders, against))
    result = compare(a, b, args.metric)
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        _print(result)


def compare(a: Sequence[Run], b: Sequence[Run], metric: str = "auc") -> dict[str, Any]:
    """Return all that is known of a difference, as plain JSON.

    Args:
        a: Runs of one side.
        b: Runs of the other side.
        metric: What to compare in each group of each slice.

    Raises:
        UserError: If the runs are not of the same impressions.
    """
    paired = pair(a, b)
    means_a, means_b = paired.a.mean(axis=0), paired.b.mean(axis=0)
    difference = means_a - means_b
    bounds = mean_interval(difference, paired.users).tolist()
    metrics: dict[str, dict[str, Any]] = {}
    for row, name in enumerate(METRICS):
        metrics[name] = {
            "a": float(means_a[row].mean()),
            "b": float(means_b[row].mean()),
            "difference": float(difference[row].mean()),
            "interval": bounds[row],
            "p": sign_flip_p(difference[row], paired.users),
        }
        if len(a) + len(b) > 2:
            metrics[name] |= _over_seeds(a, b, paired, row)
    first = a[0].metrics
    return {
        "split": first["split"],
        "window": first.get("window"),
        "data_fingerprint": first.get("data_fingerprint"),
        "a": [_describe(run) for run in a],
        "b": [_describe(run) for run in b],
        "impressions": paired.impressions,
        "evaluated": difference.shape[1],
        "users": len(np.unique(paired.users)),
        "covers": {"interval": USERS, "p": USERS, "over_seeds": SEEDS},
        "metrics": metrics,
        "slice_metric": metric,
        "slices": _by_group(paired, means_a, means_b, METRICS.index(metric)),
        "slices_left_out": paired.unlike,
    }


def _over_seeds(a: Sequence[Run], b: Sequence[Run], paired: Paired, row: int) -> dict[str, Any]:
    """Return each run's mean and, where the seeds of both sides are known, what covers them."""
    runs_a, runs_b = paired.a[:, row], paired.b[:, row]
    result: dict[str, Any] = {
        "a_runs": runs_a.mean(axis=1).tolist(),
        "b_runs": runs_b.mean(axis=1).tolist(),
        "over_seeds": None,
    }
    if not any(len(side) == 1 and has_seed(side[0]) for side in (a, b)):
        low, high, p, freedom = seed_interval(runs_a, runs_b, paired.users)
        result["over_seeds"] = {
            "interval": [low, high],
            "p": p,
            "freedom": freedom if np.isfinite(freedom) else None,
        }
    return result


def _by_group(
    paired: Paired, a: NDArray[np.float64], b: NDArray[np.float64], row: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """Compare each group of each slice that divides the impressions; adjust p for their number."""
    result: dict[str, dict[str, dict[str, Any]]] = {}
    tests: list[dict[str, Any]] = []
    total = len(paired.slices) * a.shape[1]
    with progress("groups", total, SLOW_IMPRESSIONS, lambda rate: f"{rate:,.0f}/s") as advance:
        for name, (groups, code) in paired.slices.items():
            members = {group: np.flatnonzero(code == number) for number, group in enumerate(groups)}
            members = {group: inside for group, inside in members.items() if len(inside)}
            if len(members) < 2:
                continue
            result[name] = {}
            for group, inside in members.items():
                difference, users = (a - b)[row, inside], paired.users[inside]
                test: dict[str, Any] = {
                    "impressions": len(inside),
                    "users": len(np.unique(users)),
                    "a": float(a[row, inside].mean()),
                    "b": float(b[row, inside].mean()),
                    "difference": float(difference.mean()),
                    "interval": None,
                    "p": None,
                    "p_holm": None,
                }
                if test["users"] >= FEWEST_USERS:
                    test["interval"] = mean_interval(difference, users).tolist()
                    test["p"] = sign_flip_p(difference, users)
                    tests.append(test)
                result[name][group] = test
                advance(len(inside))
    for test, adjusted in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = float(adjusted)
    return result


def _describe(run: Run) -> dict[str, Any]:
    known = (
        "scorer", "ensemble", "checkpoint_sha256", "precision", "selected_on", "trained_on",
        "other_data",
    )  # fmt: skip
    return {"folder": str(run.folder)} | {key: run.metrics.get(key) for key in known}


def _print(result: dict[str, Any]) -> None:
    from rich.text import Text

    console = terminal()

    def say(text: str) -> None:
        console.print(Text(text))

    for side in "ab":
        print(printable(f"{side.upper()}: {', '.join(map(_called, result[side]))}"))
    where = ", ".join(filter(None, [result["split"], result["window"]]))
    say(f"{where}: {result['evaluated']:,} impressions of {result['users']:,} users.")
    for note in _notes(result):
        say(note)
    console.print(_metrics_table(result))
    say(f"The interval covers {USERS}; so does p. Both are paired and clustered by user.")
    if result["users"] < FEWEST_USERS:
        say(f"{result['users']} users are too few to trust them.")
    if "a_runs" in result["metrics"]["auc"]:
        console.print(_seeds_table(result))
        say(_seeds_note(result))
    if result["slices"]:
        console.print(_slices_table(result))
        say(_slices_note(result))
    if result["slices_left_out"]:
        names = ", ".join(result["slices_left_out"])
        say(f"Left out, as not all runs have the same groups: {names}.")


def _called(run: dict[str, Any]) -> str:
    """Return a run's folder, and the precision of its scores where it has one."""
    return f"{run['folder']} ({run['precision']})" if run["precision"] else run["folder"]


def _notes(result: dict[str, Any]) -> list[str]:
    """Return what makes a comparison unfair, a sentence each."""
    split, notes = result["split"], []
    for side in "ab":
        runs = [run for run in result[side] if split not in (run["other_data"] or ())]
        if any(split in name.split("+") for run in runs for name in run["trained_on"] or ()):
            notes.append(f"{side.upper()} was trained on {split}: this favours it.")
        elif any(split in (run["selected_on"] or "").split("+") for run in runs):
            notes.append(
                f"{split} chose the checkpoint of {side.upper()}: this favours it a little."
            )
    kinds = [sorted({run["precision"] for run in result[side]} - {None}) for side in "ab"]
    if all(kinds) and len({*kinds[0], *kinds[1]}) > 1:
        a, b = (" and ".join(kind) for kind in kinds)
        notes.append(
            f"A was scored in {a}, B in {b}: a part of what differs is rounding. Evaluate all with "
            "the same --precision."
        )
    return notes


def _metrics_table(result: dict[str, Any]) -> "Table":
    table = _table("", ("", "A", "B", "A - B", "95 % interval", "p"))
    for name, row in result["metrics"].items():
        table.add_row(HEADINGS[name], *_cells(row, row["p"]))
    return table


def _seeds_table(result: dict[str, Any]) -> "Table":
    table = _table("Runs, lowest to highest", ("", "A", "B", "95 % interval", "p"))
    for name, row in result["metrics"].items():
        ranges = [
            " to ".join(_short(end) for end in sorted({min(runs), max(runs)}))
            for runs in (row["a_runs"], row["b_runs"])
        ]
        over = row["over_seeds"] or {"interval": None, "p": None}
        table.add_row(HEADINGS[name], *ranges, _range(over["interval"]), _p(over["p"]))
    return table


def _seeds_note(result: dict[str, Any]) -> str:
    numbers = f"{len(result['a'])} and {len(result['b'])} runs"
    if result["metrics"]["auc"]["over_seeds"] is None:
        side = "A" if len(result["a"]) == 1 else "B"
        return f"{side} is one run, so nothing is known of its seeds: give two of it, better three."
    return (
        f"This interval covers {SEEDS}; so does p: users' error and the spread of runs (Welch's t) "
        f"are added. From {numbers} both are rough; more seeds make them surer."
    )


def _slices_note(result: dict[str, Any]) -> str:
    groups = [group for slice_ in result["slices"].values() for group in slice_.values()]
    tested = sum(group["p"] is not None for group in groups)
    few = (
        f" Groups of fewer than {FEWEST_USERS} users have neither." if tested < len(groups) else ""
    )
    return (
        f"{tested} groups were tested, and of so many some differ by chance: p is adjusted for "
        f"their number (Holm), the intervals are not. Both cover {USERS}.{few}"
    )


def _slices_table(result: dict[str, Any]) -> "Table":
    columns = ("", "number", "A", "B", "A - B", "95 % interval", "p, Holm")
    table = _table(f"{HEADINGS[result['slice_metric']]} by group", columns)
    from rich.text import Text

    for name, groups in result["slices"].items():
        table.add_row(Text(SLICE_NAMES.get(name, name), style="bold"))
        for group, row in list(groups.items())[:GROUPS_SHOWN]:
            cells = _cells(row, row["p_holm"])
            table.add_row(Text(f"  {group}"), f"{row['impressions']:,}", *cells)
        if len(groups) > GROUPS_SHOWN:
            table.add_row(f"  and {len(groups) - GROUPS_SHOWN} more")
    return table


def _table(title: str, columns: Sequence[str]) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=number > 0)
    return table


def _cells(row: dict[str, Any], p: float | None) -> tuple[str, ...]:
    a, b = _short(row["a"]), _short(row["b"])
    return a, b, _short(row["difference"], "+"), _range(row["interval"]), _p(p)


def _range(bounds: list[float] | None) -> str:
    return "-" if bounds is None else f"{_short(bounds[0], '+')} to {_short(bounds[1], '+')}"


def _p(p: float | None) -> str:
    return "-" if p is None else "<.0001" if p < 1e-4 else _short(p)


def _short(value: float, sign: str = "") -> str:
    """Word a number between -1 and 1: ``.7231``, with its sign ``+.0123``."""
    return f"{value:{sign}.4f}".replace("0.", ".", 1)
