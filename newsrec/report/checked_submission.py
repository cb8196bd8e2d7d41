"""Print the findings of ``check-submission``."""

from pathlib import Path

from rich.table import Table

from newsrec.console import counted, say, terminal
from newsrec.data.dataset import NewsData, Split
from newsrec.evaluation.check_submission import JUDGED, Report
from newsrec.evaluation.names import data_notes
from newsrec.evaluation.submission import KINDS
from newsrec.report.data_folder import share
from newsrec.report.tables import table

MOST_IN_ORDER = 0.05
FEWEST_IN_ORDER = 10
"""Warn if at least this share, and at least this number, of the judged impressions is ranked in the
order of the file or in its reverse; chance gives fewer."""
MOST_EMPTY = 0.1
MOST_UNKNOWN = 0.05
"""Shares of empty histories and of unknown ids above which to warn."""


def print_checked(path: Path, report: Report, data: NewsData, split: Split) -> None:
    """Print a summary of a submission that the leaderboard would accept, with warnings."""
    say(
        f"{path} would be accepted: {counted(report.lines, 'line')}, one for each impression "
        f"of {split.name}, {split.window}, in its order, each with a permutation of its candidates."
    )
    terminal().print(_data_table(data, split))
    say("Empty: without a known news item. Unknown: in no file of news.")
    for warning in warnings_of(report, split):
        say(f"Warning: {warning}")
    if report.metrics is None:
        both = "impression with a clicked and a skipped candidate"
        lacks = "labels" if split.labels is None else both
        say(f"{split.name} has no {lacks}, so there is no score.")
        return
    from newsrec.report.terminal import comparison_table  # imports PyTorch

    evaluated = counted(report.metrics["evaluated"], "impression")
    title = f"{split.name}, {split.window}: {evaluated}"
    terminal().print(comparison_table(title, {path.name: report.metrics}))


def warnings_of(report: Report, split: Split) -> list[str]:
    """Return warnings about a submission that the leaderboard would accept."""
    found = []
    for number, order in ((report.in_order, "order"), (report.backwards, "reverse order")):
        # Baselines that know little news give equal scores, which stay in the order of the file.
        if number >= max(FEWEST_IN_ORDER, MOST_IN_ORDER * report.judged):
            found.append(
                f"{number:,} of {report.judged:,} impressions with {JUDGED} candidates or more "
                f"({number / report.judged:.1%}) are ranked in the {order} of the file; by "
                "chance fewer than 1 % are. Equal scores do that: does every news item get a score "
                "of its own?"
            )
    if report.carriage_returns:
        found.append(
            f"lines with Windows line ends: {report.carriage_returns:,}. MIND's evaluator, which "
            "opens the file as text, reads them; other tools may not."
        )
    shares = _unknown_shares(split.counts)
    for (what, most), advice in {
        ("empty histories", MOST_EMPTY): "A user without clicks gets the same news as any other",
        ("unknown history clicks", MOST_UNKNOWN): "A model can use none of them",
        ("unknown candidates", MOST_UNKNOWN): "They all get the same score",
    }.items():
        number, total = shares[what]
        if number > most * total:
            found.append(
                f"{what}: {number:,} of {total:,} ({number / total:.1%}). {advice}: are the files "
                "of news whole, and their ids those of the impressions?"
            )
    found += data_notes(split.name, split.counts)
    dropped = split.counts.get("dropped_lines", 0)
    if dropped:
        found.append(
            f"impressions that could not be read and were dropped: {dropped:,}. The leaderboard "
            "wants a line for each of them: unpack the data again."
        )
    return found


def refusal(report: Report, data: NewsData) -> str:
    """Return why the leaderboard would not accept a submission.

    That is the first bad line, the number of bad lines, what is wrong with the ids, and whether
    another split has as many lines.
    """
    parts = []
    if report.first is not None:
        parts.append(f"{report.name}, {report.first}.")
        kinds = ", ".join(f"{n:,} {KINDS[kind]}" for kind, n in report.bad.most_common())
        parts.append(f"Bad lines: {report.bad.total():,} of {report.lines:,} ({kinds}).")
    if report.lines < report.expected:
        missing = report.expected - report.lines
        parts.append(
            f"{report.name} ends after line {report.lines:,}; impressions without a line: "
            f"{missing:,} of {report.expected:,}."
        )
    if report.ids:
        parts.append(report.ids)
    others = [s.name for s in data.splits.values() if len(s.history) == report.lines]
    if report.lines != report.expected and others:
        parts.append(f"It has as many lines as {others[0]}: is it for --split {others[0]}?")
    return "\n".join(parts)


def _data_table(data: NewsData, split: Split) -> Table:
    """Return a table of empty and unknown shares, with the submission's split first."""
    splits = [split, *(other for other in data.splits.values() if other.name != split.name)]
    shares = [_unknown_shares(each.counts) for each in splits]
    rows = [("impressions", *(f"{each.counts['impressions']:,}" for each in splits))]
    rows += [(what, *(share(*each[what]) for each in shares)) for what in shares[0]]
    title = "The data as newsrec reads it"
    return table(("", *(each.name for each in splits)), rows, title, framed=True)


def _unknown_shares(counts: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Return the numbers of empty histories, unknown clicks and unknown candidates, with totals."""
    unknown = counts["unknown_history_news"]
    return {
        "empty histories": (counts["empty_histories"], counts["impressions"]),
        "unknown history clicks": (unknown, unknown + counts["history_news"]),
        "unknown candidates": (counts["unknown_candidates"], counts["candidates"]),
    }
