"""Models to and from the hub, against a hub on localhost and the client of huggingface_hub."""

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_hub import TOKEN, Hub
from huggingface_hub import ModelCard, constants
from test_export import made

import newsrec as nr
from newsrec.__main__ import main
from newsrec.export.pretrained import PretrainedRecommender
from newsrec.metrics import METRICS

TITLES = ["Storm closes ports along the coast", "", "A soup for cold evenings", "Storm", ""]
SHA = "0" * 64
ORIGIN = {
    "sha256": SHA, "epoch": 1, "step": 3, "selected_on": "dev", "windows": {"train": "2019-11-11"},
    "metrics": {f"val/{name}": 0.25 for name in METRICS}, "data_fingerprint": {"dev": "ours"},
    "dataset": "My world",
}  # fmt: skip
EVALUATED = dict.fromkeys(METRICS, 0.75) | {
    "split": "test", "window": "2019-11-16", "impressions": 3, "evaluated": 2,
    "intervals": {name: [0.5, 0.9] for name in METRICS}, "data_fingerprint": "x",
    "checkpoint_sha256": SHA,
}  # fmt: skip


@pytest.fixture(scope="module")
def pretrained(plm_dir):
    tokenizer_json = (plm_dir / "tokenizer.json").read_text(encoding="utf-8")
    about = {"checkpoint": ORIGIN, "metrics": None}
    return PretrainedRecommender(made(plm_dir), tokenizer_json, ["title"], about)


