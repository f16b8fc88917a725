"""What is stored of encoder states as a small ONNX graph, so that nothing else leaves an accelerator.

It takes the states of a batch as they are, padded windows and silence included, and gives the rows that are stored, one
window's after the other's. A stored row is one frame, or the mean of several; an input says of which.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike

from voxstrata.exporters.graph import GraphBuilder


def reduction_graph(
    outputs: Sequence[str], computed: DTypeLike, d_model: int, stored: DTypeLike, *, means: bool
) -> bytes:
    """The graph, serialized; `computed` is the dtype of the states, `stored` that of the rows.

    Inputs: each of `outputs` [batch, positions, d_model]; `index` int64 [rows, k], the positions of each stored row,
    counted through the batch; with `means` also `weights` float32 [rows, k, 1]. Without `means`, k is 1.
    Outputs: `stored/NAME` [rows, d_model] and `finite/NAME`, float32 scalar, 0 where all of it is finite and NaN
    otherwise. Means are taken in float32.
    Raises InputError when the package onnx is missing.
    """
    b = GraphBuilder()
    b.ints("flat", -1, d_model)
    b.constant("nought", np.array(0, np.float32))
    inputs, returned = [b.tensor("index", np.int64, ["rows", "k"])], []
    if means:
        inputs.append(b.tensor("weights", np.float32, ["rows", "k", 1]))
    for name in outputs:
        inputs.append(b.tensor(name, computed, ["batch", "positions", d_model]))
        x = b.node("Reshape", [name, "flat"], f"{name}/flat")
        x = b.node("Gather", [x, "index"], f"{name}/gathered", axis=0)
        if means:
            x = b.node("Mul", [b.cast(x, f"{name}/float32", np.float32), "weights"], f"{name}/weighted")
            x = b.node("ReduceSum", [x, b.ints("one", 1)], f"{name}/mean", keepdims=0)
        else:
            x = b.node("Reshape", [x, "flat"], f"{name}/rows")
        x = b.cast(x, f"stored/{name}", stored)
        # 0 · x is 0 for every finite x and NaN for every other, and one NaN makes the sum NaN
        x = b.node("Mul", [b.cast(x, f"{name}/as_stored", np.float32), "nought"], f"{name}/nought")
        b.node("ReduceSum", [x], f"finite/{name}", keepdims=0)
        returned += [b.tensor(f"stored/{name}", stored, ["rows", d_model]), b.tensor(f"finite/{name}", np.float32, [])]
    return b.model("voxstrata_reductions", inputs, returned)
