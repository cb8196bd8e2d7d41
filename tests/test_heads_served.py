"""Models of each head through fit, evaluate, export and recommend: one score everywhere."""

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import NEWS, fit_options, refused, tiny_behaviors, tiny_news, write_mind
from fastapi.testclient import TestClient
from warm import run

from newsrec.__main__ import main
from newsrec.errors import UserError
from newsrec.evaluation.ensemble import combine
from newsrec.export.graph_runs import onnx_encoder
from newsrec.export.pretrained import PretrainedRecommender
from newsrec.export.quantize import quantize_graph
from newsrec.export.verify import made_news
from newsrec.export.weights import load_model
from newsrec.model.heads import InterestHead, LateHead
from newsrec.serving import Recommender
from newsrec.serving.http import create_app
from newsrec.serving.http_answers import Service
from newsrec.serving.http_settings import Settings
from newsrec.serving.live import LiveRecommender
from newsrec.serving.manifest import NEWS_ENCODER, read_manifest, settings_hash
from newsrec.training.module import RecommenderModule

pytestmark = pytest.mark.slow
OPTIONS = {
    "late": (
        *("--model.matching=late", "--model.late_clicks=2"),
        *("--model.appeal=true", "--data.abstract_tokens=9"),
        *("--data.categories=both", "--data.fields=[title]"),
    ),
    "interests": (
        *("--model.matching=interests", "--model.interests=3"),
        *("--data.categories=subcategory", "--data.fields=[title]"),
    ),
}


@pytest.fixture(scope="module", params=["late", "interests"])
def served(request, plm_dir, tmp_path_factory):
    """A run, its scores of dev by evaluate, and its export."""
    root = tmp_path_factory.mktemp(request.param)
    behaviors = tiny_behaviors()
    mind = write_mind(root / "mind", tiny_news(), behaviors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging, "raiseExceptions", False)
        main([*fit_options(mind, plm_dir, root / "run"), *OPTIONS[request.param]])
    best = root / "run" / "checkpoints" / "best.ckpt"
    content = torch.load(best, weights_only=True)
    table = content["state_dict"]["recommender.news_encoder.categories.table.weight"]
    torch.nn.init.normal_(table[1:], generator=torch.Generator().manual_seed(0))
    torch.save(content, best)
    evaluate = ["evaluate", f"--ckpt_path={best}", f"--data.root={mind}", "--split=dev",
                "--trainer.accelerator=cpu", "--baselines=false", "--scores=true"]  # fmt: skip
    main([*evaluate, f"--output={root / 'dev'}", "--trainer.devices=1"])
    main(["export", f"--ckpt_path={best}", f"--output={root / 'export'}", f"--data.root={mind}"])
    return SimpleNamespace(
        head=request.param, mind=mind, plm=plm_dir, best=best, export=root / "export",
        run=root / "run", evaluate=evaluate, behaviors=behaviors["dev"],
        scores=scores_of(root / "dev"),
    )  # fmt: skip


def scores_of(folder):
    lists = pq.read_table(folder / "scores.parquet")["scores"].to_pylist()
    return np.concatenate([np.array(scores) for scores in lists])


def test_evaluate_and_the_recommender_have_one_score(served):
    recommender = Recommender.load(served.export, threads=1)
    histories = [line[3].split() for line in served.behaviors]
    shown = [[word.split("-")[0] for word in line[4].split()] for line in served.behaviors]
    found = recommender.rank_many(histories, shown)
    scores = np.concatenate([ranking.candidate_scores for ranking in found])
    np.testing.assert_allclose(scores, served.scores, atol=1e-4 * np.abs(served.scores).max())
    assert 0 in {len(history) for history in histories}


def test_the_best_news_are_those_with_the_highest_scores(served):
    recommender = Recommender.load(served.export, threads=1)
    ids = recommender.news["news_id"].to_pylist()
    for history in ([], ["N1"], ["N3", "N1", "N3", "N2"]):
        scores = recommender.rank(history, ids)
        found = recommender.recommend(history, k=5, exclude_history=False)
        assert found.news_ids == scores.ranked_ids[:5]
        np.testing.assert_allclose(found.scores, scores.ranked_scores[:5], rtol=1e-5, atol=1e-5)
    alone = recommender.recommend_many([[], ["N1"]], k=3)
    for history, one in zip([[], ["N1"]], alone, strict=True):
        assert one.news_ids == recommender.recommend(history, k=3).news_ids


