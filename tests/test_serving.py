"""One small model through fit, evaluate, export, recommend and encode-news."""

import errno
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest
import torch
from conftest import docs_block, news_row, refused

from newsrec.__main__ import main
from newsrec.commands.recommend import split_ids
from newsrec.errors import UserError
from newsrec.export.export import write_catalogue
from newsrec.export.weights import load_model
from newsrec.files import file_hash
from newsrec.metrics import METRICS
from newsrec.serving import Recommender
from newsrec.training.catalogue import encode_catalogue
from newsrec.training.module import RecommenderModule
from newsrec.training.trained_run import TrainedRun

REPOSITORY = Path(__file__).parent.parent
CLOSE = 1e-4
"""Of the largest score."""


@pytest.fixture
def copied(served, tmp_path):
    return Path(shutil.copytree(served.export, tmp_path / "copied"))


def recommended(capsys, *argv):
    """What ``recommend --json`` answers."""
    main(["recommend", *map(str, argv), "--json"])
    return json.loads(capsys.readouterr().out)


def test_a_user_and_a_news_item_have_one_score_everywhere(served):
    """Evaluate's, the exported graph's by the words of the manifest, and the recommender's."""
    with zipfile.ZipFile(served.dev / "prediction.zip") as archive:
        lines = archive.read("prediction.txt").decode().splitlines()
    news = pq.read_table(served.export / "news.parquet").to_pydict()
    row_of = dict(zip(news["news_id"], news["row"], strict=True))
    vectors = np.load(served.export / "news_vectors.npy")
    session = onnxruntime.InferenceSession(str(served.export / "user_encoder.onnx"))
    recommender = Recommender.load(served.export)
    largest = np.abs(served.scores).max()
    start = 0
    for (_, _, _, history, shown), line in zip(served.behaviors, lines, strict=True):
        candidates = [word.split("-")[0] for word in shown.split()]
        expected = served.scores[start : start + len(candidates)]
        start += len(candidates)

        rows = [row_of[news_id] for news_id in history.split() if news_id in row_of]
        clicked = vectors[rows or [0]][None]
        mask = np.full((1, len(rows) or 1), bool(rows))
        (user,) = session.run(None, {"history": clicked, "mask": mask})
        by_hand = vectors[[row_of.get(news_id, 1) for news_id in candidates]] @ user[0]
        np.testing.assert_allclose(by_hand, expected, atol=CLOSE * largest)

        found = recommender.rank(history.split(), candidates)
        np.testing.assert_allclose(found.candidate_scores, expected, atol=CLOSE * largest)
        ranks = json.loads(line.split(" ", 1)[1])
        gaps = np.diff(np.sort(expected))
        if len(gaps) and gaps.min() > 2 * CLOSE * largest:  # rounding cannot swap two of them
            assert [ranks.index(i + 1) for i in range(len(ranks))] == [
                candidates.index(news_id) for news_id in found.news_ids
            ]
    assert start == len(served.scores)


def test_the_manifest_has_the_metrics_that_evaluate_gives(served):
    manifest = json.loads((served.export / "manifest.json").read_text())
    metrics = json.loads((served.dev / "metrics.json").read_text())
    for name in METRICS:
        assert manifest["metrics"][name] == pytest.approx(metrics[name], abs=1e-4)
        assert manifest["metrics"]["intervals"][name] == pytest.approx(
            metrics["intervals"][name], abs=1e-3
        )
    assert manifest["metrics"]["split"] == "dev"
    assert manifest["metrics"]["data_fingerprint"] == metrics["data_fingerprint"]
    assert manifest["checkpoint"]["sha256"] == metrics["checkpoint_sha256"]
    card = (served.export / "README.md").read_text()
    assert f"| auc | {metrics['auc']:.4f} |" in card
    assert "The same split chose the checkpoint" in card


