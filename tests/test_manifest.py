"""Folders that a stranger made: what a manifest and the files beside it may not do."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
from conftest import refused

from newsrec.__main__ import main
from newsrec.errors import UserError
from newsrec.export.export import describe
from newsrec.export.weights import load_model
from newsrec.files import file_hash
from newsrec.serving import Recommender
from newsrec.serving.folder import StoredNews, write_news
from newsrec.serving.manifest import LARGEST_MANIFEST, read_manifest, settings_hash


@pytest.fixture
def export(exported_encoders, tmp_path):
    """An export with two news items, in a folder with others above it."""
    module, encoders, _ = exported_encoders
    folder = Path(shutil.copytree(encoders, tmp_path / "stranger" / "made" / "export"))
    (folder / "manifest.json").write_text(json.dumps(describe(module, ["title"], folder)))
    rewrite(folder)
    return folder


def rewrite(folder, **changes):
    """Write the manifest anew, as whoever has the folder can: every hash agrees."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and p != path)
    manifest["files"] = {name: file_hash(folder / name) for name in names}
    manifest |= changes
    manifest["settings_hash"] = settings_hash(manifest)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "name",
    ["../../.bashrc", "{absolute}/.bashrc", "sub/.bashrc", "..", "", ".bashrc", "manifest.json"],
)
def test_encode_news_writes_nothing_outside_of_its_output(export, tmp_path, capsys, name):
    (tmp_path / ".bashrc").write_text("mine")
    (export.parent.parent / ".bashrc").write_text("theirs")
    name = name.format(absolute=tmp_path)
    files = {"user_encoder.onnx": file_hash(export / "user_encoder.onnx")}
    target = export / name
    rewrite(export, files=files | {name: file_hash(target) if target.is_file() else "0" * 64})
    news = tmp_path / "news.tsv"
    news.write_text("N1\tsports\ttennis\tA champion\t\t\t\t\n")
    before = sorted(tmp_path.rglob("*"))
    output = tmp_path / "one" / "two"
    said = refused(capsys, "encode-news", export, "--news", news, "--output", output)
    assert f"files names {name!r}"[:70] in said
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / ".bashrc").read_text() == "mine"


def test_a_card_that_is_a_link_is_not_copied(export, tmp_path):
    (tmp_path / "secret").write_text("A key.\n")
    (export / "README.md").symlink_to(tmp_path / "secret")
    news, output = tmp_path / "news.tsv", tmp_path / "new"
    news.write_text("N1\tsports\ttennis\tA champion\t\t\t\t\n")
    main(["encode-news", str(export), f"--news={news}", f"--output={output}"])
    assert not (output / "README.md").exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "model_card.md", "user_encoder.onnx"])
def test_a_link_out_of_the_folder_is_neither_read_nor_copied(export, tmp_path, capsys, name):
    secret = tmp_path / "secret"
    secret.write_text("A key.\n")
    (export / name).unlink(missing_ok=True)
    (export / name).symlink_to(secret)
    rewrite(export)
    news, output = tmp_path / "news.tsv", tmp_path / "new"
    news.write_text("N1\tsports\ttennis\tA champion\t\t\t\t\n")
    said = refused(capsys, "encode-news", export, "--news", news, "--output", output)
    assert f"{name} is a link to {secret}, outside of the folder" in said
    assert not output.exists()


def test_a_link_within_the_folder_and_a_linked_folder_are_read(export, tmp_path):
    (export / "tokenizer.json").rename(export / "real")
    (export / "tokenizer.json").symlink_to("real")
    (tmp_path / "current").symlink_to(export)
    assert Recommender.load(tmp_path / "current", threads=1).encode_news(["Rain"]).shape == (1, 16)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_history", 0),
        ("max_history", -3),
        ("max_history", True),
        ("max_history", 50.0),
        ("max_tokens", -1),
        ("max_tokens", 0),
        ("max_tokens", 2**70),
        ("dim", 10**9),
        ("fields", []),
        ("fields", ["titel"]),
        ("fields", [["title"]]),
        ("category_names", {"category": "sports"}),
        ("category_names", {"title": ["sports"]}),
        ("model_hash", 7),
        ("files", {"user_encoder.onnx": 7}),
        ("files", {"user_encoder.onnx": "../../x"}),
        ("added_news", {"file": "x"}),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(export, name, value):
    rewrite(export, **{name: value})
    with pytest.raises(UserError, match=rf"manifest\.json: {name} is .*, and should be "):
        Recommender.load(export)


def test_a_changed_digit_of_a_setting_is_noticed(export):
    """Each of these is a value that could be, and other answers than the model's."""
    path = export / "manifest.json"
    whole = path.read_text()
    for old, new in (('"max_history": 20', '"max_history": 2'), ('"title"', '"abstract"')):
        assert whole.count(old) == 1
        path.write_text(whole.replace(old, new))
        with pytest.raises(UserError, match="is not as it was written"):
            Recommender.load(export)
    path.write_text(whole)
    without = {k: v for k, v in json.loads(whole).items() if k != "settings_hash"}
    path.write_text(json.dumps(without))  # a folder of the first version
    assert Recommender.load(export, threads=1).user_vector([]).shape == (16,)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000 + "]" * 100_000, "RecursionError"),
        ("[1]", "TypeError"),
        ("", "JSONDecodeError"),
        ("\udcff", "UnicodeDecodeError"),
        ('{"format": 1' + "0" * 5000 + "}", "ValueError"),
        (" " * (LARGEST_MANIFEST + 1), "larger than"),
    ],
)
def test_a_manifest_that_is_none_is_one_kind_of_error(tmp_path, text, words):
    (tmp_path / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=words):
        read_manifest(tmp_path)


