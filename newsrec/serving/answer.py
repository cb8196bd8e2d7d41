"""A recommender's answer for one user as plain values, for JSON, a table or a page."""

from typing import Any

import numpy as np

from newsrec.reranking import age_term
from newsrec.serving.recommend import Recommender


def answer(
    recommender: Recommender,
    history: list[str],
    k: int = 10,
    candidates: list[str] | None = None,
    explain: bool = False,
    **rules: Any,
) -> dict[str, Any]:
    """Return news for one user, with scores and texts.

    Args:
        recommender: The exported model.
        history: Ids of the news that the user clicked, oldest first.
        k: Number of news to recommend; ignored with ``candidates``.
        candidates: Ids of news to rank, which are all returned; None recommends the best news of
            the export.
        explain: Whether each news item has an ``explanation``: what each click adds to its score.
        rules: Further arguments of ``Recommender.recommend``; ignored with ``candidates``.

    Returns:
        A dictionary: ``news`` has the news, best first; ``known_clicks`` is the number of clicks
        whose news is in the export; ``read_clicks`` is how many of these, the newest, the model
        reads.

    Raises:
        UserError: If the recommender refuses an argument.
    """
    unknown_candidates: list[str] = []
    if candidates is not None:
        ranking = recommender.rank(history, candidates)
        ids, scores = ranking.ranked_ids, ranking.ranked_scores
        unknown_history, unknown_candidates = ranking.unknown_history, ranking.unknown_candidates
    else:
        ids, scores, unknown_history = recommender.recommend(history, k, **rules)
    known = recommender.known_ids
    found = zip(ids, scores, recommender.describe(ids), strict=True)
    unknown = set(unknown_history)  # each id once, even if it was clicked several times
    clicks = sum(news_id not in unknown for news_id in history)
    manifest = recommender.folder.manifest
    found_news: dict[str, Any] = {
        "model_hash": manifest["model_hash"],
        "history": history,
        "known_clicks": clicks,
        "read_clicks": min(clicks, manifest["max_history"]),
        "unknown_history": unknown_history,
        "unknown_candidates": unknown_candidates,
        "news": [
            {
                "rank": rank,
                "news_id": news_id,
                "score": round(float(score), 6),
                "known": news_id in known,
                **texts,
            }
            for rank, (news_id, score, texts) in enumerate(found, start=1)
        ],
    }
    if explain:
        titles = dict(zip(history, recommender.describe(history), strict=True))
        explained = recommender.explain(history, ids)
        terms = np.zeros(len(ids))
        if candidates is None and rules.get("half_life") is not None:
            hours = np.array([rules["ages"].get(news_id, np.nan) for news_id in ids])
            terms = age_term(hours, rules["half_life"])
        for news, explanation, age in zip(
            found_news["news"], explained, terms.tolist(), strict=True
        ):
            news["explanation"] = explanation._replace(age=age).plain()
            for click in news["explanation"]["clicks"]:
                click["title"] = titles[click["news_id"]]["title"]
    return found_news