def test_the_manifest_names_every_file_and_how_to_feed_the_graphs(served):
    manifest = json.loads((served.export / "manifest.json").read_text())
    names = {path.name for path in served.export.iterdir()} - {"manifest.json"}
    assert set(manifest["files"]) == names - {"README.md"}  # whose text may be edited
    assert len(names) == 9
    for name, found in manifest["files"].items():
        assert file_hash(served.export / name) == found
    for name, encoder in manifest["encoders"].items():
        session = onnxruntime.InferenceSession(str(served.export / name))
        kinds = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(bool)": "bool"}
        for kind, nodes in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            assert encoder[kind] == {
                node.name: {"shape": node.shape, "dtype": kinds[node.type]} for node in nodes
            }


def test_without_data_an_export_has_no_news_and_says_so(served, tmp_path, capsys, monkeypatch):
    def copy_encoders(module, tokenizer_json, folder, news_encoder):  # writing takes 10 s
        assert not news_encoder
        for name in ("user_encoder.onnx", "model.safetensors", "config.json", "tokenizer.json"):
            shutil.copy(served.export / name, folder)
        return {"user_encoder.onnx": 0.0}

    monkeypatch.setattr("newsrec.export.export.write_encoders", copy_encoders)
    output = tmp_path / "bare"
    main(["export", f"--ckpt_path={served.best}", f"--output={output}", "--news_encoder=false"])
    assert "--data.root" in capsys.readouterr().out
    names = {path.name for path in output.iterdir()}
    assert not names & {"news_vectors.npy", "news.parquet", "news_encoder.onnx"}
    card = (output / "README.md").read_text()
    assert "without interval" in card
    assert "val/auc" in card
    assert "holds no news" in refused(capsys, "recommend", output)


def test_an_export_whose_metrics_differ_is_refused(served, tmp_path, monkeypatch):
    run = TrainedRun.open(served.best, served.without_test, "dev")
    wrong = lambda history, mask: [-history.sum(dim=1).numpy()]  # noqa: E731
    monkeypatch.setattr("newsrec.export.verify.onnx_graph", lambda *a: wrong)
    with pytest.raises(RuntimeError, match="On dev the exported metrics differ"):
        write_catalogue(run.module, run.data, tmp_path)


def test_a_full_disk_leaves_no_export(served, tmp_path, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("newsrec.export.export.torch.export.save", full)
    said = refused(capsys, "export", "--ckpt_path", served.best, "--output", tmp_path / "new")
    assert "No space left" in said
    assert "nothing was written" in said
    assert list(tmp_path.iterdir()) == []


def test_recommend_prints_the_best_news(served, capsys):
    main(["recommend", str(served.export), "--history", "N5", "N404", "-k", "3"])
    shown = capsys.readouterr()
    assert "for 1 click" in shown.out
    assert "1 of the history not in the export, left out: N404" in shown.err
    best = Recommender.load(served.export).recommend(["N5"], k=3)
    for news_id, score in zip(best.news_ids, best.scores, strict=True):
        assert news_id in shown.out
        assert f"{score:.3f}" in shown.out


def test_a_click_on_an_unknown_news_item_is_none_however_often(served, capsys):
    main(["recommend", str(served.export), "--history", "N404", "N404", "N5"])
    assert "for 1 click" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["N5,N6,N404"], ["N5 N6 N404"], ["N5,", "N6, N404"], ["N5 ,N6", ",N404"]]
)
def test_ids_may_have_commas_or_spaces_between_them(served, capsys, words):
    expected = recommended(capsys, served.export, "--history", "N5", "N6", "N404")
    found = recommended(capsys, served.export, "--history", *words)
    assert found == expected
    assert found["known_clicks"] == found["read_clicks"] == 2
    ranked = recommended(capsys, served.export, "--candidates", *words)
    assert {item["news_id"] for item in ranked["news"]} == {"N5", "N6", "N404"}
    known = {item["news_id"]: item["known"] for item in ranked["news"]}
    assert known == {"N5": True, "N6": True, "N404": False}


