"""Choose example impressions for the page: user, history, ranked candidates and clicks."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from newsrec.data import FIRST_NEWS
from newsrec.data.dataset import NewsData
from newsrec.evaluation.explained import Explain
from newsrec.evaluation.results import Results
from newsrec.report.recommendations import score_parts

NUM_EXAMPLES = 10
TOP = 6
"""Best-ranked candidates that are always listed; clicked ones with worse ranks are added."""
LAST_CLICKS = 6
UNKNOWN = "(not among the news)"
RANKED_BLIND = "unknown, ranked without its content"
"""Shown as the category of an unknown candidate."""


class Candidate(NamedTuple):
    """A candidate of an example."""

    rank: int
    score: float
    category: str
    title: str
    clicked: bool | None
    """None where the split has no labels."""
    reasons: Sequence[tuple[float, str]] = ()
    """What adds up to the score: numbers and names; empty if it is not the score of one model."""


class Example(NamedTuple):
    """An impression as the page shows it."""

    impression_id: int
    user: str
    time: str
    auc: float | None
    """None where the impression has no AUC."""
    history: list[str]
    """Titles of the user's last clicks, the latest first."""
    num_history: int
    candidates: list[Candidate]
    """Some of the candidates, the best first."""
    num_candidates: int


def choose_examples(
    data: NewsData,
    split: str,
    scores: NDArray[np.floating],
    results: Results,
    explain: Explain | None = None,
) -> list[Example]:
    """Return impressions from the worst to the best, evenly over the quantiles of the AUC.

    If no impression has an AUC, they are taken evenly over the file. ``explain`` says why the
    listed candidates have their scores; None says nothing.
    """
    values = results.values
    if values is not None and values.valid.any():
        rows = np.flatnonzero(values.valid)
        rows = rows[np.argsort(values.of("auc")[rows], kind="stable")]
    else:
        rows = np.arange(len(results.slices["day"].code))
    places = np.linspace(0, len(rows) - 1, min(NUM_EXAMPLES, len(rows))).round().astype(int)
    return examples_of(data, split, scores, results, rows[places].tolist(), explain)


def examples_of(
    data: NewsData,
    split: str,
    scores: NDArray[np.floating],
    results: Results,
    rows: Sequence[int],
    explain: Explain | None = None,
) -> list[Example]:
    """Return some impressions of a split, by their rows."""
    return [_example(data, split, scores, results, row, explain) for row in rows]


def _example(
    data: NewsData,
    split: str,
    scores: NDArray[np.floating],
    results: Results,
    row: int,
    explain: Explain | None,
) -> Example:
    part = data.split(split)
    begin, end = map(int, part.candidates.offsets[row : row + 2])
    rank = results.ranks[begin:end]
    labels = None if part.labels is None else part.labels[begin:end]
    news = part.candidates.values[begin:end]
    listed = [
        i for i in np.argsort(rank) if rank[i] <= TOP or (labels is not None and labels[i] == 1)
    ]
    first, last = map(int, part.histories.offsets[part.history[row] :][:2])
    clicks = np.asarray(part.histories.values[first:last])
    why: list[list[tuple[float, str]]] = [[] for _ in listed]
    if explain is not None:
        why = _reasons(data, explain, clicks, news[listed], scores[begin:end][listed])
    candidates = [
        Candidate(
            rank=int(rank[i]),
            score=float(scores[begin + i]),
            category=_field(data, int(news[i]), "category")
            if news[i] >= FIRST_NEWS
            else RANKED_BLIND,
            title=_field(data, int(news[i]), "title") or "(no title)",
            clicked=None if labels is None else bool(labels[i]),
            reasons=parts,
        )
        for i, parts in zip(listed, why, strict=True)
    ]
    values = results.values
    history = clicks[-LAST_CLICKS:][::-1]
    return Example(
        impression_id=int(part.impression_id[row]),
        user=data.users[int(part.user[row])].as_py(),
        time=str(part.time[row]).replace("T", " "),
        auc=None if values is None or not values.valid[row] else float(values.of("auc")[row]),
        history=[_field(data, int(item), "title") or "(no title)" for item in history],
        num_history=last - first,
        candidates=candidates,
        num_candidates=end - begin,
    )


def _reasons(
    data: NewsData,
    explain: Explain,
    clicks: NDArray[np.integer],
    news: NDArray[np.integer],
    scores: NDArray[np.floating],
) -> list[list[tuple[float, str]]]:
    """Return what adds up to the score of each candidate: numbers and names."""
    found, parts = explain(clicks, news), []
    titles = [_field(data, int(row), "title") for row in clicks[-found.values.shape[1] :]]
    for values, rest, score in zip(found.values.tolist(), found.rest.tolist(), scores, strict=True):
        named = [{"title": t, "value": v} for t, v in zip(titles, values, strict=False)]
        changed = float(score) - sum(values) - rest  # by a rule, or by rounding
        parts.append(score_parts({"clicks": named, "rest": rest, "other": changed}))
    return parts


def _field(data: NewsData, item: int, name: str) -> str:
    if item < FIRST_NEWS:
        return UNKNOWN if name == "title" else ""
    return data.news[name][item - FIRST_NEWS].as_py()
