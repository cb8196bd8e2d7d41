"""Ranks news for users: candidates, or the whole catalogue."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from newsrec.data import FIRST_NEWS, UNKNOWN_NEWS
from newsrec.errors import UserError
from newsrec.serving.arguments import Found, look_up, require_list, require_one_user
from newsrec.serving.catalogue import (
    Catalogue,
    category_codes,
    of_categories,
    require_same_number,
)
from newsrec.serving.encoding import TextEncoder
from newsrec.serving.explain import Explanation, explain, explanations
from newsrec.serving.folder import ExportFolder
from newsrec.serving.matching import Users, match_all
from newsrec.serving.results import Ranking, Recommendations
from newsrec.serving.rules import Rules, choose
from newsrec.serving.search import Best, excluded_rows, search
from newsrec.serving.sessions import Encoders
from newsrec.serving.shortlist import FEW_USERS, Shortlists

log = logging.getLogger(__name__)

VECTORS_AT_ONCE = 2**16
"""Vectors of users in memory at once, 64 MiB with 256 numbers each; at least those of one user."""


class Ranker(TextEncoder):
    """Scores news of a catalogue for users."""

    folder: ExportFolder
    _catalogue: Catalogue
    _encoders: Encoders
    _shortlists: Shortlists

    def user_vector(self, history_ids: Sequence[str]) -> NDArray[np.float32]:
        """Return the user vector for one history ``[dim]``; see ``user_vectors``."""
        require_one_user(history_ids, "history_ids", "user_vectors")
        vector: NDArray[np.float32] = self.user_vectors([history_ids])[0]
        return vector

    def user_vectors(self, histories: Sequence[Sequence[str]]) -> NDArray[np.float32]:
        """Return the user vector for each history ``[users, dim]``.

        For a model with several interests it is their mean, and with ``late`` it lacks the clicks
        that a score depends on: the product with a news vector is then not the score of ``rank``.
        Unknown ids are left out and logged. The last ``max_history`` of the known ids are used.

        Raises:
            UserError: If an id is not a string.
        """
        catalogue = self._catalogue
        found = catalogue.look_up_all(histories)
        unknown = list(dict.fromkeys(i for history in found for i in history.unknown))
        if unknown:
            log.warning(
                "%d ids of histories are not in the catalogue and were left out: %s",
                len(unknown),
                ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else ""),
            )
        return self._encoders.user_vectors([history.rows for history in found], catalogue.vectors)

    def rank(self, history_ids: Sequence[str], candidate_ids: Sequence[str]) -> Ranking:
        """Score one user's candidates, and sort them by score.

        A candidate that is not in the catalogue is scored by the mean vector of the catalogue, and
        is listed in ``unknown_candidates``. With dot products this is the user's mean score over
        the whole catalogue; with ``late`` and ``interests`` it is at most that.

        Args:
            history_ids: Ids of the news that the user clicked, oldest first; may be empty.
            candidate_ids: Ids of the news to rank, each once.

        Raises:
            UserError: If an id is not a string, or a candidate is given twice.
        """
        require_one_user(history_ids, "history_ids", "rank_many")
        require_one_user(candidate_ids, "candidate_ids", "rank_many", once=True)
        return self.rank_many([history_ids], [candidate_ids])[0]

    def rank_many(
        self, histories: Sequence[Sequence[str]], candidates: Sequence[Sequence[str]]
    ) -> list[Ranking]:
        """Do the same as ``rank`` for several users, with a history and candidates for each."""
        catalogue = self._catalogue
        found = catalogue.look_up_all(histories)
        require_list(candidates, "candidates")
        require_same_number(histories, "histories", candidates, "candidates")
        each = (part[i : i + 1] for part in self._users(catalogue, found) for i in range(len(part)))
        results = []
        for number, (user, ids) in enumerate(zip(each, candidates, strict=True)):
            unknown = look_up(ids, catalogue.rows, f"candidates[{number}]", once=True).unknown
            rows = [catalogue.rows.get(news_id, UNKNOWN_NEWS) for news_id in ids]
            scores = match_all(user, catalogue.vectors[rows])[0]
            order = np.argsort(-scores, kind="stable")
            ranked = [ids[place] for place in order]
            lacking = found[number].unknown, unknown
            results.append(Ranking(list(ids), scores, ranked, scores[order], *lacking))
        return results

    def explain(self, history_ids: Sequence[str], news_ids: Sequence[str]) -> list[Explanation]:
        """Say how much each click of a history adds to the scores of some news.

        Clicks that are unknown, or older than the model reads, are left out. A news item that is
        not in the catalogue is explained by the mean vector, by which ``rank`` scores it.

        Args:
            history_ids: Ids of the news that the user clicked, oldest first; may be empty.
            news_ids: Ids of the news to explain, each once.

        Returns:
            For each of ``news_ids`` what adds up to its score.

        Raises:
            UserError: If an id is not a string, or a news item is given twice.
        """
        require_one_user(history_ids, "history_ids", "explain once for each")
        require_one_user(news_ids, "news_ids", "explain once for each", once=True)
        catalogue = self._catalogue
        known = [news_id for news_id in history_ids if news_id in catalogue.rows]
        shown = [catalogue.rows.get(news_id, UNKNOWN_NEWS) for news_id in news_ids]
        history = [catalogue.rows[news_id] for news_id in known]
        found = explain(self._encoders, history, catalogue.vectors, shown)
        return explanations(found, known)

    def recommend(
        self,
        history_ids: Sequence[str],
        k: int = 10,
        exclude_history: bool = True,
        categories: Sequence[str] | None = None,
        skip_repeats: float | None = None,
        *,
        per_category: int | None = None,
        near_duplicates: float | None = None,
        diversity: float = 0.0,
        calibration: float = 0.0,
        half_life: float | None = None,
        max_age: float | None = None,
        ages: Mapping[str, float] | None = None,
    ) -> Recommendations:
        """Score the whole catalogue for one user, and return the ``k`` best news.

        Args:
            history_ids: Ids of the news that the user clicked, oldest first; may be empty.
            k: Number of news; fewer are returned if fewer are allowed.
            exclude_history: Whether news of the history are left out.
            categories: Categories to recommend from; None allows all.
            skip_repeats: Leave out news whose vector has at least this cosine with the vector of a
                clicked news item, such as near-duplicates; None leaves out none.
            per_category: As in ``newsrec.serving.rules.Rules``; so are the following.
            near_duplicates: Of two news with at least this cosine, keep only the better one.
            diversity: How much a news item has to differ from the ones before it, from 0 to 1.
            calibration: How much the categories have to match those of the history, from 0 to 1.
            half_life: Hours in which the odds of a news item halve.
            max_age: Most hours since a news item was published.
            ages: Hours since each news item was published, by its id; needed by the last two. News
                without an age are not lowered by ``half_life``, and left out with ``max_age``.

        Raises:
            UserError: If the catalogue is empty, or an argument is invalid.
        """
        require_one_user(history_ids, "history_ids", "recommend_many")
        return self.recommend_many(
            [history_ids],
            k,
            exclude_history,
            categories,
            skip_repeats,
            per_category=per_category,
            near_duplicates=near_duplicates,
            diversity=diversity,
            calibration=calibration,
            half_life=half_life,
            max_age=max_age,
            ages=ages,
        )[0]

    def recommend_many(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 10,
        exclude_history: bool = True,
        categories: Sequence[str] | None = None,
        skip_repeats: float | None = None,
        *,
        per_category: int | None = None,
        near_duplicates: float | None = None,
        diversity: float = 0.0,
        calibration: float = 0.0,
        half_life: float | None = None,
        max_age: float | None = None,
        ages: Mapping[str, float] | None = None,
    ) -> list[Recommendations]:
        """Do the same as ``recommend`` for several users, with a history for each."""
        catalogue = self._catalogue
        if not catalogue.ids:
            raise UserError(
                f"{self.folder.path} holds no news. Add some by add_news, or export the "
                "checkpoint again with its data (`export --data.root`)."
            )
        if not isinstance(k, int | np.integer) or not 1 <= k <= len(catalogue.ids):
            raise UserError(
                f"k is {k!r}; it must be from 1 to the number of news, {len(catalogue.ids):,}."
            )
        rules = Rules(
            per_category=per_category,
            near_duplicates=near_duplicates,
            skip_repeats=skip_repeats,
            diversity=diversity,
            calibration=calibration,
            half_life=half_life,
            max_age=max_age,
        )
        hours = _hours(catalogue.ids, ages, rules) if rules.by_age else None
        allowed = None if categories is None else of_categories(catalogue.table, categories)
        found = catalogue.look_up_all(histories)
        results: list[Recommendations] = []
        news = catalogue.real_vectors
        codes = category_codes(catalogue.table) if rules.by_category else None

        def best(clicked: list[int], scores: NDArray[np.float32]) -> Best:
            read = None if codes is None else codes[clicked]
            return choose(scores, news, codes, hours, rules, k, read=read)

        for users in self._users(catalogue, found):
            part = found[len(results) : len(results) + len(users)]
            clicks = [[row - FIRST_NEWS for row in history.rows] for history in part]
            excluded = excluded_rows(news, clicks, exclude_history, skip_repeats)
            plain = rules.by_score_alone and not rules.by_age
            own = None if plain else [partial(best, rows) for rows in clicks]
            tops = self._search(catalogue, users, k, excluded, allowed, own)
            results += [
                Recommendations([catalogue.ids[row] for row in top], scores, history.unknown)
                for (top, scores), history in zip(tops, part, strict=True)
            ]
        return results

    def _search(
        self,
        catalogue: Catalogue,
        users: Users,
        k: int,
        excluded: list[list[int]],
        allowed: NDArray[np.bool_] | None,
        best: Sequence[Callable[[NDArray[np.float32]], Best]] | None,
    ) -> Iterator[Best]:
        """Search the real news of a catalogue; arguments as in ``newsrec.serving.search.search``.

        With several vectors per user, many users, or rules that need all scores, a shortlist would
        not be faster.
        """
        plain = best is not None or users.vectors.shape[1] > 1 or len(users) > FEW_USERS
        shortlist = None if plain else self._shortlists.of(catalogue)
        if shortlist is None:
            return search(users, catalogue.real_vectors, k, excluded, allowed, best)
        each = zip(users.vectors, excluded, strict=True)
        return (shortlist.search(user, k, rows, allowed) for user, rows in each)

    def _users(self, catalogue: Catalogue, found: Sequence[Found]) -> Iterator[Users]:
        """Yield the users of these histories, in blocks that bound memory."""
        vectors = self._encoders.matching.num_vectors(self._encoders.max_history)
        at_once = max(1, VECTORS_AT_ONCE // vectors)
        for start in range(0, len(found), at_once):
            rows = [history.rows for history in found[start : start + at_once]]
            yield self._encoders.users(rows, catalogue.vectors)


def _hours(
    news_ids: Sequence[str], ages: Mapping[str, float] | None, rules: Rules
) -> NDArray[np.float64]:
    """Return the age of each news item in hours, NaN where it is not known ``[news]``."""
    if ages is None:
        name = "max_age" if rules.half_life is None else "half_life"
        raise UserError(
            f"{name} is given, but no news has an age. Give ages: hours since each news item was "
            "published, by its id."
        )
    try:
        return np.array([ages.get(news_id, np.nan) for news_id in news_ids], dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError("ages has values that are no numbers; give hours, by news id.") from None
