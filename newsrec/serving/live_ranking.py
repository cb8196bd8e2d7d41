"""Ranks the news of a live recommender: candidates, all news, or a headline among all news."""

import difflib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from newsrec.errors import UserError
from newsrec.reranking import age_term, in_window, repeats
from newsrec.serving.engine import Engine
from newsrec.serving.explain import explain, explanations
from newsrec.serving.items import NewsItem
from newsrec.serving.live_results import Answer, Near, Placed, Recommended
from newsrec.serving.matching import Users, match_all
from newsrec.serving.rules import Rules, choose
from newsrec.serving.search import Best, top_k
from newsrec.serving.slots import View

FEW = 4
"""Where at most one in this many news is allowed, only the allowed ones are scored."""


def recommend(
    engine: Engine, history: Sequence[str], k: int, rules: Rules, at: float, explained: bool
) -> Answer:
    """Return the best news for a history; ages count until ``at``, in seconds since 1970."""
    with engine.view(history, rules.exclude) as view:
        rows = _known(view.found[0])
        users = engine.users(view, rows)
        allowed = _allowed(engine, view, rows, rules)
        ages = (at - view.published) / 3600
        if rules.max_age is not None:
            allowed &= in_window(ages, rules.max_age)
        best, read = None, np.asarray(view.category[rows], dtype=np.int64)
        if allowed.sum() * FEW <= len(allowed):
            best = _best(view, users, ages, rules, k, np.flatnonzero(allowed), read)
        elif engine.proposals is not None:
            some = engine.proposals.search(users, k, rules, allowed)
            best = None if some is None else _best(view, users, ages, rules, k, some, read)
        if best is None or len(best.rows) < min(k, int(allowed.sum())):
            scores = match_all(users, view.vectors)[0]
            best = choose(scores, view.vectors, view.category, ages, rules, k, allowed, read)
        answer = _answer(engine, view, history, best.rows.tolist(), best.scores, at)
        if not explained:
            return answer
        terms = None if rules.half_life is None else age_term(ages[best.rows], rules.half_life)
        return _explained(engine, view, rows, view.vectors[best.rows], answer, terms)


def _best(
    view: View,
    users: Users,
    ages: NDArray[np.float64],
    rules: Rules,
    k: int,
    some: NDArray[np.int64],
    read: NDArray[np.int64],
) -> Best:
    """Return the best of some rows."""
    vectors = view.vectors[some]
    scores = match_all(users, vectors)[0]
    best = choose(scores, vectors, view.category[some], ages[some], rules, k, read=read)
    return Best(some[best.rows], best.scores)


def rank(
    engine: Engine, history: Sequence[str], candidates: Sequence[str], at: float, explained: bool
) -> Answer:
    """Return all candidates, best first; unknown ones have the score of the mean vector."""
    with engine.view(history, candidates) as view:
        found = view.found[1]
        vectors = np.array(
            [view.unknown if row is None else view.vectors[row] for row in found], np.float32
        ).reshape(len(found), engine.encoders.dim)
        clicked = _known(view.found[0])
        scores = match_all(engine.users(view, clicked), vectors)[0]
        order = np.argsort(-scores, kind="stable").tolist()
        rows = [found[place] for place in order]
        names = [candidates[place] for place in order]
        answer = _answer(engine, view, history, rows, scores[order], at, names)
        return _explained(engine, view, clicked, vectors[order], answer) if explained else answer


def place(engine: Engine, item: NewsItem, history: Sequence[str], k: int) -> Placed:
    """Return where a news item would rank among news that are not clicked, and the ``k`` nearest.

    If the catalogue has the item's id, the catalogue's vector is placed, and does not count itself.
    """
    with engine.view([item.news_id]) as view:
        (row,) = view.found[0]
        vector = None if row is None else view.vectors[[row]]
    if vector is None:
        vector = engine.encoders.news(engine.texts([item]))
    with engine.view(history, [item.news_id]) as view:
        clicked = _known(view.found[0])
        user = engine.users(view, clicked)
        (score,) = match_all(user, vector)[0].tolist()
        others = view.alive.copy()
        others[[*clicked, *_known(view.found[1])]] = False
        scores = match_all(user, view.vectors)[0]
        # The last digits of equal products depend on how many news items are multiplied at once.
        above = (scores > score) & ~np.isclose(scores, score, rtol=1e-5, atol=1e-6) & others
        lengths = np.sqrt(np.einsum("nd,nd->n", view.vectors, view.vectors))
        lengths *= np.linalg.norm(vector)
        cosines = view.vectors @ vector[0] / np.maximum(lengths, np.finfo(np.float32).tiny)
        cosines[~view.alive] = -np.inf
        near = [
            Near._make((*view.items[row][:3], float(cosines[row])))
            for row in (top_k(cosines, min(k, len(cosines))) if len(cosines) else ())
        ]
        return Placed(score, 1 + int(above.sum()), int(others.sum()), near, engine.version)


def _explained(
    engine: Engine,
    view: View,
    clicked: list[int],
    vectors: NDArray[np.float32],
    answer: Answer,
    terms: NDArray[np.float64] | None = None,
) -> Answer:
    """Say of each news item of an answer what each click adds to its score.

    Args:
        engine: The encoders.
        view: The news.
        clicked: Rows of the history.
        vectors: Of the news of the answer ``[news, dim]``.
        answer: The answer.
        terms: Age term of each news item; None is 0.
    """
    read = clicked[-engine.encoders.max_history :]
    all_vectors = np.concatenate([view.vectors[read], vectors])
    shown = range(len(read), len(all_vectors))
    found = explain(engine.encoders, range(len(read)), all_vectors, shown)
    made = explanations(found, answer.history, terms)
    news = [one._replace(explanation=why) for one, why in zip(answer.news, made, strict=True)]
    return answer._replace(news=news)


def _known(rows: Sequence[int | None]) -> list[int]:
    return [row for row in rows if row is not None]


def _allowed(engine: Engine, view: View, clicked: list[int], rules: Rules) -> NDArray[np.bool_]:
    """Return which rows the rules allow that depend on ids and texts."""
    allowed = view.alive.copy()
    if rules.categories is not None:
        codes = engine.slots.codes
        named = sorted(filter(None, codes))
        for category in rules.categories:
            if category not in codes:
                near = difflib.get_close_matches(category, named) or named[:10]
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
) -> Answer:
    """Return an answer from rows and scores; ``names`` are ids of rows that may be None."""
    news = []
    for place, (row, score) in enumerate(zip(rows, scores.tolist(), strict=True)):
        if row is None:
            news.append(Recommended(names[place], score, None, None, None, None, None))
            continue
        item, hours = view.items[row], (at - float(view.published[row])) / 3600
        age = None if item.published is None else hours
        texts = item.title, item.category, item.subcategory
        news.append(Recommended(item.news_id, score, *texts, item.published, age))
    found = view.found[0]
    known = [news_id for news_id, row in zip(history, found, strict=True) if row is not None]
    unknown = [news_id for news_id, row in zip(history, found, strict=True) if row is None]
    lacking = [name for name, row in zip(names, rows, strict=False) if row is None]
    return Answer(
        news, known[-engine.encoders.max_history :], list(dict.fromkeys(unknown)), lacking,
        engine.version,
    )  # fmt: skip
