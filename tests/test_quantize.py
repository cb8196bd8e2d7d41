"""A news encoder with weights in int8: what it computes, and when it is refused."""

import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from newsrec.__main__ import main
from newsrec.errors import UserError
from newsrec.export import smaller as module
from newsrec.export.catalogue import write_catalogue
from newsrec.export.graph_runs import onnx_encoder
from newsrec.export.quantize import ACTIVATION, WEIGHT, quantize_graph
from newsrec.export.smaller import Smaller, agreement, auc_loss, described
from newsrec.export.verify import made_texts
from newsrec.serving import Recommender
from newsrec.training.trained_run import TrainedRun


def run_graph(path, **feed):
    return onnxruntime.InferenceSession(str(path)).run(None, feed)


def small_graph(path, table, *matrices):
    """A graph that looks rows up and multiplies them with matrices, one after the other."""
    value = helper.make_tensor_value_info
    names = [f"weight{i}" for i in range(len(matrices))]
    nodes = [helper.make_node("Gather", ["table", "rows"], ["x"])]
    for i, name in enumerate(names):
        nodes.append(helper.make_node("MatMul", ["x" + "y" * i, name], ["x" + "y" * (i + 1)]))
    constants = dict(zip(names, matrices, strict=True)) | {"table": table}
    graph = helper.make_graph(
        nodes,
        "graph",
        [value("rows", TensorProto.INT64, ["batch", "length"])],
        [value("x" + "y" * len(matrices), TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    onnx.save(model, path)


def rounded(x, largest, axis):
    """The slow form: a symmetric rounding with one scale along an axis."""
    scale = np.abs(x).max(axis=axis, keepdims=True).astype(np.float32) / np.float32(largest)
    return np.rint(x / scale), scale


def test_products_are_those_of_rounded_rows_and_columns(tmp_path):
    rng = np.random.default_rng(0)
    table = rng.standard_normal((2500, 32)).astype(np.float32)
    table[7] = 0  # as padding
    first, second = (rng.standard_normal(shape).astype(np.float32) for shape in [(32, 48), (48, 8)])
    path = tmp_path / "graph.onnx"
    small_graph(path, table, first, second)
    rows = rng.integers(0, 2500, (3, 5))
    rows[1, 2] = 7
    (exact,) = run_graph(path, rows=rows)
    quantize_graph(path)
    types = {weight.data_type for weight in onnx.load(path).graph.initializer}
    assert TensorProto.INT8 in types
    assert path.stat().st_size < 0.4 * table.nbytes
    (found,) = run_graph(path, rows=rows)

    table[7] = 1
    numbers, scale = rounded(table, 127, 1)
    x = (numbers * scale)[rows]
    x[rows == 7] = 0
    for matrix in (first, second):
        weights, columns = rounded(matrix, WEIGHT, 0)
        kept = np.abs(x).max(axis=-1) > 0
        numbers, scale = np.zeros_like(x), np.zeros((*x.shape[:2], 1), np.float32)
        numbers[kept], scale[kept] = rounded(x[kept], ACTIVATION, 1)
        x = (numbers @ weights) * scale * columns
    # A number halfway between two integers may be rounded either way.
    np.testing.assert_allclose(found, x, atol=0.02 * np.abs(x).max())
    assert np.mean(np.isclose(found, x, rtol=1e-4, atol=1e-4 * np.abs(x).max())) > 0.8
    np.testing.assert_allclose(found, exact, atol=0.05 * np.abs(exact).max())
    assert not found[1, 2].any()


def test_no_sum_of_two_products_leaves_16_bits():
    assert 2 * 255 * WEIGHT < 2**15


def test_vectors_do_not_depend_on_the_news_beside_them(exported_encoders, tmp_path):
    trained, encoders, _ = exported_encoders
    path = tmp_path / "news_encoder.onnx"
    shutil.copy(encoders / path.name, path)
    exact = onnx_encoder(encoders / path.name, "token_ids")
    quantize_graph(path)
    encode = onnx_encoder(path, "token_ids")
    *_, (token_ids, mask) = made_texts(trained)
    together = encode(token_ids, mask)
    for row in (0, 3, 11):
        tokens = int(mask[row].sum())
        alone = encode(token_ids[row : row + 1, :tokens], mask[row : row + 1, :tokens])
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-5)
    found = agreement(exact(token_ids, mask), together)
    assert 0.98 < found["mean_cosine"] < 1
    assert found["least_cosine"] <= found["mean_cosine"]


def test_vectors_that_point_elsewhere_are_refused_though_all_share_a_direction():
    rng = torch.Generator().manual_seed(0)
    exact, other = torch.randn(2, 50, 8, generator=rng)
    same = agreement(exact + 100, exact + 100)
    assert same == pytest.approx({"mean_cosine": 1, "least_cosine": 1})
    with pytest.raises(UserError, match=r"mean cosine of -?0\.\d{4} with the exact ones; 0\.98 is"):
        agreement(exact + 100, other + 100)
    with pytest.raises(UserError, match="mean cosine of nan"):
        agreement(exact, exact * float("nan"))


@pytest.fixture(scope="module")
def trained(served):
    run = TrainedRun.open(str(served.best), str(served.without_test), "dev")
    return run.module.eval(), run.data


def test_smaller_exports_serve_what_they_were_measured_with(trained, served, tmp_path, monkeypatch):
    model, data = trained
    for name in ("user_encoder.onnx", "news_encoder.onnx"):
        shutil.copy(served.encoders / name, tmp_path)
    monkeypatch.setattr(module, "MOST_LOSS", 1)  # the world is too small for a limit of .001
    metrics, lost = write_catalogue(model, data, tmp_path, Smaller("int8", quantize=True))
    assert metrics["auc"] == pytest.approx(lost["auc"])
    assert lost["loss"] == pytest.approx(lost["whole_auc"] - lost["auc"])
    assert f"a loss of {lost['loss']:.4f}" in described(lost)
    values, scales = (np.load(tmp_path / f"news_{name}.npy") for name in ("vectors", "scales"))
    encode = onnx_encoder(tmp_path / "news_encoder.onnx", "token_ids")
    row = 5
    tokens = int(data.catalogue.token_lengths[row])
    token_ids = data.catalogue.token_ids[row : row + 1, :tokens].long()
    (expected,) = encode(token_ids, torch.ones(1, tokens, dtype=torch.bool)).numpy()
    np.testing.assert_allclose(values[row] * scales[row], expected, atol=scales[row] * 0.51)


def test_a_loss_above_the_limit_is_refused_with_both_numbers(trained):
    _, data = trained
    part = data.data.split("dev")
    right = part.labels.astype(np.float32)
    with pytest.raises(UserError, match=r"^--vectors int8: the AUC on dev is 0\.0000, and 1\.0000"):
        auc_loss(data.data, "dev", right, -right, Smaller("int8"))
    assert auc_loss(data.data, "dev", -right, right, Smaller("int8"))["loss"] == -1  # a gain
    same = auc_loss(data.data, "dev", right, right, Smaller("int8"))
    assert (same["loss"], same["loss_interval"]) == (0, [0, 0])


@pytest.mark.slow
def test_the_command_writes_a_smaller_export(served, tmp_path, monkeypatch, capsys):
    def copy_encoders(_module, _tokenizer_json, folder, _news_encoder):  # writing takes 15 s
        shutil.copytree(served.encoders, folder, dirs_exist_ok=True)
        return {"user_encoder.onnx": 0.0}

    monkeypatch.setattr(module, "MOST_LOSS", 1)
    monkeypatch.setattr("newsrec.export.export.write_encoders", copy_encoders)
    output = tmp_path / "export"
    main(["export", f"--ckpt_path={served.best}", f"--output={output}",
          f"--data.root={served.without_test}", "--vectors=float16", "--quantize"])  # fmt: skip
    assert "news_scales.npy" not in capsys.readouterr().out
    manifest = json.loads((output / "manifest.json").read_text())
    assert (manifest["format"], manifest["vectors"]) == (4, "float16")
    assert "Exported with `--vectors float16 --quantize`" in (output / "README.md").read_text()
    whole = json.loads((served.export / "manifest.json").read_text())
    assert manifest["model_hash"] != whole["model_hash"]
    recommender = Recommender.load(output, threads=1)
    ids = recommender.news["news_id"].to_pylist()
    assert len(recommender.recommend(ids[:3], k=5).news_ids) == 5
    without = tmp_path / "without"
    main(["export", f"--ckpt_path={served.best}", f"--output={without}", "--quantize"])
    assert json.loads((without / "manifest.json").read_text())["format"] == 2