def test_an_explanation_adds_up_to_the_score(served):
    recommender = Recommender.load(served.export, threads=1)
    ids = recommender.news["news_id"].to_pylist()
    for history in ([], ["N1"], ["N3", "N1", "N3", "N2", "N5"]):
        scores = recommender.rank(history, ids).candidate_scores
        found = recommender.explain(history, ids)
        totals = [sum(value for _, value in one.clicks) + one.rest for one in found]
        np.testing.assert_allclose(totals, scores, atol=1e-4)
        assert len(found[0].clicks) == len(history)


def test_blocks_of_users_give_what_all_at_once_gives(served, monkeypatch):
    recommender = Recommender.load(served.export, threads=1)
    histories = [line[3].split() for line in served.behaviors]
    together = recommender.recommend_many(histories, k=4)
    monkeypatch.setattr("newsrec.serving.ranking.VECTORS_AT_ONCE", 1)
    for one, other in zip(together, recommender.recommend_many(histories, k=4), strict=True):
        assert one.news_ids == other.news_ids
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-5, atol=1e-5)


def test_the_user_vector_is_the_first_output(served):
    model = RecommenderModule.load_from_checkpoint(served.best).recommender
    recommender = Recommender.load(served.export, threads=1)
    vectors = torch.from_numpy(recommender.news_vectors.copy())
    with torch.no_grad():
        users = model.users(vectors, torch.tensor([[2, 3, 4]]))
        expected = model.head.exported(users)[0][0]
    ids = recommender.news["news_id"].to_pylist()[:3]
    np.testing.assert_allclose(recommender.user_vector(ids), expected, atol=1e-5)


def test_a_checkpoint_and_an_export_build_the_same_model(served):
    trained = RecommenderModule.load_from_checkpoint(served.best)
    again = load_model(served.export)
    kind = {"late": LateHead, "interests": InterestHead}[served.head]
    assert type(trained.recommender.head) is type(again.head) is kind
    for name, value in trained.recommender.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    if served.head == "late":
        assert again.head.clicks == 2
        assert again.head.appeal.norm() > 0
    else:
        assert again.user_encoder.attention.query.out_features == 3


def test_the_manifest_and_the_card_name_the_head(served):
    manifest = read_manifest(served.export)
    assert manifest["format"] == 3
    assert manifest["matching"]["head"] == served.head
    outputs = manifest["encoders"]["user_encoder.onnx"]["outputs"]
    assert next(iter(outputs)) == "user_vector"
    assert len(outputs) == {"late": 3, "interests": 2}[served.head]
    assert next(iter(outputs))[1:] in manifest["input_contract"]
    inputs = manifest["encoders"]["news_encoder.onnx"]["inputs"]
    fields = {"late": ["category", "subcategory"], "interests": ["subcategory"]}[served.head]
    assert list(manifest["category_names"]) == fields
    assert inputs["categories"] == {"shape": ["news", len(fields)], "dtype": "int64"}
    card = (served.export / "README.md").read_text()
    if served.head == "late":
        assert inputs["views"]["shape"] == ["news", 2]
        assert "cut to 9 tokens" in manifest["input_contract"]
        assert "its abstract, at most 9" in card
    else:
        assert "views" not in inputs
    assert {"late": "2 most similar clicks", "interests": "smooth maximum"}[served.head] in card


def test_news_are_added_to_a_copy_with_the_same_head(served, tmp_path, capsys):
    news = tmp_path / "news.tsv"
    news.write_text("X1\tsports\ttennis\tA champion\t\t\t\t\n")
    main(
        ["encode-news", str(served.export), "--news", str(news), "--output", str(tmp_path / "new")]
    )
    assert read_manifest(tmp_path / "new")["matching"] == read_manifest(served.export)["matching"]
    main(["recommend", str(tmp_path / "new"), "--history", "N1", "X1", "--json"])
    assert '"X1"' in capsys.readouterr().out.split("history")[1]