@pytest.fixture(scope="module")
def saved(pretrained, tmp_path_factory):
    return pretrained.save_pretrained(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub, whose users may write, and an empty cache of it."""
    server = Hub()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()


def same_model(a, b):
    a, b = a.model.state_dict(), b.model.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_folder_gives_the_model_back(pretrained, saved, monkeypatch):
    monkeypatch.setattr("newsrec.model.plm.load.find_plm", lambda name: pytest.fail(name))
    again = nr.PretrainedRecommender.from_pretrained(saved)
    assert same_model(again, pretrained)
    assert again.fields == ["title"]
    assert not again.module.training
    np.testing.assert_array_equal(again.encode(TITLES), pretrained.encode(TITLES))
    names = {"README.md", "config.json", "manifest.json", "model.safetensors", "tokenizer.json"}
    assert {path.name for path in saved.iterdir()} == names


def test_saving_again_changes_no_byte(saved, tmp_path):
    again = nr.PretrainedRecommender.from_pretrained(saved).save_pretrained(tmp_path / "again")
    for path in saved.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_pushed_model_comes_back_from_the_hub(hub, pretrained, saved, tmp_path):
    url = pretrained.push_to_hub("me/news", private=True, commit_message="First")
    (sha,) = [s for s, c in hub.repos["me/news"]["commits"].items() if c["message"] == "First"]
    assert url.endswith(f"/me/news/commit/{sha}")
    assert hub.repos["me/news"]["private"]
    files = hub.files("me/news")
    assert {n: files[n] for n in files if n[0] != "."} == {
        path.name: path.read_bytes() for path in saved.iterdir()
    }
    hub.commit("me/news", {"evil.py": b"raise SystemExit", "model.bin": b"pickle"})
    again = nr.PretrainedRecommender.from_pretrained("me/news")
    assert same_model(again, pretrained)
    assert not {"evil.py", "model.bin"} & set(hub.downloaded)
    hub.shutdown()  # the cache needs no hub
    assert same_model(nr.PretrainedRecommender.from_pretrained("me/news", sha), pretrained)


def test_a_revision_is_a_branch_or_a_commit(hub, pretrained):
    pretrained.push_to_hub("me/news")
    first = hub.repos["me/news"]["branches"]["main"]
    pretrained.push_to_hub("me/news", revision="v2", metrics=EVALUATED)
    for revision, split in ((first, "dev"), ("v2", "test")):
        card = ModelCard(hub.files("me/news", revision)["README.md"].decode())
        assert card.data.eval_results[0].dataset_split == split
    for revision in (first, "v2"):
        assert nr.PretrainedRecommender.from_pretrained("me/news", revision).fields == ["title"]
    with pytest.raises(nr.HubError, match=r"'me/news' at revision 'v3' cannot be read.*a tag or a"):
        nr.PretrainedRecommender.from_pretrained("me/news", "v3")


@pytest.mark.parametrize(
    ("metrics", "value", "split"), [(None, 0.25, "dev"), (EVALUATED, 0.75, "test")]
)
def test_the_card_has_the_metrics_in_the_hubs_form(pretrained, tmp_path, metrics, value, split):
    card = ModelCard.load(pretrained.save_pretrained(tmp_path / "m", metrics=metrics) / "README.md")
    assert card.data.library_name == "newsrec"
    found = {
        result.metric_type: (result.metric_value, result.dataset_split, result.dataset_name)
        for result in card.data.eval_results
    }
    dataset = "data" if metrics else "My world"
    names = ("auc", "mrr", "ndcg_at_5", "ndcg_at_10")
    assert found == dict.fromkeys(names, (value, split, dataset))
    assert card.data.eval_results[0].dataset_type == dataset.lower().replace(" ", "-")
    assert f"{value:.4f}" in card.text
    assert ("impressions, by evaluate" in card.text) == bool(metrics)


def test_the_card_says_that_the_skipped_news_were_drawn(pretrained, tmp_path):
    drawn = EVALUATED | {"sampled_candidates": 1234}
    folder = pretrained.save_pretrained(tmp_path / "drawn", metrics=drawn)
    told = "The 1,234 skipped news of test were drawn"
    assert told in (folder / "README.md").read_text("utf-8")
    again = nr.PretrainedRecommender.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert told in (again / "README.md").read_text("utf-8")


def test_changed_weights_have_no_metrics(plm_dir, saved, tmp_path):
    model = nr.PretrainedRecommender.from_pretrained(saved)
    with torch.no_grad():
        model.model.user_encoder.empty += 1
    with pytest.raises(nr.UserError, match="the weights were changed since"):
        model.save_pretrained(tmp_path / "changed", metrics=EVALUATED)
    folder = model.save_pretrained(tmp_path / "changed")
    card = ModelCard.load(folder / "README.md")
    assert card.data.eval_results is None
    assert "the weights were changed" in card.text
    own, other = (json.loads((f / "manifest.json").read_text()) for f in (saved, folder))
    assert own["model_hash"] != other["model_hash"]
    assert nr.PretrainedRecommender.from_pretrained(folder).encode(["x"]).shape == (1, 16)


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (EVALUATED | {"checkpoint_sha256": "1"}, "are those of the checkpoint 1, and the model is"),
        (EVALUATED | {"repeats": {"threshold": 0.9}}, "without repeat_threshold"),
        ({"split": "test", "checkpoint_sha256": SHA}, "metrics has no auc: test has no labels"),
        ("nothing.json", "'nothing.json', which is not a metrics.json that evaluate wrote"),
    ],
)
def test_metrics_of_something_else_are_refused(pretrained, tmp_path, metrics, said):
    with pytest.raises(nr.UserError, match=said):
        pretrained.save_pretrained(tmp_path / "m", metrics=metrics)
    assert not (tmp_path / "m").exists()


def spoil(saved, tmp_path, change):
    folder = Path(shutil.copytree(saved, tmp_path / "spoiled"))
    manifest = json.loads((folder / "manifest.json").read_text())
    change(folder, manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def _truncated(folder, manifest):
    (folder / "model.safetensors").write_bytes(b"x")


def _elsewhere(folder, manifest):
    manifest["files"] = {"../model.safetensors": SHA} | manifest["files"]


def _linked(folder, manifest):
    outside = folder.parent / "outside"
    (folder / "config.json").rename(outside)
    (folder / "config.json").symlink_to(outside)


def _foreign_origin(folder, manifest):
    manifest["checkpoint"] = ["x"]


def _without_weights(folder, manifest):
    del manifest["files"]["model.safetensors"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_truncated, "is not the file that manifest.json names"),
        (_elsewhere, "may have been made to write over other files"),
        (_linked, "is a link to"),
        (_foreign_origin, "cannot be read"),
        (_without_weights, "is not the file that"),
        (lambda folder, manifest: manifest.pop("plm"), "cannot be read"),
        (
            lambda folder, manifest: (folder / "tokenizer.json").unlink(),
            "tokenizer.json is missing",
        ),
    ],
)
def test_a_folder_of_a_stranger_is_checked(saved, tmp_path, change, said):
    with pytest.raises(nr.UserError, match=said):
        nr.PretrainedRecommender.from_pretrained(spoil(saved, tmp_path, change))


def test_the_hubs_links_are_followed_only_within_the_repository(hub, saved, tmp_path):
    hub.commit("me/news", {path.name: path.read_bytes() for path in saved.iterdir()})
    nr.PretrainedRecommender.from_pretrained("me/news")
    (link,) = (tmp_path / "cache").glob("models--me--news/snapshots/*/config.json")
    assert link.is_symlink()
    link.resolve().rename(tmp_path / "outside")
    link.unlink()
    link.symlink_to(tmp_path / "outside")
    with pytest.raises(nr.UserError, match="outside of the folder"):
        nr.PretrainedRecommender.from_pretrained("me/news")


@pytest.mark.parametrize(
    ("name", "revision", "said"),
    [
        (
            "no/such/folder",
            None,
            r"There is no folder no/such/folder\. .*Name a folder, or a repos",
        ),
        ("me/nothing", None, r"'me/nothing' cannot be read .*Check the name, or name a folder\."),
        ("s3://me:key@news/export", None, r"^s3://news/export is an address, and .* Copy it"),
        (".", "v1", "revision is 'v1', but . is a folder"),
        (".", None, "has no manifest.json, so it is no exported folder"),
    ],
)
def test_a_name_that_leads_nowhere_says_what_to_do(
    hub, tmp_path, monkeypatch, name, revision, said
):
    monkeypatch.chdir(tmp_path)
    for kind in (nr.PretrainedRecommender, nr.Recommender):
        with pytest.raises(nr.UserError, match=said):
            kind.from_pretrained(name, revision)


def test_without_network_the_message_says_how_to_do_without(hub, pretrained, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for ask in (nr.PretrainedRecommender.from_pretrained, pretrained.push_to_hub):
        with pytest.raises(nr.HubError, match=r"'me/news'.*HF_HUB_OFFLINE is set: unset it, or"):
            ask("me/news")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match=r"Check the network\. Without one, name a folder"):
        nr.PretrainedRecommender.from_pretrained("me/news")


def test_who_may_not_write_is_told_to_log_in(hub, pretrained, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_may_read")
    with pytest.raises(nr.HubError, match=r"Nothing was uploaded to 'me/news'.*`hf auth login`"):
        pretrained.push_to_hub("me/news")
    with pytest.raises(nr.UserError, match="is no id of a repository"):
        pretrained.push_to_hub("a/b/c")
    assert hub.repos == {}


@pytest.fixture
def export(served, tmp_path):
    return Path(shutil.copytree(served.export, tmp_path / "export"))


def test_an_export_serves_from_the_hub_without_the_news_of_its_training(hub, export):
    own = nr.Recommender.load(export)
    own.push_to_hub("me/served")
    assert not {"news.parquet", "news_vectors.npy"} & set(hub.files("me/served"))
    again = nr.Recommender.from_pretrained("me/served")
    news = TITLES[:2], ["weather", "food"], ["storms", ""]
    np.testing.assert_array_equal(again.encode_news(*news), own.encode_news(*news))
    assert len(again.news) == 0
    assert "model.safetensors" not in hub.downloaded
    own.push_to_hub("me/whole", news=True)
    whole = nr.Recommender.from_pretrained("me/whole")
    assert whole.recommend(["N1", "N2"], k=3).news_ids == own.recommend(["N1", "N2"], k=3).news_ids


def test_an_export_is_a_pretrained_model_too(export, served, tmp_path):
    model = nr.PretrainedRecommender.from_pretrained(export)
    assert same_model(model, nr.PretrainedRecommender.from_checkpoint(served.best))
    news = TITLES * 2, ["weather"] * 10, ["storms"] * 10
    expected = nr.Recommender.load(export).encode(*news, batch_size=3)
    np.testing.assert_allclose(model.encode(*news), expected, atol=1e-5)
    folder = model.save_pretrained(tmp_path / "again")
    split = ModelCard.load(folder / "README.md").data.eval_results[0].dataset_split
    assert split == "dev"
    with pytest.raises(
        nr.UserError, match=r"has no user_encoder\.onnx: save_pretrained writes only"
    ):
        nr.Recommender.load(folder)


def test_the_command_publishes_its_export(hub, export, tmp_path, monkeypatch, capsys):
    def copy(ckpt_path, output, *_):
        shutil.copytree(export, output)

    monkeypatch.setattr("newsrec.commands.export.export", copy)
    argv = ["export", "--ckpt_path=x.ckpt", f"--output={tmp_path / 'one'}", "--push=me/one"]
    main([*argv, "--private"])
    assert f"{hub.endpoint}/me/one/commit/" in "".join(capsys.readouterr().out.split())
    assert hub.repos["me/one"]["private"]
    monkeypatch.setenv("HF_TOKEN", "hf_may_read")
    argv[2] = f"--output={tmp_path / 'two'}"
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert "publishes it later" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "two").is_dir()
    with pytest.raises(SystemExit):
        main([*argv[:2], f"--output={tmp_path / 'three'}", "--push=a/b/c"])
    assert "'a/b/c' is no id of a repository" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(SystemExit):
        main([*argv[:2], f"--output={tmp_path / 'three'}", "--private"])
    assert "--private is for --push" in capsys.readouterr().err
    assert not (tmp_path / "three").exists()


@pytest.fixture(params=["torch", "onnx"])
def encoder(request):
    """A function that encodes titles; both kinds have the same habits."""
    if request.param == "torch":
        return request.getfixturevalue("pretrained"), {}
    served = request.getfixturevalue("served")
    return nr.Recommender.load(served.export), {
        "categories": ["food"],
        "subcategories": ["recipes"],
    }


def test_titles_come_back_in_their_order_whatever_the_batch(encoder):
    model, more = encoder
    more = {name: value * len(TITLES) for name, value in more.items()}
    found = model.encode(TITLES, **more)
    assert found.dtype == np.float32
    assert found.shape == (len(TITLES), 16)
    single = [model.encode(title, **{n: value[0] for n, value in more.items()}) for title in TITLES]
    assert single[0].shape == (16,)
    for batch_size in (1, 2, 64):
        again = model.encode(TITLES, **more, batch_size=batch_size, show_progress_bar=True)
        np.testing.assert_allclose(again, single, atol=1e-6)
    np.testing.assert_array_equal(found[1], found[4])
    scaled = model.encode(TITLES, **more, normalize_embeddings=True)
    np.testing.assert_allclose(
        scaled, found / np.linalg.norm(found, axis=1, keepdims=True), atol=1e-6
    )
    assert model.encode([], **{name: [] for name in more}).shape == (0, 16)


@pytest.mark.parametrize(
    ("titles", "options", "said"),
    [
        ([1], {}, r"titles\[0\] is 1, a int; it must be a string"),
        (["x"], {"batch_size": 0}, "batch_size is 0; it must be 1 or more"),
        (["x"], {"categories": ["a", "b"]}, "titles has 1 entries and categories 2"),
    ],
)
def test_wrong_titles_are_named(pretrained, titles, options, said):
    with pytest.raises(nr.UserError, match=said):
        pretrained.encode(titles, **options)


def test_encoding_leaves_a_model_in_training_as_it_was(pretrained, saved):
    model = nr.PretrainedRecommender.from_pretrained(saved)
    model.module.train()
    np.testing.assert_array_equal(model.encode(TITLES), pretrained.encode(TITLES))
    assert model.module.training