def test_an_id_that_holds_a_comma_stays_whole():
    assert split_ids(["a,b", "a,c"], {"a,b", "a"}) == ["a,b", "a", "c"]


def test_recommend_says_how_much_of_a_history_it_reads(served, capsys):
    full = Recommender.load(served.export).folder.manifest["max_history"]
    main(["recommend", str(served.export), "--history", *["N5", "N6"] * 600, "N404"])
    assert f"read the newest {full} of 1,200 clicks" in capsys.readouterr().out
    main(["recommend", str(served.export), "--history", *["N5"] * full])
    assert f"for {full} clicks" in capsys.readouterr().out


def test_a_history_of_which_nothing_is_known_is_said_to_be_a_cold_start(served, capsys):
    main(["recommend", str(served.export), "--history", *(f"X{i}" for i in range(7))])
    shown = capsys.readouterr()
    assert "for a user without history" in shown.out
    assert "7 of the history not in the export, left out: X0, X1, X2, X3, X4, ..." in shown.err
    assert "No news item of the history is in the export" in shown.err
    main(["recommend", str(served.export)])
    shown = capsys.readouterr()
    assert "for a user without history" in shown.out
    assert shown.err == ""


def test_an_unknown_candidate_is_marked_in_the_table(served, capsys):
    main(["recommend", str(served.export), "--candidates", "N1", "ZZZ"])
    shown = capsys.readouterr()
    (line,) = (line for line in shown.out.splitlines() if "ZZZ" in line)
    assert "(not in the export)" in line
    assert "1 of the candidates not in the export" in shown.err


def test_recommend_answers_in_json(served, capsys):
    answer = recommended(capsys, served.export, "--history", "N5", "N404", "-k", 4)
    assert answer["history"] == ["N5", "N404"]
    assert answer["unknown_history"] == ["N404"]
    assert [item["rank"] for item in answer["news"]] == [1, 2, 3, 4]
    assert "N5" not in [item["news_id"] for item in answer["news"]]
    for item in answer["news"]:
        assert item["title"]
        assert item["category"]
    again = recommended(capsys, served.export, "--history", "N5", "-k=17", "--exclude_history=no")
    assert "N5" in [item["news_id"] for item in again["news"]]
    sports = recommended(capsys, served.export, "--categories", "sports", "-k", 2)
    assert {item["category"] for item in sports["news"]} == {"sports"}
    ranked = recommended(capsys, served.export, "--candidates", "N7", "N404", "N1")
    assert {item["news_id"] for item in ranked["news"]} == {"N7", "N404", "N1"}
    assert ranked["unknown_candidates"] == ["N404"]
    (unknown,) = (item for item in ranked["news"] if item["news_id"] == "N404")
    assert unknown["title"] is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-k", "18"], ["18", "17"]),
        (["-k", "0"], ["0"]),
        (["--categories", "sprots"], ["sprots", "sports"]),
        (["--candidates", "N1", "N1"], ["N1", "twice"]),
        (["--candidates", "N1", "--categories", "sports"], ["either"]),
    ],
)
def test_what_cannot_be_recommended_is_said(served, capsys, options, words):
    said = refused(capsys, "recommend", served.export, *options)
    assert all(word in said for word in words)


def test_another_format_a_changed_file_and_no_export_are_refused(copied, tmp_path, capsys):
    manifest = copied / "manifest.json"
    text = manifest.read_text()
    assert "no manifest.json" in refused(capsys, "recommend", tmp_path)
    manifest.write_text(text.replace('"format": 2', '"format": 1'))
    assert "format 1" in refused(capsys, "recommend", copied)
    manifest.write_text(text)
    graph = copied / "user_encoder.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    assert "user_encoder.onnx is not the file" in refused(capsys, "recommend", copied)
    graph.unlink()
    assert "user_encoder.onnx is missing" in refused(capsys, "recommend", copied)