def test_a_changed_number_of_the_head_is_noticed(served, tmp_path):
    manifest = json.loads((served.export / "manifest.json").read_text())
    name, other = {"late": ("clicks", 3), "interests": ("temperature", 9.0)}[served.head]
    changed = manifest | {"matching": manifest["matching"] | {name: other}}
    others = [{"matching": {"head": "dot"}}, {"format": 2}, {"abstract_tokens": 8}]
    for made in (changed, *(manifest | other for other in others)):
        (tmp_path / "manifest.json").write_text(json.dumps(made))
        with pytest.raises(UserError, match=r"is not as it was written|has format ., matching"):
            read_manifest(tmp_path)
    for wrong in (7, {}, {"head": "cosine"}, {"head": "late"}, {"head": "late", "clicks": 0},
                  {"head": "interests", "interests": 2, "combine": "logsumexp"},
                  {"head": "interests", "interests": 2, "combine": "max", "temperature": 1.0},
                  {"head": "interests", "interests": 2, "combine": "sum"}):  # fmt: skip
        made = manifest | {"matching": wrong}
        made["settings_hash"] = settings_hash(made)
        (tmp_path / "manifest.json").write_text(json.dumps(made))
        with pytest.raises(UserError, match=r"matching is .* should be a way to make scores"):
            read_manifest(tmp_path)


def test_news_that_are_encoded_again_have_the_same_vectors(served, monkeypatch):
    monkeypatch.setattr("newsrec.serving.sessions.TOKENS_PER_RUN", 40)
    recommender = Recommender.load(served.export, threads=1)
    ids = recommender.news["news_id"].to_pylist()
    category, subcategory, title, abstract = map(list, zip(*map(NEWS.get, ids), strict=True))
    found = recommender.encode_news(title, category, subcategory, abstract)
    np.testing.assert_allclose(found, recommender.news_vectors[2:], atol=1e-5)
    added = recommender.add_news(ids, title, category, subcategory, abstract)
    assert added == (0, 0, len(ids))
    unknown = recommender.encode_news(title, ["opera"] * len(ids), [""] * len(ids), abstract)
    assert (np.linalg.norm(unknown - found, axis=1) > 0.1).sum() == len(
        [one for one in subcategory if one]
    )
    pretrained = PretrainedRecommender.from_pretrained(served.export)
    assert pretrained.category_names == recommender.category_names
    again = pretrained.encode(title, category, subcategory, abstract)
    np.testing.assert_allclose(again, found, atol=1e-4)
    checkpoint = PretrainedRecommender.from_checkpoint(served.best)
    assert checkpoint.category_names == recommender.category_names
    with pytest.raises(UserError, match="too, one for each title"):
        recommender.encode_news(title, None, None, abstract)
    if served.head == "late":  # which reads abstracts
        assert (
            recommender.add_news(*(c[:1] for c in (ids, title, category, subcategory)), ["Other"])[
                1
            ]
            == 1
        )
        with pytest.raises(UserError, match="give abstracts"):
            recommender.encode_news(title, category, subcategory)


def test_the_service_gives_a_new_news_item_the_vectors_of_its_categories(served, tmp_path):
    engine = LiveRecommender.open(served.export, tmp_path / "store", threads=1)
    app = create_app(Service(Settings(served.export, allowed_hosts=("testserver",)), engine))
    client, plain = TestClient(app), Recommender.load(served.export, threads=1)
    category, subcategory, title, abstract = NEWS["N1"]
    for news_id, names in (("X1", (category, subcategory)), ("X2", ("opera", "opera"))):
        item = {"news_id": news_id, "title": title, "abstract": abstract}
        item |= {"category": names[0], "subcategory": names[1]}
        assert client.post("/news", json={"news": [item]}).json()["added"] == 1
        assert plain.add_news([news_id], [title], [names[0]], [names[1]], [abstract])[0] == 1
    candidates = ["X1", "X2", "N2"]
    found = client.post("/rank", json={"history": ["N3"], "candidates": candidates}).json()
    expected = plain.rank(["N3"], candidates)
    assert [n["news_id"] for n in found["news"]] == expected.ranked_ids
    scores = [n["score"] for n in found["news"]]
    np.testing.assert_allclose(scores, expected.ranked_scores, rtol=1e-4)
    assert len(set(np.round(scores, 4))) == 3
    engine.close()