def break_npz(folder):
    with (folder / "news_vectors.npy").open("wb") as file:
        np.savez(file, np.zeros((3, 16), np.float32))


def break_column(folder):
    table = pq.read_table(folder / "news.parquet").drop_columns(["title"])
    pq.write_table(table, folder / "news.parquet")


def break_tokenizer(folder):
    (folder / "tokenizer.json").write_text('{"model": {"type": "WordPiece"}}')


def break_graph(folder):
    (folder / "news_encoder.onnx").write_bytes(b"\x08\x0a" * 100)


def break_names(folder):
    """The user encoder in the news encoder's place."""
    shutil.copy(folder / "user_encoder.onnx", folder / "news_encoder.onnx")


def break_weights(folder):
    """Weights that lie outside of the folder, as ONNX can say it."""
    graph = onnx.load(folder / "user_encoder.onnx")
    weight = max(graph.graph.initializer, key=lambda w: len(w.raw_data))
    (folder.parent / "weights.bin").write_bytes(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../weights.bin")
    (folder / "user_encoder.onnx").write_bytes(graph.SerializeToString())


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (break_npz, r"news_vectors\.npy cannot be read"),
        (lambda folder: (folder / "news_vectors.npy").write_bytes(b""), "cannot be read"),
        (break_column, r"news\.parquet has no column title"),
        (lambda folder: (folder / "news.parquet").write_bytes(b"PAR1PAR1"), "cannot be read"),
        (break_tokenizer, r"tokenizer\.json cannot be read"),
        (break_graph, r"news_encoder\.onnx cannot be read"),
        (break_names, r"news_encoder\.onnx takes history, mask; it should take mask and token_ids"),
        (break_weights, r"user_encoder\.onnx cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_kind_of_error(export, spoil, words):
    recommender = Recommender.load(export, threads=1)
    recommender.add_news(["N1", "N2"], ["Rain", "Snow"])
    write_news(StoredNews(recommender.news, recommender.news_vectors), export)
    rewrite(export)
    Recommender.load(export, threads=1).encode_news(["Rain"])
    spoil(export)
    rewrite(export)
    with pytest.raises(UserError, match=words):
        Recommender.load(export, threads=1).encode_news(["Rain"])


def test_a_folder_that_may_not_be_read_is_one_kind_of_error(export, monkeypatch):
    """As root may read everything, the refusal is played."""

    def forbidden(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("newsrec.serving.folder.file_hash", forbidden)
    with pytest.raises(UserError, match=r"user_encoder\.onnx cannot be read \(PermissionError"):
        Recommender.load(export)
    monkeypatch.setattr(Path, "read_text", lambda path, **_: forbidden(path))
    with pytest.raises(UserError, match=r"manifest\.json cannot be read \(PermissionError"):
        Recommender.load(export)


ATTENTION = "may be sdpa, eager"


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("plm", "attn_implementation"), "kernels-community/flash-attn", ATTENTION),
        (("plm", "_attn_implementation_internal"), "flash_attention_2", ATTENTION),
        (("plm", "quantization_config"), {"quant_method": "bitsandbytes"}, "other packages"),
        (("plm", "num_hidden_layers"), 10**6, "more parts than there are weights"),
        (("plm", "num_hidden_layers"), 10**9, "which no PLM has"),
        (("plm", "hidden_size"), 10**6, "and should have"),
        (("model", "dim"), 10**9, "model.dim is 1000000000, which no model has"),
        (("model", "dim"), "16", "model.dim is '16', and should be"),
        (("model", "user", "heads"), 10**9, "which no model has"),
        (("model", "abstract_tokens"), -3, "model.abstract_tokens is -3, which no model has"),
        (("model", "user", "layers"), -1, "model.user.layers is -1, which no model has"),
        (("model", "colour"), 1, "does not know"),
        (("model",), [], "model is a list of 0, and should be"),
    ],
)
def test_the_model_of_a_stranger_is_checked_before_it_is_built(export, place, value, words):
    """As a checkpoint's: what the manifest agrees with may still ask for packages or memory."""
    path = export / "config.json"
    node = options = json.loads(path.read_text())
    for name in place[:-1]:
        node = node[name]
    node[place[-1]] = value
    path.write_text(json.dumps(options))
    rewrite(export)
    with pytest.raises(UserError, match=r"config\.json is not as it was written") as error:
        load_model(export)
    assert words in str(error.value)


def test_a_pointer_to_code_in_an_export_is_taken_out(export):
    path = export / "config.json"
    options = json.loads(path.read_text())
    options["plm"]["auto_map"] = {"AutoModel": "stranger/model--code.Evil"}
    path.write_text(json.dumps(options))
    rewrite(export)
    assert not hasattr(load_model(export).news_encoder.plm.config, "auto_map")
