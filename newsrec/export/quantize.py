"""Rounds the weights of a news encoder's graph to int8, and multiplies in integers.

onnxruntime's own tool takes one scale for all news that are encoded at once, so a news item's
vector depends on the news beside it. Here each token has its own scale.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsrec.serving.manifest import WEIGHTS_BESIDE
from newsrec.serving.vectors import pack

ACTIVATION, WEIGHT = 127, 63
"""Largest numbers of activations, which are stored around ``ZERO``, and of weights. Many processors
add two products in 16 bits: ``2 * 255 * 63`` fits, so every machine gives the same integers."""
ZERO = 128
OPSET = 21
"""The first version whose QuantizeLinear and DequantizeLinear take one scale per row."""
TABLE = 2**16
"""Fewest numbers of an embedding that is rounded."""


def quantize_graph(path: Path) -> None:
    """Replace a graph by one with weights in int8.

    Matrix products with constant matrices and large embeddings are rounded; all else stays float32.

    Args:
        path: The graph, whose weights may lie in a file beside it.
    """
    import onnx

    model = onnx.load(path)
    graph = model.graph
    weights = {weight.name: weight for weight in graph.initializer}
    made = _Graph(weights)
    for node in graph.node:
        weight = weights.get(node.input[node.op_type == "MatMul"]) if len(node.input) == 2 else None
        if node.op_type == "MatMul" and weight is not None and len(weight.dims) == 2:
            made.product(node)
        elif node.op_type == "Gather" and weight is not None and np.prod(weight.dims) >= TABLE:
            made.embedding(node)
        else:
            made.nodes.append(node)
    used = {name for node in made.nodes for name in node.input}
    kept = [weight for name, weight in weights.items() if name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(made.nodes)
    graph.initializer.extend([*kept, *made.constants.values()])
    model.opset_import[0].version = max(OPSET, model.opset_import[0].version)
    path.write_bytes(model.SerializeToString())
    path.with_name(path.name + WEIGHTS_BESIDE).unlink(missing_ok=True)


class _Graph:
    """Nodes and constants of the new graph; ``weights`` are the old graph's constants."""

    def __init__(self, weights: dict[str, Any]) -> None:
        self.weights = weights
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self._rounded: set[str] = set()

    def product(self, node: Any) -> None:
        """Add a product of rows with a constant matrix."""
        rows, name = node.input
        matrix, (out,) = self._array(name), node.output
        size = matrix.shape[1]
        self._round(rows, len(matrix))
        if f"{name}/q" not in self.constants:
            scale = np.maximum(np.abs(matrix).max(axis=0), np.finfo(np.float32).tiny) / WEIGHT
            self._constant(f"{name}/q", np.rint(matrix / scale).astype(np.int8))
            self._constant(f"{name}/scale", scale.astype(np.float32))
        self._node("MatMulInteger", [f"{rows}/q", f"{name}/q", self._zero()], f"{out}/int")
        self._node("DequantizeLinear", [f"{out}/int", f"{rows}/scale"], f"{out}/rows", axis=0)
        self._node("Mul", [f"{out}/rows", f"{name}/scale"], f"{out}/scaled")
        last = self._constant(f"size/{size}", np.array([size], np.int64))
        self._node("Concat", [f"{rows}/axes", last], f"{out}/shape", axis=0)
        self._node("Reshape", [f"{out}/scaled", f"{out}/shape"], out)

    def embedding(self, node: Any) -> None:
        """Add rows of a constant table, which has one scale per row."""
        name, places = node.input
        (out,) = node.output
        table: Any = pack(self._array(name), "int8")
        self._constant(f"{name}/q", table.values)
        self._constant(f"{name}/scale", table.scales[:, None])
        self._node("Gather", [f"{name}/q", places], f"{out}/found")
        self._node("Cast", [f"{out}/found"], f"{out}/float", to=1)
        self._node("Gather", [f"{name}/scale", places], f"{out}/factor")
        self._node("Mul", [f"{out}/float", f"{out}/factor"], out)

    def _round(self, rows: str, size: int) -> None:
        """Add rows in 8 bits with one scale for each, once for all products that read them."""
        if rows in self._rounded:
            return
        self._rounded.add(rows)
        flat = self._constant(f"flat/{size}", np.array([-1, size], np.int64))
        axis = self._constant("axis", np.array([-1], np.int64))
        least = self._constant("least", np.array(1e-30, np.float32))
        most = self._constant("most", np.array(ACTIVATION, np.float32))
        self._node("Shape", [rows], f"{rows}/axes", end=-1)
        self._node("Reshape", [rows, flat], f"{rows}/flat")
        self._node("Abs", [f"{rows}/flat"], f"{rows}/abs")
        self._node("ReduceMax", [f"{rows}/abs", axis], f"{rows}/max", keepdims=0)
        self._node("Max", [f"{rows}/max", least], f"{rows}/most")
        # Not a Mul, which onnxruntime would fuse with the product, as if there were one scale.
        self._node("Div", [f"{rows}/most", most], f"{rows}/scale")
        self._node("Shape", [f"{rows}/scale"], f"{rows}/number")
        self._node("Expand", [self._zero(), f"{rows}/number"], f"{rows}/zero")
        self._node(
            "QuantizeLinear",
            [f"{rows}/flat", f"{rows}/scale", f"{rows}/zero"],
            f"{rows}/q",
            axis=0,
        )

    def _zero(self) -> str:
        return self._constant("zero", np.array(ZERO, np.uint8))

    def _array(self, name: str) -> NDArray[np.float32]:
        from onnx import numpy_helper

        return np.asarray(numpy_helper.to_array(self.weights[name]), np.float32)

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        from onnx import numpy_helper

        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(value, name)
        return name

    def _node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
