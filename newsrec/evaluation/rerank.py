"""Re-ranks the first news of every impression of a split, and measures what that costs and gains.

The rules are those of ``newsrec.reranking.pick``, which ``recommend`` and the service use, too.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from newsrec.console import progress
from newsrec.data import FIRST_NEWS
from newsrec.data.dataset import NewsData
from newsrec.errors import UserError
from newsrec.evaluation.ages import ages
from newsrec.evaluation.beyond import LONGEST, PER_IMPRESSION
from newsrec.evaluation.beyond_lists import measure, top_of
from newsrec.evaluation.beyond_results import leave_outs, row_intervals
from newsrec.evaluation.pools import kinds_of
from newsrec.evaluation.results import category_codes
from newsrec.evaluation.slices import clusters
from newsrec.evaluation.voices import Voices
from newsrec.metrics import impression_metrics, ranks
from newsrec.reranking import age_term, check_threshold, pick

MOST = 10_000
"""Most impressions that the trade-off is measured on; of more, this many evenly over the file."""
SHARES = (0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.97)
HOURS = (384.0, 192.0, 96.0, 48.0, 24.0, 12.0, 6.0)
COSINES = (0.95, 0.9, 0.8, 0.7, 0.5)
NUMBERS = (5, 4, 3, 2, 1)
TRADE_OFF: dict[str, tuple[Sequence[float], str]] = {
    "diversity": (SHARES, "vector_diversity@10"),
    "calibration": (SHARES, "calibration@10"),
    "per_category": (NUMBERS, "category_diversity@10"),
    "near_duplicates": (COSINES, "near_duplicates@10"),
    "half_life": (HOURS, "freshness@10"),
}
"""Values of each rule that are measured, from weak to strong, and the metric that it is for."""
SLOW_IMPRESSIONS = 20_000
"""With fewer impressions no progress bar is shown."""


class Rerank(NamedTuple):
    """Rules for the first news of an impression; see ``newsrec.reranking.pick``."""

    per_category: int | None = None
    near_duplicates: float | None = None
    diversity: float = 0.0
    calibration: float = 0.0

    @classmethod
    def of(cls, *values: Any) -> "Rerank | None":
        """Return the rules from options in the order of the fields; None if they change nothing.

        An option that is not given is None.

        Raises:
            UserError: If an option has an invalid value.
        """
        given = {n: v for n, v in zip(cls._fields, values, strict=True) if v is not None}
        rules = cls(**given)
        if rules.per_category is not None and rules.per_category < 1:
            raise UserError(
                f"--per_category is {rules.per_category}; it is a number of news, 1 or more."
            )
        if rules.near_duplicates is not None:
            check_threshold(rules.near_duplicates, "--near_duplicates")
        for name in ("diversity", "calibration"):
            if not 0 <= getattr(rules, name) <= 1:
                raise UserError(f"--{name} is {getattr(rules, name)}; it is a number from 0 to 1.")
        return None if rules == cls() else rules

    @property
    def compares(self) -> list[str]:
        """Names of the options that compare news vectors."""
        names = {"near_duplicates": self.near_duplicates, "diversity": self.diversity or None}
        return [f"--{name}" for name, value in names.items() if value is not None]

    def described(self) -> dict[str, Any]:
        """Return the field ``rerank`` of ``metrics.json``."""
        return {name: value for name, value in self._asdict().items() if value}

    def apply(
        self,
        data: NewsData,
        split: str,
        scores: NDArray[np.floating],
        vectors: NDArray[np.floating] | None,
        rows: NDArray[np.integer] | None = None,
    ) -> NDArray[np.float64]:
        """Return scores whose order has the picked news first, the others as they were.

        Args:
            data: The data.
            split: Name of the split.
            scores: Scores in the order of the file ``[candidates]``.
            vectors: News vectors ``[news, dim]``; needed by the options that ``compares`` names.
            rows: Impressions to re-rank; None re-ranks all.
        """
        part, codes = data.split(split), category_codes(data)
        width = int(codes.max(initial=0)) + 1
        offsets, news = np.asarray(part.candidates.offsets), np.asarray(part.candidates.values)
        lifted = np.array(scores, dtype=np.float64)
        rows = np.arange(len(part.history)) if rows is None else rows
        with progress("re-ranked", len(rows), SLOW_IMPRESSIONS, "{:,.0f}/s".format) as advance:
            for row in rows:
                shown = slice(offsets[row], offsets[row + 1])
                order = np.argsort(-lifted[shown], kind="stable")
                listed = news[shown][order]
                first, last = part.histories.offsets[part.history[row] :][:2]
                read = codes[part.histories.values[first:last]]
                wanted = bool(self.calibration) and len(read) > 0
                picked = pick(
                    lifted[shown][order],
                    min(LONGEST, len(order)),
                    vectors=None if vectors is None else vectors[listed],
                    categories=codes[listed],
                    per_category=self.per_category,
                    near_duplicates=self.near_duplicates,
                    diversity=self.diversity,
                    calibration=self.calibration if wanted else 0.0,
                    target=np.bincount(read, minlength=width) / len(read) if wanted else None,
                )
                top = lifted[shown].max(initial=0.0)
                lifted[offsets[row] + order[picked]] = top + np.arange(len(picked), 0, -1)
                advance(1)
        return lifted


def trade_off(
    data: NewsData,
    split: str,
    scores: NDArray[np.floating],
    vectors: NDArray[np.floating] | None,
    plm_vectors: NDArray[np.floating] | None,
    voices: Voices | None = None,
    by_age: bool = True,
) -> dict[str, Any] | None:
    """Measure accuracy and the metrics beyond it for some values of each rule of ``TRADE_OFF``.

    Args:
        data: The data.
        split: Name of a split with labels.
        scores: Scores in the order of the file ``[candidates]``.
        vectors: News vectors of the model; None leaves out the rules that compare them
            ``[news, dim]``.
        plm_vectors: News vectors that diversity is measured by; None leaves such metrics out.
        voices: Which named entities count; None counts persons by name.
        by_age: Whether half-lives are measured; not for scores that are no logits, or already
            lowered by one.

    Returns:
        The field ``trade_off`` of ``metrics.json``: the number of ``impressions``, the metrics
        of the scores as they are under ``none``, and ``rules``: for each rule the metric it is
        ``for``, and ``measured``, a list of values, each with its metrics, and the difference of
        nDCG@10 from that of ``none`` with its interval, paired and clustered by user. None if no
        impression has a clicked and a skipped candidate.
    """
    part = data.split(split)
    assert part.labels is not None
    plain = impression_metrics(scores, part.labels, part.candidates.offsets)
    counted = np.flatnonzero(plain.valid)
    if not len(counted):
        return None
    rows = counted[np.linspace(0, len(counted) - 1, min(MOST, len(counted))).round().astype(int)]
    users = clusters(np.asarray(part.user)[rows])
    places, offsets = part.candidates.places(rows)
    labels = part.labels[places]
    few = part._replace(candidates=part.candidates.take(rows), labels=labels)
    tried, values, tops = [], {}, {}
    for rule, value, changed in _by_rule(data, split, scores, vectors, rows, by_age):
        name = f"{rule} {value}"
        tried.append((rule, value, name))
        values[name] = impression_metrics(changed[places], labels, offsets)
        tops[name] = top_of(few, ranks(changed[places], offsets))
    beyond = measure(data, split, tops, plm_vectors, rows, kinds=kinds_of(data, voices))
    shown = len(np.unique(few.candidates.values[few.candidates.values >= FIRST_NEWS]))

    def means(name: str) -> dict[str, float]:
        found = {metric: float(values[name].of(metric).mean()) for metric in ("auc", "ndcg@10")}
        for metric, row in zip(PER_IMPRESSION, beyond[name], strict=True):
            if metric.endswith("@10") and not np.isnan(row).all():
                found[metric] = float(np.nanmean(row, dtype=np.float64))
        whole = leave_outs(tops[name].news, users, shown)
        return found | {n: float(v[0]) for n, v in whole.items() if n.endswith("@10")}

    none = tried.pop(0)[2]
    rules: dict[str, Any] = {}
    for rule, value, name in tried:
        gains = values[name].of("ndcg@10") - values[none].of("ndcg@10")
        line = {"value": value, **means(name), "ndcg@10_difference": float(gains.mean())}
        line["ndcg@10_difference_interval"] = row_intervals(gains[None], users)[0].tolist()
        rules.setdefault(rule, {"for": TRADE_OFF[rule][1], "measured": []})["measured"].append(line)
    return {"impressions": len(rows), "none": means(none), "rules": rules}


def _by_rule(
    data: NewsData,
    split: str,
    scores: NDArray[np.floating],
    vectors: NDArray[np.floating] | None,
    rows: NDArray[np.integer],
    by_age: bool,
) -> Iterator[tuple[str, float, NDArray[np.floating]]]:
    """Yield the scores as they are, then those of each rule of ``TRADE_OFF`` and its values."""
    yield "none", 0.0, scores
    old = ages(data, split)
    for rule, (values, _) in TRADE_OFF.items():
        for value in values:
            if rule == "half_life":
                if by_age:
                    yield rule, value, scores + age_term(old, value)
                continue
            options: dict[str, Any] = {rule: value}
            rerank = Rerank(**options)
            if vectors is not None or not rerank.compares:
                yield rule, value, rerank.apply(data, split, scores, vectors, rows)


def check_vectors(rules: "Rerank | None", scorer: str | None, members: int) -> None:
    """Refuse rules that compare the news vectors of a model where there are none, or several.

    Raises:
        UserError: Names the option and what to do.
    """
    if rules is None or not rules.compares:
        return
    option = rules.compares[0]
    if scorer is not None:
        raise UserError(
            f"{option} compares the news vectors of a model, and the baseline {scorer} has none. "
            "Leave it out, or give --ckpt_path."
        )
    if members > 1:
        raise UserError(
            f"{option} compares the news vectors of one model, and --ckpt_path has {members} "
            "checkpoints. Leave it out, or give one."
        )


def rerank_note(found: Mapping[str, Any]) -> str:
    """Describe in words how the first news were re-ranked."""
    said = {
        "per_category": "at most {:g} of a category",
        "near_duplicates": "no near-duplicates (cosine of at least {:g})",
        "diversity": "diversity {:g}",
        "calibration": "calibration {:g}",
    }
    return ", ".join(said[name].format(value) for name, value in found.items())
