import json
import resource

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from newsrec.errors import UserError
from newsrec.export import graphs
from newsrec.export.card import model_card
from newsrec.export.export import describe
from newsrec.export.verify import compare_encoders, made_histories, newest
from newsrec.export.weights import read_model, write_model
from newsrec.files import DISK_FULL
from newsrec.metrics import METRICS
from newsrec.serving.manifest import CONFIG, NEWS_ENCODER, TOKENIZER, USER_ENCODER, WEIGHTS
from newsrec.training.checkpoint.read import weights_hash
from newsrec.training.module import RecommenderModule

MAX_HISTORY, MAX_TOKENS, DIM = 20, 12, 16


def made(plm_dir, **options):
    """An untrained model whose every part has a say."""
    torch.manual_seed(0)
    shape = {"heads": 2, "ffn": 16}
    options = {"news": shape, "user": shape, "dim": DIM} | options
    module = RecommenderModule(
        str(plm_dir), max_history=MAX_HISTORY, max_tokens=MAX_TOKENS, **options
    )
    module.configure_model()
    module.eval()
    torch.nn.init.normal_(module.recommender.user_encoder.empty)
    for encoder in (module.recommender.news_encoder, module.recommender.user_encoder):
        if encoder.gate is not None:
            torch.nn.init.constant_(encoder.gate, 0.7)
    return module


@pytest.fixture
def exported(exported_encoders):
    return exported_encoders


def test_every_form_gives_pytorchs_scores(exported):
    _, _, errors = exported
    assert set(errors) == {USER_ENCODER, NEWS_ENCODER, "user_encoder.pt2", WEIGHTS}
    assert max(errors.values()) < 1e-5


@pytest.mark.parametrize(
    "user",
    [
        {"positions": "learned"},
        {"positions": "recency", "pooling": "mean"},
        {"encoder": "transformer", "positions": "recency", "norm": "none", "ffn": None},
        {"layers": 0},
    ],
)
@pytest.mark.parametrize("residual", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_every_shape_of_user_encoder_reads_the_newest_clicks(user, residual, plm_dir):
    module = made(plm_dir, user={"heads": 2, "ffn": 16} | user, residual=residual)
    encoder = module.recommender.user_encoder
    program = graphs.trace_user_encoder(encoder, MAX_HISTORY).module()
    for rows, mask in made_histories(MAX_HISTORY, 50):
        history = torch.randn(50, DIM)[rows] * mask[..., None]
        with torch.no_grad():
            expected = encoder(*newest(history, mask, MAX_HISTORY))[:, 0]
            torch.testing.assert_close(program(history, mask), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("lengths", [[1], [0], [0, 20], [3, 0, 7, 20, 1, 0, 2, 5, 20], [35, 1]])
def test_onnx_gives_pytorchs_vectors_for_any_batch_and_history(exported, lengths):
    module, folder, _ = exported
    longest = max(*lengths, 1)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    history = torch.randn(len(lengths), longest, DIM) * mask[..., None]
    session = onnxruntime.InferenceSession(str(folder / USER_ENCODER))
    feed = {"history": history.numpy(), "mask": mask.numpy()}
    found = session.run(["user_vector"], feed)[0]
    with torch.no_grad():
        for row, length in enumerate(lengths):  # one user at a time, cut by hand
            own = history[row, max(0, length - MAX_HISTORY) : max(length, 1)][None]
            real = torch.full(own.shape[:2], length > 0)
            expected = module.recommender.user_encoder(own, real)[0, 0]
            np.testing.assert_allclose(found[row], expected, atol=1e-5)


def test_the_model_is_built_again_without_the_plm_it_came_from(exported, monkeypatch):
    module, folder, _ = exported
    monkeypatch.setattr("newsrec.model.plm.load.find_plm", lambda name: pytest.fail(name))
    again = read_model(folder / CONFIG, folder / WEIGHTS).state_dict()
    expected = module.recommender.state_dict()
    assert again.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(again[name], value, atol=0, rtol=0)


def test_weights_that_differ_from_the_model_are_refused(exported, tmp_path):
    module, folder, _ = exported
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / WEIGHTS)
    weights["user_encoder.empty"] = weights["user_encoder.empty"] * 1.01
    save_file(weights, tmp_path / WEIGHTS)
    with pytest.raises(RuntimeError, match=r"model\.safetensors differs from PyTorch"):
        compare_encoders(module, tmp_path)


def test_a_graph_that_differs_from_the_model_is_refused(exported, tmp_path):
    module, folder, _ = exported
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    graph = onnx.load(folder / NEWS_ENCODER)
    (gate,) = (w for w in graph.graph.initializer if w.name.endswith("encoder.gate"))
    gate.CopyFrom(onnx.numpy_helper.from_array(np.float32(0.8), gate.name))
    onnx.save(graph, tmp_path / NEWS_ENCODER)
    with pytest.raises(RuntimeError, match=r"news_encoder\.onnx differs from PyTorch"):
        compare_encoders(module, tmp_path)


def test_weights_on_a_full_disk_are_an_error_of_the_system(exported, tmp_path):
    module, _, _ = exported
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))  # to a writer, a full disk
    try:
        with pytest.raises(OSError, match="too large") as error:
            write_model(module, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert error.value.errno in DISK_FULL


def test_the_files_may_be_read_by_other_accounts(exported):
    _, folder, _ = exported
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.iterdir())


