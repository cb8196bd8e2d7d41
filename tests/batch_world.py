"""An export with a real user encoder of a few operators, and Parquet files of users."""

import json

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import TensorProto, helper, numpy_helper

from newsrec.data import FIRST_NEWS
from newsrec.files import file_hash
from newsrec.serving.folder import NEWS_SCHEMA, StoredNews, with_unknown, write_news

DIM, MAX_HISTORY = 24, 6


def write_export(folder, news=60, seed=0):
    """Write an export whose user vector is the mean of the clicks through two matrices."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    weights = [rng.standard_normal((DIM, DIM)).astype(np.float32) / DIM**0.5 for _ in range(2)]
    nodes = [
        helper.make_node("Cast", ["mask"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["real", "last"], ["wide"]),
        helper.make_node("Mul", ["history", "wide"], ["clicks"]),
        helper.make_node("MatMul", ["clicks", "first"], ["inner"]),
        helper.make_node("Tanh", ["inner"], ["outer"]),
        helper.make_node("ReduceSum", ["outer", "middle"], ["sum"], keepdims=0),
        helper.make_node("MatMul", ["sum", "second"], ["user_vector"]),
    ]
    constants = {"last": np.array([2]), "middle": np.array([1])}
    constants |= {"first": weights[0], "second": weights[1]}
    graph = helper.make_graph(
        nodes,
        "user",
        [
            helper.make_tensor_value_info("history", TensorProto.FLOAT, ["b", "h", DIM]),
            helper.make_tensor_value_info("mask", TensorProto.BOOL, ["b", "h"]),
        ],
        [helper.make_tensor_value_info("user_vector", TensorProto.FLOAT, ["b", DIM])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, folder / "user_encoder.onnx")
    columns = {name: [f"{name}{i}" for i in range(news)] for name in NEWS_SCHEMA.names[2:]}
    rows = {"row": range(FIRST_NEWS, FIRST_NEWS + news), "news_id": [f"N{i}" for i in range(news)]}
    vectors = rng.standard_normal((news, DIM)).astype(np.float32)
    table = pa.table(rows | columns, schema=NEWS_SCHEMA)
    write_news(StoredNews(table, with_unknown(vectors)), folder)
    manifest = {"format": 2, "dim": DIM, "max_history": MAX_HISTORY, "max_tokens": 8}
    files = {path.name: file_hash(path) for path in folder.iterdir()}
    manifest |= {"fields": ["title"], "model_hash": f"random {seed}", "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def users_of(start, stop, news=60):
    """Return a table of the users with these numbers."""
    histories, candidates = [], []
    for number in range(start, stop):
        rng = np.random.default_rng(number)
        histories.append([f"N{i}" for i in rng.integers(0, news + 3, rng.integers(0, 10))])
        candidates.append([f"N{i}" for i in rng.permutation(news)[: rng.integers(0, 6)]])
    lists = {"history": pa.array(histories, pa.list_(pa.string())),
             "candidates": pa.array(candidates, pa.list_(pa.string()))}  # fmt: skip
    return pa.table({"user_id": [f"U{i}" for i in range(start, stop)], **lists})


def write_users(folder, sizes=(50, 0, 1, 52), news=60, group=20):
    """Write a folder of files with this many users each, in small row groups."""
    folder.mkdir()
    start = 0
    for number, size in enumerate(sizes):
        table = users_of(start, start + size, news)
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=group)
        start += size
    return folder