def test_a_quantized_encoder_adds_the_same_vectors_of_categories(served, tmp_path):
    path = Path(shutil.copy(served.export / NEWS_ENCODER, tmp_path))
    names = read_manifest(served.export)["category_names"].values()
    *_, news = made_news(8, 90, served.head == "late", [*map(len, names)])
    *texts, rows = news

    def added():
        encode = onnx_encoder(path, "token_ids")
        return encode(*texts, rows) - encode(*texts, torch.zeros_like(rows))

    before = added()
    quantize_graph(path)
    assert before.norm(dim=1).median() > 1
    torch.testing.assert_close(added(), before, rtol=1e-4, atol=1e-4)


def test_an_ensemble_averages_models_with_vectors_of_categories(served, tmp_path):
    other = served.best.with_name("last.ckpt")
    evaluate = [word.replace("best.ckpt", "last.ckpt") for word in served.evaluate]
    main([*evaluate, f"--output={tmp_path / 'last'}", "--trainer.devices=1"])
    both = [*served.evaluate[:1], "--ckpt_path", str(served.best), str(other), *served.evaluate[2:]]
    both += ["--ensemble=mean_score", f"--output={tmp_path / 'both'}", "--trainer.devices=1"]
    main(both)
    sizes = [len(line[4].split()) for line in served.behaviors]
    scores = served.scores, scores_of(tmp_path / "last")
    assert not np.allclose(*scores)
    expected = combine(scores, np.cumsum([0, *sizes]), "mean_score")
    np.testing.assert_allclose(scores_of(tmp_path / "both"), expected, atol=1e-5)


def test_evaluate_lowers_the_scores_of_what_repeats_a_click(served, tmp_path):
    options = [f"--output={tmp_path / 'lower'}", "--trainer.devices=1"]
    main([*served.evaluate, *options, "--repeat_threshold=0.5", "--repeat_penalty=3"])
    recommender = Recommender.load(served.export, threads=1)
    row_of = {i: row + 2 for row, i in enumerate(recommender.news["news_id"].to_pylist())}
    vectors = recommender.news_vectors.copy()
    vectors[2:] /= np.linalg.norm(vectors[2:], axis=1)[:, None]
    repeated = []
    for line in served.behaviors:
        clicks = [row_of[i] for i in line[3].split() if i in row_of]
        for word in line[4].split():
            row = row_of.get(word.split("-")[0])
            cosines = [0.0] if row is None else [vectors[row] @ vectors[click] for click in clicks]
            repeated.append(max(cosines, default=0.0) >= 0.5)
    assert 0 < sum(repeated) < len(repeated)
    expected = served.scores - 3 * np.array(repeated)
    np.testing.assert_allclose(scores_of(tmp_path / "lower"), expected, atol=1e-5)
    metrics = json.loads((tmp_path / "lower" / "metrics.json").read_text())
    assert metrics["repeats"] == {"threshold": 0.5, "penalty": 3.0, "candidates": sum(repeated)}


def test_another_head_than_the_checkpoints_is_refused(served, capsys):
    said = refused(
        capsys, *fit_options(served.mind, served.plm, served.run), *OPTIONS[served.head],
        "--ckpt_path=last", "--model.matching=dot",
    )  # fmt: skip
    assert f"model.matching is dot, but {served.run}" in said
    assert f"was trained with {served.head}" in said


def test_two_processes_give_the_scores_of_one(served, tmp_path):
    launch = ["--standalone", "--nproc-per-node=2"]
    done = run([*served.evaluate, f"--output={tmp_path / 'two'}"], torchrun=launch)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(scores_of(tmp_path / "two"), served.scores, rtol=1e-5, atol=1e-5)