def test_one_model_has_one_hash_and_another_has_another(exported, plm_dir, tmp_path):
    module, folder, _ = exported
    first = describe(module, ["title"], folder)
    assert describe(module, ["title"], folder)["model_hash"] == first["model_hash"]
    assert describe(module, ["abstract"], folder)["model_hash"] != first["model_hash"]
    other = made(plm_dir)
    with torch.no_grad():
        other.recommender.user_encoder.empty += 1
    write_model(other, tmp_path)
    for name in (TOKENIZER, USER_ENCODER):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    second = describe(other, ["title"], tmp_path)
    assert second["model_hash"] != first["model_hash"]
    assert second["plm_sha256"] == first["plm_sha256"]
    assert set(first["encoders"]) == {USER_ENCODER, NEWS_ENCODER}
    assert set(second["encoders"]) == {USER_ENCODER}


def test_the_card_tells_another_folders_dev_from_trainings(exported):
    module, folder, _ = exported
    metrics = dict.fromkeys(METRICS, 0.5) | {
        "split": "dev", "window": "2019-11-15", "evaluated": 9, "selected": False,
        "intervals": {name: [0.4, 0.6] for name in METRICS}, "data_fingerprint": "ours",
    }  # fmt: skip
    origin = {"sha256": "0", "epoch": 1, "step": 1, "selected_on": "dev", "windows": {}}

    def card(fingerprint):
        checkpoint = origin | {"data_fingerprint": fingerprint}
        manifest = describe(module, ["title"], folder)
        return model_card(module, manifest | {"checkpoint": checkpoint, "metrics": metrics})

    assert "It is another dev than training's" in card({"dev": "theirs"})
    assert "another dev" not in card({"dev": "ours"})
    assert "another dev" not in card({"last_day": "theirs"})


def test_the_hash_of_weights_knows_names_types_and_shapes():
    one = torch.ones(4)
    same = [{"a": one}, {"a": one.clone()}]
    others = [{"b": one}, {"a": one.view(2, 2)}, {"a": one.double()}, {"a": one * 2}, {}]
    assert len({weights_hash(state) for state in same}) == 1
    assert len({weights_hash(state) for state in (*same, *others)}) == 6


def test_the_tokenizer_cuts_and_does_not_pad(exported):
    _, folder, _ = exported
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    assert tokenizer["truncation"]["max_length"] == MAX_TOKENS
    assert tokenizer["padding"] is None


@pytest.mark.slow
def test_weights_too_large_for_one_file_lie_beside_it(plm_dir, tmp_path, monkeypatch):
    module = made(plm_dir, user={"layers": 0})
    monkeypatch.setattr(graphs, "INSIDE", 0)
    graph = graphs.trace_user_encoder(module.recommender.user_encoder, MAX_HISTORY)
    graphs.write_onnx(graph, tmp_path / USER_ENCODER, graphs.USER_NAMES)
    assert {path.name for path in tmp_path.iterdir()} == {USER_ENCODER, f"{USER_ENCODER}.data"}
    onnxruntime.InferenceSession(str(tmp_path / USER_ENCODER))


def test_a_plm_that_cannot_be_traced_is_told_how_to_do_without(exported, monkeypatch):
    module, _, _ = exported

    def fail(*args, **kwargs):
        raise RuntimeError("data-dependent branch\nand more")

    monkeypatch.setattr(torch.export, "export", fail)
    attention = module.recommender.news_encoder.plm.config._attn_implementation
    with pytest.raises(UserError, match=r"data-dependent branch\).*--news_encoder false"):
        graphs.trace_news_encoder(module.recommender.news_encoder)
    assert module.recommender.news_encoder.plm.config._attn_implementation == attention
