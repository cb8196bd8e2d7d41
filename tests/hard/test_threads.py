"""A recommender shared by threads, while news are added: every answer is that of one thread."""

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import NEWS

from hard import TIMES
from newsrec.export.export import describe
from newsrec.files import file_hash
from newsrec.serving import Recommender

THREADS, CALLS = 4, 60 * TIMES


@pytest.mark.slow
def test_threads_get_the_answers_of_one(exported_encoders, tmp_path):
    module, encoders, _ = exported_encoders
    folder = Path(shutil.copytree(encoders, tmp_path / "export"))
    files = {path.name: file_hash(path) for path in folder.iterdir()}
    manifest = describe(module, ["title"], folder) | {"files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    recommender = Recommender.load(folder, threads=1)
    ids = list(NEWS)
    recommender.add_news(ids, [item[2] for item in NEWS.values()])
    rng = np.random.default_rng(0)
    histories = [rng.choice(ids, rng.integers(0, 30)).tolist() for _ in range(40)]
    shown = [rng.choice(ids, rng.integers(1, 12), replace=False).tolist() for _ in range(40)]
    scores = [
        recommender.rank(h, s).candidate_scores for h, s in zip(histories, shown, strict=True)
    ]
    titles = [item[2] for item in NEWS.values()]
    vectors = recommender.encode_news(titles)
    wrong, calls = [], []

    def work(thread):
        numbers = np.random.default_rng([1, thread]).integers(0, 40, CALLS).tolist()
        for call, number in enumerate(numbers):
            kind = call % 4
            if kind == 0:
                added = recommender.add_news([f"T{thread}-{call}"], [titles[number % len(titles)]])
                good = added.added == 1
            elif kind == 1:
                news = number % len(titles)
                found = recommender.encode_news([titles[news]])[0]
                good = np.allclose(found, vectors[news], rtol=1e-4, atol=1e-4)
            elif kind == 2:
                best = recommender.recommend(histories[number], k=20)
                good = not set(best.news_ids) & set(histories[number])
                good &= bool((np.diff(best.scores) <= 0).all())
            else:
                ranking = recommender.rank(histories[number], shown[number])
                good = np.allclose(ranking.candidate_scores, scores[number], rtol=1e-4, atol=1e-4)
            calls.append(kind)
            if not good:
                wrong.append((thread, call))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(calls) == THREADS * CALLS
    assert len(recommender.news) == len(ids) + calls.count(0)
