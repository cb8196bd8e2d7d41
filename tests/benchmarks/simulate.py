"""Time and memory of ``newsrec simulate``, and what the world reached of MIND's statistics.

    python tests/benchmarks/simulate.py [--preset large] [--seed 0]

Writes into a temporary folder, reads it back line by line and prints one JSON object.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from newsrec.simulation.simulate import simulate

ASKED = {
    # Of MINDsmall and MINDlarge; the other statistics are the same for all splits.
    "small": {
        "train": {"impressions": 156_965, "users": 50_000, "news": 51_282, "empty": 0.021},
        "dev": {
            **{"impressions": 73_152, "users": 50_000, "news": 42_416, "empty": 0.030},
            **{"new_users": 0.89, "new_news": 0.71},
        },
    },
    "large": {
        "train": {"impressions": 2_232_748, "users": 711_222, "news": 101_527, "empty": 0.021},
        "dev": {
            **{"impressions": 376_471, "users": 255_990, "news": 72_023, "empty": 0.030},
            **{"new_users": 0.15, "new_news": 0.32},
        },
        "test": {
            **{"impressions": 2_370_727, "users": 702_005, "news": 120_961, "empty": 0.012},
            **{"new_users": 0.22, "new_news": 0.87},
        },
    },
}
EVERYWHERE = {
    "history_mean": 32,
    "history_quantiles_50_90_99_100": [18, 76, 201, 425],
    "history_up_to_5": 0.18,
    "history_over_50": 0.19,
    "history_with_repeats": 0.21,
    "candidates_mean": 37.4,
    "candidates_quantiles_5_50_90_100": [2, 24, 93, 283],
    "candidates_in_history": 0.0025,
    "clicks_mean": 1.52,
    "clicks_1_2_3_4_more": [0.725, 0.165, 0.059, 0.024, 0.028],
    "slots_of_top_1_and_10_percent": [0.16, 0.66],
    "title_words": 11,
    "abstract_words": 43,
    "abstracts_missing": 0.05,
    "titles_distinct": 98_388 / 101_527,
    "titles_quoted": 3 / 2000,
}
LIFE_UNDER_2_DAYS = 0.845


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "world"
        begin, used = time.perf_counter(), _cpu_seconds()
        world = simulate(root, args.preset, args.seed)
        seconds = time.perf_counter() - begin
        impressions = sum(split["impressions"] for split in world["splits"].values())
        result = {
            "preset": args.preset,
            "seed": args.seed,
            "seconds": round(seconds, 1),
            "cpu_seconds": round(_cpu_seconds() - used, 1),
            "peak_mb": _peak_mb(),
            "impressions_per_second": round(impressions / seconds),
            "bytes": {
                split: sum(path.stat().st_size for path in (root / split).iterdir())
                for split in world["splits"]
            },
            "ceiling": world["ceiling"],
        }
        reached = statistics(root, list(world["splits"]))
    asked = ASKED.get(args.preset, {})
    result["statistics"] = {
        split: {
            name: {"asked": {**EVERYWHERE, **asked.get(split, {})}.get(name), "reached": value}
            for name, value in values.items()
        }
        for split, values in reached.items()
        if split != "all"
    }
    life = {"asked": LIFE_UNDER_2_DAYS, "reached": reached["all"]["life_under_2_days"]}
    result["statistics"]["all"] = {"life_under_2_days": life}
    print(json.dumps(result, indent=1))


def _cpu_seconds() -> float:
    usage = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


def _peak_mb() -> int:
    usage = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return max(u.ru_maxrss for u in usage) // unit


def statistics(root: Path, splits: list[str]) -> dict[str, dict]:
    """Read the files of a world as plain lines, and return each split's statistics.

    ``new_users``: share of a split's users who have no line in train's behaviors.tsv.
    ``new_news``: share of the distinct news items shown in a split, of those that its news.tsv
    lists, which train's news.tsv does not list.
    ``life_under_2_days``: share of the news items shown in any split, listed or not, with less than
    two days between the first and the last impression that shows them.
    """
    result: dict[str, dict] = {}
    train_users: set[str] = set()
    train_news: set[str] = set()
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for split in splits:
        titles, abstracts, listed = [], [], set()
        with (root / split / "news.tsv").open(encoding="utf-8") as file:
            for line in file:
                fields = line.rstrip("\n").split("\t")
                listed.add(fields[0])
                titles.append(fields[3])
                abstracts.append(fields[4])
        users: set[str] = set()
        slots: dict[str, int] = {}
        hist, cand, clicks, repeats, inside = [], [], [], 0, 0
        with (root / split / "behaviors.tsv").open(encoding="utf-8") as file:
            for line in file:
                _, user, time_text, history_text, shown_text = line.rstrip("\n").split("\t")
                history = history_text.split()
                read = set(history)
                words = shown_text.split(" ")
                shown = [word.partition("-")[0] for word in words]
                users.add(user)
                hist.append(len(history))
                repeats += len(read) < len(history)
                cand.append(len(shown))
                clicks.append(sum(word.endswith("-1") for word in words))
                second = _second(time_text)
                for news in shown:
                    slots[news] = slots.get(news, 0) + 1
                    inside += news in read
                    if second < first.get(news, 1 << 62):
                        first[news] = second
                    if second > last.get(news, -1):
                        last[news] = second
        if split == "train":
            train_users, train_news = users, listed
        lengths, sizes, chosen = np.array(hist), np.array(cand), np.array(clicks)
        counts = np.sort(list(slots.values()))[::-1]
        known = set(slots) & listed
        result[split] = {
            "impressions": len(hist),
            "users": len(users),
            "news": len(listed),
            "empty": _round((lengths == 0).mean()),
            "history_mean": _round(lengths.mean()),
            "history_quantiles_50_90_99_100": _quantiles(lengths, (0.5, 0.9, 0.99, 1)),
            "history_up_to_5": _round((lengths <= 5).mean()),
            "history_over_50": _round((lengths > 50).mean()),
            "history_with_repeats": _round(repeats / len(hist)),
            "candidates_mean": _round(sizes.mean()),
            "candidates_quantiles_5_50_90_100": _quantiles(sizes, (0.05, 0.5, 0.9, 1)),
            "candidates_in_history": _round(inside / sizes.sum(), 5),
            "slots_of_top_1_and_10_percent": [
                _round(counts[: len(counts) // part].sum() / counts.sum()) for part in (100, 10)
            ],
            "title_words": _round(np.mean([len(title.split()) for title in titles])),
            "abstract_words": _round(np.mean([len(text.split()) for text in abstracts if text])),
            "abstracts_missing": _round(np.mean([not text for text in abstracts])),
            "titles_distinct": _round(len(set(titles)) / len(titles)),
            "titles_quoted": _round(np.mean([title.startswith('"') for title in titles])),
        }
        if chosen.any():
            result[split]["clicks_mean"] = _round(chosen.mean())
            result[split]["clicks_1_2_3_4_more"] = [
                *(_round((chosen == number).mean()) for number in (1, 2, 3, 4)),
                _round((chosen > 4).mean()),
            ]
            result[split]["clicks_none_or_all"] = int(((chosen == 0) | (chosen == sizes)).sum())
        if split != "train":
            result[split]["new_users"] = _round(len(users - train_users) / len(users))
            result[split]["new_news"] = _round(len(known - train_news) / len(known))
    lives = np.array([last[news] - first[news] for news in first])
    result["all"] = {"life_under_2_days": _round((lives < 2 * 86_400).mean())}
    return result


def _second(text: str) -> int:
    """Return the seconds since November 1 of a time like ``11/9/2019 9:05:58 AM``."""
    date, clock, half = text.split(" ")
    hour, minute, second = clock.split(":")
    hours = int(hour) % 12 + 12 * (half == "PM")
    return ((int(date.split("/")[1]) * 24 + hours) * 60 + int(minute)) * 60 + int(second)


def _round(value: float, digits: int = 4) -> float:
    return round(float(value), digits)


def _quantiles(values: np.ndarray, shares: tuple[float, ...]) -> list[float]:
    return np.quantile(values, shares).round(1).tolist()


if __name__ == "__main__":
    main()
