"""Ranks the news of a live recommender: candidates, all news, or a headline among all news."""

import difflib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from newsrec.errors import UserError
from newsrec.reranking import age_term, repeats
from newsrec.serving.engine import Engine
from newsrec.serving.explain import Explanation, explain, explanations
from newsrec.serving.items import NewsItem
from newsrec.serving.live_results import Answer, Near, Placed, Recommended
from newsrec.serving.matching import match_all
from newsrec.serving.rules import Rules, choose
from newsrec.serving.search import top_k
from newsrec.serving.slots import View


def recommend(
    engine: Engine, history: Sequence[str], k: int, rules: Rules, at: float, why: bool = False
) -> Answer:
    """Return the best news for a history.

    Args:
        engine: The vectors.
        history: Ids of the clicks, oldest first.
        k: Number of news.
        rules: What may be recommended.
        at: Time until which ages count, in seconds since 1970.
        why: Whether to explain each score.
    """
    with engine.view(history, rules.exclude) as view:
        rows = _known(view.found[0])
        scores = match_all(engine.users(view, rows), view.vectors)[0]
        allowed = _allowed(engine, view, rows, rules)
        ages = (at - view.published) / 3600
        best = choose(scores, view.vectors, view.category, ages, rules, k, allowed)
        chosen = best.rows.tolist()
        terms = np.zeros(len(chosen))
        if rules.half_life is not None:
            terms = age_term(ages[best.rows], rules.half_life)
        reasons = _reasons(engine, view, history, view.vectors[chosen], terms) if why else ()
        return _answer(engine, view, history, chosen, best.scores, at, reasons=reasons)


def rank(
    engine: Engine, history: Sequence[str], candidates: Sequence[str], at: float, why: bool = False
) -> Answer:
    """Return all candidates, best first; unknown ones have the score of the mean vector.

    Args:
        engine: The vectors.
        history: Ids of the clicks, oldest first.
        candidates: Ids of the news to rank.
        at: Time until which ages count, in seconds since 1970.
        why: Whether to explain each score.
    """
    with engine.view(history, candidates) as view:
        found = view.found[1]
        vectors = np.array(
            [view.unknown if row is None else view.vectors[row] for row in found], np.float32
        ).reshape(len(found), engine.encoders.dim)
        scores = match_all(engine.users(view, _known(view.found[0])), vectors)[0]
        order = np.argsort(-scores, kind="stable").tolist()
        rows = [found[place] for place in order]
        names = [candidates[place] for place in order]
        terms = np.zeros(len(order))
        reasons = _reasons(engine, view, history, vectors[order], terms) if why else ()
        return _answer(engine, view, history, rows, scores[order], at, names, reasons)


def place(engine: Engine, item: NewsItem, history: Sequence[str], k: int) -> Placed:
    """Return where a news item would rank, and the ``k`` news nearest to it."""
    vector = engine.encoders.news(engine.texts([item]))
    with engine.view(history) as view:
        user = engine.users(view, _known(view.found[0]))
        (score,) = match_all(user, vector)[0].tolist()
        above = (match_all(user, view.vectors)[0] > score) & view.alive
        lengths = np.sqrt(np.einsum("nd,nd->n", view.vectors, view.vectors))
        lengths *= np.linalg.norm(vector)
        cosines = view.vectors @ vector[0] / np.maximum(lengths, np.finfo(np.float32).tiny)
        cosines[~view.alive] = -np.inf
        near = [
            Near._make((*view.items[row][:3], float(cosines[row])))
            for row in (top_k(cosines, min(k, len(cosines))) if len(cosines) else ())
        ]
        return Placed(score, 1 + int(above.sum()), view.num_news, near, engine.version)


def _reasons(
    engine: Engine,
    view: View,
    history: Sequence[str],
    vectors: NDArray[np.float32],
    terms: NDArray[np.float64],
) -> list[Explanation]:
    """Explain the scores of news vectors ``[news, dim]`` with these age terms ``[news]``."""
    found = zip(history, view.found[0], strict=True)
    known = [(news_id, row) for news_id, row in found if row is not None]
    clicked = view.vectors[[row for _, row in known]]
    of = np.arange(len(known), len(known) + len(vectors))
    shares = explain(engine.encoders, range(len(known)), np.concatenate([clicked, vectors]), of)
    return explanations(shares, [news_id for news_id, _ in known], terms)


def _known(rows: Sequence[int | None]) -> list[int]:
    return [row for row in rows if row is not None]


def _allowed(engine: Engine, view: View, clicked: list[int], rules: Rules) -> NDArray[np.bool_]:
    """Return which rows the rules allow that depend on ids and texts."""
    allowed = view.alive.copy()
    if rules.categories is not None:
        codes = engine.slots.codes
        for category in rules.categories:
            if category not in codes:
                near = difflib.get_close_matches(category, codes) or sorted(codes)[:10]
                raise UserError(
                    f"categories: no news item was ever of the category {category!r}. There is "
                    f"{', '.join(near)}."
                )
        allowed &= np.isin(view.category, [codes[category] for category in rules.categories])
    allowed[_known(view.found[1])] = False
    if rules.exclude_history:
        allowed[clicked] = False
    if rules.skip_repeats is not None:
        allowed &= ~repeats(view.vectors, slice(None), clicked, rules.skip_repeats)
    return allowed


def _answer(
    engine: Engine,
    view: View,
    history: Sequence[str],
    rows: Sequence[int | None],
    scores: NDArray[np.float32],
    at: float,
    names: Sequence[str] = (),
    reasons: Sequence[Explanation] = (),
) -> Answer:
    """Return an answer from rows and scores; ``names`` are ids of rows that may be None."""
    news = []
    for place, (row, score) in enumerate(zip(rows, scores.tolist(), strict=True)):
        reason = reasons[place] if reasons else None
        if row is None:
            news.append(Recommended(names[place], score, None, None, None, None, None, reason))
            continue
        item, hours = view.items[row], (at - float(view.published[row])) / 3600
        age = None if item.published is None else hours
        texts = item.title, item.category, item.subcategory
        news.append(Recommended(item.news_id, score, *texts, item.published, age, reason))
    found = view.found[0]
    known = [news_id for news_id, row in zip(history, found, strict=True) if row is not None]
    unknown = [news_id for news_id, row in zip(history, found, strict=True) if row is None]
    lacking = [name for name, row in zip(names, rows, strict=False) if row is None]
    return Answer(
        news, known[-engine.encoders.max_history :], list(dict.fromkeys(unknown)), lacking,
        engine.version,
    )  # fmt: skip