def test_encoded_news_have_the_models_vectors(served, tmp_path, capsys):
    """Those of test, which the export had not seen, against PyTorch over the whole folder."""
    before = {path.name: file_hash(path) for path in served.export.iterdir()}
    output = tmp_path / "tomorrow"
    news = served.mind / "test" / "news.tsv"
    main(["encode-news", str(served.export), "--news", str(news), "--output", str(output)])
    assert "20 news items: 3 new, 0 with another text than before, 12 as they" in (
        capsys.readouterr().out
    )
    assert {path.name: file_hash(path) for path in served.export.iterdir()} == before

    run = TrainedRun.open(served.best, served.mind)
    data = run.data
    expected = encode_catalogue(run.module.recommender, data.catalogue)
    found = pq.read_table(output / "news.parquet")
    assert found["news_id"].to_pylist() == data.data.news["news_id"].to_pylist()
    vectors = np.load(output / "news_vectors.npy")
    torch.testing.assert_close(torch.from_numpy(vectors), expected, atol=1e-5, rtol=1e-5)

    manifest = json.loads((output / "manifest.json").read_text())
    (added,) = manifest["added_news"]
    assert added["sha256"] == file_hash(news)
    assert (added["added"], added["replaced"], added["unchanged"]) == (3, 0, 12)
    names = {path.name for path in output.iterdir()}
    assert set(manifest["files"]) == names - {"manifest.json", "README.md"}
    assert (output / "README.md").read_text() == (served.export / "README.md").read_text()
    item = recommended(capsys, output, "--candidates", "N18")["news"][0]
    assert item["title"] == "Rates stay where they are"


def test_a_news_item_with_another_text_is_encoded_again(served, tmp_path, capsys):
    news = tmp_path / "news.tsv"
    rows = [
        news_row("N1", "sports", "football", "Cup final is postponed", ""),
        news_row("N2", "sports", "football", "Coach leaves after three lost games", "Other."),
    ]
    news.write_text("\n".join("\t".join(row) for row in rows) + "\n")
    output = tmp_path / "new"
    main(["encode-news", str(served.export), f"--news={news}", f"--output={output}"])
    # The model reads no abstract, so N2 is as it was.
    assert "17 news items: 0 new, 1 with another text than before, 1 as" in capsys.readouterr().out
    old, new = (np.load(folder / "news_vectors.npy") for folder in (served.export, output))
    assert np.flatnonzero((old != new).any(axis=1)).tolist() == [1, 2]  # the mean, and N1


def test_news_that_cannot_be_added_leave_nothing(served, tmp_path, capsys, monkeypatch):
    news, output = tmp_path / "news.tsv", tmp_path / "new"
    command = ["encode-news", served.export, "--news", news, "--output", output]
    assert "no such file" in refused(capsys, *command)
    news.write_text("N30\tsports\n")
    said = refused(capsys, *command)
    assert "line 1" in said
    assert "--on_bad_line drop" in said
    inside = served.export / "more"
    assert "lies in" in refused(
        capsys, "encode-news", served.export, "--news", news, "--output", inside
    )
    shutil.copy(served.mind / "test" / "news.tsv", news)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("newsrec.serving.folder.np.save", full)
    assert "No space left" in refused(capsys, *command)
    assert [path.name for path in tmp_path.iterdir()] == ["news.tsv"]


def test_bad_lines_may_be_skipped(served, tmp_path, capsys, caplog):
    news, output = tmp_path / "news.tsv", tmp_path / "new"
    good = "\t".join(news_row("N30", "sports", "tennis", "New champion", ""))
    news.write_text(f"N29\tsports\n{good}\n")
    main(["encode-news", str(served.export), f"--news={news}", f"--output={output}",
          "--on_bad_line=drop"])  # fmt: skip
    assert "18 news items: 1 new" in capsys.readouterr().out


def test_an_export_of_a_model_without_news_can_be_given_some(served, tmp_path, capsys):
    """As of a checkpoint that is exported by somebody who has no data."""
    bare = Path(shutil.copytree(served.export, tmp_path / "bare"))
    manifest = json.loads((bare / "manifest.json").read_text())
    for name in ("news_vectors.npy", "news.parquet"):
        (bare / name).unlink()
        del manifest["files"][name]
    (bare / "manifest.json").write_text(json.dumps(manifest))
    news, output = served.mind / "dev" / "news.tsv", tmp_path / "new"
    main(["encode-news", str(bare), f"--news={news}", f"--output={output}"])
    assert "15 news items: 15 new" in capsys.readouterr().out
    assert len(recommended(capsys, output, "-k", 15)["news"]) == 15


def test_the_lines_in_the_docs_work(served, monkeypatch, capsys):
    load = Recommender.load
    monkeypatch.setattr(Recommender, "load", lambda folder, threads: load(served.export, threads))
    exec(docs_block("serve.md", "recommender.add_news"), {})
    ids, scores = capsys.readouterr().out.splitlines()
    assert len(json.loads(ids.replace("'", '"'))) == 5
    assert scores.startswith("[")


def test_the_commands_do_without_pytorch(served, tmp_path):
    code = f"""
import sys
from newsrec.__main__ import main
main(["recommend", {str(served.export)!r}, "--history", "N1"])
assert "pandas" not in sys.modules  # half of the time that the command takes
main(["encode-news", {str(served.export)!r}, "--news", {str(served.mind / "test" / "news.tsv")!r},
      "--output", {str(tmp_path / "new")!r}])
loaded = [name for name in ("torch", "lightning", "transformers") if name in sys.modules]
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.slow
def test_a_service_recommends_in_an_environment_without_torch(served, tmp_path):
    """The two lines of docs/serve.md; a registry, or pip's cache, must have the packages."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q"]
    packages = ["numpy", "onnxruntime", "tokenizers", "pyarrow"]
    constraints = REPOSITORY / "constraints.txt"
    subprocess.run([*install, "--no-deps", REPOSITORY], check=True)
    subprocess.run([*install, "-c", constraints, *packages], check=True)
    code = f"""
import importlib.util, json
from newsrec.serving import Recommender
assert importlib.util.find_spec("torch") is None
recommender = Recommender.load({str(served.export)!r})
recommender.add_news(["X1"], ["Storm"], ["weather"], ["storms"])
best = recommender.recommend(["N1", "N404"], k=5)
print(json.dumps([best.news_ids, best.scores.tolist(), best.unknown_history]))
"""
    done = subprocess.run(
        [python, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    here = Recommender.load(served.export)
    here.add_news(["X1"], ["Storm"], ["weather"], ["storms"])
    best = here.recommend(["N1", "N404"], k=5)
    news_ids, scores, unknown = json.loads(done.stdout)
    assert news_ids == best.news_ids
    assert scores == pytest.approx(best.scores.tolist(), abs=1e-6)
    assert unknown == ["N404"]


def test_an_export_needs_its_packages(served, tmp_path, capsys, monkeypatch):
    from importlib.metadata import PackageNotFoundError

    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("newsrec.export.export.version", absent)
    said = refused(capsys, "export", "--ckpt_path", served.best, "--output", tmp_path / "new")
    assert "newsrec[export]" in said


def test_the_model_of_an_export_is_built_again_of_files_as_they_were_written(served, copied):
    model = load_model(served.export)
    expected = RecommenderModule.load_from_checkpoint(served.best).recommender.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    for name in ("model.safetensors", "config.json"):
        path = copied / name
        whole = path.read_bytes()
        path.write_bytes(whole + b" ")
        with pytest.raises(UserError, match=f"{name} is not the file"):
            load_model(copied)
        path.unlink()
        with pytest.raises(UserError, match=f"{name} is missing"):
            load_model(copied)
        path.write_bytes(whole)


def test_a_recommender_is_an_export_folder_or_an_error(tmp_path):
    with pytest.raises(UserError, match=r"no manifest\.json"):
        Recommender.load(tmp_path)
